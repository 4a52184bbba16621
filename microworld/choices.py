"""People who pick one of several images, as HPS's users did, and how well anybody can foretell what they pick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from irpipe.microworld.annotators import Annotator, Impression, utilities_for

# Groups of 4, 3 and 2 images in HPS's data (section 3).
SIZES = {4: 23722, 3: 953, 2: 530}
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(60)


def group_sizes(images: int, rng: np.random.Generator) -> list[int]:
    """Sizes of the groups that a prompt's images are shown in, drawn with HPS's shares as long as two are left."""
    sizes: list[int] = []
    while (left := images - sum(sizes)) >= min(SIZES):
        possible = np.array([size for size in SIZES if size <= left])
        shares = np.array([SIZES[size] for size in possible], dtype=np.float64)
        sizes.append(int(rng.choice(possible, p=shares / shares.sum())))
    return sizes


def pick(person: Annotator, images: Sequence[Impression], rng: np.random.Generator) -> int:
    """The image that a person picks: the one that they see as the best, with their noise."""
    return int(np.argmax(utilities_for(person, images) + rng.normal(0, person.noise, len(images))))


def choice_probabilities(people: Sequence[Annotator], images: Sequence[Impression]) -> NDArray[np.float64]:
    """(k,) how probably somebody of the people picks each of k images.

    P(i) is the integral over its noise z of phi(z) times the product over the others of Phi((u_i - u_j) / noise + z), by
    Gauss-Hermite quadrature, to about 1e-6.
    """
    total = np.zeros(len(images))
    for person in people:
        gaps = np.subtract.outer(utilities := utilities_for(person, images), utilities) / person.noise
        below = ndtr(gaps[:, :, None] + _NODES)
        below[np.arange(len(images)), np.arange(len(images))] = 1
        chances = below.prod(axis=1) @ _WEIGHTS
        total += chances / chances.sum()
    return total / len(people)


@dataclass(frozen=True)
class ChoiceBounds:
    """Accuracies on choices that somebody reaches: who knows all (`best`), another person, who guesses (`chance`).

    Attributes:
        pairs: the best accuracy on the pairs of a picked image and another one of its group.
    """

    best: float
    another_person: float
    chance: float
    pairs: float


def choice_bounds(chances: Sequence[NDArray[np.float64]]) -> ChoiceBounds:
    """The bounds for groups of images with the probabilities (k,) that each is picked, at least one group.

    Two people agree with the sum of the squares. Of a pair the better guess is the image that is picked more often.
    """
    pairs = [np.maximum.outer(group, group)[np.triu_indices(len(group), 1)].sum() for group in chances]
    return ChoiceBounds(
        best=float(np.mean([group.max() for group in chances])),
        another_person=float(np.mean([(group**2).sum() for group in chances])),
        chance=float(np.mean([1 / len(group) for group in chances])),
        pairs=float(sum(pairs) / sum(len(group) - 1 for group in chances)),
    )
