"""Scenes of one or two coloured shapes, sentences that describe them, and a parser."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from irpipe.pipeline.hashing import row_id

SIZES = ("large", "small")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle", "cross")
PLACES = ("left", "right", "top", "bottom", "centre")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("dark", "grey", "light", "brown")

OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

# The first wording of each is the plain one.
_SIZE_WORDS = {"large": ("large", "big", "huge"), "small": ("small", "little", "tiny")}
_PLACE_WORDS = {
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "centre": ("in the centre", "in the middle"),
}
_RELATION_WORDS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
_BACKGROUND_WORDS = ("on a {} background", "against a {} background")
_OPENINGS = ("", "a picture of ", "an image of ", "a drawing of ")
_ENDINGS = ("", ", minimal", ", flat colours", ", simple shapes", ", clean edges")

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Thing:
    """One object of a scene. None: left open by the prompt."""

    size: str | None
    colour: str
    shape: str


@dataclass(frozen=True)
class Scene:
    """One thing, perhaps at a place, or two things and their relation; and the background."""

    things: tuple[Thing, ...]
    relation: str | None
    place: str | None
    background: str | None


@dataclass(frozen=True)
class Requirement:
    """One thing a prompt asks for, and the words (places in `prompt.split()`) that ask for it.

    Attributes:
        kind: size, colour, shape, relation, place or background.
        thing: which of the scene's things it is about; None for the scene as a whole.
    """

    kind: str
    thing: int | None
    value: str
    words: tuple[int, ...]


def split_of(scene: Scene) -> Split:
    """The part of the world a scene belongs to: a tenth each to validation and test, however it is worded.

    Nothing that is trained here (generator, encoders) ever saw a scene of validation or of test.
    """
    part = row_id("scene", repr(canonical(scene))) % 10
    return "test" if part == 0 else "validation" if part == 1 else "train"


def canonical(scene: Scene) -> Scene:
    """The scene in one of the two equivalent orders of its things."""
    if scene.relation in ("right of", "below"):
        return turned(scene)
    return scene


def turned(scene: Scene) -> Scene:
    """The same scene with its things in the other order."""
    assert scene.relation is not None
    return replace(scene, things=scene.things[::-1], relation=OPPOSITE[scene.relation])


def sample_scene(rng: np.random.Generator, split: Split | None = None) -> Scene:
    """A random scene, of one part of the world if asked; two things have different colours."""
    while True:
        count = 1 if rng.random() < 0.45 else 2
        colours = rng.permutation(COLOURS)[:count]
        things = tuple(Thing(_maybe(rng, SIZES, 0.75), str(colour), str(rng.choice(SHAPES))) for colour in colours)
        relation = str(rng.choice(RELATIONS)) if count == 2 else None
        place = _maybe(rng, PLACES, 0.6) if count == 1 else None
        scene = Scene(things, relation, place, _maybe(rng, BACKGROUNDS, 0.75))
        if split is None or split_of(scene) == split:
            return scene


def _maybe(rng: np.random.Generator, values: tuple[str, ...], chance: float) -> str | None:
    return str(rng.choice(values)) if rng.random() < chance else None


def corrupt(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one of its requirements turned into another that contradicts it."""
    kinds = [
        (index, name) for index, thing in enumerate(scene.things) for name in ("size", "colour", "shape") if getattr(thing, name)
    ]
    kinds += [(-1, name) for name in ("relation", "place", "background") if getattr(scene, name)]
    index, name = kinds[int(rng.integers(len(kinds)))]
    if name == "relation":
        assert scene.relation is not None
        return replace(scene, relation=OPPOSITE[scene.relation])
    pool = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "place": PLACES, "background": BACKGROUNDS}[name]
    if index < 0:
        other = _another(rng, pool, {getattr(scene, name)})
        return replace(scene, place=other) if name == "place" else replace(scene, background=other)
    excluded = {thing.colour for thing in scene.things} if name == "colour" else {getattr(scene.things[index], name)}
    thing = replace(scene.things[index], **{name: _another(rng, pool, excluded)})
    return replace(scene, things=(*scene.things[:index], thing, *scene.things[index + 1 :]))


def _another(rng: np.random.Generator, pool: tuple[str, ...], excluded: set[str]) -> str:
    return str(rng.choice([value for value in pool if value not in excluded]))


