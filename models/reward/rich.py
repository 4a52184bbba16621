"""What models of rich human feedback have in common: several scores of one image, one of which a plain call returns."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from irpipe.models.noise import Noise
from irpipe.models.reward.base import Preprocess
from irpipe.schemas.reward_model import ScoreCard
from irpipe.schemas.rich_feedback import ASPECTS

Output = Literal["scores", "heatmaps", "words"]
_MEANING = "from 0, the worst, to 1, as people rate it"


class RichRewardModel(nn.Module, ABC):
    """A reward model (`irpipe.models.reward.base`) of the four scores of rich human feedback, from 0 to 1.

    Image and text are read once for all outputs: `look`, `encode_texts`, and `shared` for what both make together.

    Attributes:
        outputs: what it gives; a method of another output is not there.
        aspects: its scores, by name; aspect: the one that a plain call returns.
        cards: what the scores mean.
    """

    format: ClassVar[str]
    outputs: tuple[Output, ...]
    aspects = ASPECTS

    def __init__(self, preprocess: Preprocess, cards: Mapping[str, ScoreCard] | None = None) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.aspect = ASPECTS[0]
        self.cards = dict(cards or {})
        self.noise = Noise()  # nothing is drawn in training: there is no dropout

    def with_aspect(self, aspect: str) -> Self:
        """The same weights, whose plain call returns another score."""
        other = copy.copy(self)  # modules and parameters are shared
        other.aspect = aspect
        return other

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(self.parameters()).device
        return device

    @property
    def card(self) -> ScoreCard:
        """What the score of its aspect means."""
        return self.card_of(self.aspect)

    def card_of(self, aspect: str) -> ScoreCard:
        """What a score means; normalised scores are the scores themselves until a training says otherwise."""
        return self.cards.get(aspect) or ScoreCard(0.0, 1.0, "nothing yet", meaning=f"{aspect}, {_MEANING}", log_odds=False)

    def forward(self, pixels: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """The aspect's score (n,), 0 to 1, of preprocessed images (n, 3, size, size), each for its text."""
        return self.score(self.look(pixels), texts, self.aspect)

    @abstractmethod
    def encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Tensors with one row per prompt, on the model's device."""

    @abstractmethod
    def look(self, pixels: Tensor) -> Tensor:
        """What all outputs read of preprocessed images (n, 3, size, size)."""

    @abstractmethod
    def shared(self, image: Tensor, texts: Mapping[str, Tensor]) -> Any:
        """What image and text together give all outputs; None: nothing."""

    @abstractmethod
    def score(self, image: Tensor, texts: Mapping[str, Tensor], aspect: str, shared: Any = None) -> Tensor:
        """One score (n,) of images that were looked at."""

    @abstractmethod
    def cut_prompts(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than the model reads."""
