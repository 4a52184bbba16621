"""Sampling that follows the gradient of a score: forward universal guidance with self-recurrence (Bansal et al. 2023).

In each guided step the clean latents x0 are predicted from the noisy ones x_t and decoded, the reward model scores the picture,
and the gradient of the score with respect to x_t is added to the predicted noise:

    eps <- eps - scale * sqrt(1 - alpha_t) * d score / d x_t

Latents and autoencoder are in float32, whatever the network's precision. Cost: `GuidedGenerator.cost`. Memory: activations of
network, decoder and reward model for a batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.classes import TUNABLE
from irpipe.models.generators import Encodings, ImageGenerator
from irpipe.models.guidance.config import GuidanceSettings
from irpipe.models.reward.base import load_chosen, of_aspect, only_reward_model
from irpipe.models.tuning.denoiser import Conditions, Denoiser, rows_of
from irpipe.models.tuning.reward_gradient import RewardGradients
from irpipe.pipeline.errors import ModelError, RecipeError
from irpipe.pipeline.stage import Inputs, Model

_WITH_RECURRENCE = ("DDPMScheduler", "DDIMScheduler")


@dataclass(frozen=True)
class Guide:
    """A reward model that guides a sampling.

    Attributes:
        gradients: of minus its score, with respect to predicted x0.
        scale: weight of the gradient.
        settings: which steps, and how often.
    """

    gradients: RewardGradients
    scale: float
    settings: GuidanceSettings

    def guided(
        self,
        latents: Tensor,
        timestep: Tensor,
        alpha: Tensor,
        conditions: Conditions,
        texts: Mapping[str, Tensor],
        guidance: float,
    ) -> Tensor:
        """The network's output (n, c, h, w) for noisy latents (n, c, h, w) at a timestep (), moved towards higher scores.

        Args:
            alpha: () their share of signal.
            conditions: (n, ...) texts for the network; texts: (n, ...) for the reward model.
            guidance: classifier-free guidance.
        """
        denoiser = self.gradients.denoiser
        with torch.enable_grad():
            noisy = latents.detach().requires_grad_(True)
            predicted = denoiser.predict(noisy, timestep, conditions, guidance)
            x0 = denoiser.x0_at(noisy, alpha, predicted)
        of_x0 = self.gradients.at(x0, texts, []).gradients
        (gradient,) = torch.autograd.grad(x0, noisy, of_x0)
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        of_noise = self.scale * noise * gradient
        # By how much each kind of output moves where the predicted noise moves so and the noisy latents stay.
        factors = {"epsilon": torch.ones(()), "v_prediction": 1 / signal, "sample": -noise / signal}
        return predicted.detach() + factors[str(denoiser.kind)] * of_noise


@dataclass(frozen=True)
class GuidedSchedule:
    """The steps of a sampling by a scheduler of diffusers.

    Attributes:
        scheduler: with its timesteps set.
        alphas: (steps + 1,) the share of signal, alpha-bar, before each step and after the last.
    """

    scheduler: Any
    alphas: Tensor

    @classmethod
    def of(cls, scheduler: Any, num_steps: int, device: torch.device) -> GuidedSchedule:
        """Set a scheduler's timesteps anew, which forgets the last sampling."""
        scheduler.set_timesteps(num_steps, device=device)
        if hasattr(scheduler, "sigmas"):  # spaced between the timesteps of training, too
            return cls(scheduler, (1 / (1 + scheduler.sigmas.double() ** 2)).to(device, torch.float32))
        final = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
        before = scheduler.alphas_cumprod[scheduler.timesteps.cpu()]
        return cls(scheduler, torch.cat([before, final.reshape(1)]).to(device, torch.float32))

    def __len__(self) -> int:
        return len(self.scheduler.timesteps)


def sample_guided(
    denoiser: Denoiser,
    schedule: GuidedSchedule,
    conditions: Conditions,
    guide: Guide,
    texts: Mapping[str, Tensor],
    latents: Tensor,
    generators: list[torch.Generator],
    guidance: float = 1.0,
) -> Tensor:
    """Sample to the end: clean latents (n, c, h, w) of noise (n, c, h, w).

    Args:
        conditions: (n, ...) texts for the network; texts: (n, ...) for the reward model.
        generators: (n,) of the noise of each row's later steps and repeats.
        guidance: classifier-free guidance.

    Raises:
        RecipeError: the numbers are not finite any more.
    """
    scheduler, guided_steps = schedule.scheduler, guide.settings.guided_steps(len(schedule))
    drawing = denoiser.pipeline.prepare_extra_step_kwargs(generators, 0.0)
    for number, timestep in enumerate(scheduler.timesteps):
        repeats = guide.settings.repeats if number in guided_steps else 1
        for repeat in range(repeats):
            noisy = scheduler.scale_model_input(latents, timestep)
            if number in guided_steps:
                predicted = guide.guided(noisy, timestep, schedule.alphas[number], conditions, texts, guidance)
            else:
                with torch.no_grad():
                    predicted = denoiser.predict(noisy, timestep, conditions, guidance)
            following = scheduler.step(predicted, timestep, latents, **drawing).prev_sample
            last = repeat + 1 == repeats
            latents = following if last else _noised_again(following, number, schedule, generators)
        _check_finite(latents, guide.scale, f"{number + 1} of {len(schedule)}")
    return latents


