"""The curves of a training as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from irpipe.models.training.curves import Row


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Loss, accuracy and standard deviation of scores over steps; ln 2 and chance as dotted lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    lines = (("loss", math.log(2)), ("accuracy", 0.5), ("score_std", None))
    for axes, (name, line) in zip(figure.subplots(1, 3), lines, strict=True):
        for split in ("train", "validation"):
            points = [(step, value) for step, of, figure_name, value in rows if (of, figure_name) == (split, name)]
            axes.plot(*zip(*points, strict=True), label=split)
        if line is not None:
            axes.axhline(line, color="grey", linestyle=":", linewidth=1)
        axes.set_xlabel("step")
        axes.set_title(name)
        axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
