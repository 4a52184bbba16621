"""How well a selection covers the pool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.plotting import NEUTRAL, PALETTE, legend_below, new_figure, save
from irpipe.pipeline.stage import Context
from irpipe.schemas.embeddings import unit_rows

_BLOCK = 8192


def nearest_selected(vectors: NDArray[Any], picks: NDArray[np.int64], title: str, context: Context) -> NDArray[np.float32]:
    """Similarity of every prompt to its nearest selected one, (n,). A selected prompt's is 1.

    Cost: 2 n count d floating-point operations.
    """
    selected = unit_rows(vectors, picks).T.copy()
    nearest = np.empty(len(vectors), dtype=np.float32)
    with context.progress(title, len(vectors), "prompts") as bar:
        for start in range(0, len(vectors), _BLOCK):
            block = unit_rows(vectors, slice(start, start + _BLOCK))
            nearest[start : start + len(block)] = (block @ selected).max(axis=1)
            bar.advance(len(block))
    return nearest


def nearest_other(vectors: NDArray[Any], picks: NDArray[np.int64]) -> NDArray[np.float32]:
    """Similarity of every selected prompt to its nearest other selected one, (count,)."""
    selected = unit_rows(vectors, picks)
    nearest = np.full(len(picks), np.nan, dtype=np.float32)
    if len(picks) < 2:
        return nearest
    for start in range(0, len(picks), _BLOCK):
        block = selected[start : start + _BLOCK] @ selected.T
        rows = np.arange(len(block))
        block[rows, start + rows] = -np.inf
        nearest[start : start + len(block)] = block.max(axis=1)
    return nearest


def figures(coverage: NDArray[np.float32], redundancy: NDArray[np.float32]) -> dict[str, float | None]:
    """Metrics of a selection: mean and 5th percentile of coverage (n,), mean of redundancy (count,)."""
    return {
        "coverage_mean": round(float(coverage.mean(dtype=np.float64)), 4),
        "coverage_p5": round(float(np.percentile(coverage, 5)), 4),
        "redundancy_mean": round(float(redundancy.mean(dtype=np.float64)), 4) if len(redundancy) > 1 else None,
    }


def plot(
    path: Path,
    method: str,
    coverage: tuple[NDArray[np.float32], NDArray[np.float32]],
    redundancy: tuple[NDArray[np.float32], NDArray[np.float32]],
) -> None:
    """Plot coverage (n,) and redundancy (count,) of a selection (first) and of a random one (second), as a PNG."""
    figure, axes = new_figure(10, 4.4, columns=2)
    titles = (
        "Coverage: every prompt's similarity\nto its nearest selected one (right is better)",
        "Redundancy: every selected prompt's similarity\nto its nearest other (left is better)",
    )
    for axis, title, pair in zip(axes, titles, (coverage, redundancy), strict=True):
        for values, name, colour, dashes in zip(pair, (method, "random"), (PALETTE[0], NEUTRAL), ("-", "--"), strict=True):
            finite = np.sort(values[np.isfinite(values)])
            axis.plot(finite, np.linspace(0, 1, len(finite)), label=name, color=colour, linestyle=dashes, linewidth=2)
        axis.set(title=title, xlabel="cosine", ylabel="share of prompts below", ylim=(0, 1))
        axis.grid(alpha=0.3)
        legend_below(axis)
    save(figure, path)
