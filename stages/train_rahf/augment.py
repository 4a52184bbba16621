"""Random changes of pictures; heatmaps move along. Each image draws from a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from irpipe.stages.train_rahf import AugmentationSettings

_GREY = (0.299, 0.587, 0.114)


def augmented(
    pictures: Tensor, maps: Tensor, seeds: Sequence[int], may_flip: Sequence[bool], settings: AugmentationSettings
) -> tuple[Tensor, Tensor]:
    """Changed pictures (n, 3, s, s) from 0 to 1, and their maps (n, m, s, s), cut and flipped as they are."""
    if settings.crop == 1 and not (settings.horizontal_flip or settings.noise_std or settings.colour_jitter):
        return pictures, maps
    made = [
        _one(picture, heat, seed, settings, flips=flips and settings.horizontal_flip)
        for picture, heat, seed, flips in zip(pictures, maps, seeds, may_flip, strict=True)
    ]
    return torch.stack([picture for picture, _ in made]), torch.stack([heat for _, heat in made])


def _one(picture: Tensor, heat: Tensor, seed: int, settings: AugmentationSettings, *, flips: bool) -> tuple[Tensor, Tensor]:
    """A changed picture (3, s, s) and its maps (m, s, s)."""
    rng = torch.Generator().manual_seed(seed)
    draws = torch.rand(8, generator=rng).tolist()
    if flips and draws[0] < 0.5:
        picture, heat = picture.flip(-1), heat.flip(-1)
    if settings.crop < 1:
        side = picture.shape[-1]
        part = max(1, round(side * (settings.crop + (1 - settings.crop) * draws[1])))
        left, top = (min(side - part, int(draw * (side - part + 1))) for draw in draws[2:4])
        picture, heat = (
            F.interpolate(one[None, :, top : top + part, left : left + part], (side, side), mode="bilinear", align_corners=False)[
                0
            ]
            for one in (picture, heat)
        )
    if settings.colour_jitter:
        picture = _jittered(picture, [1 + settings.colour_jitter * (2 * draw - 1) for draw in draws[4:7]])
    if settings.noise_std:
        noise = torch.randn(picture.shape, generator=rng).to(picture.device)
        picture = picture + settings.noise_std * draws[7] * noise
    return picture, heat


def _jittered(picture: Tensor, factors: Sequence[float]) -> Tensor:
    """A picture (3, s, s) with other brightness, contrast and saturation."""
    brightness, contrast, saturation = factors
    picture = picture * brightness
    grey = sum(weight * channel for weight, channel in zip(_GREY, picture, strict=True))
    picture = picture.mean() + contrast * (picture - picture.mean())
    return (grey + saturation * (picture - grey)).clamp(0, 1)
