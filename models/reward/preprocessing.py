"""From an image to the pixels that a reward model takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor

from irpipe.models.pictures import crop_offset, resize_and_crop, resized_size


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the vision tower's input; the defaults are the published values."""

    image_size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __call__(self, image: Pillow.Image | Tensor) -> Tensor:
        """Resize the shorter side, crop the centre, convert to RGB (after the crop, as published) and normalise.

        Args:
            image: a picture, or a tensor (..., 3, H, W) from 0 to 1, through which gradients flow.

        Returns:
            (3, size, size), or (..., 3, size, size).
        """
        return self._of_tensor(image) if isinstance(image, Tensor) else self.normalised(self._of_picture(image))

    def _of_picture(self, image: Pillow.Image) -> Tensor:
        """(3, size, size) from 0 to 1, before normalisation."""
        return torch.from_numpy(resize_and_crop(image, self.image_size).copy()).permute(2, 0, 1).float().div(255)

    def _of_tensor(self, image: Tensor) -> Tensor:
        """(..., 3, size, size) of an image (..., 3, H, W)."""
        size, (height, width) = self.image_size, image.shape[-2:]
        if min(height, width) != size:
            width, height = resized_size(width, height, size)
            image = F.interpolate(
                image.reshape(-1, *image.shape[-3:]), (height, width), mode="bicubic", antialias=True, align_corners=False
            ).reshape(*image.shape[:-2], height, width)
        left, top = crop_offset(width, height, size)
        return self.normalised(image[..., top : top + size, left : left + size])

    def normalised(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std, for pixels (..., 3, H, W) from 0 to 1."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std)
        )
        return (pixels - mean) / std
