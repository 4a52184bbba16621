"""Scorers of images behind one interface: any reward model, the paper's baselines, and those of other packages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.pictures import Fit, squared
from irpipe.schemas.reward_model import ScoreCard

Pictures = Sequence[NDArray[np.uint8]]
"""Each (height, width, 3)."""


class Scorer(Protocol):
    """Takes prompts and pictures, one prompt per picture, and returns one number each: higher is better.

    Attributes:
        image_size: it takes squares of so many pixels, resized and cropped as ImageReward does it, or padded where it has an
            `image_fit` of "pad"; None: pictures as they are.
        card: what its scores mean and how they are normalised; None: they are only raw.
    """

    @property
    def image_size(self) -> int | None: ...

    @property
    def card(self) -> ScoreCard | None: ...

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> Sequence[float] | NDArray[Any]:
        """Raw scores, (n,), of pictures (height, width, 3) uint8."""


def image_fit(scorer: Scorer) -> Fit:
    """How a scorer wants its squares made."""
    fit: Fit = getattr(scorer, "image_fit", "crop")
    return fit


def score_pictures(
    scorer: Scorer, prompts: Sequence[str], pictures: Pictures, batch_size: int = 64, *, normalised: bool = False
) -> NDArray[np.float64]:
    """Scores, (n,), of pictures (height, width, 3) of any size.

    Args:
        normalised: in standard deviations from the mean of the scorer's card, where it has one.
    """
    scores = [np.empty(0)]
    for start in range(0, len(pictures), batch_size):
        part = list(pictures[start : start + batch_size])
        if scorer.image_size is not None:
            part = [squared(Image.fromarray(picture), scorer.image_size, image_fit(scorer)) for picture in part]
        scores.append(np.asarray(scorer(prompts[start : start + batch_size], part), dtype=np.float64))
    raw = np.concatenate(scores)
    return normalised_scores(scorer, raw) if normalised else raw


def normalised_scores(scorer: Scorer, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    """Raw scores (n,) in standard deviations from the mean of the scorer's card; as they are where it has none."""
    scores: NDArray[np.float64] = raw if scorer.card is None else scorer.card.normalised(raw)
    return scores
