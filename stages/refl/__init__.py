"""Tune a generator by the gradient of a reward model (ReFL), and stop when the reward no longer means better images.

Reads: the selected prompts, their splits (of the pairs: `train` is trained on, `validation` evaluated on, others are left alone),
    the reward model, and captioned images.
Writes: the generator (LoRA weights or a whole pipeline, as diffusers loads them), the tables `curves`, `images` (of every
    evaluation) and `rejected`, `generator.json`, plots of the curves and of images before and after.
Paper: ImageReward, sections 3.2 and 4.2, algorithm 1; the released ReFL.py.
Deviates: LoRA rather than the whole UNet by default; each sample has a late step of its own; each sample's reward gradient is
    clipped (`clip_reward_gradient`); on request rollouts are used again (`refresh_every`), the reward is averaged over noisy
    copies (`noise_samples`), and guidance is on in training. Network and scheduler get the same timestep (the released code
    gives the network the step's number). Rollouts are sampled before, not after, the pre-training update of the same step.
Cost: per step O(rollouts * late step) of the network without gradients, and O(batch_size) with; memory O(sample_batch_size) and
    O(micro_batch_size) of activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.training.config import workers
from irpipe.models.tuning.config import TuneConfig
from irpipe.pipeline.stage import Stage, setting

_CODE = "released code, ReFL.py"


class ReflConfig(TuneConfig):
    num_steps: int = setting(40, ge=2, le=1000, meaning="Denoising steps of a whole sampling, T.", source="ImageReward 4.2")
    first_late_step: int = setting(
        30, ge=0, meaning="First denoising step that may have a gradient, counted from 0.", source=_CODE + ": 30"
    )
    last_late_step: int = setting(39, ge=0, meaning="Last denoising step that may have a gradient.", source=_CODE + ": 39")
    scheduler: Literal["ddpm", "ddim"] = setting("ddpm", meaning="Sampler of the rollouts.", source=_CODE)
    phi: Literal["margin", "linear"] = setting(
        "margin",
        meaning="From normalised reward r to loss. margin: relu(margin - r). linear: -r.",
        source=_CODE + ": relu(2 - r); ImageReward 3.2: ReLU",
    )
    margin: float = setting(2.0, meaning="Normalised reward above which the loss is 0 (phi = margin).", source=_CODE)
    reward_weight: float = setting(
        1e-3, gt=0, le=1e6, meaning="Weight of the reward's loss, lambda.", source="ImageReward 4.2: 1e-3"
    )
    clip_reward_gradient: Literal["median", "none"] = setting(
        "median",
        meaning="median: clip each sample's reward gradient (with respect to predicted x0) to the median norm of the last 400"
        " samples. none: no clipping, as published; a few samples then decide a step.",
    )
    weight_map: Literal["implausibility", "misalignment"] | None = setting(
        None,
        role="neutral",
        meaning="Weigh the reward's gradient by a heatmap that the reward model, a RAHF, predicts of the image. Unset: evenly.",
        source="RichHF 6, an open question",
    )
    refresh_every: int = setting(1, ge=1, meaning="Steps between rollouts. 1: new ones in every step, as published.")
    rollouts: int = setting(0, ge=0, meaning="Rollouts per refreshment, with refresh_every above 1. 0: batch_size.")
    noise_samples: int = setting(
        0,
        ge=0,
        le=64,
        meaning="Average the reward over this many noisy copies of each image. 0: use the image as it is.",
    )
    noise_std: float = setting(
        0.1, ge=0, le=1, meaning="Standard deviation of the copies' noise, for pixels from 0 to 1 (noise_samples above 0)."
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if not self.first_late_step <= self.last_late_step < self.num_steps:
            yield (
                f"the late steps {self.first_late_step} to {self.last_late_step} are none of the steps 0 to {self.num_steps - 1}:"
                " first_late_step <= last_late_step < num_steps"
            )
        if self.noise_samples and not self.noise_std:
            yield "noise_samples needs a noise_std above 0: the copies would all be the same"

    @property
    def rollouts_at_a_time(self) -> int:
        """How many rollouts there are between two refreshments."""
        return self.rollouts or self.batch_size

    def unused(self) -> dict[str, str]:
        idle = super().unused()
        if self.phi != "margin":
            idle["margin"] = f"phi is {self.phi!r}"
        if self.refresh_every == 1:
            idle["rollouts"] = "refresh_every is 1"
        if not self.noise_samples:
            idle["noise_std"] = "noise_samples is 0"
        return idle


STAGE = Stage(
    name="refl",
    version=1,
    reads=TuneConfig.shared_reads,
    writes="generator",
    processes=workers,
    determinism="numeric",
    extra="tune",
    config=ReflConfig,
    run="irpipe.stages.refl.run:run",
    plugins=plugins,
)
