"""Compare reward models that were trained under different settings by their validation figures.

Reads: the reward models that the recipe names, such as the nodes of a grid.
Writes: the table `sweep`, a plot, and the name of the best model in `best.json`.
Paper: ImageReward, section 4.1 (learning rate, batch size and rate of fixed parameters are swept on the validation split).
Deviates: nothing.
Cost: one training per model; each is an artifact, so that an interrupted or extended sweep trains only the missing models.
"""

from __future__ import annotations

from irpipe.pipeline.stage import Config, Many, Stage


class SweepRmConfig(Config):
    """The recipe names the models: `[sweep-rm.reads] reward-model = [...]`, or the name of a grid."""


STAGE = Stage(
    name="sweep-rm",
    version=2,
    reads=(Many("reward-model"),),
    writes="sweep",
    determinism="numeric",
    config=SweepRmConfig,
    run="irpipe.stages.sweep_rm.run:run",
)
