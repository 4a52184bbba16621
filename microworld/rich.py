"""People of the micro world who give rich feedback: points, misaligned words and four scores, with known slips.

They see what the oracle sees. The noise is set so that their statistics are like the paper's (RichHF, section 3.4): about a
quarter of the images with equal scores, 85 % within one point of five, few images without any point.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.grammar import OPPOSITE, Requirement, Scene, parse
from irpipe.microworld.oracle import Seen, View, alignment_of, best_match, look, utility
from irpipe.microworld.render import RGB, SIDE, Image
from irpipe.schemas.rich_feedback import ASPECTS

RADIUS = SIDE / 20  # of the disc that a point covers, in pixels
_DULL, _BRIGHT = 0.40, 0.90  # aesthetics lie between these; people use their whole scale for them
_LOOKS = 60
_DOWN, _RIGHT = np.mgrid[0:SIDE, 0:SIDE] + 0.5
_REACH = int(np.ceil(RADIUS))
_OFFSETS = [(y, x) for y in range(-_REACH, _REACH + 1) for x in range(-_REACH, _REACH + 1) if np.hypot(y, x) <= RADIUS]
_CORNERS = ((4.0, 4.0), (28.0, 4.0), (4.0, 28.0), (28.0, 28.0))
_NEAR, _MIDDLE, _FAR = 9.0, SIDE / 2, 23.0
_PLACES = {"left": (_NEAR, _MIDDLE), "right": (_FAR, _MIDDLE), "top": (_MIDDLE, _NEAR), "bottom": (_MIDDLE, _FAR)}
_SIDES = {"left of": _PLACES["left"], "right of": _PLACES["right"], "above": _PLACES["top"], "below": _PLACES["bottom"]}

Place = tuple[float, float]


@dataclass(frozen=True)
class Slips:
    """How people differ from the truth.

    Attributes:
        miss: chance that a place of damage, or a wrong thing, is passed over.
        least: pixels of damage under a disc that catch the eye; spread over people and images.
        patience: how many points somebody sets beyond the first, on average.
        stray: points that mark nothing, on average.
        jitter: standard deviation of a point's place, in pixels.
        word_miss, word_false: chances that a wrong word is passed over, and that a right one is called wrong.
        score: standard deviation of a score, in points of five; strictness: of what a person adds to all scores of an image.
    """

    miss: float = 0.25
    least: float = 2.0
    patience: float = 5.0
    stray: float = 0.12
    jitter: float = 0.7
    word_miss: float = 0.20
    word_false: float = 0.015
    score: float = 0.50
    strictness: float = 0.22


@dataclass(frozen=True)
class Region:
    """What does not fit the prompt, on the image: a thing that is wrong or that nobody asked for, one that is missing, or the
    background."""

    kind: Literal["thing", "missing", "background"]
    x: float = 0.0
    y: float = 0.0
    radius: float = 0.0


@dataclass(frozen=True)
class RichTruth:
    """What people look at.

    Attributes:
        defects: (32, 32) from 0, clean, to 1; regions: what does not fit; things: what the image shows.
        wrong, content: places, in the prompt's words, of those that are not met, and of all that ask for something.
        scores: (4,) by aspect, 0 to 1.
    """

    defects: NDArray[np.float64]
    regions: tuple[Region, ...]
    things: tuple[Region, ...]
    wrong: tuple[int, ...]
    content: tuple[int, ...]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class RichAnswer:
    """One person's feedback: points in pixels, places of misaligned words, and scores of 1 to 5 by aspect."""

    implausible: tuple[Place, ...]
    misaligned: tuple[Place, ...]
    words: tuple[int, ...]
    scores: tuple[float, ...]


