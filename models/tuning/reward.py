"""The reward's slope at clean latents: decoded, preprocessed as the reward model does it, scored, and led back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from irpipe.models.tuning.denoiser import Denoiser, drawn
from irpipe.pipeline.errors import TrainingError

Phi = Literal["margin", "linear", "as-worded"]


def reward_loss(rewards: Tensor, phi: Phi, margin: float) -> Tensor:
    """What each normalised reward, (n,), amounts to as a loss.

    margin: relu(margin - r), as released. linear: -r. as-worded: relu(r), the paper's section 3.2 to the letter, which lowers
    rewards.
    """
    if phi == "margin":
        return torch.relu(margin - rewards)
    return -rewards if phi == "linear" else torch.relu(rewards)


@dataclass(frozen=True)
class Slope:
    """Of some samples: rewards and losses (n,), the losses' gradients at the clean latents (n, c, h, w), and their norms (n,)."""

    rewards: Tensor
    losses: Tensor
    gradients: Tensor
    blackened: list[bool]

    @property
    def norms(self) -> Tensor:
        """(n,)."""
        return self.gradients.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class RewardSlope:
    """Asks a reward model for slopes. Decoder and reward model are frozen and in evaluation mode.

    Attributes:
        model: a `RewardModel`.
        copies: the reward of a picture is the mean over so many copies under noise of deviation `grain`; 0: of the picture.
    """

    model: Any
    denoiser: Denoiser
    phi: Phi
    margin: float
    copies: int
    grain: float

    def at(self, clean: Tensor, texts: Mapping[str, Tensor], seeds: Sequence[int]) -> Slope:
        """The slope at clean latents (n, c, h, w) for their texts, n rows each; seeds (n,) are of the grain.

        Raises:
            TrainingError: no gradient comes back.
        """
        latents = clean.detach().requires_grad_(True)
        with torch.autocast(latents.device.type, enabled=False):
            pictures = self.denoiser.decode(latents)
            rewards = self._judge(pictures, texts, seeds)
            losses = reward_loss(rewards, self.phi, self.margin)
        if not losses.requires_grad:
            raise no_gradient("the reward model or the decoder blocks it")
        (gradients,) = torch.autograd.grad(losses.sum(), latents)
        return Slope(rewards.detach(), losses.detach(), gradients, self.denoiser.blackened(pictures))

    def _judge(self, pictures: Tensor, texts: Mapping[str, Tensor], seeds: Sequence[int]) -> Tensor:
        if not self.copies:
            return self._normalised(self.model(self.model.preprocess(pictures), texts))
        noise = drawn((self.copies, *pictures.shape[1:]), seeds, pictures.device)
        grained = (pictures[:, None] + self.grain * noise).flatten(0, 1)
        repeated = {name: value.repeat_interleave(self.copies, dim=0) for name, value in texts.items()}
        scores = self._normalised(self.model(self.model.preprocess(grained), repeated))
        return scores.view(-1, self.copies).mean(dim=1)

    def _normalised(self, raw: Tensor) -> Tensor:
        scores: Tensor = self.model.card.normalised(raw).float()
        return scores


def no_gradient(why: str) -> TrainingError:
    """The error of a reward that does not reach what is trained."""
    return TrainingError(
        f"no gradient of the reward reaches the trained weights: {why}",
        fix="another reward model: irpipe run train-rm; or dtype=float32",
    )
