"""Exports: the tools they are for load them, their cards hold whatever is in them, and they appear whole or not at all."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from irpipe.cli.keep import ExportKind
from irpipe.exports import EXPORTERS
from irpipe.exports.dataset import config_names, split_name
from irpipe.exports.markup import code, fenced, flow, front_matter, plain, quoted, toml
from irpipe.pipeline.external import shipped_folder
from irpipe.schemas.generator import GeneratorCard
from tests.paired import RECIPE

HOSTILE = [
    "---",
    "\n---\n",
    "a\n---\nb: [",
    "`",
    "```\ncode",
    "<script>alert(1)</script>",
    "a | b",
    "line\r\nline",
    "\x00\x1b[31m\x7f\x85",
    "\u2028\u2029\ufeff",
    '"quoted" \\ back',
    "# heading",
    "![x](javascript:y)",
    "*bold* _it_ ~~no~~ $x$",
    "  spaces  ",
    "",
    "😀 é Köln",
    "{a: b}",
    "- item",
    "&amp; &#60;",
    "%TAG ! x",
    "!!python/object:x",
]

# A stage of somebody's own, whose tables and texts are as unlike ours as they may be.
ODD = {
    "odd/__init__.py": """
from irpipe.pipeline.stage import Config, Stage, setting
class OddConfig(Config):
    text: str = setting("", meaning="Any text.")
    tables: str = setting("odd", meaning="What to write.")
STAGE = Stage(name="odd", version=1, writes="odd", config=OddConfig, run="odd.run:run")
""",
    "odd/run.py": """
import pyarrow as pa
import pyarrow.parquet as pq
from irpipe.pipeline.stage import Report, Rows
def run(config, inputs, out, context):
    (out / "notes.txt").write_text("notes")
    if config.tables == "none":
        return Report(Rows(0, 0, 0))
    text = [config.text] * 4
    splits = pa.array(["test", "all", None, "in-the-wild"]).dictionary_encode()
    columns = {"text": text, "split": splits, "digest": pa.array([b"ab"] * 4, pa.binary(2)), config.text or "x": [1, 2, 3, 4]}
    pq.write_table(pa.table(columns), out / "odd.parquet")
    (out / "sub" / "all[0-9]").mkdir(parents=True)
    for number in range(2):
        pq.write_table(pa.table({"number": [number]}), out / "sub" / "all[0-9]" / f"{number:05}.parquet")
    pq.write_table(pa.table({"number": [0]}), out / "lineage.parquet")
    pq.write_table(pa.table({"number": [0]}), out / "class.parquet")
    pq.write_table(pa.table({"row": [0], "reason": [config.text]}), out / "rejected.parquet")
    pq.write_table(pa.table({"number": pa.array([], pa.int64())}), out / "nothing.parquet")
    return Report(Rows(4, 4, 0))
""",
}


@pytest.fixture
def odd(project, tmp_path, monkeypatch, install):
    """A project whose only stage is somebody's own."""
    site = tmp_path / "site"
    for name, text in ODD.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(site))
    install({"odd": "odd:STAGE"})
    project.recipe('recipe = "odd"\n[odd]\n')
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "odd"]:
        del sys.modules[name]


@pytest.fixture
def load(tmp_path, monkeypatch):
    """`datasets.load_dataset`, offline and with a cache of its own."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()

    def loaded(folder: Path, *arguments: str) -> Any:
        return datasets.load_dataset(str(folder), *arguments, cache_dir=str(tmp_path / "cache"))

    return loaded


def front(folder: Path) -> dict[str, Any]:
    """A card's YAML, as everybody reads it: up to the first line of three dashes after the first."""
    lines = (folder / "README.md").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "---"
    return yaml.safe_load("\n".join(lines[1 : lines.index("---", 1)]))


