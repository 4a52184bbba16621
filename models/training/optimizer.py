"""The learning rate as a function of the step, and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from irpipe.models.training.config import OptimizerSettings, TrainingConfig


@dataclass(frozen=True)
class Schedule:
    """A linear rise over `warmup_steps` to `peak`; then `peak`, or half a cosine to `final` at `steps`."""

    peak: float
    steps: int
    warmup_steps: int = 0
    cosine: bool = False
    final: float = 0.0

    @classmethod
    def of(cls, config: TrainingConfig) -> Schedule:
        """The schedule of a training."""
        chosen = config.optimizer
        return cls(
            chosen.learning_rate, config.steps, chosen.warmup_steps, chosen.schedule == "cosine", config.final_learning_rate
        )

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if not self.cosine:
            return self.peak
        share = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * share))


def make_optimizer(settings: OptimizerSettings, parameters: Sequence[Any]) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); without weight decay it is Adam."""
    without = [] if settings.decay_vectors else [value for value in parameters if value.ndim < 2]
    decayed = [value for value in parameters if settings.decay_vectors or value.ndim >= 2]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": without, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.learning_rate,
        betas=(0.9, settings.adam_beta2),
        weight_decay=settings.weight_decay,
    )
