"""RichHF's tables 1 to 4 as text, and the scores' correlations as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irpipe.models.plotting import PALETTE, legend_below, new_figure, save, style
from irpipe.schemas.rich_feedback import ASPECTS
from irpipe.stages.evaluate_rahf import EvaluateRahfConfig

Row = Mapping[str, Any]
_MAPS = ("mse", "mse_empty", "cc", "kld", "sim", "nss", "auc_judd", "auc_judd_as_published", "pointing")
_TABLES: Mapping[str, Sequence[tuple[str, tuple[str, ...]]]] = {
    "Table 1: scores, PLCC (95 %) / SRCC": [(aspect, ("plcc", "srcc")) for aspect in ASPECTS],
    "Table 2: implausibility heatmaps": [("implausibility", (figure,)) for figure in _MAPS[:-1]],
    "Table 3: misalignment heatmaps": [("misalignment", (figure,)) for figure in _MAPS],
    "Table 4: misaligned words": [("words", (figure,)) for figure in ("precision", "recall", "f1")],
}

KNOWN = frozenset((output, figure) for columns in _TABLES.values() for output, of in columns for figure in of)
"""Outputs and figures that stand in a table."""


def report_of(figures: Sequence[Row], config: EvaluateRahfConfig, images: int, prompts: int) -> str:
    """The tables, each with the predictors that have a figure of it."""
    by = {(row["predictor"], row["output"], row["figure"]): row for row in figures}
    names = list(dict.fromkeys(row["predictor"] for row in figures))
    text = f"{images:,} images of {prompts:,} prompts (split {config.split}); intervals by bootstrap over prompts;"
    text += f" fixations are pixels above {config.fixation:g}\n"
    for title, columns in _TABLES.items():
        present = [column for column in columns if any((name, column[0], column[1][0]) in by for name in names)]
        lines = [["", *(output if len(of) > 1 else of[0] for output, of in present)]]
        for name in names:
            cells = [_cell([by.get((name, output, figure)) for figure in of]) for output, of in present]
            if any(cells):
                lines.append([name, *cells])
        text += f"\n{title}\n\n" + _aligned(lines)
    return text


def _cell(rows: Sequence[Row | None]) -> str:
    """Figures, the first with its interval."""
    first = rows[0]
    if first is None or first["value"] is None:
        return "".join(f"/ {row['value']:.3f}" for row in rows[1:] if row is not None and row["value"] is not None)
    digits = 5 if first["figure"].startswith("mse") else 3
    text = f"{first['value']:.{digits}f}"
    if first["low"] is not None and not first["figure"].startswith(("kld", "sim", "auc_judd_as", "mse_empty")):
        text += f" ({first['low']:.{digits}f} to {first['high']:.{digits}f})"
    return text + "".join(f" / {row['value']:.3f}" for row in rows[1:] if row is not None and row["value"] is not None)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        + "\n"
        for line in lines
    )


def draw(figures: Sequence[Row], path: Path) -> None:
    """PLCC of each score by each predictor, with intervals."""
    rows = [row for row in figures if row["figure"] == "plcc" and row["value"] is not None]
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    figure, (axes,) = new_figure(9, 1.6 + 0.45 * max(1, len(names)))
    for number, aspect in enumerate(ASPECTS):
        points = {row["predictor"]: row for row in rows if row["output"] == aspect}
        heights = [place + 0.15 * (number - 1.5) for place, name in enumerate(names) if name in points]
        chosen = [points[name] for name in names if name in points]
        axes.plot([row["value"] for row in chosen], heights, label=aspect, **(style(number) | {"linestyle": "none"}))
        for height, row in zip(heights, chosen, strict=True):
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [height, height], color=PALETTE[number])
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="Pearson's correlation with people, 95 % intervals", ylabel="predictor")
    legend_below(axes)
    save(figure, path)
