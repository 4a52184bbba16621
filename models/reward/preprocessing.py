"""From an image to the pixels that a reward model takes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor

from irpipe.models.pictures import Fit, crop_offset, resize_and_crop, resized_size
from irpipe.pipeline.errors import ModelError

_FILES = ("preprocessor_config.json", "processor_config.json")  # of transformers 4 and 5
_BICUBIC = 3
_APPLIED = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")
_FLIPPED = "do_flip_channel_order"  # a network that takes blue first


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the vision tower's input; the defaults are the published values.

    Attributes:
        fit: `crop`: the shorter side is resized and the centre cropped. `pad`: the longer side is resized, and the rest is black
            (0 before normalisation), as HPS trains (section 7.1).
    """

    image_size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    fit: Fit = "crop"

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> Self:
        """Of a table in a `config.json`."""
        return cls(**{**table, "mean": tuple(table["mean"]), "std": tuple(table["std"])})

    def __call__(self, image: Pillow.Image | Tensor) -> Tensor:
        """Resize, crop the centre or pad, convert to RGB (after the crop, as published) and normalise.

        Args:
            image: a picture, or a tensor (..., 3, H, W) from 0 to 1, through which gradients flow.

        Returns:
            (3, size, size), or (..., 3, size, size).
        """
        if isinstance(image, Tensor):
            return self._of_tensor(image)
        if self.fit == "pad":
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float().div(255)
            return self._of_tensor(pixels)
        return self.normalised(self._of_picture(image))

    def _of_picture(self, image: Pillow.Image) -> Tensor:
        """(3, size, size) from 0 to 1, before normalisation."""
        return torch.from_numpy(resize_and_crop(image, self.image_size).copy()).permute(2, 0, 1).float().div(255)

    def _of_tensor(self, image: Tensor) -> Tensor:
        """(..., 3, size, size) of an image (..., 3, H, W)."""
        size, (height, width) = self.image_size, image.shape[-2:]
        if self.fit == "pad":
            return self.normalised(self._padded(image))
        if min(height, width) != size:
            width, height = resized_size(width, height, size)
            image = _resized(image, height, width)
        left, top = crop_offset(width, height, size)
        return self.normalised(image[..., top : top + size, left : left + size])

    def _padded(self, image: Tensor) -> Tensor:
        """(..., 3, size, size) of an image (..., 3, H, W): the whole of it in the middle of a black square."""
        size, (height, width) = self.image_size, image.shape[-2:]
        if max(height, width) != size:
            scale = size / max(height, width)
            height, width = max(1, round(height * scale)), max(1, round(width * scale))
            image = _resized(image, height, width)
        left, top = (size - width) // 2, (size - height) // 2
        return F.pad(image, (left, size - width - left, top, size - height - top))

    def normalised(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std, for pixels (..., 3, H, W) from 0 to 1."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std)
        )
        return (pixels - mean) / std


