"""The curves of a training as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from irpipe.models.plotting import NEUTRAL, draw_line, legend_below, mark_step, new_figure, save
from irpipe.models.training.curves import Row

_PANELS = (
    ("loss", "loss (nats per pair)", ("ln 2: scores that tell nothing", math.log(2))),
    ("accuracy", "share of pairs ordered as people do", ("chance", 0.5)),
    ("score_std", "standard deviation of scores", None),
)


def draw_curves(rows: Sequence[Row], kept: int, path: Path) -> None:
    """Loss, accuracy and standard deviation of scores over steps, with the step whose weights are kept."""
    figure, panels = new_figure(12, 4.2, columns=len(_PANELS))
    for axes, (name, unit, reference) in zip(panels, _PANELS, strict=True):
        for number, split in enumerate(("train", "validation")):
            points = [(step, value) for step, of, figure_name, value in rows if (of, figure_name) == (split, name)]
            draw_line(axes, number, points, split)
        if reference is not None:
            axes.axhline(reference[1], color=NEUTRAL, linestyle=":", linewidth=1, label=reference[0])
        mark_step(axes, kept, f"kept: step {kept:,}")
        axes.set(title=name, xlabel="step", ylabel=unit)
        legend_below(axes)
    save(figure, path)
