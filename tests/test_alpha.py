"""Krippendorff's alpha against published examples and against its definition, pair by pair."""

from __future__ import annotations

import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpipe.models.metrics.alpha import alpha

_ = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", sections B to E: four observers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, _, _, _],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, _, 3],
    [_, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, _],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, _],
]
# Wikipedia, "Krippendorff's alpha": three coders, fifteen units.
ENCYCLOPEDIA = [
    [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
    [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
    [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
]


def of_table(table, level):
    """Alpha of a table (people, units) with NaN where somebody did not judge."""
    table = np.array(table, dtype=np.float64)
    return alpha(np.broadcast_to(np.arange(table.shape[1]), table.shape).ravel(), table.ravel(), level)


def by_definition(table, level):
    """1 - observed / expected disagreement, summed over ordered pairs of values; None where nothing varies."""
    units = [[value for value in unit if not np.isnan(value)] for unit in np.array(table, dtype=np.float64).T]
    units = [unit for unit in units if len(unit) > 1]
    values = sorted(value for unit in units for value in unit)

    def difference(one, two):
        if level == "nominal":
            return float(one != two)
        if level == "interval":
            return (one - two) ** 2
        low, high = min(one, two), max(one, two)
        between = sum(low <= value <= high for value in values)
        return (between - (values.count(low) + values.count(high)) / 2) ** 2

    def total(group):
        return sum(difference(one, two) for one, two in permutations(group, 2))

    if len(set(values)) < 2:
        return None
    observed = sum(total(unit) / (len(unit) - 1) for unit in units) / len(values)
    return 1 - observed / (total(values) / (len(values) * (len(values) - 1)))


@pytest.mark.parametrize(
    ("table", "nominal", "ordinal", "interval"), [(PUBLISHED, 0.743, 0.815, 0.849), (ENCYCLOPEDIA, 0.691, 0.807, 0.811)]
)
def test_published_examples(table, nominal, ordinal, interval):
    assert by_definition(table, "nominal") == pytest.approx(nominal, abs=5e-4)  # the reference itself
    assert of_table(table, "ordinal") == pytest.approx(ordinal, abs=5e-4)
    assert of_table(table, "interval") == pytest.approx(interval, abs=5e-4)


tables = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from((_, -1.5, 0.0, 0.1, 2.0, 2.5, 70.0)), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


@given(tables, st.sampled_from(("ordinal", "interval")))
def test_it_is_the_definition(table, level):
    expected = by_definition(table, level)
    assert of_table(table, level) == (None if expected is None else pytest.approx(expected, abs=1e-9))


@given(tables, st.sampled_from(("ordinal", "interval")), st.randoms(use_true_random=False))
def test_order_people_and_scale_do_not_matter(table, level, random):
    shuffled = [list(unit) for unit in zip(*table, strict=True)]
    for unit in shuffled:
        random.shuffle(unit)
    random.shuffle(shuffled)
    found = of_table((np.array(shuffled).T - 3) * 1e-170, level)
    expected = of_table(table, level)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_where_it_is_not_defined(level):
    assert alpha(np.array([], dtype=np.int64), np.array([]), level) is None
    assert of_table([[_, _], [_, _]], level) is None  # nobody judged
    assert of_table([[1, 2, 3]], level) is None  # one person
    assert of_table([[1, 2, _, _], [_, _, 3, 4]], level) is None  # nobody judged what another one did
    assert of_table([[0.1, 0.1, 7], [0.1, 0.1, _]], level) is None  # the only other value is alone in its unit


@pytest.mark.parametrize("level", ["ordinal", "interval"])
def test_ends(level):
    assert of_table([[1, 2, 3], [1, 2, 3]], level) == 1
    # Two units judged 1, 2 and 2, 1: observed 1, expected 8 / 12 of the squared difference of 1 and 2.
    assert of_table([[1, 2], [2, 1]], level) == pytest.approx(-0.5)


def test_units_are_any_integers_and_values_may_be_many():
    """A million values, all different, of units named by hashes: nothing quadratic, and noise agrees as by chance."""
    rng = np.random.default_rng(0)
    units = np.repeat(rng.integers(-(1 << 62), 1 << 62, 250_000), 4)
    start = time.perf_counter()
    assert abs(alpha(units, rng.normal(size=1_000_000), "ordinal")) < 0.01
    assert time.perf_counter() - start < 20  # .4 s where nothing else runs
