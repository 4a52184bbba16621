"""Which images are trained on, by their scores: what pools of a tuning and the stage `choose-images` have in common.

Scores come as one array per prompt, (images,) each, higher is better; NaN where there is no image, or one that nobody may choose.
A matrix (prompts, images) is such a sequence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

Scores = Sequence[NDArray[np.float64]] | NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """A chosen image.

    Attributes:
        prompt, image: its prompt, and its index among the prompt's images.
        weight: of its loss.
        bad: whether it is marked as bad.
        confidence: its share of the softmax by which it stood out.
    """

    prompt: int
    image: int
    weight: float
    bad: bool = False
    confidence: float | None = None


def best_of_each(scores: Scores, best: int, threshold: float = -np.inf) -> list[Chosen]:
    """The best images of every prompt, of those above a threshold."""
    chosen = []
    for prompt, row in enumerate(scores):
        order = np.argsort(-np.nan_to_num(row, nan=-np.inf), kind="stable")[:best]
        chosen += [Chosen(prompt, int(image), 1.0) for image in order if row[image] > threshold]
    return chosen


def weighted(scores: Scores, *, by_prompt: bool) -> list[Chosen]:
    """All images but NaN, weighted by their scores scaled to 0..1 over all of them, or over those of each prompt."""
    extent = _extent(np.concatenate(list(scores)))
    chosen = []
    for prompt, row in enumerate(scores):
        low, size = _extent(row) if by_prompt else extent
        chosen += [
            Chosen(prompt, int(image), float((row[image] - low) / max(size, 1e-12))) for image in np.flatnonzero(np.isfinite(row))
        ]
    return chosen


def _extent(scores: NDArray[np.float64]) -> tuple[float, float]:
    """The lowest score, and how far above it the highest one is."""
    scores = scores[np.isfinite(scores)]
    return (float(scores.min()), float(np.ptp(scores))) if len(scores) else (0.0, 0.0)


def best_and_worst(scores: Scores, alpha: float, temperature: float = 1.0) -> list[Chosen]:
    """Of each prompt the best image and, marked as bad, the worst one, each only if it stands out.

    One stands out if its share of the softmax of its prompt's scores (for the worst, of their negatives) is above alpha / images.

    Args:
        temperature: what scores are divided by first.

    Source: HPS, section 6.
    """
    return [
        Chosen(prompt, image, 1.0, bad, share)
        for prompt, row in enumerate(scores)
        for image, bad, share, images in _extremes(row, temperature)
        if share > alpha / images
    ]


def largest_alpha(scores: Scores, temperature: float) -> float:
    """Below which alpha `best_and_worst` would choose any image."""
    return max((share * images for row in scores for *_, share, images in _extremes(row, temperature)), default=0.0)


def _extremes(row: NDArray[np.float64], temperature: float) -> Iterator[tuple[int, bool, float, int]]:
    """The best and the worst image of scores (images,): its index, whether it is the worst, its share, and how many there are."""
    images = np.flatnonzero(np.isfinite(row))
    if len(images) < 2:
        return
    centred = (row[images] - row[images].mean()) / temperature
    for sign in (1.0, -1.0):
        share = softmax(sign * centred)
        yield int(images[share.argmax()]), sign < 0, float(share.max()), len(images)


def blindly(chosen: Sequence[Chosen], scores: Scores, seed: int) -> list[Chosen]:
    """For each chosen image one of the same prompt, drawn without a look at scores, and none twice: a control."""
    rng = np.random.default_rng(seed)
    drawn: set[tuple[int, int]] = set()
    blind = []
    for one in chosen:
        images = [i for i in np.flatnonzero(np.isfinite(scores[one.prompt])).tolist() if (one.prompt, i) not in drawn]
        image = images[int(rng.integers(len(images)))]
        drawn.add((one.prompt, image))
        blind.append(replace(one, image=image, confidence=None))
    return blind
