"""Settings that trainings share, and a training as its stage lays it out. Imports no torch: stages declare themselves with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Strict

from irpipe.pipeline.settings import Group, setting


class OptimizerSettings(Group):
    """AdamW, its learning rate, and the averaged weights."""

    learning_rate: float = setting(
        1e-5, gt=0, le=1, meaning="Peak learning rate of AdamW.", source="ImageReward 4.1 and 4.2: 1e-5"
    )
    warmup_steps: int = setting(0, ge=0, meaning="Steps over which the learning rate rises linearly to its peak.")
    schedule: Literal["constant", "cosine"] = setting(
        "constant",
        meaning="The learning rate after the warm-up. constant: its peak. cosine: half a cosine to 0 at the last step.",
    )
    weight_decay: float = setting(0.0, ge=0, meaning="Decoupled weight decay. 0: plain Adam.")
    decay_vectors: bool = setting(
        True,
        role="neutral",
        meaning="Whether weight decay also applies to vectors and numbers: biases, norms, a CLIP's logit scale.",
        source="HPSv2's released code: not to them",
    )
    adam_beta2: float = setting(0.999, ge=0, lt=1, meaning="Decay per step of AdamW's mean of squared gradients.")
    max_grad_norm: float = setting(1.0, ge=0, meaning="Clip the gradient norm to this value. 0: no clipping.")
    ema_decay: float = setting(
        0.0,
        ge=0,
        lt=1,
        meaning="Decay per step of the weights' exponential moving average (EMA). The averaged weights are evaluated and saved."
        " 0: off.",
    )

    def unused(self) -> dict[str, str]:
        """As `TrainingSettings.unused`; the group is `optimizer`."""
        return {} if self.weight_decay else {"optimizer.decay_vectors": "optimizer.weight_decay is 0"}


class TrainingSettings(Group):
    """How a training is computed: precision, seed, memory, checkpoints and trackers."""

    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", meaning="Precision of the arithmetic. Trained weights stay in float32."
    )
    seed: int = setting(0, ge=0, meaning="Seed of initial weights, order and noise.")
    micro_batch_size: int = setting(
        2, ge=1, role="execution", meaning="Samples per forward and backward pass. Lower it if memory runs out."
    )
    threads: int | None = setting(
        None,
        ge=1,
        role="execution",
        meaning="Threads that each process computes with. Another number changes the last bits. Unset: its share of the"
        " processors that it may use.",
    )
    checkpoint_activations: bool = setting(
        False, role="execution", meaning="Recompute activations in the backward pass: less memory, about a third more time."
    )
    checkpoint_minutes: float = setting(
        5.0, ge=0, role="execution", meaning="Minutes between checkpoints, besides those at every evaluation and interrupt."
    )
    device: str = setting("auto", role="execution", meaning="Where it computes: auto, cpu, cuda, mps.")
    processes: int = setting(
        1,
        ge=1,
        le=1024,
        role="execution",
        meaning="Processes that share the work, unless the command or a launcher says how many. Results agree to rounding.",
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Strict(False)] = setting(
        (), role="execution", meaning="Experiment trackers that also get the curves; each must be installed."
    )
    tracker_folder: str = setting("runs", role="execution", meaning="Folder of TensorBoard's files.")

    def unused(self) -> dict[str, str]:
        """Settings without effect beside the others, and why, as a config's `unused` has them (the group being `training`)."""
        return {} if self.trackers else {"training.tracker_folder": "no trackers are given"}


def workers(config: Any) -> tuple[int, int | None]:
    """How many processes share a training, and the threads of each, by the settings of its stage (`Stage.processes`)."""
    return config.training.processes, config.training.threads


@dataclass(frozen=True)
class TrainingConfig:
    """A training as its stage lays it out.

    Attributes:
        stage: whose settings errors name.
        steps: optimiser steps.
        updates: several objectives: an update per objective, one after the other, or one update on their sum.
        report_every: steps between rows of the training curves, which are means since the last row.
        patience: stop after so many evaluations without a better one. 0: never.
        keep: the weights of the best evaluation, or of the last one.
        final_learning_rate: where a cosine schedule ends.
    """

    stage: str
    steps: int
    optimizer: OptimizerSettings
    training: TrainingSettings
    updates: Literal["sequential", "together"] = "together"
    report_every: int = 1
    patience: int = 0
    keep: Literal["best", "last"] = "best"
    final_learning_rate: float = 0.0
