"""Accuracy on pairs: pooled, by prompt, by group, with intervals, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 10


def correct_pairs(scores: Mapping[int, float], better: NDArray[np.uint64], worse: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(p,) 1 where the better image scores higher, 0 where not; equal scores count as wrong, as in the released code."""
    return np.array([float(scores[a] > scores[b]) for a, b in zip(better.tolist(), worse.tolist(), strict=True)])


def by_prompt(correct: NDArray[np.float64], prompts: NDArray[np.uint64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Correct pairs and all pairs of each prompt, (q,) each."""
    _, prompt_index = np.unique(prompts, return_inverse=True)
    hits: NDArray[np.float64] = np.bincount(prompt_index, weights=correct).astype(np.float64)
    return hits, np.bincount(prompt_index).astype(np.float64)


def accuracies(correct: NDArray[np.float64], prompts: NDArray[np.uint64]) -> dict[str, float]:
    """Accuracy of (p,) pairs, pooled (released code, test.py), and as the mean over prompts (caption of table 3)."""
    hits, counts = by_prompt(correct, prompts)
    return {"accuracy": float(hits.sum() / counts.sum()), "accuracy_by_prompt": float((hits / counts).mean())}


def intervals(correct: NDArray[np.float64], prompts: NDArray[np.uint64], draws: int, seed: int) -> dict[str, tuple[float, float]]:
    """95 % intervals of both accuracies of (p,) pairs by bootstrap over prompts: pairs of one prompt are not independent.

    Cost: O(draws * prompts), a thousand draws at a time.
    """
    hits, counts = by_prompt(correct, prompts)
    rng, size = np.random.default_rng(seed), len(hits)
    pooled, means = [], []
    for start in range(0, draws, 1000):
        times = rng.multinomial(size, np.full(size, 1 / size), size=min(1000, draws - start)).astype(np.float64)
        pooled.append((times @ hits) / (times @ counts))
        means.append((times @ (hits / counts)) / size)
    if not draws:
        return {}
    return {
        name: tuple(np.quantile(np.concatenate(values), (0.025, 0.975)).tolist())
        for name, values in (("accuracy", pooled), ("accuracy_by_prompt", means))
    }


def grouped(correct: NDArray[np.float64], labels: Sequence[Any]) -> list[tuple[str, int, float]]:
    """Label, number and accuracy of each group of (p,) pairs; pairs without a label are in none."""
    names = np.array(["" if label is None else str(label) for label in labels])
    return [
        (str(name), int((names == name).sum()), float(correct[names == name].mean())) for name in np.unique(names) if name != ""
    ]


def calibration(gaps: NDArray[np.float64], correct: NDArray[np.float64]) -> list[dict[str, float]]:
    """Accuracy of (p,) pairs by confidence, sigmoid(|difference of raw scores|), in ten bins of equal size."""
    sure = 1 / (1 + np.exp(-np.abs(gaps)))
    order = np.argsort(sure, kind="stable")
    return [
        {"sure": float(sure[part].mean()), "right": float(correct[part].mean()), "pairs": float(len(part))}
        for part in np.array_split(order, min(_BINS, len(order)))
    ]


def calibration_error(bins: Sequence[Mapping[str, float]]) -> float:
    """Mean |sure - right| over pairs (expected calibration error)."""
    pairs = sum(row["pairs"] for row in bins)
    return sum(abs(row["sure"] - row["right"]) * row["pairs"] for row in bins) / pairs
