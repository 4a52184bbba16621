"""Metrics of sets of images, from their features: FID, KID and Inception Score, by torchmetrics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_KID_SUBSET, _KID_SUBSETS = 1000, 100  # torchmetrics' and torch-fidelity's defaults


class _Given(nn.Module):
    """Features as they are, (n, d): what torchmetrics asks a network for is computed already."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class FrechetDistance:
    """FID (Heusel et al. 2017) of sets of features to one reference, in float64.

    Args:
        reference: (n, d).
    """

    def __init__(self, reference: NDArray[np.float64]) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        self._metric = FrechetInceptionDistance(_Given(reference.shape[1]), reset_real_features=False).set_dtype(torch.float64)
        self._metric.update(torch.from_numpy(reference), real=True)

    def __call__(self, features: NDArray[np.float64]) -> float:
        """Of features (n, d), at least two rows."""
        self._metric.reset()
        self._metric.update(torch.from_numpy(features), real=False)
        return float(self._metric.compute())


def kernel_distance(features: NDArray[np.float64], reference: NDArray[np.float64], seed: int) -> float:
    """KID (Binkowski et al. 2018), unbiased: the squared MMD of features (n, d) and (m, d) by a cubic kernel.

    All images together, or where there are more than 1,000, the mean over 100 subsets of so many.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(_KID_SUBSET, len(features), len(reference))
    whole = size == len(features) == len(reference)
    with _drawing(seed):
        metric = KernelInceptionDistance(
            _Given(features.shape[1]), subsets=1 if whole else _KID_SUBSETS, subset_size=size
        ).set_dtype(torch.float64)
        metric.update(torch.from_numpy(reference), real=True)
        metric.update(torch.from_numpy(features), real=False)
        return float(metric.compute()[0])


def inception_score(logits: NDArray[np.float64], splits: int, seed: int) -> tuple[float, float]:
    """Inception Score (Salimans et al. 2016) of class logits (n, c): mean and standard deviation over splits."""
    from torchmetrics.image.inception import InceptionScore

    with _drawing(seed):
        metric = InceptionScore(_Given(logits.shape[1]), splits=splits)
        metric.update(torch.from_numpy(logits))
        mean, deviation = metric.compute()
    return float(mean), float(deviation)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """torchmetrics draws from torch's global stream, and warns that it keeps features."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(seed)
        yield
