"""What an operator waits for: `irpipe status` over 1,000 artifacts, and a report over 10,000 prompts and 60,000 images."""

from __future__ import annotations

import io
import json
import os
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import peak_in_child, show, timed

IMAGES_EACH = 6
_IRPIPE = [sys.executable, "-m", "irpipe.cli"]


class Size(NamedTuple):
    """Artifacts of the store of `status`; prompts of the report, neighbours of each, how many are selected, pixels of a side;
    and how often a command is timed."""

    artifacts: int
    prompts: int
    k: int
    selected: int
    side: int
    runs: int


FULL, TINY = Size(1_000, 10_000, 20, 5_000, 128, 7), Size(2, 40, 5, 20, 16, 1)


def main(folder: Path, size: Size) -> None:
    many = folder / "many"
    _many_artifacts(many, size.artifacts)
    status, bare = (_median([*_IRPIPE, word], many, size.runs) for word in ("status", "--help"))
    show(f"status, {size.artifacts:,} artifacts", seconds=f"{status:.2f}", help=f"{bare:.2f}", ratio=f"{status / bare:.1f}")
    large = folder / "large"
    _large_recipe(large, size)
    run, _ = timed(lambda: [_quietly([*_IRPIPE, "run", stage], large) for stage in ("select-prompts", "build-pairs")])
    (seconds, written), peak = peak_in_child(_report, large)
    show(
        f"report, {size.prompts * IMAGES_EACH:,} images",
        seconds=f"{seconds:.1f}",
        peak_gb=f"{peak:.2f}",
        megabytes=f"{written / 1e6:.1f}",
        of_the_run=f"{seconds / run:.2f}",
    )


def _quietly(command: list[str], folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def _median(command: list[str], folder: Path, runs: int) -> float:
    return statistics.median(timed(lambda: _quietly(command, folder))[0] for _ in range(runs))


def _report(folder: Path) -> tuple[float, int]:
    from irpipe.cli import main as command

    os.chdir(folder)
    sys.argv = ["irpipe", "report"]

    def work() -> None:
        try:
            command()
        except SystemExit as end:
            if end.code:
                raise

    return timed(work)[0], (folder / "report.html").stat().st_size


def _many_artifacts(folder: Path, count: int) -> None:
    """A pool of prompts for every seed, and the micro recipe, of which nothing else was made."""
    from irpipe.pipeline.plan import Planner
    from irpipe.pipeline.progress import Watcher
    from irpipe.pipeline.recipe_file import load_recipe, shipped_recipe
    from irpipe.pipeline.runner import Runner
    from irpipe.pipeline.store import Store

    folder.mkdir()
    (folder / "irpipe.toml").write_text(shipped_recipe("micro"), encoding="utf-8")
    for seed in range(count):
        recipe = load_recipe(folder, (f"simulate-prompts.seed={seed}", "simulate-prompts.count=2"))
        Runner(Planner(recipe, Store(recipe.store), Watcher())).run("simulate-prompts")


def _large_recipe(folder: Path, size: Size) -> None:
    """Ranked pictures of noise under prompts of three words."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(200)]
    prompts = sorted({" ".join(rng.choice(words, 5)) for _ in range(size.prompts)})
    with (folder / "mine.jsonl").open("w", encoding="utf-8") as file, zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number, prompt in enumerate(prompts):
            names = [f"{number:05}-{place}.jpg" for place in range(IMAGES_EACH)]
            file.write(json.dumps({"prompt": prompt, "images": names, "ranking": [*range(1, IMAGES_EACH + 1)]}) + "\n")
            for name in names:
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                buffer = io.BytesIO()
                coarse.resize((size.side, size.side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
                archive.writestr(name, buffer.getvalue())
    (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    (folder / "irpipe.toml").write_text(
        'recipe = "bench"\n[embed-prompts]\npath = "prompts.txt"\nembedder = "lexical"\n'
        f"[prompt-graph]\nk = {size.k}\n[select-prompts]\ncount = {size.selected}\n"
        '[load-annotations]\npath = "mine.jsonl"\n[import-images]\nimage_root = "images.zip"\n'
        "[split-prompts]\nuse_images = true\n[build-pairs]\nuse_images = true\n",
        encoding="utf-8",
    )
