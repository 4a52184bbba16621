"""Training curves: figures of samples, collected until they are reported as rows of a long table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.training.objective import Samples

Row = tuple[int, str, str, float]
"""step, split (train or validation), figure, value."""


class Tally:
    """Figures of samples since the last report."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._weights: dict[str, list[Tensor]] = {}
        self._tails: set[str] = set()

    def add(self, name: str, samples: Samples) -> None:
        """Take in a figure of some samples."""
        weights = torch.ones(len(samples.values)) if samples.weights is None else samples.weights
        self._values.setdefault(name, []).append(samples.values.detach().double().cpu())
        self._weights.setdefault(name, []).append(weights.detach().double().cpu())
        if samples.tails:
            self._tails.add(name)

    def merge(self, other: Tally, accelerator: Accelerator) -> None:
        """Take in another tally of all processes, in their order."""
        state = other.state()
        for part in gather_object([state]) if accelerator.num_processes > 1 else [state]:
            for name, (values, weights, tails) in part.items():
                self.add(name, Samples(values, weights, tails))

    def rows(self) -> dict[str, float]:
        """Means, by name; of figures with tails also the median and the largest value."""
        rows: dict[str, float] = {}
        for name in sorted(self._values):
            values, weights = (torch.cat(parts[name]).numpy() for parts in (self._values, self._weights))
            rows[name] = _mean(values, weights)
            if name in self._tails:
                rows |= {f"{name}_median": float(np.median(values)), f"{name}_largest": float(values.max())}
        return rows

    def state(self) -> dict[str, tuple[Tensor, Tensor, bool]]:
        """Everything, as a checkpoint keeps it."""
        return {
            name: (torch.cat(self._values[name]), torch.cat(self._weights[name]), name in self._tails) for name in self._values
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go back to a state."""
        for name, (values, weights, tails) in state.items():
            self.add(name, Samples(values, weights, bool(tails)))


def _mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    if (weights == 1).all():
        return float(values.mean())
    return float((values * weights).sum() / max(weights.sum(), 1e-12))