def rich_truth(prompt: str, image: Image) -> RichTruth:
    """The truth about an image (32, 32, 3) from 0 to 1 and a prompt.

    Raises:
        ValueError: the prompt is not of the micro world's grammar, or the image is of another shape.
    """
    view = look(image)
    scene, requirements = parse(prompt)
    reading, standing = best_match(scene, requirements, view)
    wrong = sorted({word for r, good in zip(requirements, reading, strict=True) if not good for word in r.words})
    alignment = alignment_of(reading, max(0, len(view.things) - len(scene.things)))
    beauty = float(np.clip((aesthetics(image, view) - _DULL) / (_BRIGHT - _DULL), 0, 1))
    scores = np.array([view.fidelity, alignment, beauty, utility(alignment, view.fidelity)])
    content = sorted({word for r in requirements for word in r.words})
    regions = tuple(wrong_regions(scene, requirements, reading, standing, view))
    return RichTruth(view.defects, regions, tuple(map(_on, view.things)), tuple(wrong), tuple(content), scores)


def aesthetics(image: Image, view: View) -> float:
    """The worth of a picture as a picture, 0 to 1, whatever the prompt.

    .25 contrast of things and ground, .22 harmony of two things' hues (near or opposite), .22 balance around the middle, .16 a
    calm ground, .15 fidelity: people find broken pictures ugly, too.
    """
    things = [thing for thing in view.things if thing.colour is not None][:3]
    border = np.concatenate([image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[2:-2, :2].reshape(-1, 3)])
    ground = np.median(np.concatenate([border, image[2:-2, -2:].reshape(-1, 3)]), axis=0)
    step = np.sqrt(np.square(np.diff(image, axis=0)[:, :-1]).sum(-1) + np.square(np.diff(image, axis=1)[:-1]).sum(-1))
    flat = np.sort(step.ravel())[: int(0.8 * step.size)]
    calm = float(np.exp(-np.sqrt(np.mean(flat**2)) / 0.08))
    contrast, harmony, balance = _arrangement(things, ground)
    return 0.25 * contrast + 0.22 * harmony + 0.22 * balance + 0.16 * calm + 0.15 * view.fidelity


def _arrangement(things: Sequence[Seen], ground: NDArray[np.float64]) -> tuple[float, float, float]:
    """Contrast, harmony and balance of the things on a ground (3,)."""
    if not things:
        return 0.0, 0.3, 0.3
    colours = [np.array(RGB[str(thing.colour)]) for thing in things]
    contrast = float(np.mean([min(1.0, float(np.linalg.norm(colour - ground)) / 0.9) for colour in colours]))
    harmony = 0.75
    if len(things) > 1:
        first, second = (2 * np.pi * colorsys.rgb_to_hsv(*colour)[0] for colour in colours[:2])
        harmony = 0.5 + 0.5 * float(np.cos(2 * (first - second)))
    area = np.array([thing.radius**2 for thing in things])
    x, y = (float((area * [getattr(thing, axis) for thing in things]).sum() / area.sum()) for axis in ("x", "y"))
    return contrast, harmony, max(0.0, 1 - float(np.hypot(x - _MIDDLE, y - _MIDDLE)) / 10)


def wrong_regions(
    scene: Scene,
    requirements: Sequence[Requirement],
    reading: Sequence[bool],
    standing: Sequence[Seen | None],
    view: View,
) -> list[Region]:
    """What does not fit the prompt: wrong things, uncalled-for things, missing ones where they should be, the background."""
    regions: list[Region] = []
    wrong: set[int] = set()
    missing: set[int] = set()
    for requirement, good in zip(requirements, reading, strict=True):
        if good:
            continue
        if requirement.kind == "background":
            regions.append(Region("background"))
        elif requirement.thing is not None:
            (missing if standing[requirement.thing] is None else wrong).add(requirement.thing)
        elif all(seen is not None for seen in standing):
            wrong |= {0} if requirement.kind == "place" else set(range(len(standing)))
    regions += [_on(seen) for index in sorted(wrong) if (seen := standing[index]) is not None]
    regions += [Region("missing", *_expected_place(scene, index, standing)) for index in sorted(missing)]
    strangers = [thing for thing in view.things[:4] if not any(thing is seen for seen in standing)]
    if missing or len(view.things) > len(scene.things):
        regions += [_on(thing) for thing in strangers[: max(1, len(missing))]]
    return regions


def _on(thing: Seen) -> Region:
    return Region("thing", thing.x, thing.y, thing.radius)


