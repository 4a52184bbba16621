"""Try reward-model settings on a grid and compare them on the validation split.

Reads: a reward model for each point of the grid, trained by train-rm under the recipe's other settings.
Writes: the table `trials`, a plot, and the best trial's settings in `best.json`.
Paper: ImageReward, section 4.1 (learning rate, batch size and rate of fixed parameters are swept on the validation split).
Deviates: nothing.
Cost: one training a point; each is an artifact of its own, so that a sweep that was stopped, or grew, trains what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Annotated, Any

from pydantic import Field, Strict

from irpipe.pipeline.stage import Config, Stage, Trials, setting

Rates = Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Strict(False)]


class SweepRmConfig(Config):
    learning_rates: Rates = setting(
        (5e-6, 1e-5, 2e-5), min_length=1, meaning="Learning rates.", source="ImageReward 4.1: 1e-5 won"
    )
    batch_pairs: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)] = setting(
        (64,), min_length=1, meaning="Pairs a step.", source="ImageReward 4.1: 64 won"
    )
    freeze_rates: Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Strict(False)] = setting(
        (0.7,), min_length=1, meaning="Shares of layers that stay as they are.", source="ImageReward 4.1: 0.7 won"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Strict(False)] = setting(
        (1234,), min_length=1, meaning="Seeds; a point's figure is the mean over them."
    )


def trials_of(config: SweepRmConfig) -> Sequence[dict[str, Any]]:
    """The settings of each trial."""
    names = ("learning_rate", "batch_pairs", "freeze_rate", "seed")
    grid = product(config.learning_rates, config.batch_pairs, config.freeze_rates, config.seeds)
    # What encode-images keeps fits one rate; several cannot share it.
    several = len(set(config.freeze_rates)) > 1
    trials = (dict(zip(names, point, strict=True)) for point in grid)
    return [trial | ({"frozen_part": "recomputed"} if several and trial["freeze_rate"] else {}) for trial in trials]


STAGE = Stage(
    name="sweep-rm",
    version=1,
    trials=Trials("reward-model", trials_of),
    writes="sweep",
    determinism="numeric",
    config=SweepRmConfig,
    run="irpipe.stages.sweep_rm.run:run",
)
