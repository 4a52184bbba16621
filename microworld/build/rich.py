"""A RAHF of rendered pictures, whose faults are known: it learns to read prompts before it meets people's feedback.

irpipe trains it twice: the recipe `rahf-micro`, with pictures and feedback made here. First under one caption per picture; then
under three, with the contrast of prompts, without which its misalignment map would mark every thing (docs/rahf.md).
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from irpipe.microworld.build.judge import shrink
from irpipe.microworld.grammar import Scene, corrupt, describe, sample_scene, split_of
from irpipe.microworld.render import SIDE, damage, render, to_pixels
from irpipe.microworld.rich import RADIUS, Slips, answer, rich_truth
from irpipe.models.maps import discs, encoded
from irpipe.pipeline.cpus import usable_cpus
from irpipe.schemas.images import encoded_row
from irpipe.schemas.rich_feedback import ASPECTS, prompt_tokens

PICTURES, STEPS, HELD_OUT = 40_000, 1700, 1000
CONTRAST_PICTURES, CONTRAST_STEPS, CONTRAST_HELD_OUT = 12_000, 1200, 300
CAPTIONS = 3  # per picture of the contrast
CHUNK, ANNOTATORS = 500, 6
_MISTAKES = (0.25, 0.4, 0.25, 0.1)  # shares of captions with none, one, two and three wrong requirements
_MISSING, _DAMAGED = 0.15, 0.5  # shares of pictures of two things that lack one, and of damaged ones
SETTINGS = (
    "load-rich-feedback.format=richhf-parquet",
    "train-rahf.images=feedback",
    "train-rahf.captions.weight=0",
    "train-rahf.freeze=[]",
    "train-rahf.optimizer.ema_decay=0.998",
    "train-rahf.training.processes=1",
    "train-rahf.augmentation.noise_std=0",
)
FIRST = (
    "train-rahf.model=micro-blip",
    "train-rahf.freeze_rate=0",
    "train-rahf.batch_size=256",
    "train-rahf.evaluate_every=500",
    "train-rahf.optimizer.learning_rate=1.5e-3",
    "train-rahf.optimizer.warmup_steps=200",
    "train-rahf.training.micro_batch_size=256",
)
CONTRAST = (
    "train-rahf.prompt_contrast=4",
    "train-rahf.batch_size=48",
    "train-rahf.evaluate_every=300",
    "train-rahf.optimizer.learning_rate=1e-3",
    "train-rahf.optimizer.warmup_steps=100",
    "train-rahf.training.micro_batch_size=48",
)


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train it, and save it in half precision. Takes six minutes on a GPU and half an hour on two cores."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_feedback(work / "one", math.ceil(PICTURES * scale), math.ceil(HELD_OUT * scale), captions=1)
        several = (math.ceil(CONTRAST_PICTURES * scale), math.ceil(CONTRAST_HELD_OUT * scale))
        write_feedback(work / "several", *several, CAPTIONS)
        first = train(work, (*FIRST, "load-rich-feedback.path=one", f"train-rahf.steps={math.ceil(STEPS * scale)}"))
        path, steps = Path(first["path"]), math.ceil(CONTRAST_STEPS * scale)
        settings = (*CONTRAST, "load-rich-feedback.path=several", f"train-rahf.model={path}", f"train-rahf.steps={steps}")
        done = train(work, settings)
        shrink(Path(done["path"]), folder)
        found: dict[str, float] = done["metrics"]["validation"]
        return {name: round(value, 3) for name, value in found.items() if name.startswith("plcc")}


def train(work: Path, settings: tuple[str, ...]) -> dict[str, Any]:
    """Run `train-rahf` of the recipe `rahf-micro` in a folder; the last event of the run."""
    command = [sys.executable, "-m", "irpipe.cli"]
    if not (work / "irpipe.toml").exists():
        subprocess.run([*command, "init", "--recipe", "rahf-micro"], cwd=work, check=True)
    flags = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
    told = subprocess.run(
        [*command, "run", "train-rahf", "--json", *flags], cwd=work, check=True, stdout=subprocess.PIPE, text=True
    )
    done: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
    return done


def write_feedback(folder: Path, train: int, validation: int, captions: int) -> None:
    """`train.parquet` and `dev.parquet` with the fields of RichHF-18K, images and prompts."""
    folder.mkdir()
    for name, part, count in (("train", "train", train), ("dev", "validation", validation)):
        chunks = [(part, first, min(CHUNK, count - first), captions) for first in range(0, count, CHUNK)]
        with ProcessPoolExecutor(usable_cpus()) as pool:
            tables = [pa.Table.from_pylist(rows) for rows in pool.map(records, *zip(*chunks, strict=True))]
        pq.write_table(pa.concat_tables(tables), folder / f"{name}.parquet")


def records(part: Literal["train", "validation"], first: int, count: int, captions: int) -> list[dict[str, Any]]:
    """What several people say of some pictures under several captions each, on average."""
    rng = np.random.default_rng([17, len(part), first])
    rows = []
    for number in range(first, first + count):
        texts, picture = captioned(part, captions, rng)
        rows += [record(f"{part}-{number:06}-{place}.png", text, picture, rng) for place, text in enumerate(texts)]
    return rows


def captioned(
    part: Literal["train", "validation"], captions: int, rng: np.random.Generator
) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Captions and a picture (32, 32, 3) from 0 to 1 that may contradict them, lack a thing, or be damaged."""
    scene = sample_scene(rng, part)
    shown = scene
    if len(scene.things) == 2 and rng.random() < _MISSING:
        shown = Scene((scene.things[int(rng.integers(2))],), None, None, scene.background)
    image, placed, background = render(shown, rng)
    if rng.random() < _DAMAGED:
        image, _ = damage(image, placed, background, rng)
    mistakes = rng.choice(len(_MISTAKES), captions, p=_MISTAKES).tolist()
    return [describe(mistaken(scene, count, part, rng), rng) for count in mistakes], to_pixels(image) / 255


def mistaken(scene: Scene, mistakes: int, part: str, rng: np.random.Generator) -> Scene:
    """A scene with some of its requirements turned into others; no scene that is kept for another use comes out."""
    while True:
        told = scene
        for _ in range(mistakes):
            told = corrupt(told, rng)
        if split_of(told) in (part, "train"):
            return told


def record(name: str, prompt: str, image: np.ndarray[Any, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The feedback on one picture as RichHF-18K's Parquet has it."""
    truth, slips = rich_truth(prompt, image), Slips()
    answers = [answer(truth, slips, rng) for _ in range(ANNOTATORS)]
    scores = (np.mean([one.scores for one in answers], axis=0) - 1) / 4
    votes = np.zeros(len(prompt_tokens(prompt)))
    for one in answers:
        votes[list(one.words)] += 1
    maps = ([one.implausible for one in answers], [one.misaligned for one in answers])
    heat = [encoded(np.mean([discs(points, (SIDE, SIDE), RADIUS) for points in of_each], axis=0)) for of_each in maps]
    named = dict(zip(ASPECTS, map(float, scores), strict=True))
    return {
        "filename": name,
        "image": encoded_row(to_pixels(image), 0, name)["image"],
        "prompt": prompt,
        "artifact_score": named["plausibility"],
        "misalignment_score": named["alignment"],
        "aesthetics_score": named["aesthetics"],
        "overall_score": named["overall"],
        "artifact_map": heat[0],
        "misalignment_map": heat[1],
        "prompt_misalignment_label": " ".join("0" if 2 * count > ANNOTATORS else "1" for count in votes),
    }
