"""Augmentation of the pictures that the micro world's own models are trained on."""

from __future__ import annotations

from typing import Any


def augmented(pixels: Any) -> Any:
    """A batch moved by up to two pixels and grained by up to .15, so that an encoder minds neither.

    Args:
        pixels: tensor (n, 3, 32, 32) from 0 to 1.
    """
    import torch

    right, down = torch.randint(-2, 3, (2,)).tolist()
    moved = torch.nn.functional.pad(pixels, (2, 2, 2, 2), mode="replicate")[:, :, 2 - down : 34 - down, 2 - right : 34 - right]
    grain = 0.15 * torch.rand(len(pixels), 1, 1, 1) * (torch.rand(len(pixels), 1, 1, 1) < 0.5)
    return moved + grain * torch.randn_like(moved)
