"""Losses of reward models."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def pairwise_loss(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(better - worse), (n,), of raw scores (n,) of the better and the worse image of each pair.

    Source: ImageReward, equation 1 (Bradley-Terry).
    """
    return -F.logsigmoid(better - worse)
