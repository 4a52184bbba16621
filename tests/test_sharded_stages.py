"""Stages that map over shards: a kill costs one shard, several processes make the same, and memory holds one shard."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from irpipe.pipeline import shards
from irpipe.pipeline.stage import Context, Inputs
from irpipe.schemas.images import IMAGES, ROWS_PER_GROUP
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.scores import SCORES
from irpipe.stages.import_images import run as importing
from irpipe.stages.prompt_graph import parts
from irpipe.stages.score_images import ScoreImagesConfig
from irpipe.stages.score_images import run as scoring

RECIPE = """
recipe = "sharded"
[simulate-prompts]
count = 100
[embed-prompts]
embedder = "lexical"
shard_size = 16
[prompt-graph]
k = 5
index = "ivf"
probes = 3
sets = 2
[select-prompts]
count = 24
[generate-images]
models = ["micro-generator"]
num_steps = 1
guidance_scale = 1.0
dtype = "float32"
shard_size = 24
[import-images]
layout = "folder"
image_root = "images"
[score-images]
scorers = ["random"]
[score-images.reads]
images = "generate-images"
"""
STAGES = ["embed-prompts", "prompt-graph", "generate-images", "import-images", "score-images"]
SMALL = 32  # rows per shard of the stages without a setting for it

# Runs the command line and kills the process once so many shards are made.
KILLED = f"""
import os, signal, sys
from irpipe.pipeline import shards
from irpipe.stages.import_images import run as importing
from irpipe.stages.prompt_graph import parts
from irpipe.stages.score_images import run as scoring
parts.INDEXED_ROWS = 16
importing.ROWS_PER_SHARD = scoring._ROWS_PER_SHARD = {SMALL}
left, real = int(sys.argv.pop(1)), shards.Durable.__call__
def call(self, shard, path):
    global left
    real(self, shard, path)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
