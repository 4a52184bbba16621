"""Rendering a scene as a perfect picture, and damaging pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.grammar import BACKGROUNDS, COLOURS, SIZES, Scene

SIDE = 32  # pixels

RGB = {
    "red": (0.86, 0.20, 0.18),
    "green": (0.20, 0.68, 0.28),
    "blue": (0.18, 0.34, 0.88),
    "yellow": (0.94, 0.82, 0.16),
    "purple": (0.62, 0.22, 0.74),
    "cyan": (0.20, 0.80, 0.82),
    "dark": (0.10, 0.10, 0.12),
    "grey": (0.50, 0.50, 0.50),
    "light": (0.93, 0.93, 0.90),
    "brown": (0.42, 0.28, 0.17),
}
RADIUS = {"large": 6.5, "small": 3.6}  # pixels; of the disc of equal area, nearly
SIZE_JITTER, COLOUR_JITTER = 0.08, 0.02  # a share of the radius; standard deviation a channel

# Measures in units of the radius, such that the four shapes have about one area.
_SQUARE, _TRIANGLE, _CROSS_LENGTH, _CROSS_WIDTH = 0.89, 1.18, 1.15, 0.42
_APEX_TO_BASE = 1.73
_YY, _XX = np.mgrid[0:SIDE, 0:SIDE].astype(np.float64) + 0.5

Image = NDArray[np.float64]
"""(32, 32, 3), RGB from 0 to 1."""


@dataclass(frozen=True)
class Placed:
    """A thing in the picture: centre of mass and radius in pixels."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


AREA = {  # in units of the squared radius
    "circle": np.pi,
    "square": 4 * _SQUARE**2,
    "triangle": _TRIANGLE**2 * _APEX_TO_BASE,
    "cross": 8 * _CROSS_LENGTH * _CROSS_WIDTH - 4 * _CROSS_WIDTH**2,
}


def coverage(shape: str, x: float, y: float, radius: float) -> NDArray[np.float64]:
    """(32, 32) share of each pixel that a shape covers, from its signed distance; (x, y) is its centre of mass."""
    right, down = _XX - x, _YY - y
    if shape == "circle":
        distance = np.hypot(right, down) - radius
    elif shape == "square":
        distance = np.maximum(abs(right), abs(down)) - _SQUARE * radius
    elif shape == "cross":
        length, width = _CROSS_LENGTH * radius, _CROSS_WIDTH * radius
        upright = np.maximum(abs(right) - width, abs(down) - length)
        distance = np.minimum(upright, np.maximum(abs(right) - length, abs(down) - width))
    else:  # an upright triangle: the centre of mass is two thirds down from the apex
        half, height = _TRIANGLE * radius, _TRIANGLE * radius * _APEX_TO_BASE
        below_apex = down + height * 2 / 3
        distance = np.maximum(below_apex - height, (height * abs(right) - half * below_apex) / np.hypot(half, height))
    return np.asarray(np.clip(0.5 - distance, 0, 1))


def compose(background: NDArray[np.float64], parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> Image:
    """Paint (coverage, colour) parts over a background colour."""
    image = np.broadcast_to(background, (SIDE, SIDE, 3)).copy()
    for cover, colour in parts:
        image += cover[..., None] * (colour - image)
    return image


def lay_out(scene: Scene, rng: np.random.Generator) -> list[Placed]:
    """Positions and sizes of the things of a scene; what the prompt leaves open is drawn at random."""
    radii = [
        RADIUS[thing.size or str(rng.choice(SIZES))] * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER) for thing in scene.things
    ]
    if scene.relation is None:
        centres = [_place(scene.place, rng)]
    else:
        near, far = rng.uniform(8, 9.5), rng.uniform(22.5, 24)
        first, second = rng.uniform(10, 22, 2)
        centres = [(near, first), (far, second)]
        if scene.relation in ("right of", "below"):
            centres = [(far, first), (near, second)]
        if scene.relation in ("above", "below"):
            centres = [(y, x) for x, y in centres]
    return [
        Placed(thing.shape, thing.colour, float(x), float(y), radius)
        for thing, (x, y), radius in zip(scene.things, centres, radii, strict=True)
    ]


def _place(position: str | None, rng: np.random.Generator) -> tuple[float, float]:
    near, middle, far = rng.uniform(8.5, 10.5), rng.uniform(14, 18), rng.uniform(21.5, 23.5)
    if position is None:
        return rng.uniform(9, 23), rng.uniform(9, 23)
    along = {"left": near, "right": far, "top": near, "bottom": far, "centre": middle}[position]
    across = rng.uniform(14, 18)
    return (across, along) if position in ("top", "bottom") else (along, across)


def render(scene: Scene, rng: np.random.Generator) -> tuple[Image, list[Placed], str]:
    """A perfect picture of a scene, the positions of its things, and its background."""
    placed = lay_out(scene, rng)
    background = scene.background or str(rng.choice(BACKGROUNDS))
    parts = [(coverage(p.shape, p.x, p.y, p.radius), _jittered(p.colour, rng)) for p in placed]
    return np.clip(compose(_jittered(background, rng), parts), 0, 1), placed, background


def _jittered(name: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """(3,) the RGB of a colour with noise."""
    return np.array(RGB[name]) + rng.normal(0, COLOUR_JITTER, 3)


def damage(image: Image, placed: list[Placed], background: str, rng: np.random.Generator) -> tuple[Image, NDArray[np.bool_]]:
    """Spoil a picture in one or two ways: a bite out of a thing, a patch of noise, a stray streak.

    Returns:
        the spoilt picture, and (32, 32) where it differs.
    """
    spoilt = image.copy()
    for _ in range(int(rng.integers(1, 3))):
        kind = int(rng.integers(3))
        if kind == 0:
            thing, angle = placed[int(rng.integers(len(placed)))], rng.uniform(0, 2 * np.pi)
            x, y = thing.x + 0.8 * thing.radius * np.cos(angle), thing.y + 0.8 * thing.radius * np.sin(angle)
            spoilt[np.hypot(_XX - x, _YY - y) < thing.radius * rng.uniform(0.5, 0.8)] = RGB[background]
        elif kind == 1:
            width, height = rng.integers(5, 11, 2)
            left, top = rng.integers(0, SIDE - width), rng.integers(0, SIDE - height)
            spoilt[top : top + height, left : left + width] = rng.random((height, width, 3))
        else:
            row, slope = rng.integers(1, SIDE - 2), rng.uniform(-0.5, 0.5)
            streak = abs((_YY - row) - slope * (_XX - SIDE / 2)) < 1.0
            spoilt[streak.T if rng.random() < 0.5 else streak] = RGB[str(rng.choice(COLOURS))]
    return spoilt, np.abs(spoilt - image).max(axis=-1) > 0.1


def to_pixels(image: Image) -> NDArray[np.uint8]:
    """(32, 32, 3) from 0 to 255."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 255), dtype=np.uint8)
