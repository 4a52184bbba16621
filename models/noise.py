"""Dropout and stochastic depth whose draws do not depend on batching.

In training, a model's dropout takes the next numbers of one global stream, so a sample's noise depends on which samples share
its forward pass, on how many processes there are, and on everything drawn before. Here each group of samples brings a seed,
and every place in the model draws from a stream of its own made of that seed: one large batch, the same in pieces, the same over
several processes, recomputed activations and a resumed run all see the same noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_PRIME = 0x9E3779B97F4A7C15  # odd, so that places get different streams for one seed
_WORD = (1 << 63) - 1


class Noise:
    """The groups of the forward pass in hand: how many samples each has, and its seed."""

    def __init__(self) -> None:
        self._groups: Sequence[tuple[int, int]] | None = None
        self._places = 0

    @contextmanager
    def of(self, groups: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Within the block, samples are of these groups, in order: (number of samples, seed). It must span backward passes too,
        since checkpointed activations are computed again there."""
        self._groups = groups
        try:
            yield
        finally:
            self._groups = None

    def place(self) -> int:
        """A new place in the model that draws."""
        self._places += 1
        return self._places

    def keep_mask(self, shape: torch.Size | tuple[int, ...], keep: float, place: int, like: Tensor) -> Tensor:
        """A mask (samples, ...) of a shape: 1 with probability `keep`, else 0."""
        if self._groups is None:
            return torch.empty(shape, dtype=like.dtype, device=like.device).bernoulli_(keep)
        if sum(count for count, _ in self._groups) != shape[0]:
            raise ValueError(f"{shape[0]} samples, but the groups have {sum(count for count, _ in self._groups)}")
        mask = torch.empty(shape, dtype=like.dtype, device=like.device)
        generator, start = torch.Generator(like.device), 0
        for count, seed in self._groups:
            generator.manual_seed((seed ^ place * _PRIME) & _WORD)
            mask[start : start + count].bernoulli_(keep, generator=generator)
            start += count
        return mask


class SeededDropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that draws through a `Noise`."""

    def __init__(self, p: float, noise: Noise) -> None:
        super().__init__()
        self.p, self._noise, self._place = p, noise, noise.place()

    def forward(self, values: Tensor) -> Tensor:
        """Values (samples, ...) of any shape, some of them dropped."""
        if not self.training or self.p == 0:
            return values
        return values * self._noise.keep_mask(values.shape, 1 - self.p, self._place, values).div_(1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def seed_dropouts(model: nn.Module, noise: Noise) -> None:
    """Replace every dropout of a model by one that draws through `noise`."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, SeededDropout(child.p, noise))


def drop_branches(branch: nn.Module, p: float, noise: Noise) -> None:
    """Stochastic depth (Huang et al. 2016): in training, a sample skips a residual branch with probability p."""
    drop = SeededDropout(p, noise)

    def skip(module: nn.Module, _: Any, output: Any) -> Any:
        values = output[0] if isinstance(output, tuple) else output
        if not module.training or p == 0:
            return output
        shape = (len(values), *[1] * (values.dim() - 1))
        kept = values * noise.keep_mask(shape, 1 - p, drop._place, values).div_(1 - p)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept

    branch.register_forward_hook(skip)