def text_of(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def blocks(folder: Path, language: str) -> list[str]:
    """The card's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)\n```$", text_of(folder), re.MULTILINE | re.DOTALL)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def newest(project, stage):
    return project.store.newest("micro", stage)


def digest_tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {name: ((folder / name).stat().st_mode, (folder / name).read_bytes()) for name in files(folder)}


def assert_made_by_its_card(project, folder: Path, more: int = 0) -> None:
    """Under the card's recipe, its command has nothing to do: every key is what it was.

    Args:
        more: nodes beyond one per table.
    """
    (recipe,), (command,) = blocks(folder, "toml"), blocks(folder, "sh")
    project.recipe(recipe)
    told = project(*command.split()[1:]).err
    assert told.count("reused") == len(tomllib.loads(recipe)) - 1 + more and "runs, since" not in told


def without(text: str, stage: str, line: str) -> str:
    """A recipe without one line of one stage's table."""
    before, table, after = text.partition(f"\n[{stage}]\n")
    assert f"\n{line}\n" in after
    return before + table + after.replace(f"{line}\n", "", 1)


def test_every_kind_has_its_exporter():
    assert sorted(kind.value for kind in ExportKind) == sorted(EXPORTERS)


class TestDataset:
    def test_pairs_load_by_split(self, rm, tmp_path, load):
        rm("export", "build-pairs", str(tmp_path / "pairs"), "--to", "hf-dataset")
        loaded = load(tmp_path / "pairs", "pairs")
        assert list(loaded) == ["train", "validation", "test"]
        for split, rows in loaded.items():
            ours = rm.rows(f"SELECT * FROM pairs WHERE split = '{split}'")
            assert [f"{row:016x}" for row in rows["pair_id"]] == [row["pair_id"] for row in ours]
            assert rows["annotator"] == [row["annotator"] for row in ours]
            assert set(rows["split"]) == {split}
        assert load(tmp_path / "pairs")["train"].column_names == loaded["train"].column_names, "the pairs are the default"

    def test_rejected_pairs_are_split_as_pairs_are(self, rm, tmp_path, load):
        rm("export", "build-pairs", str(tmp_path / "pairs"), "--to", "hf-dataset")
        rejected = load(tmp_path / "pairs", "rejected")
        rows = rm.rows(
            "SELECT s.split, count(*) AS n FROM build_pairs.rejected JOIN prompt_splits s USING (prompt_id) GROUP BY s.split"
        )
        assert {split: len(part) for split, part in rejected.items()} == {row["split"]: row["n"] for row in rows}
        rm("export", "split-prompts", str(tmp_path / "splits"), "--to", "hf-dataset")
        splits = load(tmp_path / "splits", "prompt_splits")
        for split, part in rejected.items():
            assert set(part["prompt_id"]) <= set(splits[split]["prompt_id"])

    def test_images_decode(self, rm, tmp_path, load):
        rm("export", "generate-images", str(tmp_path / "images"), "--to", "hf-dataset")
        loaded = load(tmp_path / "images", "images")
        assert list(loaded) == ["full"], "nobody said that they may be trained on"
        (count,) = rm.rows("SELECT count(*) AS n FROM images")
        row = loaded["full"][0]
        assert len(loaded["full"]) == count["n"]
        assert (row["image"].width, row["image"].height) == (row["width"], row["height"])
        assert np.asarray(row["image"]).std() > 0

    def test_every_table_of_every_stage_loads(self, rm, tmp_path, load):
        seen = set()
        for record in list(rm.store.records()):
            tables = rm.store.open(record.content_id).manifest.tables
            folder = tmp_path / record.stage
            if not any(table.rows for table in tables.values()):
                continue
            rm("export", record.content_id, str(folder), "--to", "hf-dataset")
            configs = {config["config_name"] for config in front(folder)["configs"]}
            assert configs == {name for name, table in tables.items() if table.rows}
            for file in folder.rglob("*.parquet"):
                kinds = pq.read_schema(file).types
                assert not any(pa.types.is_dictionary(kind) or pa.types.is_fixed_size_binary(kind) for kind in kinds), file
            for name, table in tables.items():
                if table.rows:
                    loaded = load(folder, name)
                    assert sum(len(part) for part in loaded.values()) == table.rows, (record.stage, name)
                    assert sorted(loaded[next(iter(loaded))].column_names) == sorted(table.columns)
                    seen.add(name)
        assert {"pairs", "images", "truth", "ratings", "prompts", "edges", "selected_prompts"} <= seen

    def test_the_card_tells_what_the_schemas_say_and_how_to_make_it_again(self, rm, tmp_path):
        from irpipe.schemas.pairs import PAIRS

        rm("export", "build-pairs", str(tmp_path / "pairs"), "--to", "hf-dataset")
        card, record = text_of(tmp_path / "pairs"), newest(rm, "build-pairs")
        assert PAIRS.doc in card
        for column in PAIRS.columns:
            assert re.search(rf"^\| `{column.name}` \| `\w+` \| {re.escape(plain(column.doc))} \|$", card, re.MULTILINE), (
                column.name
            )
        assert record.key in card and record.content_id in card
        for ancestor in rm.store.records():
            assert (ancestor.content_id in card) == (ancestor.stage != "oracle-truth")
        for row in rm.rows("SELECT reason, count(*) AS n FROM build_pairs.rejected GROUP BY reason"):
            assert f"| {row['reason']} | {row['n']:,} |" in card
        assert f"{record.rows['read']:,} read" in card
        assert "license" not in front(tmp_path / "pairs") and "The licences of the inputs apply" in card
        (recipe,) = blocks(tmp_path / "pairs", "toml")
        assert tomllib.loads(recipe)["generate-images"]["num_steps"] == 8
        assert_made_by_its_card(rm, tmp_path / "pairs")

    def test_the_points_of_a_grid_are_one_table(self, rm, tmp_path, load):
        rm.run("sweep-rm")
        rm("export", "sweep-rm", str(tmp_path / "sweep"), "--to", "hf-dataset")
        assert len(load(tmp_path / "sweep")["full"]) == 2
        assert_made_by_its_card(rm, tmp_path / "sweep", more=1)

    def test_the_lineage_comes_with_it(self, rm, tmp_path):
        rm("export", "build-pairs", str(tmp_path / "pairs"), "--to", "hf-dataset")
        rm("export", "build-pairs", str(tmp_path / "files"))
        records = [name for name in files(tmp_path / "files") if name.startswith("lineage/")]
        assert records == [name for name in files(tmp_path / "pairs") if name.startswith("lineage/")]
        stages = {name.removeprefix("lineage/").rpartition("-")[0] for name in records}
        assert stages == {record.stage for record in rm.store.records()} - {"oracle-truth"}

    def test_the_truth_is_marked(self, rm, tmp_path):
        rm("export", "oracle-truth", str(tmp_path / "truth"), "--to", "hf-dataset")
        rm("export", "build-pairs", str(tmp_path / "pairs"), "--to", "hf-dataset")
        assert "For evaluation only" in text_of(tmp_path / "truth")
        assert "For evaluation only" not in text_of(tmp_path / "pairs")

    def test_an_artifact_without_tables(self, rm, tmp_path):
        told = rm("export", "simulate-annotations", str(tmp_path / "x"), "--to", "hf-dataset", status=2).err
        assert "'annotation-files', which cannot be exported to hf-dataset" in told
        assert "build-pairs" in told and "--to files" in told
        assert not (tmp_path / "x").exists()

    def test_tables_of_any_name_and_splits_of_any_name(self, odd, tmp_path, load):
        odd.run("odd", "odd.text=x")
        odd("export", "odd", str(tmp_path / "odd"), "--to", "hf-dataset")
        loaded = load(tmp_path / "odd", "odd")
        assert {name: len(rows) for name, rows in loaded.items()} == {"test": 1, "all_": 1, "in_the_wild": 1, "unassigned": 1}
        assert loaded["unassigned"][0]["split"] is None and loaded["all_"][0]["digest"] == b"ab"
        assert load(tmp_path / "odd", "sub-all-0-9")["full"]["number"][:] == [0, 1]
        assert load(tmp_path / "odd", "lineage_2")["full"]["number"][:] == [0]
        assert "nothing" in text_of(tmp_path / "odd")
        assert "nothing" not in {config["config_name"] for config in front(tmp_path / "odd")["configs"]}
        compile(blocks(tmp_path / "odd", "python")[0], "card", "exec")
        assert "notes.txt" in text_of(tmp_path / "odd"), "what is left out is named"

    @pytest.mark.parametrize("text", [text for text in HOSTILE if "\x00" not in text and text.strip()])
    def test_no_text_breaks_a_card(self, odd, tmp_path, load, text):
        odd.recipe(f'recipe = "odd"\n[odd]\ntext = {toml(text)}\n')
        odd.run("odd")
        odd("export", "odd", str(tmp_path / "odd"), "--to", "hf-dataset")
        assert front(tmp_path / "odd")["pretty_name"] == "odd of odd"
        card = text_of(tmp_path / "odd")
        assert "<script" not in card.replace(fence_of(card, "toml"), "")
        assert card.count("\n## ") == 7, "no heading came from data"
        assert tomllib.loads(fence_of(card, "toml"))["odd"] == {"text": text}
        loaded = load(tmp_path / "odd", "odd")["test"]
        assert loaded[0]["text"] == text and loaded.column_names[3] == text

    def test_a_folder_of_a_hostile_name(self, rm, tmp_path, load):
        folder = tmp_path / "a`b '\"\n---\n <script>"
        rm("export", "build-pairs", str(folder), "--to", "hf-dataset")
        assert {config["config_name"] for config in front(folder)["configs"]} == {"pairs", "rejected"}
        assert len(load(folder, "pairs")) == 3
        compile(blocks(folder, "python")[0], "card", "exec")


def fence_of(card: str, language: str) -> str:
    """The card's one block of a language, however many backticks fence it."""
    match = re.search(rf"^(`{{3,}}){language}\n(.*?)\n\1$", card, re.MULTILINE | re.DOTALL)
    assert match
    return match[2]


class TestGenerator:
    def test_lora_weights_load_into_plain_diffusers(self, world, tmp_path, monkeypatch):
        world.last("refl", "refl.evaluation.early_stopping=log", "refl.evaluation.max_denoising_rise=10.0")
        folder = tmp_path / "tuned"
        world("export", "refl", str(folder), "--to", "diffusers")
        assert "pytorch_lora_weights.safetensors" in files(folder)
        base, tuned = drawn(shipped_folder("micro-generator")), drawn(shipped_folder("micro-generator"), folder)
        assert np.abs(tuned - base).max() > 1e-3
        monkeypatch.chdir(tmp_path)
        (lines,) = blocks(folder, "python")
        made: dict[str, Any] = {}
        exec(lines, made)
        np.testing.assert_allclose(sampled(made["pipeline"]), tuned, atol=1e-6)

    def test_a_whole_pipeline_loads(self, world, tmp_path, monkeypatch):
        world.recipe(without(RECIPE, "refl", "lora.rank = 4"))
        done = world.last(
            "refl",
            "refl.trainable=unet",
            "refl.optimizer.learning_rate=1e-4",
            "refl.steps=2",
            "refl.evaluation.early_stopping=log",
        )
        folder = tmp_path / "tuned"
        world("export", done["content_id"], str(folder), "--to", "diffusers")
        assert np.array_equal(drawn(folder), drawn(Path(done["path"]) / "pipeline"))
        monkeypatch.chdir(tmp_path)
        made: dict[str, Any] = {}
        exec(blocks(folder, "python")[0], made)
        assert np.array_equal(sampled(made["pipeline"]), drawn(folder))

    def test_the_card(self, world, tmp_path):
        world.last("filter-tune", "filter-tune.evaluation.early_stopping=log")
        record, folder = newest(world, "filter-tune"), tmp_path / "tuned"
        world("export", "filter-tune", str(folder), "--to", "diffusers")
        card, told = GeneratorCard.read(world.store.object_path(record.content_id)), text_of(folder)
        assert card.negative_prompt and f"| give as negative prompt | {code(card.negative_prompt)} |" in told
        assert "base_model" not in front(folder), "the micro generator is not on the hub"
        assert front(folder)["library_name"] == "diffusers"
        assert "| the stop rule | did not fire |" in told or "| the stop rule | fired, and was only logged: " in told
        rows = world.rows("SELECT step, figure, value FROM filter_tune.curves WHERE split = 'validation'")
        for measure in ("reward", "held_out", "similarity", "denoising_loss", "brightness"):
            at = {row["step"]: row["value"] for row in rows if row["figure"] == measure}
            assert f"| `{measure}` | {at[0]:.4g} | {at[card.kept_step]:.4g} |" in told
        for content in card.trained_on.values():
            assert content in told
        assert "before_after.png" in files(folder) and "![The same prompts and noise" in told
        (recipe,) = blocks(folder, "toml")
        assert tomllib.loads(recipe)["filter-tune"]["alpha"] == 1.01
        assert_made_by_its_card(world, folder)

    def test_a_base_of_the_hub_is_named_with_its_commit(self):
        from irpipe.exports.generator import front, loading

        card = GeneratorCard("owner/model", "0" * 40, "refl", "lora", 4, 2, "", {})
        assert front(card)["base_model"] == "owner/model" and front(card)["base_model_relation"] == "adapter"
        made = f"pipeline = DiffusionPipeline.from_pretrained('owner/model', revision='{'0' * 40}', dtype=torch.float32)"
        assert loading(card, "x") == ["", made, "pipeline.load_lora_weights('x')"]
        assert "base_model" not in front(GeneratorCard("folder:12", "0" * 64, "refl", "lora", 4, 2, "", {}))

    def test_the_stop_rules_verdict(self):
        from irpipe.exports.generator import tuned

        card = GeneratorCard("m", "0" * 64, "refl", "lora", 4, 0, "reward rose | while held_out fell", {})
        told = tuned(card, SimpleNamespace(metrics={}))
        assert "| the stop rule | stopped it: reward rose \\| while held\\_out fell |" in told
        assert "these are the base's own weights" in told

    def test_another_kind_is_refused(self, world, tmp_path):
        told = world("export", "build-pairs", str(tmp_path / "x"), "--to", "diffusers", status=2).err
        assert "build-pairs writes 'pairs', which cannot be exported to diffusers" in told
        assert "an artifact of finetune, refl\n" in told and "--to files or --to hf-dataset" in told
        assert not (tmp_path / "x").exists()

    def test_the_figures_after_are_those_of_the_kept_step(self, tmp_path):
        from irpipe.exports.generator import evaluations
        from irpipe.schemas.curves import CURVES, write_curves

        rows = [(0, 0.0), (10, 0.25), (20, 0.5)]
        errors = [(10, 0.125), (20, 0.0625)]
        write_curves(
            [(step, "validation", "reward", value) for step, value in rows]
            + [(step, "validation", "reward_error", value) for step, value in errors],
            tmp_path,
        )
        artifact = SimpleNamespace(
            table=lambda name: [tmp_path / f"{name}.parquet"], manifest=SimpleNamespace(tables={CURVES.name: None})
        )
        told = evaluations(artifact, GeneratorCard("m", "0" * 64, "refl", "lora", 20, 10, "held_out fell", {}))
        assert "| `reward` | 0 | 0.25 | 0.125 |" in told and "0.5" not in told

    @pytest.mark.parametrize("name", ["unet/model.bin", "unet/model.PT", "model.Pth", "a.CKPT", "b.pkl", "c.Pickle"])
    def test_pickles_are_refused_in_any_case(self, name, tmp_path):
        from irpipe.exports.weights import copy_weights
        from irpipe.pipeline.errors import StoreError

        artifact = SimpleNamespace(content_id="0" * 64, file=lambda path: tmp_path / path)
        (tmp_path / "w.safetensors").write_text("weights")
        with pytest.raises(StoreError, match=rf"{name} is a pickle"):
            copy_weights(artifact, tmp_path / "x", {"w.safetensors": "w.safetensors", name: "model"})
        assert not (tmp_path / "x").exists()

    def test_pickles_are_refused(self, world, tmp_path):
        from irpipe.exports.weights import copy_weights
        from irpipe.pipeline.errors import StoreError

        artifact = world.store.open(newest(world, "train-rm").content_id)
        with pytest.raises(StoreError, match=r"unet/model.bin is a pickle"):
            copy_weights(artifact, tmp_path, {"config.json": "config.json", "unet/model.bin": "model.bin"})
        with pytest.raises(StoreError, match="no weights"):
            copy_weights(artifact, tmp_path, {"config.json": "config.json"})
        assert files(tmp_path / "x") == [] and not (tmp_path / "config.json").exists()


def sampled(pipeline):
    import torch

    pipeline.set_progress_bar_config(disable=True)
    return pipeline("a red circle", num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)).images