def describe(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """The scene's plain sentence, or, given a generator, a paraphrase: other words, the same scene."""
    if rng is None:
        return _sentence(scene, lambda wordings: wordings[0])
    if scene.relation is not None and rng.random() < 0.5:
        scene = turned(scene)
    return _sentence(scene, lambda wordings: wordings[int(rng.integers(len(wordings)))])


def _sentence(scene: Scene, pick: Callable[[tuple[str, ...]], str]) -> str:
    things = [" ".join(["a", *([pick(_SIZE_WORDS[t.size])] if t.size else []), t.colour, t.shape]) for t in scene.things]
    words = things[0]
    if scene.relation is not None:
        words += f" {pick(_RELATION_WORDS[scene.relation])} {things[1]}"
    if scene.place is not None:
        words += f" {pick(_PLACE_WORDS[scene.place])}"
    if scene.background is not None:
        words += f" {pick(_BACKGROUND_WORDS).format(scene.background)}"
    return f"{pick(_OPENINGS)}{words}{pick(_ENDINGS)}"


def words() -> list[str]:
    """Every word a sentence of this grammar may hold, in a fixed order."""
    wordings = [*_SIZE_WORDS.values(), *_PLACE_WORDS.values(), *_RELATION_WORDS.values(), _BACKGROUND_WORDS, _OPENINGS, _ENDINGS]
    texts = [text for group in wordings for text in group] + [*COLOURS, *SHAPES, *BACKGROUNDS, "a"]
    return list(dict.fromkeys(word for text in texts for word in re.findall(r"[a-z]+", text)))


def _any_of(name: str, texts: Iterable[str]) -> str:
    """A named group that matches one of some texts, the longest first."""
    return f"(?P<{name}>{'|'.join(sorted(texts, key=len, reverse=True))})"


def _thing(number: int) -> str:
    size = _any_of(f"size{number}", (word for group in _SIZE_WORDS.values() for word in group))
    return f"a (?:{size} )?{_any_of(f'colour{number}', COLOURS)} {_any_of(f'shape{number}', SHAPES)}"


def _phrases(texts: Iterable[str]) -> str:
    """One of the fixed phrases at the ends of a sentence, without punctuation."""
    return "|".join(re.escape(text.strip(" ,")) for text in texts if text)


_PROMPT = re.compile(
    f"(?:(?:{_phrases(_OPENINGS)}) )?"
    f"{_thing(0)}"
    f"(?: {_any_of('relation', (text for group in _RELATION_WORDS.values() for text in group))} {_thing(1)}"
    f"| {_any_of('place', (text for group in _PLACE_WORDS.values() for text in group))})?"
    f"(?: (?:on|against) a {_any_of('background', BACKGROUNDS)} background)?"
    f"(?: (?:{_phrases(_ENDINGS)}))?"
)
_MEANING = {
    wording: value
    for group in (_SIZE_WORDS, _PLACE_WORDS, _RELATION_WORDS)
    for value, wordings in group.items()
    for wording in wordings
}


def parse(prompt: str) -> tuple[Scene, tuple[Requirement, ...]]:
    """The scene that a sentence of this grammar describes, and its requirements with their words.

    Raises:
        ValueError: the sentence is not of this grammar.
    """
    tokens = [re.sub(r"[^a-z]", "", word.lower()) for word in prompt.split()]
    text = " ".join(tokens)
    match = _PROMPT.fullmatch(text)
    if match is None:
        raise ValueError(f"not a sentence of the micro world: {prompt!r}")
    groups: dict[str, str | None] = {
        name: _MEANING.get(wording, wording) for name, wording in match.groupdict(default="").items()
    }
    groups = {name: value or None for name, value in groups.items()}
    count = 2 if groups["relation"] else 1
    things = tuple(Thing(groups[f"size{n}"], str(groups[f"colour{n}"]), str(groups[f"shape{n}"])) for n in range(count))
    scene = Scene(things, groups["relation"], groups["place"], groups["background"])

    requirements = []
    for name, value in groups.items():
        if value is None:
            continue
        start, end = match.span(name)
        first = text.count(" ", 0, start)
        covered = tuple(range(first, first + 1 + text.count(" ", start, end)))
        kind = name.rstrip("01")
        requirements.append(Requirement(kind, int(name[-1]) if name[-1].isdigit() else None, value, covered))
    return scene, tuple(requirements)


def prompts(count: int, part: Split | None, paraphrase_share: float, duplicate_share: float, seed: int) -> Iterator[str]:
    """A pool of prompts: sentences, paraphrases of earlier scenes, and repetitions in other case.

    Args:
        count: how many.
        part: the part of the world they are of; None for all of it.
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
            scenes.append(sample_scene(rng, part))
            sentence = describe(scenes[-1], rng if rng.random() < 0.5 else None)
        sentences.append(sentence)
        yield sentence
