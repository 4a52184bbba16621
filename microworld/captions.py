"""Pictures with captions to train on: some captions wrong, some pictures damaged, none of a scene kept for evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.grammar import Scene, corrupt, describe, sample_scene, split_of
from irpipe.microworld.render import damage, render, to_pixels


@dataclass(frozen=True)
class Pictures:
    """What a model is trained on: `pixels` is (n, 32, 32, 3), from 0 to 255; `scenes` are what the captions say."""

    captions: list[str]
    pixels: NDArray[np.uint8]
    scenes: list[Scene]


def pictures(count: int, seed: int, *, wrong_captions: float, damaged: float) -> Pictures:
    """Draw pictures of training scenes.

    Args:
        wrong_captions: share whose caption contradicts the picture in one word.
        damaged: share that is spoilt.
    """
    rng = np.random.default_rng(seed)
    captions, pixels, scenes = [], np.empty((count, 32, 32, 3), dtype=np.uint8), []
    for index in range(count):
        scene = sample_scene(rng, "train")
        image, placed, background = render(scene, rng)
        if rng.random() < damaged:
            image, _ = damage(image, placed, background, rng)
        told = corrupt_within_training(scene, rng) if rng.random() < wrong_captions else scene
        captions.append(describe(told, rng))
        pixels[index] = to_pixels(image)
        scenes.append(told)
    return Pictures(captions, pixels, scenes)


def corrupt_within_training(scene: Scene, rng: np.random.Generator) -> Scene:
    """A one-word corruption that is not itself a scene kept for evaluation."""
    while True:
        told = corrupt(scene, rng)
        if split_of(told) == "train":
            return told


def corrupted_captions(scenes: list[Scene], seed: int) -> list[str]:
    """A caption for each scene that contradicts it in one word: the hard negatives of matching."""
    rng = np.random.default_rng(seed)
    return [describe(corrupt_within_training(scene, rng), rng) for scene in scenes]
