"""A latent diffusion model as tuning sees it: texts in, predicted noise, predicted x0 and images out.

Pipelines differ in what their network takes beside the text; one function per kind makes it (`_CONDITIONING`). Latents are always
in the autoencoder's scaled space.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from irpipe.models.generators import ImageGenerator, Sampling, load
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model

Conditions = Mapping[str, Tensor]
"""Encoded texts: tensors with one row per text, by the name under which the pipeline takes them."""

SchedulerName = Literal["ddpm", "ddim"]
_SCHEDULERS = {"ddpm": "DDPMScheduler", "ddim": "DDIMScheduler"}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_NEGATIVE = "negative_"


def _plain(_conditions: Conditions, _size: tuple[int, int]) -> dict[str, Any]:
    return {}


def _sdxl(conditions: Conditions, size: tuple[int, int]) -> dict[str, Any]:
    """SDXL also takes the pooled text embedding and the size conditioning (original size, no crop)."""
    pooled = conditions["pooled_prompt_embeds"]
    times = torch.tensor([*size, 0, 0, *size], dtype=pooled.dtype, device=pooled.device).expand(len(pooled), 6)
    return {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": times}}


_CONDITIONING: Mapping[str, Callable[[Conditions, tuple[int, int]], dict[str, Any]]] = {
    "StableDiffusionPipeline": _plain,
    "StableDiffusionXLPipeline": _sdxl,
}


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise levels of a sampling, the noisiest first.

    Attributes:
        scheduler: of diffusers, with its timesteps set.
        alphas: (training steps,) the share of signal, alpha-bar, at every timestep.
    """

    scheduler: Any
    alphas: Tensor

    @property
    def timesteps(self) -> Tensor:
        """(steps,) as the network takes them."""
        timesteps: Tensor = self.scheduler.timesteps
        return timesteps


