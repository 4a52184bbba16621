"""Decoding of images for the oracle."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from irpipe.microworld.oracle import Verdict, judge
from irpipe.microworld.render import SIDE, Image
from irpipe.microworld.rich import RichTruth, rich_truth

Truth = TypeVar("Truth")


class NotOfThisWorldError(ValueError):
    """The oracle has no verdict on this prompt or image."""


def decode(data: bytes) -> Image:
    """(32, 32, 3) from 0 to 1.

    Raises:
        NotOfThisWorldError: it is not an image, or of another size.
    """
    try:
        with Pillow.open(io.BytesIO(data)) as image:
            if image.size != (SIDE, SIDE):
                raise NotOfThisWorldError(
                    f"{image.width} x {image.height} pixels, and the micro world's images have {SIDE} x {SIDE}"
                )
            return np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    except (UnidentifiedImageError, OSError) as error:
        raise NotOfThisWorldError(f"no image: {error}") from None


def verdict_on(prompt: str | None, data: bytes) -> Verdict:
    """The oracle's verdict on an encoded image; see `_of_this_world`."""
    return _of_this_world(judge, prompt, data)


def rich_truth_of(prompt: str | None, data: bytes) -> RichTruth:
    """What people look at who give rich feedback on an encoded image; see `_of_this_world`."""
    return _of_this_world(rich_truth, prompt, data)


def _of_this_world(judge_: Callable[[str, Image], Truth], prompt: str | None, data: bytes) -> Truth:
    """What a judge of the micro world makes of an encoded image.

    Args:
        prompt: None where it is not known.

    Raises:
        NotOfThisWorldError: there is none.
    """
    if prompt is None:
        raise NotOfThisWorldError("its prompt was not selected")
    image = decode(data)
    try:
        return judge_(prompt, image)
    except ValueError as error:
        raise NotOfThisWorldError(str(error)) from None
