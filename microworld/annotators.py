"""Simulated annotators: they know the oracle's utility of each image, each with their own lean and noise.

The noise model: person p sees the worth of an image with alignment a and fidelity f as

    utility(a, f, lean_p) + noise_p * e,    e ~ N(0, 1), drawn for every image and record,

ranks by it, and ties images closer than `TIE`. From a and f follows the probability that p prefers one
image to another, and so the highest possible accuracy on pairs: `best_accuracy`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.oracle import Verdict, utility

SLOTS, MOST_PER_SLOT = 5, 2  # ImageReward, appendix B.3
TIE = 0.02
_GAP = 0.25  # of worth; so far apart, a slot stays empty between two images if there are slots to spare
_RATING_NOISE = 0.06
_SLIP = 0.1  # chance that a problem box is not ticked


@dataclass(frozen=True)
class Annotator:
    """A person.

    Attributes:
        lean: weight moved from fidelity to alignment (`irpipe.microworld.oracle.utility`).
        noise: standard deviation of what they see, in units of worth.
        strictness: points that they rate below the others.
    """

    name: str
    lean: float
    noise: float
    strictness: float


@dataclass(frozen=True)
class Impression:
    """The part of an image's truth that annotators act on: see `irpipe.microworld.oracle.Verdict`."""

    alignment: float
    fidelity: float
    extra: int
    blobs: int

    @classmethod
    def of(cls, verdict: Verdict) -> Impression:
        """From a verdict."""
        return cls(verdict.alignment, verdict.fidelity, verdict.extra, verdict.blobs)


def crowd(count: int, noise: float, lean: float, rng: np.random.Generator) -> list[Annotator]:
    """Annotators who differ in lean, noise and strictness.

    Args:
        noise: mean standard deviation of what they see; each has between half and one and a half of it.
        lean: standard deviation of their leans.
    """
    return [
        Annotator(
            f"annotator-{number}", float(rng.normal(0, lean)), noise * float(rng.uniform(0.5, 1.5)), float(rng.normal(0, 0.3))
        )
        for number in range(count)
    ]


def utilities_for(person: Annotator, images: Sequence[Impression]) -> NDArray[np.float64]:
    """(k,) utilities as a person would see them without noise."""
    return np.array([utility(image.alignment, image.fidelity, person.lean) for image in images])


def annotate(person: Annotator, images: Sequence[Impression], contradicts: bool, rng: np.random.Generator) -> dict[str, Any]:
    """One person's ranking, ratings and problem boxes of the images of one prompt.

    Args:
        contradicts: whether the overall ratings of the best and the worst image come out swapped.

    Returns:
        fields of our own JSONL: ranking, overall, alignment, fidelity, problems.
    """
    perceived = utilities_for(person, images) + rng.normal(0, person.noise, len(images))
    ranking = slots(perceived)
    overall = _points(perceived, person.strictness)
    if contradicts:
        best, worst = int(np.argmin(ranking)), int(np.argmax(ranking))
        overall[best], overall[worst] = overall[worst], overall[best]
    ratings = {
        aspect: _points(
            np.array([getattr(image, aspect) for image in images]) + rng.normal(0, _RATING_NOISE, len(images)), person.strictness
        )
        for aspect in ("alignment", "fidelity")
    }
    return {"ranking": ranking, "overall": overall, **ratings, "problems": [_problems(image, rng) for image in images]}


def _points(utilities: NDArray[np.float64], strictness: float) -> list[int]:
    """Ratings from 1 to 7 of utilities (k,)."""
    return [int(value) for value in np.clip(np.rint(1 + 6 * utilities - strictness), 1, 7)]


def _problems(image: Impression, rng: np.random.Generator) -> list[str]:
    """The boxes of ImageReward B.2 that mean something here: too many things, misshapen ones, and nothing to be seen."""
    present = {"repeated_generation": image.extra > 0, "body_problem": image.blobs > 0, "too_blurred": image.fidelity < 0.15}
    return [name for name, is_present in present.items() if is_present and rng.random() >= _SLIP]


def slots(perceived: NDArray[np.float64]) -> list[int]:
    """Ranks from 1, best, to 5, at most two images each.

    Of all ways to tie neighbours, the one that ties those closest together: it loses the least worth, where a tie loses what
    it ties over and gains `TIE`. Slots to spare stay empty where neighbours are far apart.

    Args:
        perceived: (k,) worth as seen, k from 1 to 10.

    Raises:
        ValueError: there are more images than the slots hold.
    """
    if not 1 <= len(perceived) <= SLOTS * MOST_PER_SLOT:
        raise ValueError(f"{len(perceived)} images do not fit {SLOTS} slots of {MOST_PER_SLOT}")
    order = np.argsort(-perceived, kind="stable")
    gaps = -np.diff(perceived[order])
    # losses[groups][i]: the least loss of putting the best i images into so many slots; tied: whether the last two share one.
    count = len(order)
    losses = np.full((SLOTS + 1, count + 1), np.inf)
    tied = np.zeros((SLOTS + 1, count + 1), dtype=bool)
    losses[0, 0] = 0
    for groups in range(1, SLOTS + 1):
        for i in range(1, count + 1):
            alone = losses[groups - 1, i - 1]
            shared = losses[groups - 1, i - 2] + gaps[i - 2] - TIE if i >= 2 else np.inf
            losses[groups, i], tied[groups, i] = min(alone, shared), shared < alone
    groups = int(losses[:, count].argmin())
    sizes, i = [], count
    for group in range(groups, 0, -1):
        sizes.append(2 if tied[group, i] else 1)
        i -= sizes[-1]
    ends = np.cumsum(sizes[::-1])

    spare, slot, ranks = SLOTS - groups, 1, np.empty(count, dtype=int)
    for start, end in zip((0, *ends), ends, strict=False):
        if start and spare and gaps[start - 1] > _GAP:
            spare, slot = spare - 1, slot + 1
        ranks[order[start:end]] = slot
        slot += 1
    return [int(rank) for rank in ranks]


def best_accuracy(
    prompts: Iterable[Sequence[Impression]], people: Sequence[Annotator], draws: int, rng: np.random.Generator
) -> tuple[float, int]:
    """The Bayes bound: the accuracy on pairs of the best possible scorer, which knows the truth and the annotators.

    For each pair that scorer predicts what most annotators prefer, by the noise model; new records are drawn and their pairs
    that are not tied are counted.

    Args:
        draws: records drawn for each prompt.

    Returns:
        share of pairs, and how many were counted.
    """
    agreed, counted = 0.0, 0
    for images in prompts:
        preference = np.sum([_preference(person, images) for person in people], axis=0)
        # Between images of equal worth any guess is right half the time.
        chance = np.where(preference > 0, 1.0, np.where(preference < 0, 0.0, 0.5))
        for _ in range(draws):
            person = people[int(rng.integers(len(people)))]
            ranks = np.array(slots(utilities_for(person, images) + rng.normal(0, person.noise, len(images))))
            better = ranks[:, None] < ranks[None, :]
            agreed += float(chance[better].sum())
            counted += int(better.sum())
    return agreed / max(1, counted), counted


def _preference(person: Annotator, images: Sequence[Impression]) -> NDArray[np.float64]:
    """(k, k) how much more probably than not a person prefers image i to image j."""
    from scipy.special import erf

    utilities = utilities_for(person, images)
    # P(i over j) = Phi(d / (sqrt(2) noise)), and 2 Phi(z) - 1 = erf(z / sqrt(2)).
    return np.asarray(erf((utilities[:, None] - utilities[None, :]) / (2 * person.noise)))