class Denoiser:
    """A pipeline of diffusers to be tuned. Make one with `load_denoiser`."""

    def __init__(self, generator: ImageGenerator, name: str) -> None:
        self.generator = generator
        self.pipeline = generator.pipeline
        kind = type(self.pipeline).__name__
        if kind not in _CONDITIONING:
            raise ModelError(f"{name} is a {kind}, which cannot be tuned", expected=f"one of {', '.join(_CONDITIONING)}")
        self._conditioning = _CONDITIONING[kind]
        self.unet: Any = getattr(self.pipeline, "unet", None)
        self.vae: Any = getattr(self.pipeline, "vae", None)
        if self.vae is None or self.unet is None:
            raise ModelError(f"{name} has no {'autoencoder' if self.vae is None else 'unet'}: gradients need both")
        self.kind = getattr(self.pipeline.scheduler.config, "prediction_type", None)
        if self.kind not in _PREDICTIONS or not hasattr(self.pipeline.scheduler, "alphas_cumprod"):
            raise ModelError(
                f"{name} comes with {type(self.pipeline.scheduler).__name__}, whose noise levels are not known here",
                expected=f"a scheduler with alphas_cumprod that predicts {', '.join(_PREDICTIONS)}",
            )
        for part in (value for value in self.pipeline.components.values() if isinstance(value, torch.nn.Module)):
            part.requires_grad_(False).eval()
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        sampling, side = generator.sampling, self.unet.config.sample_size * factor
        self.height, self.width = sampling.height or side, sampling.width or side
        if self.height % factor or self.width % factor:
            raise ModelError(f"{self.width} x {self.height} pixels are no multiples of {factor}")
        self.shape = (self.unet.config.in_channels, self.height // factor, self.width // factor)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    def encode(self, prompts: Sequence[str], batch_size: int = 64, negative_prompt: str = "") -> dict[str, Tensor]:
        """Encoded texts, on the CPU."""
        encoded = self.generator.encode(prompts, batch_size, negative_prompt).tensors
        return {name: value.float().cpu() for name, value in encoded.items()}

    def noise_schedule(self, num_steps: int, scheduler: SchedulerName) -> NoiseSchedule:
        """The noise levels of a sampling of so many steps, spaced as the model's own scheduler says."""
        import diffusers

        # diffusers clips predicted x0 to -1..1 unless a model's file says otherwise; latents are larger than that.
        made = getattr(diffusers, _SCHEDULERS[scheduler]).from_config(self.pipeline.scheduler.config, clip_sample=False)
        made.set_timesteps(num_steps, device=self.device)
        return NoiseSchedule(made, made.alphas_cumprod.to(self.device, torch.float32))

    def predict(self, latents: Tensor, timesteps: Tensor, conditions: Conditions, guidance: float = 1.0) -> Tensor:
        """The network's output, (n, channels, h, w).

        Args:
            latents: (n, channels, h, w); timesteps: () or (n,).
            conditions: on the network's device.
            guidance: classifier-free guidance; above 1 the network also runs without the text.
        """
        if guidance <= 1:
            return self._run(latents, timesteps, {name: value for name, value in conditions.items() if _NEGATIVE not in name})
        both = {
            name: torch.cat([conditions[_NEGATIVE + name], value]) for name, value in conditions.items() if _NEGATIVE not in name
        }
        times = timesteps.expand(len(latents)).repeat(2)
        without, with_text = self._run(latents.repeat(2, 1, 1, 1), times, both).chunk(2)
        return without + guidance * (with_text - without)

    def _run(self, latents: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        dtype = self.unet.dtype
        given = {name: value.to(dtype) for name, value in conditions.items()}
        more = self._conditioning(given, (self.height, self.width))
        out: Tensor = self.unet(latents.to(dtype), timesteps, given["prompt_embeds"], **more).sample
        return out.float()

    def predicted_x0(self, latents: Tensor, timesteps: Tensor, predicted: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The clean latents x0, (n, c, h, w), that an output predicts (DDPM, equation 15; alike for v- and x0-prediction)."""
        return self.x0_at(latents, schedule.alphas[timesteps].view(-1, 1, 1, 1), predicted)

    def x0_at(self, latents: Tensor, alpha: Tensor, predicted: Tensor) -> Tensor:
        """The clean latents x0, (n, c, h, w), that an output predicts at a share of signal alpha, () or (n, 1, 1, 1)."""
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        if self.kind == "epsilon":
            return (latents - noise * predicted) / signal
        return signal * latents - noise * predicted if self.kind == "v_prediction" else predicted

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
        """The network's right output for noised latents, (n, c, h, w)."""
        if self.kind == "epsilon":
            return noise
        alpha = schedule.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x0 if self.kind == "v_prediction" else x0

    def noised(self, x0: Tensor, noise: Tensor, timesteps: Tensor, schedule: NoiseSchedule) -> Tensor:
        """Clean latents x0, (n, c, h, w), with noise of a timestep's level added (DDPM, equation 4)."""
        alpha = schedule.alphas[timesteps].view(-1, 1, 1, 1)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures (n, 3, H, W) from 0 to 1; gradients flow."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor
        pictures: Tensor = self.vae.decode(scaled).sample
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    def moments(self, pictures: Tensor) -> Tensor:
        """Mean and standard deviation of the latents of pictures (n, 3, H, W) from 0 to 1: (n, 2, channels, h, w)."""
        with torch.no_grad():
            latents = self.vae.encode((pictures * 2 - 1).to(self.vae.dtype)).latent_dist
        return torch.stack([latents.mean.float(), latents.std.float()], dim=1) * self.vae.config.scaling_factor

    def blackened(self, pictures: Tensor) -> list[bool]:
        """Which pictures (n, 3, H, W) the model's own safety checker would blacken; none where it has no checker."""
        if getattr(self.pipeline, "safety_checker", None) is None:
            return [False] * len(pictures)
        shown = pictures.detach().permute(0, 2, 3, 1).float().cpu().numpy()
        _, flags = self.pipeline.run_safety_checker(shown, self.device, self.unet.dtype)
        return [bool(flag) for flag in flags]


def load_denoiser(
    model: Model,
    device: str,
    dtype: Literal["float32", "bfloat16", "float16"],
    *,
    guidance_scale: float = 1.0,
    width: int | None = None,
    height: int | None = None,
    safety_checker: bool = False,
) -> Denoiser:
    """Load a text-to-image pipeline to be tuned.

    Args:
        dtype: of what is not trained, but for the autoencoder: gradients through it overflow in half precision.

    Raises:
        ModelError: it cannot be loaded, has no autoencoder, or its scheduler's noise levels are not known.
    """
    sampling = Sampling(1, guidance_scale, "own", width, height, "", dtype, safety_checker)
    denoiser = Denoiser(load(model, sampling, device), model.shown)
    denoiser.vae.to(torch.float32)
    for part in (denoiser.unet, denoiser.vae):
        part.to(memory_format=torch.channels_last)  # a third faster on a CPU, and no slower elsewhere
    return denoiser


def drawn(shape: Sequence[int], seeds: Sequence[int], device: torch.device) -> Tensor:
    """Normal noise, (n, *shape), each row from its own seed on the CPU: the same whatever the batch and the device."""
    rows = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def rows_of(conditions: Conditions, rows: Sequence[int] | Tensor, device: torch.device) -> dict[str, Tensor]:
    """The encodings (n, ...) of some texts, on a device."""
    indices = torch.as_tensor(rows)
    return {name: value[indices].to(device) for name, value in conditions.items()}


def sample(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    conditions: Conditions,
    seeds: Sequence[int],
    *,
    stop: int,
    keep_from: int,
    guidance: float = 1.0,
) -> Tensor:
    """Sample without gradients up to a step, and keep the latents before the last steps.

    Args:
        conditions: (n, ...) on the denoiser's device.
        seeds: (n,) of all of a row's noise, drawn on the CPU.
        stop: steps to do; keep_from: the first step whose latents are kept.

    Returns:
        (n, stop - keep_from + 1, channels, h, w): latents before step keep_from, ..., before step stop.
    """
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    latents = torch.stack([torch.randn(denoiser.shape, generator=generator) for generator in generators]).to(denoiser.device)
    latents = latents * schedule.scheduler.init_noise_sigma
    kept = [latents] if keep_from == 0 else []
    with torch.no_grad():
        for number, timestep in enumerate(schedule.timesteps[:stop]):
            predicted = denoiser.predict(latents, timestep, conditions, guidance)
            latents = schedule.scheduler.step(
                predicted, timestep, latents, **_drawing(schedule.scheduler, generators)
            ).prev_sample
            if number + 1 >= keep_from:
                kept.append(latents)
    return torch.stack(kept, dim=1)


def sample_images(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    conditions: Conditions,
    rows: Sequence[int],
    seeds: Sequence[int],
    guidance: float = 1.0,
) -> Tensor:
    """Sample to the end without gradients: latents (n, channels, h, w) of encoded texts by row, as `sample` draws them."""
    given, steps = rows_of(conditions, rows, denoiser.device), len(schedule.timesteps)
    return sample(denoiser, schedule, given, seeds, stop=steps, keep_from=steps, guidance=guidance)[:, -1]


def _drawing(scheduler: Any, generators: list[torch.Generator]) -> dict[str, Any]:
    """How a scheduler takes its noise; diffusers' DDIM takes one generator alone, and draws only if eta is above 0."""
    return {"generator": generators} if type(scheduler).__name__ == "DDPMScheduler" else {}


def as_pixels(pictures: Tensor) -> list[Any]:
    """Pictures (n, 3, H, W) from 0 to 1 as arrays (H, W, 3) uint8."""
    return list((pictures.detach().permute(0, 2, 3, 1).float().cpu().numpy() * 255).round().clip(0, 255).astype(np.uint8))
