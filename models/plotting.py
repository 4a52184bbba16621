"""What all plots share: colours and markers that colour-blind people tell apart, legends that cover nothing, smoothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The first four are Okabe and Ito's. All differ for people without red, green or blue cones, and have a contrast of 3 to the
# background: measured in tests/test_plots.py, as are those of a dark page.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#330066", "#663300")
DARK_PALETTE = ("#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#f0e442", "#d55e00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
NEUTRAL = "#6b6b6b"  # reference lines
_SMOOTHED_FROM = 40  # points; fewer are drawn as they are
_WINDOWS = 20  # a smoothed curve is a running mean over its length by so many


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches, without a window, and its axes row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(rows, columns)))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG with a white background, the same bytes for the same figure."""
    figure.savefig(path, dpi=110, facecolor="white", metadata={"Software": None})


def style(number: int) -> dict[str, Any]:
    """Colour and marker of the n-th line of a panel."""
    dashes = "-" if number < len(PALETTE) else "--"
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 4,
        "linestyle": dashes,
    }


def draw_line(axes: Axes, number: int, points: Sequence[tuple[float, float]], label: str) -> None:
    """The n-th line of a panel, of (x, y); a long one as its running mean over its own values, which are drawn pale."""
    looks, x, y = style(number), [point[0] for point in points], [point[1] for point in points]
    if len(x) < _SMOOTHED_FROM:
        axes.plot(x, y, label=label, **looks)
        return
    axes.plot(x, y, color=looks["color"], alpha=0.25, linewidth=0.7)
    axes.plot(x, running_mean(y), label=f"{label}, running mean", markevery=max(1, len(x) // 8), **looks)


def running_mean(values: Sequence[float]) -> NDArray[np.float64]:
    """The centred running mean of a curve (n,), over fewer points at its ends."""
    half = max(1, len(values) // _WINDOWS) // 2
    sums = np.cumsum(np.concatenate([[0.0], np.asarray(values, dtype=np.float64)]))
    places = np.arange(len(values))
    first, last = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
    mean: NDArray[np.float64] = (sums[last] - sums[first]) / (last - first)
    return mean


def mark_step(axes: Axes, step: int, label: str) -> None:
    """A vertical line at the step whose weights are kept."""
    axes.axvline(step, color=NEUTRAL, linestyle="--", linewidth=1, label=label)


def legend_below(axes: Axes, columns: int = 2) -> None:
    """The legend of a panel below it, where it covers nothing."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, fontsize=7, frameon=False)
