"""The pre-training loss as an objective of a tuning, and what all objectives of tunings share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from irpipe.models.training.objective import Figures, Objective, Samples, micro_batches, noise_seed, own_share, shuffled
from irpipe.models.tuning.captions import CaptionedImages, denoising_losses
from irpipe.models.tuning.config import TuneConfig
from irpipe.models.tuning.denoiser import Denoiser, NoiseSchedule


class SampleObjective(Objective):
    """An objective that is a mean over a fixed number of samples per step, which are numbered within the step.

    Args:
        batch_size: samples per step, over all processes.
    """

    def __init__(self, name: str, weight: float, batch_size: int, config: TuneConfig, accelerator: Accelerator) -> None:
        self.name, self.weight, self.batch_size = name, weight, batch_size
        self.carried: list[list[float]] = []
        self.accelerator = accelerator
        self._micro_batch_size = config.training.micro_batch_size

    def parts(self, step: int) -> Sequence[Any]:  # noqa: ARG002 # the same indices in every step
        """See `Objective`."""
        return micro_batches(own_share(self.batch_size, self.accelerator), self._micro_batch_size)

    def loss(self, step: int, part: Sequence[int]) -> tuple[Tensor, Figures]:
        """See `Objective`."""
        losses, figures = self.losses(step, part)
        return losses.float().sum() * (1 / self.batch_size), figures

    def losses(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Figures]:
        """Losses (n,) of some samples of a step, with a graph, and their figures."""
        raise NotImplementedError


class Pretraining(SampleObjective):
    """The pre-training loss on captioned images: each step takes the next ones of an endless shuffle.

    Source: ImageReward, algorithm 1, L_pre.

    Args:
        captioned: encoded images and captions; rows: those that are trained on.
    """

    def __init__(
        self,
        config: TuneConfig,
        denoiser: Denoiser,
        schedule: NoiseSchedule,
        captioned: CaptionedImages,
        rows: Sequence[int],
        accelerator: Accelerator,
    ) -> None:
        chosen = config.pretraining
        super().__init__("pretraining_loss", chosen.weight, chosen.batch_size, config, accelerator)
        self._denoiser, self._schedule = denoiser, schedule
        self._captioned, self._rows, self._seed = captioned, rows, config.training.seed

    def losses(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Figures]:
        """Losses (n,) of captioned images."""
        numbers = [step * self.batch_size + index for index in indices]
        rows = [self._rows[entry] for entry in shuffled(len(self._rows), self._seed, self.name, numbers)]
        seeds = [noise_seed(self._seed, self.name, step, index) for index in indices]
        losses = denoising_losses(self._denoiser, self._schedule, self._captioned, rows, seeds)
        return losses, {self.name: Samples(losses)}


def median_above_zero(norms: Sequence[Sequence[float]]) -> float:
    """The median (the lower one of an even number) of all norms above 0; infinite where there is none."""
    above = [norm for step in norms for norm in step if norm > 0]
    return float(torch.tensor(above).median()) if above else float("inf")
