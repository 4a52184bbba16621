"""Tune a generator by the gradient of a reward model (ReFL), and stop when the reward no longer means better images.

Reads: the selected prompts, their splits (of the pairs: trained on are those of `train`, looked at those of `validation`, the
    others are left alone), the reward model, and real pictures with captions.
Writes: the generator (LoRA weights or a whole pipeline, as diffusers loads them), the tables `steps`, `monitors`, `images`
    (of every look) and `rejected`, `generator.json`, curves and a sheet of images before and after.
Paper: ImageReward, sections 3.2 and 4.2, algorithm 1; the released ReFL.py.
Deviates: low-rank additions rather than the whole UNet by default; each sample has a late step of its own, and one rollout can
    serve several; the reward's slope is clipped sample by sample (`max_slope`); on request late latents are used again
    (`refresh_every`), the reward is averaged over grained copies (`copies`), and guidance is on in training. Network and
    scheduler get the same timestep (the released code gives the network the step's number). Rollouts begin before the step's
    update on real pairs, not after it.
Cost: a step O(rollouts * late step) of the network without gradients, and O(batch_size) with; memory O(sample_batch) and
    O(micro_batch) of activations.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from irpipe.models.tuning.config import TuneConfig
from irpipe.pipeline.stage import Stage, setting

_CODE = "released code, ReFL.py"


class ReflConfig(TuneConfig):
    num_steps: int = setting(40, ge=2, le=1000, meaning="Denoising steps of a whole sampling, T.", source="ImageReward 4.2")
    first_late_step: int = setting(
        30, ge=0, meaning="First step that may have a gradient, counted from 0.", source=_CODE + ": 30"
    )
    last_late_step: int = setting(39, ge=0, meaning="Last one.", source=_CODE + ": 39")
    scheduler: Literal["ddpm", "ddim"] = setting("ddpm", meaning="Sampler of the rollouts.", source=_CODE)
    phi: Literal["margin", "linear", "as-worded"] = setting(
        "margin",
        meaning="From reward r to loss. margin: relu(margin - r). linear: -r. as-worded: relu(r), the paper to the letter, which"
        " lowers rewards.",
        source=_CODE + ": relu(2 - r); ImageReward 3.2: ReLU",
    )
    margin: float = setting(2.0, meaning="The normalised reward beyond which nothing is gained (phi = margin).", source=_CODE)
    reward: float = setting(1e-3, gt=0, le=1e6, meaning="Weight of the reward's loss, lambda.", source="ImageReward 4.2: 1e-3")
    max_slope: Literal["median", "none"] = setting(
        "median",
        meaning="median: the slope of a sample's loss at its clean latents is no longer than the median of the last 400 samples."
        " none: as published; a few samples then decide a step.",
    )
    late_steps: int = setting(
        1,
        ge=1,
        role="neutral",
        meaning="Late steps that one rollout serves: batch_size / late_steps rollouts a step.",
    )
    refresh_every: int = setting(
        1, ge=1, role="neutral", meaning="Steps between rollouts. 1: new ones in every step, as published."
    )
    rollouts: int = setting(
        0, ge=0, role="neutral", meaning="Rollouts at a time with refresh_every above 1. 0: batch_size / late_steps."
    )
    copies: int = setting(
        0, ge=0, le=64, role="neutral", meaning="Grained copies of a picture whose mean reward counts. 0: itself."
    )
    grain: float = setting(0.1, ge=0, le=1, role="neutral", meaning="Deviation of that grain, of pixels from 0 to 1.")

    @model_validator(mode="after")
    def _window(self) -> Any:
        if not self.first_late_step <= self.last_late_step < self.num_steps:
            raise ValueError(
                f"the late steps {self.first_late_step} to {self.last_late_step} are none of the steps 0 to {self.num_steps - 1}"
            )
        if self.late_steps > self.last_late_step - self.first_late_step + 1:
            raise ValueError("late_steps is more than there are late steps")
        if self.copies and not self.grain:
            raise ValueError("copies go with a grain above 0: they would all be the same")
        if self.batch_size % self.late_steps:
            raise ValueError("late_steps does not divide batch_size")
        return self

    @property
    def rollouts_at_a_time(self) -> int:
        """How many there are between two refreshments."""
        return self.rollouts or self.batch_size // self.late_steps

    def unused(self) -> dict[str, str]:
        idle = super().unused()
        if self.phi != "margin":
            idle["margin"] = f"phi is {self.phi!r}"
        if self.refresh_every == 1:
            idle["rollouts"] = "refresh_every is 1"
        else:
            idle["late_steps"] = "refresh_every is above 1: every sample draws its rollout and its late step"
        if not self.copies:
            idle["grain"] = "copies is 0"
        return idle


STAGE = Stage(
    name="refl",
    version=1,
    reads=TuneConfig.shared_reads,
    writes="generator",
    processes=True,
    determinism="numeric",
    extra="tune",
    config=ReflConfig,
    run="irpipe.stages.refl.run:run",
)
