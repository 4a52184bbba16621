"""The curves of a training: a long table, so that every training has its own figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from irpipe.schemas.table import Column, Table

CURVES = Table(
    "curves",
    "The curves of a training, a row per step and figure: means since the last row (train), or of an evaluation (validation).",
    (
        Column("step", pa.int64(), "Optimiser steps done."),
        Column("split", pa.string(), "train or validation."),
        Column(
            "figure",
            pa.string(),
            "train: the losses by name, gradient_norm, learning_rate, and the objective's own figures. validation: what the stage"
            " evaluates; NAME_error is the standard error over prompts of NAME's change since step 0.",
        ),
        Column("value", pa.float64(), "Its value."),
    ),
)


def write_curves(rows: Sequence[tuple[int, str, str, float]], folder: Path) -> None:
    """Write rows of step, split, figure and value."""
    columns = zip(*rows, strict=True) if rows else ([] for _ in CURVES.columns)
    CURVES.write(folder, {column.name: list(values) for column, values in zip(CURVES.columns, columns, strict=True)})


def series(rows: Sequence[Mapping[str, Any]], split: str, figure: str) -> dict[int, float]:
    """Values of one figure of one split by step, of rows of the table."""
    return {row["step"]: row["value"] for row in rows if row["split"] == split and row["figure"] == figure}
