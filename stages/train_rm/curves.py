"""The course of a training as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss, accuracy and spread of scores over steps; ln 2 and chance as dotted lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, line) in zip(
        figure.subplots(1, 3), (("loss", math.log(2)), ("accuracy", 0.5), ("spread", None)), strict=True
    ):
        for split in ("train", "validation"):
            of_split = [row for row in rows if row["split"] == split]
            axes.plot([row["step"] for row in of_split], [row[name] for row in of_split], label=split)
        if line is not None:
            axes.axhline(line, color="grey", linestyle=":", linewidth=1)
        axes.set_xlabel("step")
        axes.set_title(name)
        axes.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
