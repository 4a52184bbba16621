"""What every training here shares: the schedule of learning rates, a bar, and the running average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@dataclass(frozen=True)
class Schedule:
    """Learning rates: a linear rise over `warmup` steps to `peak`, then half a cosine down to `floor`."""

    peak: float
    warmup: int
    floor: float

    def at(self, step: int, count: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, count - self.warmup)
        return self.floor + (self.peak - self.floor) * 0.5 * (1 + math.cos(math.pi * done))


def steps(what: str, count: int, optimizer: torch.optim.Optimizer, schedule: Schedule) -> Iterator[int]:
    """Step numbers, with the optimizer's learning rate set for each, and a bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, refresh_per_second=1) as bar:
        task = bar.add_task(what, total=count)
        for step in range(count):
            for group in optimizer.param_groups:
                group["lr"] = schedule.at(step, count)
            yield step
            bar.advance(task)


class Average:
    """The exponential running average of weights (Polyak and Juditsky 1992), quicker at the start."""

    def __init__(self, weights: Sequence[Any], decay: float) -> None:
        self._weights, self._decay, self._updates = list(weights), decay, 0
        self._kept = [weight.detach().clone() for weight in weights]

    def update(self) -> None:
        """Take in the weights as they are now."""
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        with torch.no_grad():
            torch._foreach_lerp_(self._kept, self._weights, 1 - decay)

    def apply(self) -> None:
        """Put the average in the weights' place."""
        with torch.no_grad():
            for weight, kept in zip(self._weights, self._kept, strict=True):
                weight.copy_(kept)
