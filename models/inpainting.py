"""Masked sampling of a plain generator: a part of a picture is drawn anew, the rest stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from irpipe.models.tuning.denoiser import Conditions, Denoiser, NoiseSchedule, drawn

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
