"""Gradient of the reward with respect to predicted clean latents: decode, preprocess, score, backpropagate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from irpipe.models.maps import unpadded
from irpipe.models.tuning.denoiser import Denoiser, drawn
from irpipe.pipeline.errors import TrainingError

Phi = Literal["margin", "linear"]


def reward_loss(rewards: Tensor, phi: Phi, margin: float) -> Tensor:
    """The loss of each normalised reward r, (n,) to (n,). margin: relu(margin - r), as released. linear: -r."""
    return torch.relu(margin - rewards) if phi == "margin" else -rewards


@dataclass(frozen=True)
class RewardGradient:
    """Of some samples: rewards and losses (n,), gradients of the losses with respect to predicted x0, (n, c, h, w), and the
    pictures that were scored, (n, 3, H, W) from 0 to 1."""

    rewards: Tensor
    losses: Tensor
    gradients: Tensor
    pictures: Tensor

    @property
    def norms(self) -> Tensor:
        """(n,) of the gradients."""
        return self.gradients.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class RewardGradients:
    """Computes reward gradients. Decoder and reward model are frozen and in evaluation mode.

    Attributes:
        model: a `RewardModel`.
        noise_samples: the reward is the mean over so many noisy copies of an image, of standard deviation `noise_std`; 0: of the
            image itself.
        weight_map: a heatmap that the model, a RAHF, predicts of the image: pixels where it is high have more of the gradient.
            None: all have the same.
    """

    model: Any
    denoiser: Denoiser
    phi: Phi = "linear"
    margin: float = 0.0
    noise_samples: int = 0
    noise_std: float = 0.0
    weight_map: str | None = None

    def at(self, x0: Tensor, texts: Mapping[str, Tensor], seeds: Sequence[int]) -> RewardGradient:
        """Gradients at predicted x0 (n, c, h, w) for their texts, n rows each; seeds (n,) are of the noisy copies.

        Raises:
            TrainingError: no gradient comes back.
        """
        latents = x0.detach().requires_grad_(True)
        with torch.autocast(latents.device.type, enabled=False):
            pictures = self.denoiser.decode(latents)
            rewards = self._rewards(self._weighted(pictures, texts), texts, seeds)
            losses = reward_loss(rewards, self.phi, self.margin)
        if not losses.requires_grad:
            raise no_gradient("the reward model or the decoder blocks it")
        (gradients,) = torch.autograd.grad(losses.sum(), latents)
        return RewardGradient(rewards.detach(), losses.detach(), gradients, pictures.detach())

    def _weighted(self, pictures: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """Pictures (n, 3, H, W) from 0 to 1 as they are, whose gradient counts by the heatmap, of mean 1 per picture."""
        if self.weight_map is None:
            return pictures
        with torch.no_grad():
            pixels = self.model.preprocess(pictures)
            squares = self.model.heatmap(pixels, self.model.look(pixels), texts, self.weight_map)
            height, width = pictures.shape[-2:]
            maps = F.interpolate(unpadded(squares[:, None], width, height), (height, width), mode="bilinear")
            weights = maps / maps.mean(dim=(2, 3), keepdim=True).clamp_min(1e-6)
        return weights * pictures + ((1 - weights) * pictures).detach()

    def _rewards(self, pictures: Tensor, texts: Mapping[str, Tensor], seeds: Sequence[int]) -> Tensor:
        """(n,) of pictures (n, 3, H, W) from 0 to 1."""
        if not self.noise_samples:
            return self._normalised(self.model(self.model.preprocess(pictures), texts))
        noise = drawn((self.noise_samples, *pictures.shape[1:]), seeds, pictures.device)
        noisy = (pictures[:, None] + self.noise_std * noise).flatten(0, 1)
        repeated = {name: value.repeat_interleave(self.noise_samples, dim=0) for name, value in texts.items()}
        scores = self._normalised(self.model(self.model.preprocess(noisy), repeated))
        return scores.view(-1, self.noise_samples).mean(dim=1)

    def _normalised(self, raw: Tensor) -> Tensor:
        """(n,) normalised rewards of raw scores (n,)."""
        scores: Tensor = self.model.card.normalised(raw).float()
        return scores


def no_gradient(why: str) -> TrainingError:
    """The error of a reward that does not reach what is trained."""
    return TrainingError(
        f"no gradient of the reward reaches the trained weights: {why}",
        fix="another reward model: irpipe run train-rm; or training.dtype=float32",
    )
