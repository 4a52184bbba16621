"""Trained weights, their exponential moving average (EMA), and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

_BUCKET = 1 << 25  # numbers whose gradients are exchanged at a time: 128 MB


class Weights:
    """The trained part of a model, and its EMA if there is one.

    Args:
        parameters: by name; those that require a gradient are trained.
        decay: of the EMA, per step (Polyak and Juditsky 1992); lower in the first steps. 0: no EMA.
    """

    def __init__(self, parameters: Mapping[str, Any], decay: float) -> None:
        self.trained = {name: value for name, value in parameters.items() if value.requires_grad}
        self._decay = decay
        self.ema: dict[str, Tensor] = self.copy() if decay else {}

    def update_ema(self, steps: int) -> None:
        """The EMA takes the weights in, after so many steps (at least 1)."""
        decay = min(self._decay, steps / (9 + steps))
        with torch.no_grad():
            for name, average in self.ema.items():
                average.lerp_(self.trained[name], 1 - decay)

    def copy(self) -> dict[str, Tensor]:
        """A copy of the trained weights, on their device."""
        return {name: value.detach().clone() for name, value in self.trained.items()}

    def on_cpu(self) -> dict[str, Tensor]:
        """A copy of the trained weights, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.trained.items()}

    def evaluated(self) -> dict[str, Tensor]:
        """What is evaluated and saved, on the CPU: the EMA, or the trained weights where there is none."""
        return {name: value.cpu().clone() for name, value in self.ema.items()} if self.ema else self.on_cpu()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Set trained weights by name; none where the mapping is empty."""
        with torch.no_grad():
            for name, value in weights.items():
                self.trained[name].copy_(value)

    def load_ema(self, ema: Mapping[str, Tensor]) -> None:
        """Set the EMA."""
        self.ema = {name: value.to(self.trained[name].device) for name, value in ema.items()}

    def zero_gradients(self) -> None:
        """Zero gradients, also where there are none yet, so that every process has something to add up."""
        for value in self.trained.values():
            value.grad = torch.zeros_like(value)

    def sum_gradients(self, accelerator: Accelerator) -> None:
        """Gradients become their sum over all processes, many tensors at a time: each exchange costs a round trip."""
        if accelerator.num_processes == 1:
            return
        for bucket in _buckets(list(self.trained.values())):
            flat = accelerator.reduce(torch.cat([value.grad.flatten() for value in bucket]), "sum")
            for value, part in zip(bucket, flat.split([value.numel() for value in bucket]), strict=True):
                value.grad = part.view_as(value)


def _buckets(values: Sequence[Any]) -> Iterator[list[Any]]:
    """Tensors in their order, in lists of at most `_BUCKET` numbers, or of one tensor that is larger."""
    bucket: list[Any] = []
    for value in values:
        if bucket and sum(one.numel() for one in bucket) + value.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(value)
    if bucket:
        yield bucket
