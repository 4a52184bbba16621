"""Rankings: recall of people's best and worst images, best of n, and ranks of generators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from irpipe.models.metrics.rankings import imagereward_accuracy, inversion_score
from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import check_columns, read_csv


@dataclass(frozen=True)
class Ranking:
    """One record: its images and their ranks, lower is better."""

    images: tuple[int, ...]
    ranks: tuple[int, ...]


def read_rankings(rows: Mapping[str, Sequence[Any]]) -> list[Ranking]:
    """The records behind pairs, from the pairs' ranks; pairs of a majority have none and are skipped.

    Args:
        rows: columns ranking_id, better, worse, rank_better, rank_worse.
    """
    ranks_by_record: dict[int, dict[int, int]] = {}
    columns = (rows[name] for name in ("ranking_id", "better", "worse", "rank_better", "rank_worse"))
    for record, better, worse, rank_better, rank_worse in zip(*columns, strict=True):
        if rank_better is not None and rank_worse is not None:
            ranks_by_record.setdefault(record, {}).update({better: rank_better, worse: rank_worse})
    return [Ranking(tuple(sorted(ranks)), tuple(ranks[image] for image in sorted(ranks))) for ranks in ranks_by_record.values()]


def recall_and_filter(
    rankings: Sequence[Ranking], scores: Mapping[int, float], at: Sequence[int]
) -> dict[str, tuple[float, int]]:
    """recall@k: share of records whose best image is among a scorer's first k; filter@k: whose worst is among its last k.

    Where several are tied for best (or worst), one of them is enough. Records of at most k images are left out: any scorer
    is right on them. Source: ImageReward, appendix C.2, where all records have eight.

    Returns:
        the figures, and how many records each is over; none where no record is long enough.
    """
    figures: dict[str, tuple[float, int]] = {}
    for k in at:
        counts = {"recall": 0, "filter": 0}
        longer = [ranking for ranking in rankings if len(ranking.images) > k]
        for ranking in longer:
            order = sorted(range(len(ranking.images)), key=lambda i: (-scores[ranking.images[i]], ranking.images[i]))
            best, worst = min(ranking.ranks), max(ranking.ranks)
            counts["recall"] += any(ranking.ranks[index] == best for index in order[:k])
            counts["filter"] += any(ranking.ranks[index] == worst for index in order[-k:])
        if longer:
            figures |= {f"{name}@{k}": (count / len(longer), len(longer)) for name, count in counts.items()}
    return figures


def _mean_over_records(
    rule: Callable[[Sequence[float], Sequence[float]], float], rankings: Sequence[Ranking], scores: Mapping[int, float]
) -> tuple[float, int]:
    """Mean of a rule over the records for which it is defined, and how many these are."""
    values = np.array([rule(ranking.ranks, [scores[image] for image in ranking.images]) for ranking in rankings])
    values = values[np.isfinite(values)]
    return (float(values.mean()) if len(values) else float("nan")), len(values)


def _ties_as_half(rankings: Sequence[Ranking], scores: Mapping[int, float]) -> tuple[float, int]:
    """Accuracy over all pairs that people do not tie, equal scores as half right, and how many pairs these are."""
    right = total = 0.0
    for ranking in rankings:
        values = [scores[image] for image in ranking.images]
        for first, second in combinations(range(len(values)), 2):
            if ranking.ranks[first] != ranking.ranks[second]:
                gap = (values[first] - values[second]) * (ranking.ranks[second] - ranking.ranks[first])
                right += 1.0 if gap > 0 else 0.5 if gap == 0 else 0.0
                total += 1
    return right / max(1.0, total), int(total)


RULES: Mapping[str, Callable[[Sequence[Ranking], Mapping[int, float]], tuple[float, int]]] = {
    "ties-as-half": _ties_as_half,
    "hpsv2-inversion": partial(_mean_over_records, inversion_score),
    "hpsv2-imagereward": partial(_mean_over_records, imagereward_accuracy),
}


def correlations(
    scores: Mapping[str, Mapping[int, float]], prompt_of: Mapping[int, int], images: Sequence[int]
) -> list[dict[str, Any]]:
    """Pearson's and Spearman's correlation of every two scorers over images, and within prompts (HPS, figure 6).

    Args:
        scores: by scorer and image; prompt_of: by image. Prompts of fewer than three images have no correlation of their own.
    """
    by_prompt: dict[int, list[int]] = {}
    for index, image in enumerate(images):
        by_prompt.setdefault(prompt_of[image], []).append(index)
    groups = [np.array(group) for group in by_prompt.values() if len(group) > 2]
    values = {name: np.array([of_one[image] for image in images]) for name, of_one in scores.items()}
    rows = []
    for first, second in combinations(values, 2):
        for name, correlate in (("pearson", pearsonr), ("spearman", spearmanr)):
            within = [_correlation(correlate, values[first][group], values[second][group]) for group in groups]
            known = [value for value in within if value is not None]
            whole = _correlation(correlate, values[first], values[second])
            mean = float(np.mean(known)) if known else None
            for figure, value, count in ((name, whole, len(images)), (f"{name}_within_prompts", mean, len(known))):
                rows.append({"scorer": first, "other": second, "figure": figure, "value": value, "count": count})
    return rows


def _correlation(correlate: Callable[..., Any], first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """A correlation of scores (n,); None where one of them is constant."""
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(correlate(first, second).statistic)


def best_of(values: NDArray[np.float64], order: NDArray[np.int64], n: int) -> float:
    """Expected value of the image that an order picks among n of a prompt's images drawn at random, exactly.

    Image i of the order is the pick if it is drawn and none before it is: C(k - 1 - i, n - 1) / C(k, n).

    Args:
        values: (k,) of all images; order: (k,) indices, the best first; n: at most k.
    """
    count = len(values)
    chances = [comb(count - 1 - i, n - 1) / comb(count, n) for i in range(count)]
    return float(np.dot(chances, values[order]))


def mean_scores(generators: Sequence[str], prompts: Sequence[int], scores: Sequence[float]) -> dict[str, float]:
    """Mean score of each generator: over its images of a prompt, then over prompts (released code, test-benchmark.py)."""
    by_generator: dict[str, dict[int, list[float]]] = {}
    for generator, prompt, score in zip(generators, prompts, scores, strict=True):
        by_generator.setdefault(generator, {}).setdefault(prompt, []).append(score)
    return {
        name: float(np.mean([np.mean(prompt_scores) for prompt_scores in prompts.values()]))
        for name, prompts in by_generator.items()
    }


def wins(best: Mapping[int, Mapping[str, float]]) -> dict[str, int]:
    """The number of wins of each generator's best image over those of others, over prompts.

    Args:
        best: by prompt, the score of each generator's best image (or minus its human rank).
    """
    count: dict[str, int] = {}
    for prompt_scores in best.values():
        for generator, score in prompt_scores.items():
            count[generator] = count.get(generator, 0) + sum(
                score > other_score for other, other_score in prompt_scores.items() if other != generator
            )
    return count


def best_images(generators: Sequence[str], prompts: Sequence[int], scores: Sequence[float]) -> dict[int, dict[str, float]]:
    """By prompt, the score of each generator's best image."""
    best: dict[int, dict[str, float]] = {}
    for generator, prompt, score in zip(generators, prompts, scores, strict=True):
        prompt_scores = best.setdefault(prompt, {})
        prompt_scores[generator] = max(score, prompt_scores.get(generator, -np.inf))
    return best


def rho(first: Mapping[str, float], second: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation of two figures of the same generators; None for fewer than two."""
    from scipy.stats import spearmanr

    names = sorted(first.keys() & second.keys())
    if len(names) < 2:
        return None
    result = float(spearmanr([first[name] for name in names], [second[name] for name in names]).statistic)
    return result if np.isfinite(result) else None


def read_human_ranking(path: Path) -> dict[str, float]:
    """The human ranking of generators, higher is better: wins, or minus the rank.

    Raises:
        InputError: the file has neither column, or a cell that is not a number.
    """
    figures = {}
    with path.open(encoding="utf-8-sig") as file:
        names = [name.strip() for name in file.readline().split(",")]
    column = "wins" if "wins" in names else "rank"
    check_columns(names, ("generator", column), str(path))
    for number, cells in read_csv(path, ("generator", column)):
        try:
            value = float(cells[column])
        except (TypeError, ValueError):
            raise InputError(f"{column} of row {number} is {cells[column]!r}, no number", where=str(path)) from None
        figures[str(cells["generator"]).strip()] = value if column == "wins" else -value
    return figures