def _resized(image: Tensor, height: int, width: int) -> Tensor:
    """An image (..., 3, H, W) in another size, bicubic."""
    flat = image.reshape(-1, *image.shape[-3:])
    resized = F.interpolate(flat, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.reshape(*image.shape[:-2], height, width)


def read_preprocessing(folder: Path, image_size: int, *, colours_only: bool = False) -> Preprocessing:
    """The preprocessing that a model's image processor describes, for a vision tower of a size.

    A picture is always resized by its shorter side and cropped to the centre, as the released code of ImageReward does for CLIP
    and BLIP; a file that asks for anything else is refused.

    Args:
        folder: holds `preprocessor_config.json`, or `processor_config.json` as transformers 5 writes it.
        colours_only: how it resizes does not matter: who asks makes squares in another way.

    Raises:
        ModelError: there is no such file, or what it says cannot be done.
    """
    settings, path = _settings_of(folder)
    geometry = [] if colours_only else _geometry_faults(settings, image_size)
    faults = [*geometry, *_colour_faults(settings)]
    if faults:
        raise ModelError(f"the image preprocessing cannot be applied: {'; '.join(faults)}", where=str(path))
    # The file's scale is of pixels from 0 to 255, ours from 0 to 1.
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    mean, std = (settings["image_mean"], settings["image_std"]) if settings.get("do_normalize", True) else ([0.0] * 3, [1.0] * 3)
    if math.isclose(scale, 1, rel_tol=1e-9):
        return Preprocessing(image_size, tuple(mean), tuple(std))
    return Preprocessing(image_size, tuple(value / scale for value in mean), tuple(value / scale for value in std))


def read_image_size(folder: Path) -> int:
    """The side of the square that a model's image processor makes, for a network that takes any.

    Raises:
        ModelError: there is no such file, or it names no one side.
    """
    settings, path = _settings_of(folder)
    crops = settings.get("do_center_crop", "crop_size" in settings)
    sides = _sides(settings.get("crop_size" if crops else "size"))
    if len(sides) != 1 or not next(iter(sides)).isdecimal() or next(iter(sides)).strip("0") == "":
        raise ModelError("the image preprocessing names no one side of a square", where=str(path))
    return int(next(iter(sides)))


def _settings_of(folder: Path) -> tuple[dict[str, Any], Path]:
    """What a model's image processor says, and where.

    Raises:
        ModelError: there is no such file, or it is no table.
    """
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise ModelError("the model has no image preprocessing", where=str(folder), expected=" or ".join(_FILES))
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings = settings.get("image_processor") if path.name == _FILES[1] and isinstance(settings, dict) else settings
    if not isinstance(settings, dict):
        raise ModelError("the image preprocessing is no table", where=str(path))
    return settings, path


def _geometry_faults(settings: Mapping[str, Any], image_size: int) -> list[str]:
    """What a file asks of a picture's shape that is not done here."""
    # BLIP's own preprocessing has no crop: it would squash. That of ImageReward's code crops for BLIP, too, and is taken.
    cut = () if "Blip" in str(settings.get("image_processor_type")) else ("do_center_crop",)
    faults = [f"{name} is {settings[name]!r}" for name in ("do_resize", *cut) if settings.get(name) not in (None, True)]
    for name in ("size", "crop_size"):
        if settings.get(name) is not None and _sides(settings[name]) != {str(image_size)}:
            faults.append(f"{name} is {settings[name]!r}, and the model takes {image_size}")
    if settings.get("resample", _BICUBIC) != _BICUBIC:
        faults.append(f"resample is {settings['resample']!r}, not {_BICUBIC} (bicubic)")
    known = (*_APPLIED, _FLIPPED)
    others = [name for name, value in settings.items() if name.startswith("do_") and name not in known and value]
    if "do_pad" in others and image_size % (settings.get("size_divisor") or 1) == 0:
        others.remove("do_pad")  # a square of that size needs none
    return faults + [f"{name} is {settings[name]!r}" for name in others]


def _sides(size: Any) -> set[str]:
    """The sides that a size names, a number or a table of them, as they are written."""
    if isinstance(size, dict):
        return {str(value) for value in size.values() if value is not None}
    return {str(size)}


def _colour_faults(settings: Mapping[str, Any]) -> list[str]:
    """What is missing or wrong of a file's mean, standard deviation and scale."""
    faults = [f"{_FLIPPED} is {settings[_FLIPPED]!r}"] if settings.get(_FLIPPED) else []
    for name in ("image_mean", "image_std") if settings.get("do_normalize", True) else ():
        values = settings.get(name)
        numbers = values if isinstance(values, list) and len(values) == 3 and all(map(_is_number, values)) else []
        if not numbers or (name == "image_std" and min(numbers) <= 0):
            faults.append(f"{name} is {values!r}, not three numbers" + (" above 0" if name == "image_std" else ""))
    factor = settings.get("rescale_factor", 1 / 255)
    if settings.get("do_rescale", True) and not (_is_number(factor) and factor > 0):
        faults.append(f"rescale_factor is {factor!r}")
    return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
