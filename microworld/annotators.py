"""People whose taste is a formula: a hidden worth of every image, seen with noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.schemas.annotations import PROBLEMS

_SLOTS, _MAX_PER_SLOT = 5, 2  # ImageReward, appendix B.3


@dataclass(frozen=True)
class Annotator:
    """A person: a name, how far off the mark they see, and how strictly they rate."""

    name: str
    noise: float
    strictness: float


def crowd(count: int, rng: np.random.Generator) -> list[Annotator]:
    """People who differ a little in care and in strictness."""
    return [Annotator(f"annotator-{number}", float(rng.uniform(0.2, 0.5)), float(rng.normal(0, 0.3))) for number in range(count)]


def annotate(person: Annotator, worth: NDArray[np.float64], rng: np.random.Generator) -> dict[str, Any]:
    """One person's ranking, ratings and problems of the images of one prompt.

    Args:
        worth: (k,) hidden worth, about standard normal.

    Returns:
        fields of our own JSONL: ranking, overall, alignment, fidelity, problems.
    """
    seen = worth + rng.normal(0, person.noise, len(worth))
    ratings = {
        aspect: [int(value) for value in np.clip(np.rint(4 + 1.5 * (seen + offset) - person.strictness), 1, 7)]
        for aspect, offset in (
            ("overall", np.zeros(len(worth))),
            ("alignment", rng.normal(0, 0.4, len(worth))),
            ("fidelity", rng.normal(0, 0.4, len(worth))),
        )
    }
    problems = [[str(rng.choice(PROBLEMS[:3]))] if value < -1 and rng.random() < 0.5 else [] for value in seen]
    return {"ranking": slots(seen), **ratings, "problems": problems}


def slots(seen: NDArray[np.float64]) -> list[int]:
    """Ranks from 1, best, to 5: images go to the slot of their worth, at most two a slot, ten in all.

    Args:
        seen: (k,) with k at most 10.
    """
    order = np.argsort(-seen, kind="stable")
    wanted = np.clip(np.rint(3 - seen[order]), 1, _SLOTS).astype(int)
    free = [_MAX_PER_SLOT] * _SLOTS
    ranks = np.empty(len(seen), dtype=int)
    for place, image in enumerate(order.tolist()):
        # Leave room below for everybody who comes after, and never rise above somebody who came before.
        lowest = next(slot for slot in range(_SLOTS) if sum(free[slot + 1 :]) < len(order) - place) if sum(free) else 0
        before = ranks[order[place - 1]] - 1 if place else 0
        slot = max(before, min(wanted[place] - 1, lowest))
        while not free[slot]:
            slot += 1
        free[slot] -= 1
        for skipped in range(slot):
            free[skipped] = 0
        ranks[image] = slot + 1
    return [int(rank) for rank in ranks]
