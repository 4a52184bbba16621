"""Compare scorers with human preferences, with each other, and in the micro world with the truth.

Reads: the pairs, the annotations and the scores; with `truth`, also the oracle's verdicts and the simulated annotators.
Writes: the tables `scorers` (table 3 of the paper, and HPS's table 2), `groups`, `calibration`, `generators` (table 1),
    `best_of`, `agreement` and `votes` (HPS's figure 3), `correlations` (HPS's figure 6) and `rejected`, `report.txt` and plots.
Paper: ImageReward, tables 1 and 3, section 4.1 and appendix C.2; HPS, tables 2 and 3.
Deviates: accuracy is given pooled over pairs, as the released code has it, and as the mean over prompts, as the paper's caption
    has it, each with an interval by bootstrap over prompts.
Cost: O(pairs * scorers), and `bootstrap` resamplings of the prompts; no model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, Strict

from irpipe.pipeline.stage import Config, FilePath, Stage, setting

Rule = Literal["ties-as-half", "hpsv2-inversion", "hpsv2-imagereward"]


class EvaluateRmConfig(Config):
    split: Literal["train", "validation", "test"] = setting(
        "test", meaning="The split whose pairs are counted.", source="ImageReward 4.1"
    )
    at: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)] = setting(
        (1, 2, 4), min_length=1, meaning="The k of recall@k and filter@k.", source="ImageReward, table 3"
    )
    best_of: Annotated[tuple[Annotated[int, Field(ge=2)], ...], Strict(False)] = setting(
        (2, 4, 8), meaning="The n of best-of-n, where the truth is known."
    )
    bootstrap: int = setting(2000, ge=0, le=100_000, meaning="Resamplings for 95 % intervals. 0: none.")
    truth: bool = setting(False, meaning="Also compare with what the micro world's oracle knows.")
    baseline: str | None = setting(
        None,
        role="neutral",
        meaning="A scorer that all others are compared with, choice by choice (of annotations that are choices).",
    )
    rules: Annotated[tuple[Rule, ...], Strict(False)] = setting(
        (),
        role="neutral",
        meaning="Accuracies by other rules beside ours, which counts equal scores as wrong: ties-as-half; hpsv2-inversion and"
        " hpsv2-imagereward, means over records as HPSv2's code has them.",
        source="HPSv2, released code",
    )
    human_ranking: FilePath | None = setting(
        None,
        role="external",
        meaning="CSV with the columns generator and wins (or rank): people's ranking, to compare the scorers' with.",
        source="ImageReward, table 1",
    )
    seed: int = setting(0, ge=0, meaning="Seed of the resampling.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of pairs (of at least 100) without scores that stops the run."
    )

    def unused(self) -> dict[str, str]:
        return {} if self.truth else {"best_of": "truth is off"}


def _reads(config: EvaluateRmConfig) -> Sequence[str]:
    own = ("pairs", "annotations", "scores")
    return (*own, "truth", "annotation-files") if config.truth else own


STAGE = Stage(
    name="evaluate-rm",
    version=4,
    reads=_reads,
    writes="evaluation",
    determinism="bitwise",
    config=EvaluateRmConfig,
    run="irpipe.stages.evaluate_rm.run:run",
    evaluation=True,
)
