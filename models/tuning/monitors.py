"""What held-out prompts say of a generator while it is tuned, and the rule that stops a tuning that has gone wrong.

The trained reward cannot tell: it rises whether images get better or only please the reward model. So at every look the same
prompts are drawn with the same seeds, and judged by what nothing is trained on; and the denoising loss on the same real pairs
under the same noise tells how far the generator has left what it knew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from irpipe.models.scorers.base import Scorer, score_pictures
from irpipe.models.tuning.config import TuneConfig
from irpipe.models.tuning.denoiser import Course, Denoiser, as_pixels, roll, rows_of, sampling_memory
from irpipe.models.tuning.pairs import RealPairs, denoising_losses
from irpipe.pipeline.hashing import row_id

REWARD, HELD_OUT, SIMILARITY, DENOISING = "reward", "held_out", "similarity", "denoising_loss"
HELD_OUT_JUDGES = (HELD_OUT, SIMILARITY)
DIVERSITY = "diversity"
SHOWN = 12  # prompts whose images are drawn before and after
_KEPT = 2  # images of a prompt that are kept
_COLOUR_BINS = 8  # a channel


def image_statistics(pictures: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """What can be said of pictures without knowing what they should show.

    Args:
        pictures: (n, height, width, 3) from 0 to 1.

    Returns:
        (n,) each. brightness: mean grey. contrast: deviation of grey. saturation: mean of largest minus smallest channel.
        edge_energy: mean squared difference of neighbouring greys. high_frequency_share: spectral energy above half the highest
        frequency, over all but the mean's. colour_entropy: bits, of 8 x 8 x 8 colours. dark_share: pixels below a tenth.
    """
    grey = pictures @ np.array([0.299, 0.587, 0.114])
    down, right = np.diff(grey, axis=1), np.diff(grey, axis=2)
    power = np.abs(np.fft.fft2(grey - grey.mean(axis=(1, 2), keepdims=True))) ** 2
    frequency = np.hypot(np.fft.fftfreq(grey.shape[1])[:, None], np.fft.fftfreq(grey.shape[2])[None])
    codes = np.minimum((pictures * _COLOUR_BINS).astype(np.int64), _COLOUR_BINS - 1) @ np.array(
        [1, _COLOUR_BINS, _COLOUR_BINS**2]
    )
    return {
        "brightness": grey.mean(axis=(1, 2)),
        "contrast": grey.std(axis=(1, 2)),
        "saturation": (pictures.max(axis=-1) - pictures.min(axis=-1)).mean(axis=(1, 2)),
        "edge_energy": (down**2).mean(axis=(1, 2)) + (right**2).mean(axis=(1, 2)),
        "high_frequency_share": power[:, frequency > 0.25].sum(axis=1) / np.maximum(power.sum(axis=(1, 2)), 1e-12),
        "colour_entropy": np.array([_entropy(code.ravel()) for code in codes]),
        "dark_share": (grey < 0.1).mean(axis=(1, 2)),
    }


def _entropy(codes: NDArray[np.int64]) -> float:
    shares = np.unique(codes, return_counts=True)[1] / len(codes)
    return float(-(shares * np.log2(shares)).sum())


def diversity(pictures: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean squared difference between two pictures of a prompt, (n,), of pictures (n, images, height, width, 3)."""
    found: NDArray[np.float64] = np.sqrt(2 * pictures.var(axis=1, ddof=1).mean(axis=(1, 2, 3)))
    return found


@dataclass(frozen=True)
class Look:
    """One look: each measure by prompt, (prompts,), but for the denoising loss, (pairs,).

    Attributes:
        step: optimiser steps done.
        pictures: (prompts, 2, height, width, 3) uint8, of the first prompts.
    """

    step: int
    measures: dict[str, NDArray[np.float64]]
    pictures: NDArray[np.uint8]

    def mean(self, measure: str) -> float:
        """Over prompts or pairs."""
        return float(self.measures[measure].mean())