def drawn(base: Path, additions: Path | None = None):
    """A picture by plain diffusers."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    if additions:
        pipeline.load_lora_weights(additions)
    return sampled(pipeline)


class TestRewardModel:
    def test_it_scores_as_before(self, world, tmp_path, monkeypatch):
        import torch
        from PIL import Image

        from irpipe.models.imagereward import ImageReward
        from irpipe.models.reward import load_reward_model
        from irpipe.models.scorers.base import score_pictures
        from irpipe.models.scorers.reward import RewardModelScorer

        folder = tmp_path / "judge"
        world("export", "train-rm", str(folder), "--to", "reward-model")
        artifact = world.store.object_path(newest(world, "train-rm").content_id)
        images = [Image.effect_noise((32, 32), sigma).convert("RGB") for sigma in (10, 80)]
        before = ImageReward.from_pretrained(artifact).score("a prompt", images)
        assert before[0] != before[1]
        monkeypatch.chdir(tmp_path)
        made: dict[str, Any] = {"images": [np.asarray(image) for image in images]}
        exec(blocks(folder, "python")[0], made)
        scorer = RewardModelScorer(load_reward_model(artifact), "cpu", torch.float32)
        same = score_pictures(scorer, ["a prompt"] * len(images), made["images"], normalised=True)
        assert made["scores"].tolist() == same.tolist(), "the export has the artifact's weights"
        assert same.tolist() == pytest.approx(before, abs=1e-6), "normalised in float64, not in float32"
        assert not any(name.startswith("last") or name.endswith(".parquet") for name in files(folder))

    def test_the_card(self, world, tmp_path):
        from irpipe.schemas.reward_model import ScoreCard

        folder = tmp_path / "judge"
        world("export", "train-rm", str(folder), "--to", "reward-model")
        card, told = ScoreCard.read(folder), text_of(folder)
        assert f"the mean, {card.mean:.6g}, by the standard deviation, {card.std:.6g}, of raw scores over" in told
        assert f"| `validation_accuracy` | `{card.metrics['validation_accuracy']}` |" in told
        assert "compare within one prompt only" in told
        assert f"| pairs | `{newest(world, 'build-pairs').content_id}` |" in told
        assert front(folder)["library_name"] == "irpipe"

    def test_another_kind_is_refused(self, rm, tmp_path):
        told = rm("export", "generate-images", str(tmp_path / "x"), "--to", "reward-model", status=2).err
        assert "generate-images writes 'images', which cannot be exported to reward-model" in told
        assert "an artifact of train-rahf, train-rm" in told and "--to files or --to hf-dataset" in told


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("kind", [kind.value for kind in ExportKind])
    def test_an_existing_folder_is_refused_and_left_alone(self, world, tmp_path, kind):
        folder = tmp_path / "mine"
        folder.mkdir()
        (folder / "note").write_text("mine")
        stage = {"diffusers": "refl", "reward-model": "train-rm"}.get(kind, "build-pairs")
        if stage == "refl":
            world.last("refl", "refl.steps=2", "refl.evaluation.early_stopping=log")
        assert "exists already" in world("export", stage, str(folder), "--to", kind, status=2).err
        assert files(folder) == ["note"] and files(tmp_path / "mine") == ["note"]

    def test_the_artifact_stays_as_it_was(self, rm, tmp_path):
        artifact = rm.store.object_path(newest(rm, "build-pairs").content_id)
        before = digest_tree(artifact)
        rm("export", "build-pairs", str(tmp_path / "x"), "--to", "hf-dataset")
        assert digest_tree(artifact) == before

    def test_two_exports_are_the_same_bytes(self, rm, tmp_path):
        for name in ("one", "other"):
            (tmp_path / name).mkdir()
            rm("export", "build-pairs", str(tmp_path / name / "pairs"), "--to", "hf-dataset")
        assert digest_tree(tmp_path / "one") == digest_tree(tmp_path / "other")

    @pytest.mark.parametrize(
        "point", ["pyarrow.parquet.ParquetWriter.write_table", "pathlib.Path.write_text", "pathlib.Path.rename"]
    )
    def test_a_kill_leaves_no_folder_and_the_next_export_goes_through(self, rm, tmp_path, load, point):
        owner, _, name = point.rpartition(".")
        module, _, kind = owner.rpartition(".")
        script = (
            f"import os, signal, sys\nfrom {module} import {kind}\n"
            f"{kind}.{name} = lambda *given, **more: os.kill(os.getpid(), signal.SIGKILL)\n"
            "from irpipe.cli import main\nmain()\n"
        )
        folder = tmp_path / "out" / "pairs"
        command = [sys.executable, "-c", script, "export", "build-pairs", str(folder), "--to", "hf-dataset"]
        assert subprocess.run(command, cwd=rm.root, check=False, capture_output=True).returncode == -signal.SIGKILL
        assert not folder.exists()
        assert [path.name for path in folder.parent.iterdir()] == [".pairs.irpipe-draft"], "it was killed in the middle"
        rm("export", "build-pairs", str(folder), "--to", "hf-dataset")
        assert len(load(folder, "pairs")) == 3
        assert [path.name for path in folder.parent.iterdir()] == ["pairs"]

    def test_an_error_in_the_middle_leaves_nothing(self, rm, tmp_path, monkeypatch):
        from irpipe.exports import cards

        def full(*given):
            raise OSError(28, "No space left on device", str(tmp_path / "out"))

        monkeypatch.setattr(cards, "front_matter", full)
        told = rm("export", "build-pairs", str(tmp_path / "out" / "x"), "--to", "hf-dataset", status=2).err
        assert "No space left" in told
        assert list((tmp_path / "out").iterdir()) == []


class TestMarkup:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_yaml_and_toml_read_back_what_was_written(self, text):
        assert yaml.safe_load(quoted(text)) == text
        assert tomllib.loads(f"value = {quoted(text)}")["value"] == text
        value = {text: [text, {"a": text}, 1, 0.5, True]}
        assert yaml.safe_load(flow(value)) == value
        assert tomllib.loads(f"value = {toml(value)}")["value"] == value
        told = front_matter({"one": text, "many": [text, {"name": text}]})
        assert told.count("\n---") == 1
        assert yaml.safe_load(told.removeprefix("---").removesuffix("---")) == {"one": text, "many": [text, {"name": text}]}

    @pytest.mark.parametrize("text", HOSTILE)
    def test_shown_text_is_one_line_without_markup(self, text):
        markdown_it = pytest.importorskip("markdown_it")
        parser = markdown_it.MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
        for shown in (plain(text), code(text)):
            assert "\n" not in shown and shown.isprintable()
            tokens = parser.parse(f"| a | b |\n| --- | --- |\n| {shown} | end |")
            cells = [token for token in tokens if token.type == "inline"]
            assert len(cells) == 4 and cells[3].content == "end"
            children = cells[2].children
            assert {child.type for child in children} <= {"text", "code_inline", "text_special"}
            visible = "".join(child.content for child in children)
            if text.isprintable():
                assert visible.split() == text.split(), "it is shown letter by letter"

    def test_long_values_are_cut(self):
        assert len(plain("x" * 1000)) < 320 and len(code("x" * 1000)) < 320

    def test_a_fence_is_longer_than_what_is_in_it(self):
        assert fenced("toml", "a\n```\nb").startswith("````toml\n")
        assert fenced("toml", "a").startswith("```toml\n")

    def test_names_of_configurations_and_splits(self):
        names = config_names(["pairs", "last/curves", "last-curves", "../x", "..", "a[0-9]*", "lineage"])
        assert names["pairs"] == "pairs" and names["last/curves"] == "last-curves" and names["last-curves"] == "last-curves_2"
        assert len(set(names.values())) == len(names)
        assert all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) for name in names.values())
        assert split_name("all", []) == "all_" and split_name("a-b", ["a_b"]) == "a_b_2" and split_name("--", []) == "unassigned"
