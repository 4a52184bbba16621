"""The curves of a training of RAHF as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from irpipe.models.plotting import draw_line, legend_below, mark_step, new_figure, save
from irpipe.models.training.curves import Row
from irpipe.schemas.rich_feedback import ASPECTS

_PANELS = (
    ("heatmaps", "squared error of pixels, both maps"),
    ("scores", "squared error of scores"),
    ("words", "cross-entropy (nats per token)"),
)


def draw_curves(rows: Sequence[Row], kept: int, path: Path) -> None:
    """Each part of the loss over steps, and the correlation of each score on the validation images."""
    drawn = [(name, unit) for name, unit in _PANELS if any(name == of_row for _, _, of_row, _ in rows)]
    figure, panels = new_figure(4 * (len(drawn) + 1), 4.2, columns=len(drawn) + 1)
    for axes, (name, unit) in zip(panels[:-1], drawn, strict=True):
        for number, split in enumerate(("train", "validation")):
            points = [(step, value) for step, of, figure_name, value in rows if (of, figure_name) == (split, name)]
            draw_line(axes, number, points, split)
        axes.set(title=name, xlabel="step", ylabel=unit)
    for number, aspect in enumerate(ASPECTS):
        points = [(step, value) for step, _, name, value in rows if name == f"plcc_{aspect}"]
        draw_line(panels[-1], number, points, aspect)
    panels[-1].set(title="validation images", xlabel="step", ylabel="Pearson's correlation with people")
    for axes in panels:
        mark_step(axes, kept, f"kept: step {kept:,}")
        legend_below(axes)
    save(figure, path)
