"""Scenes of one or two coloured shapes, and the sentences people would write for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SIZES = ("large", "small")
COLOURS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle")
PLACES = ("left of", "right of", "above", "below")
BACKGROUNDS = ("dark", "grey", "light")

_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SIZE_WORDS = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny")}


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One or two things, how the first stands to the second, and what is behind them."""

    things: tuple[Thing, ...]
    place: str | None
    background: str


def sample_scene(rng: np.random.Generator) -> Scene:
    """A random scene; two things have different colours."""
    count = 1 if rng.random() < 0.35 else 2
    colours = rng.permutation(COLOURS)[:count]
    things = tuple(Thing(str(rng.choice(SIZES)), str(colour), str(rng.choice(SHAPES))) for colour in colours)
    place = str(rng.choice(PLACES)) if count == 2 else None
    return Scene(things, place, str(rng.choice(BACKGROUNDS)))


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The scene's plain sentence, or, given a generator, a paraphrase: other words, the same scene."""
    things, place = scene.things, scene.place
    if rng is not None and place is not None and rng.random() < 0.5:
        things, place = (things[1], things[0]), _OPPOSITE[place]
    words = [_noun_phrase(thing, rng) for thing in things]
    sentence = words[0] if place is None else f"{words[0]} {place} {words[1]}"
    if rng is None:
        return f"{sentence} on a {scene.background} background"
    templates = (
        "{sentence} on a {background} background",
        "{sentence}, {background} background",
        "a picture of {sentence} on a {background} background",
        "{background} background with {sentence}",
    )
    return str(rng.choice(templates)).format(sentence=sentence, background=scene.background)


def _noun_phrase(thing: Thing, rng: np.random.Generator | None) -> str:
    size = thing.size if rng is None else str(rng.choice(_SIZE_WORDS[thing.size]))
    return f"a {size} {thing.colour} {thing.shape}"


def prompts(count: int, paraphrase_share: float, duplicate_share: float, seed: int) -> Iterator[str]:
    """A pool as people write it: plain sentences, paraphrases of earlier scenes, and the same again in other case.

    Args:
        count: how many.
        paraphrase_share: share of prompts that say an earlier scene in other words.
        duplicate_share: share of prompts that repeat an earlier one but for case and white space.
    """
    rng = np.random.default_rng(seed)
    scenes: list[Scene] = []
    sentences: list[str] = []
    while len(sentences) < count:
        kind = rng.random()
        if sentences and kind < duplicate_share:
            sentence = sentences[int(rng.integers(len(sentences)))].upper() + " "
        elif scenes and kind < duplicate_share + paraphrase_share:
            sentence = describe(scenes[int(rng.integers(len(scenes)))], rng)
        else:
            scenes.append(sample_scene(rng))
            sentence = describe(scenes[-1])
        sentences.append(sentence)
        yield sentence
