"""The settings of score guidance. Imports no torch: stages declare themselves with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, Strict

from irpipe.pipeline.settings import Group
from irpipe.pipeline.stage import setting

_BANSAL = "Bansal et al. 2023, universal guidance (RichHF 5.3)"


class GuidanceSettings(Group):
    """Which denoising steps are guided, how often each, and by which score."""

    start: float = setting(
        0.0, ge=0, lt=1, role="neutral", meaning="Share of the denoising steps after which guidance begins.", source=_BANSAL
    )
    end: float = setting(
        1.0, gt=0, le=1, role="neutral", meaning="Share of the denoising steps after which guidance ends.", source=_BANSAL
    )
    every: int = setting(
        1, ge=1, le=1000, role="neutral", meaning="Guide every so many steps, from the first on. 1: all.", source=_BANSAL
    )
    repeats: int = setting(
        1,
        ge=1,
        le=100,
        role="neutral",
        meaning="How often a guided step is done, each time from its own result with noise put back; above 1 with DDPM or DDIM.",
        source=f"{_BANSAL}: 2 to 10 by the score; 1 is none",
    )
    aspect: str | None = setting(
        None,
        role="neutral",
        meaning="Of a reward model with several scores (RAHF) the one that guides. Unset: its own.",
        source="RichHF 5.3: aesthetics",
    )

    def guided_steps(self, num_steps: int) -> range:
        """The steps that are guided, counted from 0."""
        return range(round(self.start * num_steps), round(self.end * num_steps), self.every)

    def faults_for(self, num_steps: int, dtype: str, scheduler: str) -> Iterator[str]:
        """What is wrong with these settings in a sampling."""
        if not self.guided_steps(num_steps):
            yield f"score_guidance.start={self.start} and score_guidance.end={self.end} leave none of {num_steps} steps to guide"
        if self.repeats > 1 and scheduler not in ("own", "ddpm", "ddim"):
            yield f"score_guidance.repeats is above 1, and scheduler={scheduler} takes no step twice: scheduler=ddim or ddpm"
        if dtype == "float16":
            yield "score guidance takes gradients, which dtype=float16 loses: dtype=bfloat16 or float32"


class ScoreGuidance(GuidanceSettings):
    """Guidance of the sampling by the gradient of a reward model's score."""

    scale: float = setting(
        0.0,
        ge=0,
        le=1e9,
        role="neutral",
        meaning="Weight of the gradient of the normalised score. 0: no score guidance.",
        source=f"{_BANSAL}: 6 to 20,000 by the score; RichHF names none",
    )


class ComparedGuidance(GuidanceSettings):
    """Guidance of the base's sampling by the gradient of a reward model's score, at several scales."""

    scales: Annotated[tuple[Annotated[float, Field(gt=0, le=1e9)], ...], Strict(False)] = setting(
        (),
        role="neutral",
        meaning="Also compare the base with score guidance of these weights of the normalised score's gradient, as guided-SCALE.",
    )

    def faults_for(self, num_steps: int, dtype: str, scheduler: str) -> Iterator[str]:
        """As of `GuidanceSettings`."""
        yield from super().faults_for(num_steps, dtype, scheduler)
        if len(set(self.scales)) < len(self.scales):
            yield "a scale stands twice in score_guidance.scales"
