"""How well scores order images that people ranked, by the rules of released code: what they do with ties differs.

Published figures of one model on one test differ by points between papers for that reason alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def inversion_score(ranks: Sequence[float], scores: Sequence[float]) -> float:
    """1 - inversions / C(n, 2), of people's ranks (n,), lower is better, and scores (n,), higher is better.

    A pair that people tie is never an inversion and stays in the denominator. Equal scores take the order of the images, as a
    stable sort has it. Source: HPSv2, released code, `inversion_score`.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    places = np.empty(len(order))
    places[order] = np.arange(len(order))
    by_people, by_scores = _signs(np.asarray(ranks, dtype=np.float64)), _signs(places)
    return 1 - float((by_people * by_scores < 0).sum()) / math.comb(len(scores), 2)


def imagereward_accuracy(ranks: Sequence[float], scores: Sequence[float]) -> float:
    """Share of the pairs that people do not tie which the scores order as they do, of ranks and scores (n,).

    Equal scores count as wrong; NaN where people tie all pairs. Source: HPSv2, released code, `calc_ImageReward`; ImageReward,
    test.py.
    """
    by_people, by_scores = _signs(np.asarray(ranks, dtype=np.float64)), _signs(-np.asarray(scores, dtype=np.float64))
    ranked = by_people != 0
    return float((by_people == by_scores)[ranked].mean()) if ranked.any() else math.nan


def _signs(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The sign of the difference of each pair of values (n,), (C(n, 2),)."""
    first, second = np.triu_indices(len(values), 1)
    signs: NDArray[np.float64] = np.sign(values[second] - values[first])
    return signs
