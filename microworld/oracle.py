"""Ground truth of the micro world's images: the prompt's words that an image satisfies, and its distance from a clean scene.

Analysis by synthesis: the image is explained by a background and at most two shapes of the palette, the explanation is
painted again, and what the picture holds beyond it is its defects. No model is trained on these scores; stages that are
no evaluation are refused them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from irpipe.microworld.grammar import BACKGROUNDS, COLOURS, SHAPES, Requirement, Scene, parse
from irpipe.microworld.render import AREA, RGB, SIDE, Image, compose, coverage

ALIGNMENT_ALONE, FIDELITY_ALONE, TOGETHER = 0.2, 0.3, 0.5
"""Weights of the utility. ImageReward B.4: usually fidelity outranks alignment, but an image that matches the text clearly
better and is only slightly less clean wins. Neither is worth much without the other: hence the product."""

_PALETTE = np.array([RGB[name] for name in COLOURS])
_GROUNDS = np.array([RGB[name] for name in BACKGROUNDS])
_TOLERANCE, _RAMP = 0.14, 0.25  # RGB distance that passes as clean; from there to a full defect
_SLACK, _DECAY = 6.0, 60.0  # pixels of defect that are forgiven; that lower fidelity to 1/e
_COLOUR_LIMIT, _GROUND_LIMIT = 0.25, 0.2  # RGB distance at which a colour still bears its name
_SMALLEST, _BETWEEN_SIZES, _LARGEST = 2.6, 4.9, 8.2  # pixels of radius
_LEAST_PIXELS = 10
_LEAST_OVERLAP, _LEAST_LIKENESS = 0.72, 0.5  # to be called a shape; to be a damaged one
_MOST_THINGS = 2
_EXTRA_THING, _NO_THING = 0.85, 0.25  # factors of alignment and of fidelity
_APART, _FROM_CENTRE, _OFF_CENTRE = 5.0, 3.5, 5.0  # pixels
_YY, _XX = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64) + 0.5


@dataclass(frozen=True)
class Seen:
    """A thing as the oracle sees it.

    Attributes:
        colour: None for a shade that bears no name.
        shape: None for a blob.
        outline: the shape that is nearest, also for a blob.
        overlap: intersection over union with that outline.
    """

    colour: str | None
    shape: str | None
    outline: str
    size: str
    x: float
    y: float
    radius: float
    overlap: float


@dataclass(frozen=True)
class View:
    """The content of an image, independent of the prompt.

    Attributes:
        background: its name; None if it bears none.
        things: every thing seen, the largest first.
        defects: (32, 32) from 0, clean, to 1.
        fidelity: from 0 to 1.
    """

    background: str | None
    things: tuple[Seen, ...]
    defects: NDArray[np.float64]
    fidelity: float


@dataclass(frozen=True)
class Verdict:
    """The truth about an image and a prompt.

    Attributes:
        alignment: share of the prompt's requirements that are met, lowered by things it does not ask for.
        fidelity: from 0 to 1; 1 is a clean scene.
        defects: (32, 32) from 0, clean, to 1.
        wrong_words: places, in `prompt.split()`, of the words that the image does not satisfy.
        extra: things that the prompt does not ask for.
        blobs: things of no known shape or colour.
    """

    alignment: float
    fidelity: float
    defects: NDArray[np.float64]
    wrong_words: tuple[int, ...]
    extra: int
    blobs: int

    @property
    def utility(self) -> float:
        """The utility of the image for the average annotator, from 0 to 1."""
        return utility(self.alignment, self.fidelity)


def utility(alignment: float, fidelity: float, lean: float = 0.0) -> float:
    """The utility of an image, from 0 to 1.

    Args:
        lean: how much weight one person moves from fidelity to alignment.
    """
    return (ALIGNMENT_ALONE + lean) * alignment + (FIDELITY_ALONE - lean) * fidelity + TOGETHER * alignment * fidelity


def judge(prompt: str, image: Image) -> Verdict:
    """The verdict on one image.

    Args:
        image: (32, 32, 3) from 0 to 1.

    Raises:
        ValueError: the prompt is not of the micro world's grammar, or the image is of another shape.
    """
    scene, requirements = parse(prompt)
    view = look(image)
    reading = best_reading(scene, requirements, view)
    blobs = sum(thing.shape is None or thing.colour is None for thing in view.things)
    extra = max(0, len(view.things) - len(scene.things))
    wrong = sorted(
        word for requirement, good in zip(requirements, reading, strict=True) if not good for word in requirement.words
    )
    return Verdict(alignment_of(reading, extra), view.fidelity, view.defects, tuple(wrong), extra, blobs)


def alignment_of(reading: Sequence[bool], extra: int) -> float:
    """Alignment of an image by which requirements it meets and how many things it shows that nobody asked for."""
    return sum(reading) / len(reading) * _EXTRA_THING**extra


def look(image: Image) -> View:
    """Detect background and things, and measure what they do not explain."""
    if image.shape != (SIDE, SIDE, 3):
        raise ValueError(f"the micro world's images are {SIDE} x {SIDE} x 3, not {image.shape}")
    border = np.concatenate(
        [image[:2].reshape(-1, 3), image[-2:].reshape(-1, 3), image[2:-2, :2].reshape(-1, 3), image[2:-2, -2:].reshape(-1, 3)]
    )
    ground = np.median(border, axis=0)
    nearest = int(np.square(_GROUNDS - ground).sum(axis=-1).argmin())
    things = see_things(image, ground)
    # Painted in the palette's own colours, so that a washed-out picture is not its own excuse.
    parts = [
        (coverage(thing.outline, thing.x, thing.y, thing.radius), np.array(RGB[thing.colour]))
        for thing in things
        if thing.colour is not None and thing.overlap >= _LEAST_LIKENESS and thing.radius <= _LARGEST
    ][:_MOST_THINGS]
    unexplained = np.sqrt(np.square(image - compose(_GROUNDS[nearest], parts)).sum(axis=-1))
    defects = np.clip((unexplained - _TOLERANCE) / _RAMP, 0, 1)
    fidelity = float(np.exp(-max(0.0, defects.sum() - _SLACK) / _DECAY)) * (1.0 if parts else _NO_THING)
    has_name = float(np.linalg.norm(_GROUNDS[nearest] - ground)) < _GROUND_LIMIT
    return View(BACKGROUNDS[nearest] if has_name else None, tuple(things), defects, fidelity)


def see_things(image: Image, ground: NDArray[np.float64]) -> list[Seen]:
    """Things in an image (32, 32, 3) on a ground (3,): large patches of one colour, each as its best shape; largest first."""
    to_palette = np.square(image[:, :, None] - _PALETTE).sum(axis=-1)
    to_ground = np.square(image - ground).sum(axis=-1)
    colour_of = to_palette.argmin(axis=-1)
    stands_out = (to_ground > 0.5 * to_palette.min(axis=-1)) & (to_ground > 0.04)
    things = []
    for colour in np.unique(colour_of[stands_out]).tolist():
        labels, count = ndimage.label(stands_out & (colour_of == colour))
        for patch in range(1, count + 1):
            mask = labels == patch
            # What a pixel's erosion removes is an outline, where two colours mix into a third, or a scratch.
            if mask.sum() >= _LEAST_PIXELS and ndimage.binary_erosion(mask).any():
                seen = fit(image, mask, ground)
                if seen.radius >= _SMALLEST:
                    things.append(seen)
    return sorted(things, key=lambda seen: -seen.radius)


def fit(image: Image, patch: NDArray[np.bool_], ground: NDArray[np.float64]) -> Seen:
    """The shape that overlaps a patch (32, 32) best, by intersection over union of soft coverages."""
    core = np.median(image[patch], axis=0)
    contrast = core - ground
    neighbourhood = ndimage.binary_dilation(patch)
    soft = np.clip(((image - ground) @ contrast) / (contrast @ contrast + 1e-9), 0, 1) * neighbourhood
    area = soft.sum()
    x, y = float((soft * _XX).sum() / area), float((soft * _YY).sum() / area)
    best: tuple[float, str, float] = (-1.0, "", 0.0)
    for shape in SHAPES:
        exact = float(np.sqrt(area / AREA[shape]))
        for radius in (0.94 * exact, exact, 1.06 * exact):
            cover = coverage(shape, x, y, radius)
            overlap = float(np.minimum(cover, soft).sum() / np.maximum(cover, soft).sum())
            best = max(best, (overlap, shape, radius))
    overlap, shape, radius = best
    distances = np.linalg.norm(_PALETTE - core, axis=-1)
    colour = COLOURS[int(distances.argmin())] if distances.min() < _COLOUR_LIMIT else None
    is_shape = overlap >= _LEAST_OVERLAP and radius <= _LARGEST
    size = "large" if radius > _BETWEEN_SIZES else "small"
    return Seen(colour, shape if is_shape else None, shape, size, x, y, radius, overlap)


def best_reading(scene: Scene, requirements: tuple[Requirement, ...], view: View) -> list[bool]:
    """Which requirements are met, under the best matching of the scene's things to the seen ones."""
    return best_match(scene, requirements, view)[0]


