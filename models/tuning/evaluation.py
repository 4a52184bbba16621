"""Evaluation of a generator while it is tuned, and the rule that stops a tuning that has gone wrong.

The trained reward cannot tell: it rises whether images get better or only please the reward model. So every evaluation samples
images of the same held-out prompts with the same seeds, and scores them by what nothing is trained on. It also measures the
denoising loss on the same captioned images under the same noise, which rises as the generator forgets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.scorers.base import Scorer, score_pictures
from irpipe.models.training.checkpoints import Checkpoints
from irpipe.models.training.objective import Evaluator, Verdict
from irpipe.models.training.sharing import shared_rows
from irpipe.models.tuning.captions import CaptionedImages, denoising_losses
from irpipe.models.tuning.config import EvaluationSettings, TuneConfig
from irpipe.models.tuning.denoiser import Denoiser, as_pixels, sample_images
from irpipe.pipeline.errors import TrainingError
from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.schemas.generator import HELD_OUT_MEASURES
from irpipe.schemas.images import ImageShards, encoded_row

REWARD, HELD_OUT, SIMILARITY, DENOISING = "reward", "held_out", "similarity", "denoising_loss"
HELD_OUT_SCORERS = (HELD_OUT, SIMILARITY)
DIVERSITY = "diversity"
STATISTICS = ("brightness", "contrast", "saturation", "edge_energy", "high_frequency_share", "colour_entropy", "dark_share")
SHOWN = 12  # prompts whose images stand in the plot before and after
_KEPT = 2  # images per prompt that are kept
_COLOUR_BINS = 8  # per channel


def image_statistics(pictures: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """What can be said of pictures without knowing what they should show.

    Args:
        pictures: (n, height, width, 3) from 0 to 1.

    Returns:
        (n,) each. brightness: mean grey. contrast: standard deviation of grey. saturation: mean of largest less smallest channel.
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
    distances: NDArray[np.float64] = np.sqrt(2 * pictures.var(axis=1, ddof=1).mean(axis=(1, 2, 3)))
    return distances


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: each measure per prompt, (prompts,), but for the denoising loss, (captioned images,).

    Attributes:
        step: optimiser steps done.
        pictures: (prompts, 2, height, width, 3) uint8, of the first prompts.
    """

    step: int
    measures: dict[str, NDArray[np.float64]]
    pictures: NDArray[np.uint8]

    def mean(self, measure: str) -> float:
        """Over prompts or captioned images."""
        return float(self.measures[measure].mean())


@dataclass
class GeneratorEvaluator(Evaluator):
    """Evaluates on the same prompts, noise and captioned images every time; all processes share the images.

    Attributes:
        scorers: by measure.
        captioned: never trained on.
        checkpoints: keep every evaluation, so that a training that goes on has them again.
        negative_prompt: of the tuned generator; its images are made with it, as they will be later.
        evaluations: those so far; fired: what the stop rule said of them.
    """

    config: TuneConfig
    denoiser: Denoiser
    prompts: Sequence[str]
    scorers: Mapping[str, Scorer]
    captioned: CaptionedImages
    accelerator: Accelerator
    checkpoints: Checkpoints
    say: Callable[[str], None]
    negative_prompt: str = ""
    evaluations: list[Evaluation] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        chosen = self.config.evaluation
        self._schedule = self.denoiser.noise_schedule(chosen.num_steps, "ddpm")
        self._rule = StopRule(chosen)
        if self.negative_prompt and chosen.guidance_scale <= 1:
            self.say(f"  evaluated without guidance, where the negative prompt {self.negative_prompt!r} steers nothing")
        self._conditions = self.denoiser.encode(self.prompts, negative_prompt=self.negative_prompt)
        self._images = [
            (number, row_id("monitor", self.config.training.seed, prompt, turn) >> 1)
            for number, prompt in enumerate(self.prompts)
            for turn in range(chosen.images)
        ]

    def due(self, step: int) -> bool:
        """Every so many steps, and at the end."""
        return step % self.config.evaluation.every == 0 or step == self.config.steps

    def evaluate(self, step: int) -> Verdict:
        """Sample, score and measure.

        Raises:
            TrainingError: the stop rule fires before the first step.
        """
        evaluation = self.measure(step)
        if self.accelerator.is_main_process:
            self.checkpoints.write(f"evaluation-{step}.pt", _saved(evaluation))
        fault = self._take(evaluation)
        if fault and not step:
            raise TrainingError(f"before the first step {fault}", fix="another generator or scorer, or training.dtype=float32")
        stops = self.config.evaluation.early_stopping == "stop"
        if fault and not stops:
            self.say(f"  the stop rule fires at step {step:,}, and is only logged: {fault}")
        first = self.evaluations[0]
        measures = {name: evaluation.mean(name) for name in evaluation.measures}
        measures |= {f"{name}_error": error for name, error in errors(evaluation, first).items()}
        return Verdict(value(evaluation, first), measures, fault if stops else "", _note(evaluation, first))

    def resume(self, steps: Sequence[int]) -> None:
        """Go back to the evaluations of these steps."""
        for step in steps:
            saved = self.checkpoints.read(f"evaluation-{step}.pt")
            measures = {name: values.numpy() for name, values in saved["measures"].items()}
            self._take(Evaluation(step, measures, saved["pictures"].numpy()))

    def _take(self, evaluation: Evaluation) -> str:
        """Ask the stop rule about the next evaluation, and keep it."""
        self.evaluations.append(evaluation)
        fault = self._rule.fault(evaluation)
        if fault:
            self.fired.append(f"step {evaluation.step:,}: {fault}")
        return fault

    def measure(self, step: int) -> Evaluation:
        """Sample images of the held-out prompts, score them, and measure the denoising loss."""
        chosen, size = self.config.evaluation, self.config.training.sample_batch_size
        pixels, *statistics = shared_rows(self.accelerator, len(self._images), size, self._sampled)
        scores = [self._scores(name, pixels.numpy()) for name in self.scorers]
        (denoising,) = shared_rows(self.accelerator, len(self.captioned), size, self._denoising)
        pictures = pixels.numpy().reshape(len(self.prompts), chosen.images, *pixels.shape[1:])
        measures = {
            name: values.numpy().reshape(-1, chosen.images).mean(axis=1)
            for name, values in zip([*self.scorers, *STATISTICS], [*scores, *statistics], strict=True)
        }
        measures[DIVERSITY] = diversity(pictures.astype(np.float64) / 255)
        measures[DENOISING] = denoising.numpy()
        return Evaluation(step, measures, pictures[: max(chosen.kept_images, SHOWN), :_KEPT].copy())

    def _sampled(self, numbers: Sequence[int]) -> list[Tensor]:
        """Images by number, as pixels (n, height, width, 3) uint8, and (n,) of each statistic."""
        rows, seeds = zip(*(self._images[number] for number in numbers), strict=True)
        with torch.no_grad():
            with self.accelerator.autocast():
                guidance = self.config.evaluation.guidance_scale
                latents = sample_images(self.denoiser, self._schedule, self._conditions, rows, seeds, guidance)
            pictures = as_pixels(self.denoiser.decode(latents))
        pixels = np.stack(pictures)
        statistics = image_statistics(pixels.astype(np.float64) / 255)
        return [torch.from_numpy(values) for values in (pixels, *(statistics[name] for name in STATISTICS))]

    def _scores(self, name: str, pixels: NDArray[np.uint8]) -> Tensor:
        """A scorer's scores, (images,), of all images, (images, height, width, 3)."""
        texts, size = [self.prompts[row] for row, _ in self._images], self.config.training.sample_batch_size
        with self._on_device(name) as scorer:

            def scored(numbers: Sequence[int]) -> list[Tensor]:
                prompts, pictures = [texts[number] for number in numbers], [pixels[number] for number in numbers]
                return [torch.from_numpy(score_pictures(scorer, prompts, pictures, normalised=name == REWARD))]

            return shared_rows(self.accelerator, len(pixels), size, scored)[0]

    @contextmanager
    def _on_device(self, name: str) -> Iterator[Any]:
        """A scorer on the device. One that only evaluates is on the CPU otherwise: while it trains, a GPU holds none of them."""
        scorer: Any = self.scorers[name]
        if name not in HELD_OUT_SCORERS:
            yield scorer
            return
        scorer.to(self.accelerator.device)
        try:
            yield scorer
        finally:
            scorer.to(torch.device("cpu"))

    def _denoising(self, rows: Sequence[int]) -> Sequence[Tensor]:
        """The denoising loss of captioned images by row, (n,), under the same noise every time."""
        seeds = [row_id("monitored pair", self.config.training.seed, row) >> 1 for row in rows]
        with torch.no_grad(), self.accelerator.autocast():
            return (denoising_losses(self.denoiser, self._schedule, self.captioned, rows, seeds).cpu().double(),)


