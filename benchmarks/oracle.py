"""The micro world's oracle and its annotators, images and records per second on one core."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import show, timed
from irpipe.microworld.annotators import Impression, annotate, crowd
from irpipe.microworld.grammar import describe, sample_scene
from irpipe.microworld.oracle import judge
from irpipe.microworld.render import damage, render

IMAGES, RECORDS = 2000, 2000


def main(_: Path) -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng) for _ in range(IMAGES)]
    prompts = [describe(scene, rng) for scene in scenes]
    clean = [render(scene, rng) for scene in scenes]
    spoilt = [damage(*picture, rng)[0] for picture in clean]
    for name, images in (("clean", [picture[0] for picture in clean]), ("damaged", spoilt)):
        seconds, verdicts = timed(lambda pictures=images: [judge(*pair) for pair in zip(prompts, pictures, strict=True)])
        show(f"oracle, {name} images", images=f"{IMAGES / seconds:,.0f}/s")
    seen = [Impression.of(verdict) for verdict in verdicts]
    person = crowd(1, 0.1, 0.07, rng)[0]
    seconds, _ = timed(lambda: [annotate(person, seen[n % 1000 : n % 1000 + 7], False, rng) for n in range(RECORDS)])
    show("annotators, 7 images a record", records=f"{RECORDS / seconds:,.0f}/s")
