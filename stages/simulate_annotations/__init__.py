"""Simulate annotations of the micro world's images.

Reads: the selected prompts and their images, of the micro world.
Writes: `annotations.jsonl`, in our own format, or with `records = "choices"` HPS's files in `preferences/`; the table `rejected`,
    and `people.json`: the annotators with their noise, and the Bayes bound, the highest possible accuracy.
Paper: ImageReward, section 2 and appendices A.3 and B: ratings from 1 to 7, problems, five slots with at most two images each.
    HPS, section 3: one of 4, 3 or 2 images is picked.
Deviates: annotators follow a formula (`irpipe.microworld.annotators`); several annotate each prompt, the paper had one.
Cost: about 1 ms per image on one core; memory O(images), 100 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from irpipe.pipeline.stage import Config, Stage, setting


class SimulateAnnotationsConfig(Config):
    records: Literal["rankings", "choices"] = setting(
        "rankings",
        role="neutral",
        meaning="rankings: all images of a prompt are ranked and rated. choices: one of 4, 3 or 2 images is picked, in HPS's"
        " shares.",
        source="choices: HPS 3",
    )
    annotators: int = setting(8, ge=1, le=1000, meaning="Number of annotators.")
    annotators_per_prompt: int = setting(
        2, ge=1, le=1000, meaning="Annotators per prompt.", source="ImageReward H: one, and inspectors"
    )
    noise: float = setting(
        0.1,
        gt=0,
        le=1,
        meaning="Mean standard deviation of the annotators' noise, in units of utility; each has half to one and a half of it.",
    )
    lean: float = setting(
        0.07, ge=0, le=0.2, meaning="Standard deviation over annotators of the weight moved from fidelity to alignment."
    )
    contradiction_share: float = setting(
        0.02, ge=0, le=1, meaning="Share of records whose ratings of the best and the worst image are swapped."
    )
    unclear_share: float = setting(0.03, ge=0, le=1, meaning="Share of prompts labelled as unclear.")
    seed: int = setting(0, ge=0, meaning="Seed of annotators and noise.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) without a verdict that stops the run."
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.annotators_per_prompt > self.annotators:
            yield "annotators_per_prompt is above annotators"

    def unused(self) -> dict[str, str]:
        ranked = ("contradiction_share", "unclear_share")
        return dict.fromkeys(ranked, "records is 'choices'") if self.records == "choices" else {}


STAGE = Stage(
    name="simulate-annotations",
    version=2,
    reads=("selected-prompts", "images"),
    writes="annotation-files",
    determinism="bitwise",
    config=SimulateAnnotationsConfig,
    run="irpipe.stages.simulate_annotations.run:run",
)
