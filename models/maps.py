"""Heatmaps as files, as arrays, and as the squares that a network sees."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.pictures import decode
from irpipe.schemas.rich_feedback import KINDS


def map_shape(width: int, height: int, longest: int) -> tuple[int, int]:
    """Height and width of an image's heatmaps: its own, or scaled down to the longest side that is allowed."""
    scale = min(1.0, longest / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale))


def discs(points: Iterable[tuple[float, float]], shape: tuple[int, int], radius: float) -> NDArray[np.bool_]:
    """(h, w) the pixels whose centre lies within a radius of a point, and the pixel of each point itself.

    Args:
        points: x, y in pixels; radius: in pixels.
    """
    height, width = shape
    marked = np.zeros(shape, dtype=np.bool_)
    down, right = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    for x, y in points:
        marked |= np.hypot(right - x, down - y) <= radius
        marked[min(int(y), height - 1), min(int(x), width - 1)] = True
    return marked


def encoded(heatmap: NDArray[np.float64]) -> bytes:
    """A map (h, w) from 0 to 1 as PNG of 8 bits."""
    buffer = io.BytesIO()
    Image.fromarray(np.rint(255 * heatmap).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def decoded(data: bytes) -> NDArray[np.float64]:
    """(h, w) from 0 to 1 of an encoded map."""
    return np.asarray(decode(data).convert("L"), dtype=np.float64) / 255


@dataclass(frozen=True)
class EncodedMaps(Sequence[NDArray[np.float64]]):
    """Maps (h, w) from 0 to 1 that are decoded one by one, as they are asked for: memory holds them encoded."""

    data: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: Any) -> Any:
        return EncodedMaps(self.data[place]) if isinstance(place, slice) else decoded(self.data[place])


def map_squares(maps: Sequence[Mapping[str, bytes]], size: int) -> NDArray[np.uint8]:
    """(n, 2, size, size) heatmaps by kind, as padded pictures are: the longer side resized, the rest empty."""
    return np.stack([[_square(one[kind], size) for kind in KINDS] for one in maps])


def _square(data: bytes, size: int) -> NDArray[np.uint8]:
    image = decode(data).convert("L")
    if max(image.size) != size:
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    square = Image.new("L", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square)


def unpadded(square: Any, width: int, height: int) -> Any:
    """The part of a padded square (..., size, size), an array or a tensor, that the image fills, at the square's resolution."""
    size = square.shape[-1]
    scale = size / max(width, height)
    inner_width, inner_height = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = (size - inner_width) // 2, (size - inner_height) // 2
    return square[..., top : top + inner_height, left : left + inner_width]


def of_shape(square: NDArray[np.floating[Any]], shape: tuple[int, int]) -> NDArray[np.float64]:
    """The map (height, width) of an image, of what a network said of its padded square (size, size), from 0 to 1."""
    inner: NDArray[np.float32] = unpadded(square, shape[1], shape[0]).astype(np.float32)
    if inner.shape == shape:
        return inner.astype(np.float64)
    resized = Image.fromarray(inner, mode="F").resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float64)


def through_jpeg(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """A picture (h, w, 3) as JPEG of a quality leaves it."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))