def _saved(evaluation: Evaluation) -> dict[str, Any]:
    measures = {name: torch.from_numpy(values) for name, values in evaluation.measures.items()}
    return {"measures": measures, "pictures": torch.from_numpy(evaluation.pictures)}


def _note(evaluation: Evaluation, first: Evaluation) -> str:
    """Scores and denoising loss, with their change since the first evaluation."""
    means = {name: evaluation.mean(name) for name in (REWARD, HELD_OUT, SIMILARITY, DENOISING)}
    return ", ".join(f"{name} {mean:.3f} ({mean - first.mean(name):+.3f})" for name, mean in means.items())


def standard_error(differences: NDArray[np.float64]) -> float:
    """Standard error of a mean over prompts, of values (n,)."""
    return float(differences.std(ddof=1) / math.sqrt(len(differences)))


class StopRule:
    """Says what is wrong with an evaluation, beside the first one and the best one so far. In this order:

    1. a measure is not finite;
    2. the denoising loss on captioned images has risen by more than `max_denoising_rise` of its start: the generator forgets;
    3. the trained reward is above its start, and a held-out scorer below its best evaluation by more than `max_held_out_fall`
       standard errors of the paired difference: the reward is being hacked;
    4. a statistic of the images has grown or shrunk by more than `max_statistic_change`.
    """

    def __init__(self, settings: EvaluationSettings) -> None:
        self._settings = settings
        self._first: Evaluation | None = None
        self._best: dict[str, Evaluation] = {}

    def fault(self, evaluation: Evaluation) -> str:
        """What is wrong with the next evaluation; empty if the training may go on."""
        first = self._first = self._first or evaluation
        wrong = (
            self._not_finite(evaluation)
            or self._forgets(evaluation, first)
            or self._hacks(evaluation, first)
            or self._changes(evaluation, first)
        )
        for scorer in HELD_OUT_SCORERS:
            if scorer not in self._best or evaluation.mean(scorer) > self._best[scorer].mean(scorer):
                self._best[scorer] = evaluation
        return wrong

    def _not_finite(self, evaluation: Evaluation) -> str:
        names = [name for name, values in evaluation.measures.items() if not np.isfinite(values).all()]
        return f"{names[0]} is not finite" if names else ""

    def _forgets(self, evaluation: Evaluation, first: Evaluation) -> str:
        before, now = first.mean(DENOISING), evaluation.mean(DENOISING)
        if now > before * (1 + self._settings.max_denoising_rise):
            return f"the denoising loss on captioned images rose by {now / before - 1:.0%}, from {before:.4f} to {now:.4f}"
        return ""

    def _hacks(self, evaluation: Evaluation, first: Evaluation) -> str:
        if evaluation.mean(REWARD) <= first.mean(REWARD):
            return ""
        for scorer, best in self._best.items():
            change = evaluation.measures[scorer] - best.measures[scorer]
            if change.mean() < -self._settings.max_held_out_fall * standard_error(change):
                return (
                    f"reward hacking: the trained reward rose from {first.mean(REWARD):.3f} to {evaluation.mean(REWARD):.3f},"
                    f" while {scorer} fell from {best.mean(scorer):.3f} to {evaluation.mean(scorer):.3f}"
                )
        return ""

    def _changes(self, evaluation: Evaluation, first: Evaluation) -> str:
        for name in sorted(evaluation.measures.keys() - {REWARD, *HELD_OUT_SCORERS, DENOISING, "dark_share"}):
            before, now = first.mean(name), evaluation.mean(name)
            factor = max(now, 1e-9) / max(before, 1e-9)
            if max(factor, 1 / factor) > self._settings.max_statistic_change:
                return f"{name} of the images went from {before:.4g} to {now:.4g}"
        return ""