def best_match(scene: Scene, requirements: tuple[Requirement, ...], view: View) -> tuple[list[bool], tuple[Seen | None, ...]]:
    """Which requirements are met under the best matching, and the seen thing that stands for each wanted one; None: none does."""
    seen: list[Seen | None] = [*view.things[:4], *[None] * len(scene.things)]
    matches = [
        ([met(r, scene, chosen, view) for r in requirements], standing_for(scene, chosen))
        for chosen in permutations(seen, len(scene.things))
    ]
    return max(matches, key=lambda match: (sum(match[0]), match[0]))


def standing_for(scene: Scene, chosen: Sequence[Seen | None]) -> tuple[Seen | None, ...]:
    """The seen things that can stand for the scene's: a thing matches only one that shares its colour or its shape."""
    return tuple(
        seen if seen is not None and (seen.colour == thing.colour or seen.shape == thing.shape) else None
        for thing, seen in zip(scene.things, chosen, strict=True)
    )


def met(requirement: Requirement, scene: Scene, chosen: Sequence[Seen | None], view: View) -> bool:
    """Whether a requirement is met if `chosen` are the scene's things, as far as they can stand for them."""
    if requirement.kind == "background":
        return view.background == requirement.value
    standing = standing_for(scene, chosen)
    if requirement.thing is not None:
        seen = standing[requirement.thing]
        return seen is not None and getattr(seen, requirement.kind) == requirement.value
    if any(seen is None for seen in standing):
        return False
    first, last = standing[0], standing[-1]
    assert first is not None
    assert last is not None
    if requirement.kind == "relation":
        return _stands(requirement.value, first.x - last.x, first.y - last.y, _APART)
    if requirement.value == "centre":
        return abs(first.x - SIDE / 2) < _OFF_CENTRE and abs(first.y - SIDE / 2) < _OFF_CENTRE
    return _stands(requirement.value, first.x - SIDE / 2, first.y - SIDE / 2, _FROM_CENTRE)


def _stands(where: str, right: float, down: float, least: float) -> bool:
    """Whether an offset in pixels is one to the left, right, top or bottom."""
    return {
        "left of": right < -least,
        "right of": right > least,
        "above": down < -least,
        "below": down > least,
        "left": right < -least,
        "right": right > least,
        "top": down < -least,
        "bottom": down > least,
    }[where]
