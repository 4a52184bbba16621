"""Figures of predictions against people's feedback, each with its interval over prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from irpipe.models.metrics.heatmaps import heatmap_metrics
from irpipe.schemas.rich_feedback import ASPECTS, KINDS

Row = dict[str, Any]
_MAP_FIGURES = ("cc", "kld", "sim", "nss", "auc_judd", "auc_judd_as_published")


@dataclass(frozen=True)
class Feedback:
    """What somebody, or a model, says of images; all in one order.

    Attributes:
        scores: (n,) by aspect, NaN where nothing is said; maps: (h, w) of each image by kind.
        labels: whether each word is misaligned. Empty maps and labels: nothing is said of them.
    """

    scores: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    maps: Mapping[str, Sequence[NDArray[np.float64]]] = field(default_factory=dict)
    labels: Sequence[Sequence[bool]] = ()


@dataclass(frozen=True)
class Bootstrap:
    """How often each prompt is drawn, the same for all figures.

    Attributes:
        times: (b, p); prompt: (n,) each image's place among prompts.
    """

    times: NDArray[np.int64]
    prompt: NDArray[np.int64]

    @classmethod
    def of(cls, prompts: Sequence[int], draws: int, seed: int) -> Bootstrap:
        """So many draws over the prompts of images."""
        distinct, place = np.unique(np.array(prompts, dtype=np.uint64), return_inverse=True)
        count = len(distinct)
        times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
        return cls(times, place)

    def interval(self, figure: Callable[[NDArray[np.float64]], float]) -> tuple[float | None, float | None]:
        """The 95 % interval of a figure of image weights (n,)."""
        if not len(self.times):
            return None, None
        values = np.array([figure(draw[self.prompt].astype(np.float64)) for draw in self.times])
        values = values[np.isfinite(values)]
        if not len(values):
            return None, None
        low, high = np.quantile(values, (0.025, 0.975)).tolist()
        return low, high


def weighted_mean(values: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], float]:
    """The mean of values (n,) by weights, NaN left out."""
    known = np.isfinite(values)

    def figure(weights: NDArray[np.float64]) -> float:
        """Of image weights (n,)."""
        total = weights[known].sum()
        return float((weights[known] * values[known]).sum() / total) if total else float("nan")

    return figure


def weighted_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], float]:
    """Pearson's correlation of (n,) and (n,) by weights, pairs with NaN left out; NaN where one is constant."""
    known = np.isfinite(first) & np.isfinite(second)
    a, b = first[known], second[known]

    def figure(weights: NDArray[np.float64]) -> float:
        """Of image weights (n,)."""
        w = weights[known]
        drawn = w > 0
        if not drawn.any() or np.ptp(a[drawn]) == 0 or np.ptp(b[drawn]) == 0:
            return float("nan")
        w = w / w.sum()
        x, y = a - (w * a).sum(), b - (w * b).sum()
        norm = np.sqrt((w * x * x).sum() * (w * y * y).sum())
        return float((w * x * y).sum() / norm) if norm else float("nan")

    return figure


def score_rows(name: str, mine: Feedback, people: Feedback, bootstrap: Bootstrap) -> list[Row]:
    """Table 1: PLCC, SRCC and MSE of each score. SRCC's interval has the ranks of all images, not each draw's own."""
    rows = []
    for aspect in ASPECTS:
        if aspect not in mine.scores:
            continue
        found, true = mine.scores[aspect], people.scores[aspect]
        known = np.isfinite(found) & np.isfinite(true)
        ranks = [np.where(known, _ranks(values, known), np.nan) for values in (found, true)]
        figures = {
            "plcc": weighted_correlation(found, true),
            "srcc": weighted_correlation(ranks[0], ranks[1]),
            "mse": weighted_mean((found - true) ** 2),
        }
        rows += [_row(name, aspect, figure, of, int(known.sum()), bootstrap) for figure, of in figures.items()]
    return rows


def _ranks(values: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) ranks among the known ones, NaN for the others."""
    ranks = np.full(len(values), np.nan)
    ranks[known] = rankdata(values[known])
    return ranks


def map_rows(name: str, mine: Feedback, people: Feedback, bootstrap: Bootstrap, fixation: float) -> list[Row]:
    """Tables 2 and 3: MSE of all, MSE where people marked nothing, and the other figures where they marked something."""
    rows = []
    for kind in KINDS:
        if kind not in mine.maps:
            continue
        pairs = zip(people.maps[kind], mine.maps[kind], strict=True)
        measured, empty = [], np.zeros(len(mine.maps[kind]), dtype=np.bool_)
        for place, (true, one) in enumerate(pairs):
            measured.append(heatmap_metrics(true, one, fixation))
            empty[place] = not true.any()
        mse = np.array([one["mse"] for one in measured])
        columns = {"mse": mse, "mse_empty": np.where(empty, mse, np.nan)}
        columns |= {figure: np.array([one[figure] for one in measured]) for figure in _MAP_FIGURES}
        rows += [
            _row(name, kind, figure, weighted_mean(values), int(np.isfinite(values).sum()), bootstrap)
            for figure, values in columns.items()
        ]
    return rows


def word_rows(name: str, mine: Feedback, people: Feedback, bootstrap: Bootstrap) -> list[Row]:
    """Table 4: precision, recall and F1 of misaligned words, pooled over all words."""
    if not mine.labels:
        return []
    counts = np.array(
        [
            [
                sum(a and b for a, b in zip(found, true, strict=True)),
                sum(a and not b for a, b in zip(found, true, strict=True)),
                sum(b and not a for a, b in zip(found, true, strict=True)),
            ]
            for found, true in zip(mine.labels, people.labels, strict=True)
        ],
        dtype=np.float64,
    )

    def pooled(part: str) -> Callable[[NDArray[np.float64]], float]:
        def figure(weights: NDArray[np.float64]) -> float:
            """Of image weights (n,)."""
            hits, false, missed = (weights[:, None] * counts).sum(axis=0)
            below = {"precision": hits + false, "recall": hits + missed, "f1": hits + (false + missed) / 2}[part]
            return float(hits / below) if below else 0.0

        return figure

    return [_row(name, "words", part, pooled(part), len(counts), bootstrap) for part in ("precision", "recall", "f1")]


def _row(
    name: str, output: str, figure: str, of: Callable[[NDArray[np.float64]], float], count: int, bootstrap: Bootstrap
) -> Row:
    """A row of the table, of a figure of image weights (n,)."""
    value = of(np.ones(len(bootstrap.prompt)))
    low, high = bootstrap.interval(of)
    known = value if np.isfinite(value) else None
    return {"predictor": name, "output": output, "figure": figure, "value": known, "low": low, "high": high, "count": count}


def constant(people: Feedback) -> Feedback:
    """What says the same of every image: the mean score and map of the evaluated images themselves, which no constant betters."""
    scores = {aspect: np.full(len(values), np.nanmean(values)) for aspect, values in people.scores.items()}
    maps: dict[str, Sequence[NDArray[np.float64]]] = {}
    for kind, truth in people.maps.items():
        total, shapes = np.zeros(truth[0].shape), set()
        for one in truth:
            shapes.add(one.shape)
            total = total + one if one.shape == total.shape else total
        if len(shapes) == 1:
            maps[kind] = [total / len(truth)] * len(truth)
    return Feedback(scores, maps)