def value(evaluation: Evaluation, first: Evaluation) -> float:
    """How good an evaluation is by what nothing is trained on: the mean gain of the held-out scorers since the first one, each in
    its own standard deviations over prompts."""
    gains = [
        (evaluation.mean(scorer) - first.mean(scorer)) / max(float(first.measures[scorer].std()), 1e-9)
        for scorer in HELD_OUT_SCORERS
    ]
    return float(np.mean(gains))


def errors(evaluation: Evaluation, first: Evaluation) -> dict[str, float]:
    """Of each measure, the standard error over prompts of its change since the first evaluation; none of that one."""
    if evaluation is first:
        return {}
    return {name: standard_error(values - first.measures[name]) for name, values in evaluation.measures.items()}


def write_evaluated(evaluations: Sequence[Evaluation], prompts: Sequence[tuple[int, str]], stage: str, out: Path) -> None:
    """The table `images`: two per prompt at every evaluation, by the generator `STAGE step N`; and what was measured of them."""
    measures = [
        (evaluation.step, identity, figure, float(value))
        for evaluation in evaluations
        for figure in (REWARD, HELD_OUT, SIMILARITY)
        for (identity, _), value in zip(prompts, evaluation.measures[figure], strict=False)
    ]
    columns = zip(*measures, strict=True) if measures else ([] for _ in HELD_OUT_MEASURES.columns)
    names = [column.name for column in HELD_OUT_MEASURES.columns]
    HELD_OUT_MEASURES.write(out, {name: list(values) for name, values in zip(names, columns, strict=True)})
    with ImageShards(out) as shards:
        for evaluation in evaluations:
            for (identity, _), pictures in zip(prompts, evaluation.pictures, strict=False):
                for turn, picture in enumerate(pictures):
                    name = f"{show_row_id(identity)}/{evaluation.step}-{turn}.png"
                    shards.append(encoded_row(picture, identity, name, generator=f"{stage} step {evaluation.step}"))
