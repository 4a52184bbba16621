"""Krippendorff's alpha: agreement of several annotators of the same units, corrected for chance."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray


def alpha(units: NDArray[np.int64], values: NDArray[np.float64], level: Literal["ordinal", "interval"]) -> float | None:
    """Krippendorff's alpha: 1 full agreement, 0 as by chance, below 0 disagreement.

    alpha = 1 - (n - 1) / n * sum over units of m SS_u / (m - 1) / SS, where n values are in units of two values or more, m of
    them in unit u, and SS_u and SS are the squared deviations from the mean of u and of all n values. This is the published
    1 - observed / expected disagreement, since the squared differences of all ordered pairs of m numbers sum to 2 m SS. Ordinal
    alpha is interval alpha of midranks: the published ordinal difference of two values is the difference of their midranks among
    the n values.

    Cost: O(n log n) time, O(n) memory; the number of distinct values does not matter.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"; Hayes and Krippendorff 2007, "Answering the Call for
    a Standard Reliability Measure for Coding Data".

    Args:
        units: (n,) the unit that each value is about, any integers. Who gave a value does not matter.
        values: (n,) the judgements; finite, or NaN where one is missing (it may be left out as well).
        level: whether only the order of values has a meaning, or their differences too.

    Returns:
        None where alpha is not defined: no unit has two values, or all values of such units are equal.
    """
    assert not np.isinf(values).any(), "a judgement is infinite"
    present = ~np.isnan(values)
    _, unit, counts = np.unique(units[present], return_inverse=True, return_counts=True)
    paired = counts[unit] > 1
    unit_of, values = unit[paired], values[present][paired]
    if not len(values) or values.min() == values.max():
        return None
    x = _midranks(values) if level == "ordinal" else values
    x = (x - x.min()) / (x.max() - x.min())  # alpha does not change, and no square overflows
    repeated = counts > 1
    m = counts[repeated]
    means = np.bincount(unit_of, x, len(counts)) / counts
    within = np.bincount(unit_of, (x - means[unit_of]) ** 2, len(counts))[repeated]
    n = len(x)
    return float(1 - (n - 1) / n * (m * within / (m - 1)).sum() / ((x - x.mean()) ** 2).sum())


def _midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) how many values are below each, and half of those equal to it."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle: NDArray[np.float64] = np.cumsum(counts) - counts / 2
    return middle[index]
