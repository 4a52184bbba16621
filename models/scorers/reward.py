"""Any reward model as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.pictures import Fit, fit_of
from irpipe.models.reward.base import Preprocess
from irpipe.models.scorers.base import Pictures
from irpipe.schemas.reward_model import ScoreCard


def squares(pictures: Pictures, preprocessing: Preprocess, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Pictures (size, size, 3) as a normalised batch (n, 3, size, size)."""
    batch = torch.from_numpy(np.stack(pictures)).to(device)
    return preprocessing.normalised(batch.permute(0, 3, 1, 2).to(dtype) / 255)


class RewardModelScorer:
    """Raw scores of a reward model.

    Args:
        model: a `RewardModel`; it is moved to the device, and put into evaluation mode.
        dtype: of the arithmetic.
    """

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        self.model = model
        self.model.to(device=device, dtype=dtype).eval()
        self._dtype = dtype

    def to(self, device: torch.device) -> None:
        """Move the model to a device."""
        self.model.to(device)

    @property
    def image_size(self) -> int:
        """The side of the square that the model looks at, in pixels."""
        return int(self.model.preprocess.image_size)

    @property
    def image_fit(self) -> Fit:
        """How its squares are made of pictures."""
        return fit_of(self.model.preprocess)

    @property
    def card(self) -> ScoreCard:
        """What the model's scores mean."""
        card: ScoreCard = self.model.card
        return card

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        """(n,) raw scores of pictures (size, size, 3), each for its prompt."""
        pixels = squares(pictures, self.model.preprocess, self.model.device, self._dtype)
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}
        with torch.no_grad():
            texts = self.model.encode_texts(list(row_of))
            rows = [row_of[prompt] for prompt in prompts]
            scores = self.model(pixels, {name: values[rows] for name, values in texts.items()})
        return np.asarray(scores.float().cpu().numpy())