def _check_finite(latents: Tensor, scale: float, step: str) -> None:
    """Latents (n, c, h, w) must be finite.

    Raises:
        RecipeError: they are not.
    """
    if not torch.isfinite(latents).all():
        raise RecipeError(
            f"score guidance of scale {scale:g} diverged in step {step}: latents are not finite",
            fix="a smaller scale, or a later score_guidance.start",
        )


def _noised_again(latents: Tensor, number: int, schedule: GuidedSchedule, generators: Sequence[torch.Generator]) -> Tensor:
    """Latents (n, c, h, w) after one step, with the noise of that step put back."""
    kept = schedule.alphas[number] / schedule.alphas[number + 1]
    noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators]).to(latents.device)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def guided(
    generator: ImageGenerator,
    scale: float,
    settings: GuidanceSettings,
    models: Mapping[str, Sequence[Model]],
    inputs: Inputs,
    name: str,
) -> GuidedGenerator:
    """A generator guided by the reward model that the setting `reward_model` names, or by the recipe's.

    Raises:
        ModelError: as `load_chosen`, `of_aspect` and `GuidedGenerator`.
        RecipeError: the recipe names several reward models.
    """
    given = models.get("reward_model")
    identity = given[0].revision if given else only_reward_model(inputs).content_id
    reward = of_aspect(load_chosen(models, inputs), settings.aspect).to(generator.pipeline.device).eval()
    return GuidedGenerator(generator, reward, identity, scale, settings, name)


class GuidedGenerator(ImageGenerator):
    """A generator whose sampling a reward model guides. Nothing but `sample` differs from the generator that it is made of.

    Args:
        generator: a latent diffusion model; its autoencoder is put into float32.
        reward: a `RewardModel` on the generator's device, in evaluation mode.
        reward_id: the revision or content id of the reward model, for the settings of the images.
        name: of the generator, for errors.

    Raises:
        ModelError: the generator is none that gives gradients, or its scheduler takes no repeats.
        RecipeError: no step of its scheduler is guided.
    """

    def __init__(
        self, generator: ImageGenerator, reward: Any, reward_id: str, scale: float, settings: GuidanceSettings, name: str
    ) -> None:
        super().__init__(generator.pipeline, generator.sampling)
        kind, scheduler = type(self.pipeline).__name__, type(self.pipeline.scheduler).__name__
        if kind not in TUNABLE:
            raise ModelError(f"{name} is a {kind}, whose sampling cannot be guided", expected=f"one of {', '.join(TUNABLE)}")
        if settings.repeats > 1 and scheduler not in _WITH_RECURRENCE:
            raise ModelError(
                f"{name} is sampled by {scheduler}, which takes no step twice", fix="score_guidance.repeats=1, or scheduler=ddim"
            )
        self.adapters = generator.adapters
        self.denoiser = Denoiser(self, name)
        self.denoiser.vae.to(torch.float32)
        reward.requires_grad_(False)
        self.guide = Guide(RewardGradients(reward, self.denoiser), scale, settings)
        self._reward_id = reward_id
        self._steps = len(self._schedule())
        if not settings.guided_steps(self._steps):
            raise RecipeError(f"score_guidance.start and .end leave none of the {self._steps} steps of {scheduler} to guide")

    @property
    def settings(self) -> str:
        """The sampling as JSON with sorted keys, with its score guidance."""
        guidance = self.guide.settings.model_dump(include=set(GuidanceSettings.model_fields))
        guidance |= {"scale": self.guide.scale, "reward_model": self._reward_id}
        return json.dumps(json.loads(super().settings) | {"score_guidance": guidance}, sort_keys=True)

    @property
    def cost(self) -> str:
        """What an image costs, for people."""
        settings = self.guide.settings
        guided = len(settings.guided_steps(self._steps))
        twice = ", each with and without the text" if self.sampling.guidance_scale > 1 else ""
        return (
            f"score guidance: {guided} of {self._steps} steps, {settings.repeats} {'time' if settings.repeats == 1 else 'times'}"
            f" each: per image {self._steps + guided * (settings.repeats - 1):,} passes of the network{twice}, of which"
            f" {guided * settings.repeats:,} are followed by one of the decoder and of the reward model, and by one back through"
            " all three"
        )

    def sample(self, encodings: Encodings, rows: Sequence[int], seeds: Sequence[int]) -> tuple[NDArray[np.float32], list[bool]]:
        """As of `ImageGenerator`, and from the same noise."""
        denoiser, reward = self.denoiser, self.guide.gradients.model
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        schedule = self._schedule()
        noise = torch.stack([torch.randn(denoiser.shape, generator=generator) for generator in generators])
        with torch.no_grad():
            texts = reward.encode_texts([encodings.prompts[row] for row in rows])
        latents = sample_guided(
            denoiser,
            schedule,
            rows_of(encodings.tensors, rows, denoiser.device),
            self.guide,
            texts,
            noise.to(denoiser.device) * schedule.scheduler.init_noise_sigma,
            generators,
            self.sampling.guidance_scale,
        )
        with torch.no_grad():
            pictures = denoiser.decode(latents)
        flags = denoiser.blackened(pictures)
        pictures[torch.tensor(flags)] = 0.0
        return pictures.permute(0, 2, 3, 1).cpu().numpy(), flags

    def _schedule(self) -> GuidedSchedule:
        return GuidedSchedule.of(self.pipeline.scheduler, self.sampling.num_steps, self.denoiser.device)