shards.Durable.__call__ = call
from irpipe.cli import main
main()
"""


@pytest.fixture
def sharded(project, pool_renders, monkeypatch):
    """A project whose stages cut small shards, and the names of the shards that were made."""
    (project.root / "images").symlink_to(pool_renders)
    project.recipe(RECIPE)
    monkeypatch.setattr(parts, "INDEXED_ROWS", 16)
    monkeypatch.setattr(importing, "ROWS_PER_SHARD", SMALL)
    monkeypatch.setattr(scoring, "_ROWS_PER_SHARD", SMALL)
    made, real = [], shards.Durable.__call__

    def call(self, shard, path):
        real(self, shard, path)
        made.append(f"{path.parent.name}/{path.name}")

    monkeypatch.setattr(shards.Durable, "__call__", call)
    return SimpleNamespace(project=project, made=made)


@pytest.mark.parametrize("stage", STAGES)
def test_a_kill_costs_no_finished_shard(sharded, stage):
    project, made = sharded.project, sharded.made
    project.run(
        {"embed-prompts": "simulate-prompts", "prompt-graph": "embed-prompts", "score-images": "generate-images"}.get(
            stage, "select-prompts"
        )
    )
    made.clear()
    command = [sys.executable, "-c", KILLED, "4", "run", stage, "--quiet"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    resumed = project.last(stage)["content_id"]
    after = list(made)
    made.clear()
    assert project("run", stage, "--force", "--json").events[-1]["content_id"] == resumed
    assert len(made) > 4 and len(after) == len(made) - 4 and set(after) < set(made)


@pytest.mark.parametrize("stage", ["embed-prompts", "prompt-graph", "import-images", "score-images"])
def test_several_processes_make_the_same(sharded, stage):
    project, made = sharded.project, sharded.made
    one = project.last(stage)["content_id"]
    made.clear()
    done = project("run", stage, "--force", "--json", "--set", f"{stage}.num_processes=2")
    assert done.events[-1]["content_id"] == one and not made, "none was made in this process"
    record = project.store.lookup(done.events[-1]["key"])
    assert (record.processes, record.threads) == (2, 1)


def test_an_executor_without_effect_is_an_error(sharded):
    flags = ("embed-prompts.executor=inline", "embed-prompts.num_processes=2")
    assert "executor = 'inline' is one process" in sharded.project.run("embed-prompts", *flags, status=2).err


class TestScores:
    """`score-images` on tables that are made here."""

    def images(self, folder: Path, count: int) -> list[Path]:
        """So many images, all alike."""
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        ids = np.arange(count, dtype=np.uint64)
        columns = {
            "image_id": ids,
            "prompt_id": ids // 4,
            "image": [{"bytes": buffer.getvalue(), "path": "x"}] * count,
            "generator": ["a" if number % 3 else None for number in range(count)],
        }
        arrays = [
            pa.array(columns[field.name], field.type)
            if field.name in columns
            else pa.array([None if field.nullable else 0 if pa.types.is_integer(field.type) else ""] * count, field.type)
            for field in IMAGES.schema
        ]
        pq.write_table(
            pa.Table.from_arrays(arrays, schema=IMAGES.schema), folder / "images.parquet", row_group_size=ROWS_PER_GROUP
        )
        return [folder / "images.parquet"]

    def run(self, folder: Path, count: int, context: Context) -> Path:
        files = self.images(folder, count)
        prompts = {"pick": range(count), "prompt_id": range(count), "prompt": ["a"] * count, "source_row": range(count)}
        SELECTED_PROMPTS.write(folder, prompts | dict.fromkeys(("vote_score", "set"), [None] * count))
        tables = {"images": files, "selected_prompts": [folder / "selected_prompts.parquet"]}
        artifact = SimpleNamespace(table=tables.__getitem__)
        inputs = Inputs({"images": ("images", artifact), "selected-prompts": ("select-prompts", artifact)})
        config = ScoreImagesConfig(scorers=("random",))
        (folder / "out").mkdir()
        tracemalloc.start()
        scoring.run(config, inputs, folder / "out", context)
        return folder / "out" / "scores.parquet"

    def test_memory_does_not_grow_with_the_images_that_are_listed(self, tmp_path, context):
        peaks = []
        for count in (4_000, 16_000):
            folder = tmp_path / str(count)
            (folder / "work").mkdir(parents=True)
            try:
                self.run(folder, count, Context(folder / "work", context.progress, context.say, {}))
                peaks.append(tracemalloc.get_traced_memory()[1])
            finally:
                tracemalloc.stop()
        assert (peaks[1] - peaks[0]) / 12_000 < 100, "bytes per image; a row as a dict takes 400"

    @pytest.mark.parametrize("rows", [7, 512, 5000])
    def test_shards_do_not_show_in_the_file(self, tmp_path, rows):
        """The same bytes as from one table of all rows."""
        count, names = 3000, ("random", "clip")
        generators = [("sd", "dalle", None, "x")[number // 700 % 4] for number in range(count)]
        ids, numbers = np.arange(count, dtype=np.uint64), np.arange(count, dtype=np.float64)
        with SCORES.writer(tmp_path / "whole.parquet") as writer:
            for name in names:
                known = {"scorer": [name] * count, "image_id": ids, "prompt_id": ids // 4, "generator": generators}
                writer.append(known | {"score": numbers / 2, "raw": numbers})
        scoring.write_scores(names, list(self.cut(tmp_path, rows, ids, generators, numbers, names)), tmp_path)
        assert (tmp_path / "scores.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()

    def cut(self, folder, rows, ids, generators, numbers, names) -> Iterator[Path]:
        for start in range(0, len(ids), rows):
            part = slice(start, start + rows)
            columns = {"image_id": ids[part], "prompt_id": ids[part] // 4, "generator": pa.array(generators[part], pa.string())}
            columns["reason"] = pa.nulls(len(ids[part]), pa.string())
            for name in names:
                columns |= {scoring.SCORE.format(name): numbers[part] / 2, scoring.RAW.format(name): numbers[part]}
            pq.write_table(pa.table(columns), folder / f"{start}.shard")
            yield folder / f"{start}.shard"