@dataclass
class Monitor:
    """Looks at the same prompts, noise and real pairs every time.

    Attributes:
        judges: by measure.
        autocast: the training's precision.
    """

    config: TuneConfig
    denoiser: Denoiser
    prompts: Sequence[str]
    judges: Mapping[str, Scorer]
    pairs: RealPairs
    autocast: Callable[[], AbstractContextManager[Any]]
    course: Course = field(init=False)

    def __post_init__(self) -> None:
        self.course = self.denoiser.course(self.config.monitor_steps, "ddpm")
        self._conditions = self.denoiser.encode(self.prompts)
        self._seeds = [
            [row_id("monitor", self.config.seed, prompt, turn) >> 1 for turn in range(self.config.monitor_images)]
            for prompt in self.prompts
        ]

    def look(self, step: int) -> Look:
        """Draw, judge and measure."""
        with sampling_memory(self.config.sample_batch), torch.no_grad(), self.autocast():
            pictures, denoising = self._draw(), self._denoising()
        flat = pictures.reshape(-1, *pictures.shape[2:])
        each = self.config.monitor_images
        texts = [prompt for prompt in self.prompts for _ in range(each)]
        measures = {
            name: score_pictures(judge, texts, list(flat), normalised=name == REWARD) for name, judge in self.judges.items()
        }
        real = flat.astype(np.float64) / 255
        measures |= image_statistics(real)
        measures = {name: values.reshape(-1, each).mean(axis=1) for name, values in measures.items()}
        measures[DIVERSITY] = diversity(real.reshape(pictures.shape))
        measures[DENOISING] = denoising
        return Look(step, measures, pictures[: max(self.config.kept_images, SHOWN), :_KEPT].copy())

    def _draw(self) -> NDArray[np.uint8]:
        config, found = self.config, []
        order = [(row, seed) for row, seeds in enumerate(self._seeds) for seed in seeds]
        for start in range(0, len(order), config.sample_batch):
            rows, seeds = zip(*order[start : start + config.sample_batch], strict=True)
            conditions = rows_of(self._conditions, rows, self.denoiser.device)
            latents = roll(
                self.denoiser,
                self.course,
                conditions,
                seeds,
                stop=config.monitor_steps,
                keep_from=config.monitor_steps,
                guidance=config.monitor_guidance,
            )[:, -1]
            with torch.autocast(latents.device.type, enabled=False):
                found += as_pixels(self.denoiser.decode(latents))
        return np.stack(found).reshape(len(self.prompts), config.monitor_images, *found[0].shape)

    def _denoising(self) -> NDArray[np.float64]:
        """The denoising loss of each held-out real pair, under the same noise every time."""
        found = []
        for start in range(0, len(self.pairs), self.config.sample_batch):
            rows = list(range(start, min(start + self.config.sample_batch, len(self.pairs))))
            seeds = [row_id("monitored pair", self.config.seed, row) >> 1 for row in rows]
            found.append(denoising_losses(self.denoiser, self.course, self.pairs, rows, seeds).cpu())
        losses: NDArray[np.float64] = torch.cat(found).double().numpy()
        return losses


def standard_error(differences: NDArray[np.float64]) -> float:
    """Of a mean over prompts."""
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))


class StopRule:
    """Says what is wrong with a look, beside the first one and the best one so far. In this order:

    1. a measure is not finite;
    2. the denoising loss on real pairs has risen by more than `max_denoising_rise` of its start: the generator forgets;
    3. the trained reward is above its start, and a held-out judge below its best look by more than `max_held_out_fall` standard
       errors of the paired difference: the reward is being hacked;
    4. a statistic of the images has grown or shrunk by more than `max_statistic_change`.
    """

    def __init__(self, config: TuneConfig) -> None:
        self._config = config
        self._first: Look | None = None
        self._best: dict[str, Look] = {}

    def fault(self, look: Look) -> str | None:
        """What is wrong with the next look; None if it may go on."""
        if self._first is None:
            self._first = look
        wrong = self._not_finite(look) or self._forgets(look) or self._hacks(look) or self._changes(look)
        for judge in HELD_OUT_JUDGES:
            if judge not in self._best or look.mean(judge) > self._best[judge].mean(judge):
                self._best[judge] = look
        return wrong

    def _not_finite(self, look: Look) -> str | None:
        names = [name for name, values in look.measures.items() if not np.isfinite(values).all()]
        return f"{names[0]} is not finite" if names else None

    def _forgets(self, look: Look) -> str | None:
        assert self._first is not None
        before, now = self._first.mean(DENOISING), look.mean(DENOISING)
        if now > before * (1 + self._config.max_denoising_rise):
            return f"the denoising loss on real pairs rose by {now / before - 1:.0%}, from {before:.4f} to {now:.4f}"
        return None

    def _hacks(self, look: Look) -> str | None:
        assert self._first is not None
        if look.mean(REWARD) <= self._first.mean(REWARD):
            return None
        for judge in HELD_OUT_JUDGES:
            if judge in self._best:
                change = look.measures[judge] - self._best[judge].measures[judge]
                if change.mean() < -self._config.max_held_out_fall * standard_error(change):
                    return (
                        f"reward hacking: the trained reward rose from {self._first.mean(REWARD):.3f} to {look.mean(REWARD):.3f},"
                        f" while {judge} fell from {self._best[judge].mean(judge):.3f} to {look.mean(judge):.3f}"
                    )
        return None

    def _changes(self, look: Look) -> str | None:
        assert self._first is not None
        for name in sorted(look.measures.keys() - {REWARD, *HELD_OUT_JUDGES, DENOISING, "dark_share"}):
            before, now = self._first.mean(name), look.mean(name)
            factor = max(now, 1e-9) / max(before, 1e-9)
            if max(factor, 1 / factor) > self._config.max_statistic_change:
                return f"{name} of the images went from {before:.4g} to {now:.4g}"
        return None


def standing(look: Look, first: Look) -> float:
    """How good a look is by what nothing is trained on: the mean gain of the held-out judges, each in its own deviations."""
    gains = [(look.mean(judge) - first.mean(judge)) / max(float(first.measures[judge].std()), 1e-9) for judge in HELD_OUT_JUDGES]
    return float(np.mean(gains))


def tabulated(looks: Sequence[Look]) -> dict[str, list[Any]]:
    """Columns of the table `monitors`."""
    rows: dict[str, list[Any]] = {"step": [], "measure": [], "value": [], "error": []}
    for look in looks:
        for name, values in look.measures.items():
            rows["step"].append(look.step)
            rows["measure"].append(name)
            rows["value"].append(float(values.mean()))
            rows["error"].append(standard_error(values - looks[0].measures[name]) if look.step else None)
    return rows
