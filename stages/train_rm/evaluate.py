"""Evaluation on the validation pairs: loss, accuracy, and what scores are like."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.training.objective import Evaluator, Verdict, not_finite
from irpipe.stages.train_rm.batches import Batch, BatchReader, losses_of, pair_figures, pixels_of, scores_of
from irpipe.stages.train_rm.data import Groups

_GROUPS = 64  # prompts at a time


@dataclass
class Totals:
    """Sums over pairs, prompts and images, added up over batches and processes."""

    loss: float = 0.0
    correct: float = 0.0
    weight: float = 0.0
    std: float = 0.0
    prompts: float = 0.0
    score: float = 0.0
    square: float = 0.0
    images: float = 0.0

    def add(self, other: Totals) -> None:
        """Add up."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def over(self, accelerator: Accelerator) -> Totals:
        """The sum over all processes."""
        values = torch.tensor([getattr(self, one.name) for one in fields(self)], dtype=torch.float64)
        if accelerator.num_processes > 1:
            device = accelerator.device if accelerator.device.type != "mps" else torch.device("cpu")
            values = accelerator.reduce(values.to(device), "sum").cpu()
        return Totals(*values.tolist())

    @property
    def measures(self) -> dict[str, float]:
        """Loss and accuracy, means over pairs by weight; standard deviation of scores within a prompt, a mean over prompts."""
        weight, prompts = max(self.weight, 1e-12), max(self.prompts, 1.0)
        return {"loss": self.loss / weight, "accuracy": self.correct / weight, "score_std": self.std / prompts}

    @property
    def mean_score(self) -> float:
        """Over images."""
        return self.score / self.images

    @property
    def std_score(self) -> float:
        """Over images."""
        return float(max(self.square / self.images - self.mean_score**2, 0.0) ** 0.5)


@dataclass
class PairEvaluator(Evaluator):
    """Evaluates a reward model on the validation pairs; all processes take part.

    Attributes:
        groups: the validation split.
        steps: after which it is due, besides before the first one.
    """

    model: Any
    groups: Groups
    reader: BatchReader
    steps: frozenset[int]
    accelerator: Accelerator

    def due(self, step: int) -> bool:
        """See `Evaluator`."""
        return step == 0 or step in self.steps

    def evaluate(self, step: int) -> Verdict:
        """The lower the loss, the better.

        Raises:
            TrainingError: the loss is not finite.
        """
        measures = self.totals().measures
        loss, accuracy = measures["loss"], measures["accuracy"]
        if not math.isfinite(loss):
            raise not_finite("the validation loss", f"after step {step:,}", "train-rm")
        return Verdict(-loss, measures, note=f"validation {loss:.3f} {accuracy:.1%}")

    def totals(self) -> Totals:
        """Sums over the validation split, over all processes, with the weights as they are."""
        self.model.eval()
        totals = Totals()
        with torch.no_grad():
            for start in range(0, len(self.groups), _GROUPS):
                numbers = list(range(start, min(start + _GROUPS, len(self.groups))))
                for batch in self.reader.batches(self.groups, numbers):
                    with self.accelerator.autocast():
                        scores = scores_of(self.model, batch, pixels_of(batch, self.accelerator.device))
                    totals.add(totals_of(scores, losses_of(self.model, scores, batch), batch))
        return totals.over(self.accelerator)


def totals_of(scores: Tensor, losses: Tensor, batch: Batch) -> Totals:
    """Sums over a batch, of its raw scores (n,) and its pairs' losses (p,)."""
    figures, wide = pair_figures(scores, losses, batch), scores.double()
    loss, accuracy, stds = figures["loss"], figures["accuracy"], figures["score_std"].values
    assert loss.weights is not None, "pairs have weights"
    return Totals(
        float((loss.values * loss.weights).sum()),
        float((accuracy.values * loss.weights).sum()),
        float(loss.weights.sum()),
        float(stds.sum()),
        float(len(stds)),
        float(wide.sum()),
        float(wide.square().sum()),
        float(len(wide)),
    )


def evaluation_steps(epochs: Sequence[Sequence[NDArray[np.int64]]], per_epoch: int) -> frozenset[int]:
    """After which steps to evaluate: so many times per epoch, evenly, and at its end.

    Args:
        epochs: the steps of each epoch.
    """
    steps, done = set(), 0
    for epoch in epochs:
        times = min(per_epoch, len(epoch))
        steps |= {done + round(len(epoch) * (part + 1) / times) for part in range(times)}
        done += len(epoch)
    return frozenset(steps)
