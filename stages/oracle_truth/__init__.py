"""Compute the ground truth of every image of the micro world by its oracle.

Reads: the selected prompts and their images.
Writes: the tables `rejected` and `truth`: alignment, fidelity, utility, wrong words and a map of defects, for evaluations only.
Paper: none; real data have no ground truth.
Deviates: stages that train or select may not read this artifact or anything made from it.
Cost: about 1 ms per image on one core.
"""

from __future__ import annotations

from irpipe.pipeline.stage import Config, Stage, setting


class OracleTruthConfig(Config):
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) without a verdict that stops the run."
    )


STAGE = Stage(
    name="oracle-truth",
    version=1,
    reads=("selected-prompts", "images"),
    writes="truth",
    determinism="bitwise",
    config=OracleTruthConfig,
    run="irpipe.stages.oracle_truth.run:run",
    truth=True,
)