def _expected_place(scene: Scene, index: int, standing: Sequence[Seen | None]) -> Place:
    """Where a missing thing should be: at its place, on its side of the other thing, or in the middle."""
    if scene.place is not None:
        return _PLACES.get(scene.place, (_MIDDLE, _MIDDLE))
    if scene.relation is None:
        return _MIDDLE, _MIDDLE
    relation = scene.relation if index == 0 else OPPOSITE[scene.relation]
    x, y = _SIDES[relation]
    other = standing[1 - index]
    if other is None:
        return x, y
    return (x, other.y) if relation in ("left of", "right of") else (other.x, y)


def under_disc(defects: NDArray[np.float64]) -> NDArray[np.float64]:
    """(32, 32) the sum of a map under a disc around each pixel."""
    wide = np.pad(defects, _REACH)
    parts = (wide[_REACH + y : _REACH + y + SIDE, _REACH + x : _REACH + x + SIDE] for y, x in _OFFSETS)
    total: NDArray[np.float64] = np.sum(list(parts), axis=0)
    return total


def answer(truth: RichTruth, slips: Slips, rng: np.random.Generator) -> RichAnswer:
    """One person's feedback on an image."""
    words = [word for word in truth.content if _calls_wrong(word in truth.wrong, slips, rng)]
    strict = slips.strictness * rng.normal()
    likert = np.clip(np.rint(1 + 4 * truth.scores + strict + slips.score * rng.normal(size=len(ASPECTS))), 1, 5)
    return RichAnswer(
        tuple(implausible_points(truth.defects, slips, rng)),
        tuple(misaligned_points(truth.regions, slips, rng)),
        tuple(words),
        tuple(float(value) for value in likert),
    )


def _calls_wrong(is_wrong: bool, slips: Slips, rng: np.random.Generator) -> bool:
    return bool(rng.random() >= slips.word_miss) if is_wrong else bool(rng.random() < slips.word_false)


def implausible_points(defects: NDArray[np.float64], slips: Slips, rng: np.random.Generator) -> list[Place]:
    """Points on damage: the disc that covers most of what is uncovered, at times passed over, until nothing catches the eye."""
    left = defects.copy()
    points: list[Place] = []
    least, most = slips.least * np.exp(0.4 * rng.normal()), 1 + rng.poisson(slips.patience)
    for _ in range(_LOOKS):
        mass = under_disc(left)
        if mass.max() <= least or len(points) >= most:
            break
        seen = mass * np.exp(0.15 * rng.normal(size=mass.shape))
        y, x = np.unravel_index(int(seen.argmax()), seen.shape)
        left[np.hypot(_RIGHT - x - 0.5, _DOWN - y - 0.5) <= RADIUS] = 0
        if rng.random() >= slips.miss:
            points.append(_inside(x + 0.5 + slips.jitter * rng.normal(), y + 0.5 + slips.jitter * rng.normal()))
    return points + [_inside(*rng.uniform(1, SIDE - 1, 2)) for _ in range(rng.poisson(slips.stray))]


def misaligned_points(regions: Sequence[Region], slips: Slips, rng: np.random.Generator) -> list[Place]:
    """One to three points on each wrong thing, at times passed over; half of the people mark where a missing one should be."""
    points = []
    for region in regions:
        if rng.random() < slips.miss:
            continue
        if region.kind == "background":
            corners = rng.permutation(len(_CORNERS))[: int(rng.integers(1, 4))]
            points += [_about(*_CORNERS[corner], 1.5, rng) for corner in corners]
        elif region.kind == "missing":
            points += [_about(region.x, region.y, 1.5, rng)] if rng.random() < 0.5 else []
        else:
            count = 1 if region.radius < 4.9 else int(rng.integers(1, 4))
            spreads = [(0.25 if number == 0 else 0.45) * region.radius for number in range(count)]
            points += [_about(region.x, region.y, spread, rng) for spread in spreads]
    return points


def _about(x: float, y: float, spread: float, rng: np.random.Generator) -> Place:
    return _inside(x + spread * rng.normal(), y + spread * rng.normal())


def _inside(x: Any, y: Any) -> Place:
    return float(np.clip(x, 0, SIDE)), float(np.clip(y, 0, SIDE))
