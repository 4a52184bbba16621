"""The work of `sweep-rm`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.models.plotting import new_figure, save, style
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.curves import CURVES, series
from irpipe.schemas.reward_model import SWEEP
from irpipe.stages.sweep_rm import SweepRmConfig

_SEED = re.compile(r",? ?\btraining\.seed=\d+")


def run(config: SweepRmConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    rows = [sweep_row(node, model) for node, model in inputs.all("reward-model").items()]
    SWEEP.write(out, {column.name: [row[column.name] for row in rows] for column in SWEEP.columns})
    best = min(points(rows), key=lambda point: point["validation_loss"])
    (out / "best.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
    draw(points(rows), out / "sweep.png")
    context.say(f"best: {best['point']}")
    return Report(Rows(len(rows), len(rows), 0), {"models": len(rows), "best": best})


def sweep_row(node: str, model: Artifact) -> dict[str, Any]:
    """A row of `sweep`: the best validation of one training."""
    rows = CURVES.read(model.table("curves")).to_pylist()
    losses, accuracies = (series(rows, "validation", figure) for figure in ("loss", "accuracy"))
    best = min(losses, key=lambda step: losses[step])
    return {
        "node": node,
        "point": point_of(node),
        "validation_loss": losses[best],
        "validation_accuracy": accuracies[best],
        "best_step": best,
        "steps": max(losses),
        "model": model.content_id,
    }


def point_of(node: str) -> str:
    """A node's name without its seed: trainings that differ only in the seed are repetitions of one point of a grid."""
    return _SEED.sub("", node).replace("[, ", "[").replace("[]", "")


def points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each point of a grid with its validation loss, a mean over seeds, and how many there are."""
    by_point: dict[str, list[float]] = {}
    for row in rows:
        by_point.setdefault(row["point"], []).append(row["validation_loss"])
    return [
        {"point": point, "validation_loss": float(np.mean(losses)), "seeds": len(losses)} for point, losses in by_point.items()
    ]


def draw(points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation loss of each point, the lowest marked."""
    figure, (axis,) = new_figure(9, 1.6 + 0.35 * len(points))
    losses = [point["validation_loss"] for point in points]
    axis.plot(losses, range(len(points)), **(style(0) | {"linestyle": "none"}))
    axis.plot(min(losses), losses.index(min(losses)), label="lowest", **(style(1) | {"linestyle": "none"}))
    axis.set(
        yticks=range(len(points)),
        yticklabels=[point["point"] for point in points],
        xlabel="validation loss (nats per pair)",
        ylabel="settings",
    )
    axis.invert_yaxis()
    axis.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    save(figure, path)
