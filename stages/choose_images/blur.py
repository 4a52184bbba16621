"""The blur filter: whether any two neighbouring pixels differ enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irpipe.models.pictures import decode_stream
from irpipe.schemas.images import ImageReader, RowGroup
from irpipe.stages.choose_images import Rules

_CHUNK = 16  # images decoded at a time, as they are


def largest_step(picture: NDArray[np.uint8], rules: Rules) -> float:
    """The largest difference of neighbouring values of a picture (height, width) or (height, width, channels).

    As published only falls from left to right count: an edge that rises, or lies flat, is none
    (align_sd, process_diffusiondb.py, which writes the horizontal test twice).
    """
    values = picture.astype(np.int16)
    falls = values[:, :-1] - values[:, 1:]
    if rules == "as-published":
        return float(falls.max(initial=-255))
    return float(max(np.abs(falls).max(initial=0), np.abs(np.diff(values, axis=0)).max(initial=0)))


@dataclass(frozen=True)
class StepMeasurer:
    """Writes the largest step of the images of some row groups, (images,) float32; NaN where one does not decode."""

    rules: Rules

    def __call__(self, groups: Sequence[RowGroup], draft: Path) -> None:
        reader = ImageReader(groups=groups)
        steps = np.full(len(reader), np.nan, dtype=np.float32)
        for start, pictures, faults in decode_stream(reader, 0, _CHUNK, None):
            for place, picture in enumerate(pictures):
                if place not in faults:
                    steps[start + place] = largest_step(picture, self.rules)
        with draft.open("wb") as file:
            np.save(file, steps)
