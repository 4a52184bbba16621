"""The work of `sweep-rm`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.pipeline.stage import Context, Report, Rows, trial_name
from irpipe.pipeline.store import Artifact
from irpipe.schemas.reward_model import CURVES, TRIALS
from irpipe.stages.sweep_rm import SweepRmConfig, trials_of


def run(config: SweepRmConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    rows = [trial_row(settings, inputs[trial_name("reward-model", settings)]) for settings in trials_of(config)]
    TRIALS.write(out, {column.name: [row[column.name] for row in rows] for column in TRIALS.columns})
    best = min(points(rows), key=lambda point: point["validation_loss"])
    (out / "best.json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")
    draw(rows, out / "sweep.png")
    context.say("best: " + " ".join(f"--set train-rm.{name}={best[name]}" for name in _AXES))
    return Report(Rows(len(rows), len(rows), 0), {"trials": len(rows), "best": best})


_AXES = ("learning_rate", "batch_pairs", "freeze_rate")


def trial_row(settings: Mapping[str, Any], model: Artifact) -> dict[str, Any]:
    """A row of `trials`: the best validation of one training."""
    curves = [row for row in CURVES.read(model.table("curves")).to_pylist() if row["split"] == "validation"]
    best = min(curves, key=lambda row: row["loss"])
    tried = {name: settings[name] for name in (*_AXES, "seed")}
    return tried | {
        "validation_loss": best["loss"],
        "validation_accuracy": best["accuracy"],
        "best_step": best["step"],
        "steps": curves[-1]["step"],
        "model": model.content_id,
    }


def points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means over seeds for each point of the grid."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in _AXES), []).append(row)
    return [
        dict(zip(_AXES, point, strict=True))
        | {name: float(np.mean([row[name] for row in of])) for name in ("validation_loss", "validation_accuracy")}
        for point, of in found.items()
    ]


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Validation loss and accuracy over the learning rate, one line for each batch and freeze rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, name in zip(figure.subplots(1, 2), ("validation_loss", "validation_accuracy"), strict=True):
        means = points(rows)
        for batch, rate in dict.fromkeys((point["batch_pairs"], point["freeze_rate"]) for point in means):
            of = [point for point in means if (point["batch_pairs"], point["freeze_rate"]) == (batch, rate)]
            axis.plot(
                [point["learning_rate"] for point in of],
                [point[name] for point in of],
                "o-",
                label=f"{batch} pairs, {rate:g} frozen",
            )
        axis.set(xscale="log", xlabel="learning rate", title=name.replace("_", " "))
        axis.legend()
    figure.savefig(path, dpi=110, metadata={"Software": None})
