"""Losses of reward models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_loss(better: Tensor, worse: Tensor) -> Tensor:
    """-log sigmoid(better - worse), (n,), of raw scores (n,) of the better and the worse image of each pair.

    Source: ImageReward, equation 1 (Bradley-Terry).
    """
    return -F.logsigmoid(better - worse)


def choice_loss(logits: Tensor, counts: Tensor, chosen: Tensor) -> Tensor:
    """-log softmax of the chosen image among those of its group, (groups,).

    Source: HPS, section 5 and equation 3: which image of a prompt people chose.

    Args:
        logits: (n,) of the images of all groups, one group after the other: no place is filled up.
        counts: (groups,) images per group; chosen: (groups,) place of the chosen one within its group.
    """
    counts, chosen = counts.to(logits.device), chosen.to(logits.device)
    group = torch.repeat_interleave(torch.arange(len(counts), device=logits.device), counts)
    highest = torch.full((len(counts),), -torch.inf, dtype=logits.dtype, device=logits.device)
    highest = highest.scatter_reduce(0, group, logits.detach(), "amax")
    sums = torch.zeros_like(highest).index_add(0, group, (logits - highest[group]).exp())
    first = counts.cumsum(0) - counts
    return sums.log() + highest - logits[first + chosen]
