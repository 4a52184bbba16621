"""The micro world's oracle and its annotators, images and records per second on one core."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import show, timed
from irpipe.microworld.annotators import Impression, annotate, crowd
from irpipe.microworld.grammar import describe, sample_scene
from irpipe.microworld.oracle import judge
from irpipe.microworld.render import damage, render

FULL, TINY = 2000, 20  # images, and as many records


def main(_: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(count)]
    prompts = [describe(scene, rng) for scene in scenes]
    clean = [render(scene, rng) for scene in scenes]
    spoilt = [damage(*picture, rng)[0] for picture in clean]
    for name, images in (("clean", [picture[0] for picture in clean]), ("damaged", spoilt)):
        seconds, verdicts = timed(lambda pictures=images: [judge(*pair) for pair in zip(prompts, pictures, strict=True)])
        show(f"oracle, {name} images", images=f"{count / seconds:,.0f}/s")
    seen = [Impression.of(verdict) for verdict in verdicts]
    person = crowd(1, 0.1, 0.07, rng)[0]
    seconds, _ = timed(
        lambda: [annotate(person, seen[n % (count // 2) : n % (count // 2) + 7], False, rng) for n in range(count)]
    )
    show("annotators, 7 images a record", records=f"{count / seconds:,.0f}/s")
