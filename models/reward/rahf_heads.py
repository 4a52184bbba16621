"""The heads of RAHF: maps and scores from a grid of image states (RichHF, section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class HeadSizes:
    """Channels of the heads' layers. The defaults are those of the two replications of RichHF, which agree.

    Attributes:
        map_convs: of the convolutions at the grid's size; map_deconvs: of the deconvolutions, each of which doubles the size.
        map_refinements: convolutions behind each of those.
        pixel_channels: of a convolution of the picture itself that joins before a map is read out; 0: none, as the paper has it.
        score_convs: of the convolutions; score_denses: of the dense layers before the score itself.
    """

    map_convs: Sequence[int] = (768, 384)
    map_deconvs: Sequence[int] = (768, 384, 384, 192)
    map_refinements: int = 2
    pixel_channels: int = 0
    score_convs: Sequence[int] = (384, 128, 64)
    score_denses: Sequence[int] = (2048, 1024)

    @classmethod
    def from_json(cls, sizes: Mapping[str, Any]) -> Self:
        """Of a table in a `config.json`."""
        made: dict[str, Any] = {name: tuple(size) if isinstance(size, list) else size for name, size in sizes.items()}
        return cls(**made)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of a map (n, c, h, w), each pixel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, maps: Tensor) -> Tensor:
        """(n, c, h, w)."""
        normalised: Tensor = self.norm(maps.movedim(1, -1)).movedim(-1, 1)
        return normalised


def _conv(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), ChannelNorm(outside), nn.ReLU())


class HeatmapHead(nn.Module):
    """Convolutions, deconvolutions to the picture's size with convolutions behind each, and a read-out."""

    def __init__(self, width: int, sizes: HeadSizes) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in sizes.map_convs:
            layers.append(_conv(width, channels))
            width = channels
        for channels in sizes.map_deconvs:
            layers += [nn.ConvTranspose2d(width, channels, 2, 2), ChannelNorm(channels), nn.ReLU()]
            layers += [_conv(channels, channels) for _ in range(sizes.map_refinements)]
            width = channels
        self.body = nn.Sequential(*layers)
        self.pixels = nn.Sequential(nn.Conv2d(3, sizes.pixel_channels, 3, padding=1), nn.ReLU()) if sizes.pixel_channels else None
        width += sizes.pixel_channels
        self.read_out = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1), nn.ReLU(), nn.Conv2d(width // 2, 1, 3, padding=1)
        )
        nn.init.constant_(_last(self.read_out).bias, -3.0)  # most of a map is empty

    def forward(self, grid: Tensor, pixels: Tensor) -> Tensor:
        """(n, S, S) from 0 to 1, of image states (n, d, s, s) and preprocessed pictures (n, 3, S, S)."""
        states = self.body(grid)
        if self.pixels is not None:
            states = torch.cat([states, self.pixels(pixels)], dim=1)
        return torch.sigmoid(self.read_out(states)[:, 0])


class ScoreHead(nn.Module):
    """Convolutions, dense layers, and one score."""

    def __init__(self, width: int, side: int, sizes: HeadSizes) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels in sizes.score_convs:
            layers.append(_conv(width, channels))
            width = channels
        layers.append(nn.Flatten())
        self.body = nn.Sequential(*layers, *dense_score(width * side * side, sizes.score_denses))

    def forward(self, grid: Tensor) -> Tensor:
        """(n,) from 0 to 1, of image states (n, d, s, s)."""
        return torch.sigmoid(self.body(grid)[:, 0])


def dense_score(width: int, denses: Sequence[int]) -> nn.Sequential:
    """Dense layers over (n, width), and one score before its sigmoid, (n, 1)."""
    layers: list[nn.Module] = []
    for channels in denses:
        layers += [nn.Linear(width, channels), nn.ReLU()]
        width = channels
    return nn.Sequential(*layers, nn.Linear(width, 1))


def _last(layers: nn.Sequential) -> Any:
    return layers[len(layers) - 1]
