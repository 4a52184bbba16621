"""Evaluate predictions of rich feedback against people's: scores, heatmaps and misaligned words.

Reads: rich feedback; the predictions of one node or several on the same images; scores of other scorers on them, if asked for;
    published figures, if a file is given; the images, if a CLIP's gradient is asked for; with `truth`, what simulated annotators
    look at.
Writes: the table `rahf_figures`, `report.txt` with RichHF's tables 1 to 4, and a plot.
Paper: RichHF, section 4.4 and tables 1 to 4.
Deviates: intervals by bootstrap over prompts; AUC-Judd is right by definition, and the released one stands beside it.
Cost: O(images * pixels log pixels), and `bootstrap` resamplings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from irpipe.models.published import CLIP, NO_GENERATOR
from irpipe.pipeline.stage import Config, FilePath, Many, Stage, setting


class EvaluateRahfConfig(Config):
    split: Literal["all", "train", "validation", "test"] = setting("all", meaning="Images whose feedback is of this split.")
    fixation: float = setting(
        0.0,
        ge=0,
        lt=1,
        meaning="Pixels of people's map above this share are fixations, for NSS and AUC-Judd. JPEG's ringing makes some: 0.0314.",
        source="released evaluation: 0",
    )
    scorers: bool = setting(False, meaning="Also compare with the scores of score-images on the same images.")
    truth: bool = setting(False, meaning="Also compare with what the micro world's annotators could reach, and with the truth.")
    panels: int = setting(24, ge=2, le=1000, meaning="Simulated annotators whose mean is what the truth allows.")
    clip_gradient: bool = setting(
        False,
        role="neutral",
        meaning="Also compare with the gradient of a CLIP's cosine as a misalignment heatmap.",
        source="RichHF, table 3",
    )
    clip_model: str = setting(CLIP, role="model", check=NO_GENERATOR, meaning="The CLIP whose gradient is taken.")
    device: str = setting("auto", role="execution", meaning="Where the CLIP runs: auto, cpu, cuda, cuda:1, mps.")
    published: FilePath | None = setting(
        None,
        role="external",
        meaning="Published figures to print beside: CSV with predictor, output, figure, value, as in the table `rahf_figures`.",
    )
    bootstrap: int = setting(500, ge=0, le=100_000, meaning="Resamplings for 95 % intervals. 0: none.")
    seed: int = setting(0, ge=0, meaning="Seed of the resampling and of simulated annotators.")

    def unused(self) -> dict[str, str]:
        idle = {} if self.truth else {"panels": "truth is off"}
        return idle if self.clip_gradient else idle | dict.fromkeys(("clip_model", "device"), "clip_gradient is off")


def _reads(config: EvaluateRahfConfig) -> Sequence[str | Many]:
    more: list[str | Many] = ["scores"] if config.scorers else []
    more += ["rich-annotation-files"] if config.truth else []
    more += ["images"] if config.truth or config.clip_gradient else []
    return ("rich-feedback", Many("rich-predictions"), *more)


STAGE = Stage(
    name="evaluate-rahf",
    version=1,
    reads=_reads,
    writes="rahf-evaluation",
    determinism="numeric",
    config=EvaluateRahfConfig,
    run="irpipe.stages.evaluate_rahf.run:run",
    evaluation=True,
)
