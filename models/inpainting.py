"""A part of a picture is drawn anew, the rest stays: by an inpainting pipeline, or by masked sampling of a plain generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from irpipe.models.classes import is_inpainting
from irpipe.models.generators import PipelineKind, load_pipeline, read_index
from irpipe.models.tuning.denoiser import Conditions, Denoiser, NoiseSchedule, as_pixels, drawn, load_denoiser, rows_of
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Model

_INPAINTING = PipelineKind(
    "an inpainting pipeline",
    "such as StableDiffusionInpaintPipeline or StableDiffusionXLInpaintPipeline",
    frozenset(("prompt", "image", "mask_image", "strength", "generator", "num_inference_steps", "guidance_scale", "output_type")),
    frozenset(("control_image", "control_mode")),
)
_MULTIPLE = 8  # of a latent diffusion model's sides
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
_OWN_STREAM = 1 << 20  # apart from the seeds of the noise that is put back: one per step


def mask_of(heatmap: NDArray[np.float64], threshold: float, dilation: float, *, moved: bool = False) -> NDArray[np.bool_]:
    """(h, w) the pixels of a heatmap (h, w) above a threshold, grown.

    Args:
        dilation: by how much, as a share of the height.
        moved: by half of the image in both directions: a mask of the same size where nothing is wrong.
    """
    marked = heatmap > threshold
    reach = round(dilation * heatmap.shape[0])
    if reach and marked.any():
        down, right = np.mgrid[-reach : reach + 1, -reach : reach + 1]
        marked = ndimage.binary_dilation(marked, np.hypot(down, right) <= reach)
    if moved:
        marked = np.roll(marked, (marked.shape[0] // 2, marked.shape[1] // 2), axis=(0, 1))
    return np.asarray(marked, dtype=np.bool_)


def inpaint(
    denoiser: Denoiser,
    schedule: NoiseSchedule,
    conditions: Conditions,
    pictures: Tensor,
    masks: Tensor,
    seeds: Sequence[int],
    *,
    strength: float,
    guidance: float,
) -> Tensor:
    """Pictures (n, 3, H, W) from 0 to 1 whose masked pixels are drawn anew; all others are exactly as they were.

    The picture's latents get the noise of an early step and are denoised again; after each step latents outside of the mask are
    put back to the original's at that noise. A latent may change where any of its pixels may.

    Args:
        conditions: (n, ...) on the denoiser's device; masks: (n, H, W) of 0 and 1; seeds: (n,) of all of a picture's noise.
        strength: share of the steps that are done again.
    """
    latents = denoiser.moments(pictures)[:, 0]
    may_change = F.adaptive_max_pool2d(masks[:, None].float(), latents.shape[-2:])
    first = max(0, len(schedule.timesteps) - max(1, round(strength * len(schedule.timesteps))))
    timesteps = schedule.timesteps[first:]
    noise = [drawn(denoiser.shape, [seed + number for seed in seeds], denoiser.device) for number in range(len(timesteps) + 1)]
    generators = [torch.Generator().manual_seed(seed + _OWN_STREAM) for seed in seeds]
    times = [timestep.expand(len(latents)) for timestep in timesteps]
    with torch.no_grad():
        state = denoiser.noised(latents, noise[0], times[0], schedule)
        for number, timestep in enumerate(timesteps):
            predicted = denoiser.predict(state, timestep, conditions, guidance)
            state = schedule.scheduler.step(predicted, timestep, state, generator=generators).prev_sample
            last = number + 1 == len(timesteps)
            kept = latents if last else denoiser.noised(latents, noise[number + 1], times[number + 1], schedule)
            state = may_change * state + (1 - may_change) * kept
        drawn_anew = denoiser.decode(state)
    inside = masks[:, None].bool()
    return torch.where(inside, drawn_anew, pictures)


class Painter(Protocol):
    """Draws parts of pictures anew."""

    def check_size(self, width: int, height: int) -> None:
        """Whether it draws on pictures of a size.

        Raises:
            InputError: it does not.
        """

    def draw(
        self, pictures: Sequence[Picture], masks: Sequence[Mask], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Picture]:
        """Pictures (h, w, 3) whose masked pixels, (h, w), are drawn anew, each from its own seed; others are as they were."""


def load_painter(
    model: Model,
    device: str,
    dtype: Literal["float32", "bfloat16", "float16"],
    *,
    num_steps: int,
    strength: float,
    guidance: float,
) -> Painter:
    """What draws with a model: an inpainting pipeline itself, or masked sampling of a generator.

    Raises:
        ModelError: it cannot be loaded, or is of another class.
    """
    if is_inpainting(str(read_index(model).get("_class_name"))):
        pipeline = load_pipeline(model, dtype, device, _INPAINTING, safety_checker=False)
        return PipelinePainter(pipeline, num_steps, strength, guidance)
    denoiser = load_denoiser(model, device, dtype, guidance_scale=guidance)
    return MaskedSampling(denoiser, denoiser.noise_schedule(num_steps, "ddpm"), strength, guidance)


@dataclass(frozen=True)
class MaskedSampling:
    """A plain generator as a painter (`inpaint`)."""

    denoiser: Denoiser
    schedule: NoiseSchedule
    strength: float
    guidance: float

    def check_size(self, width: int, height: int) -> None:
        """As of `Painter`."""
        if (width, height) != (self.denoiser.width, self.denoiser.height):
            raise InputError(f"{width} x {height} pixels, and the generator draws {self.denoiser.width} x {self.denoiser.height}")

    def draw(
        self, pictures: Sequence[Picture], masks: Sequence[Mask], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Picture]:
        """As of `Painter`."""
        denoiser = self.denoiser
        texts = rows_of(denoiser.encode(prompts), range(len(prompts)), denoiser.device)
        shown = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().to(denoiser.device) / 255
        made = inpaint(
            denoiser,
            self.schedule,
            texts,
            shown,
            torch.from_numpy(np.stack(masks)).to(denoiser.device),
            seeds,
            strength=self.strength,
            guidance=self.guidance,
        )
        return as_pixels(made)


@dataclass(frozen=True)
class PipelinePainter:
    """An inpainting pipeline of diffusers as a painter."""

    pipeline: Any
    num_steps: int
    strength: float
    guidance: float

    def check_size(self, width: int, height: int) -> None:
        """As of `Painter`."""
        if width % _MULTIPLE or height % _MULTIPLE:
            raise InputError(f"{width} x {height} pixels are no multiples of {_MULTIPLE}")

    def draw(
        self, pictures: Sequence[Picture], masks: Sequence[Mask], prompts: Sequence[str], seeds: Sequence[int]
    ) -> list[Picture]:
        """As of `Painter`; pictures of one size go through the pipeline together."""
        drawn_anew: dict[int, Picture] = {}
        for shape in dict.fromkeys(picture.shape for picture in pictures):
            places = [place for place, picture in enumerate(pictures) if picture.shape == shape]
            made = self.pipeline(
                prompt=[prompts[place] for place in places],
                image=[Image.fromarray(pictures[place]) for place in places],
                mask_image=[Image.fromarray(masks[place]).convert("L") for place in places],
                height=shape[0],
                width=shape[1],
                strength=self.strength,
                num_inference_steps=self.num_steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator("cpu").manual_seed(seeds[place]) for place in places],
                output_type="np",
            ).images
            drawn_anew |= dict(zip(places, np.rint(np.nan_to_num(made).clip(0, 1) * 255).astype(np.uint8), strict=True))
        return pasted([drawn_anew[place] for place in range(len(pictures))], pictures, masks)


def pasted(made: Sequence[Picture], pictures: Sequence[Picture], masks: Sequence[Mask]) -> list[Picture]:
    """Pictures (h, w, 3) with the masked pixels, (h, w), of others: through an autoencoder the rest would change too."""
    return [np.where(mask[..., None], new, old) for new, old, mask in zip(made, pictures, masks, strict=True)]
