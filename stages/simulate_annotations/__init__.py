"""Write what a campaign of annotators would hand over for the images of the selected prompts.

Reads: the selected prompts and their images, of the micro world.
Writes: `annotations.jsonl`, in our own format, as people's annotation files are, the table `rejected`, and `people.json`: the
    people, the noise model's figures and the Bayes bound, the accuracy on pairs that nobody can exceed.
Paper: ImageReward, section 2 and appendices A.3 and B: ratings from 1 to 7, problems, five slots with at most two images each.
Deviates: taste is a formula (`irpipe.microworld.annotators`); several people annotate a prompt, the paper had one.
Cost: about 1 ms an image on one core; memory O(images), 100 bytes each.
"""

from __future__ import annotations

from pydantic import model_validator

from irpipe.pipeline.stage import Config, Stage, setting


class SimulateAnnotationsConfig(Config):
    annotators: int = setting(8, ge=1, le=1000, meaning="People in the campaign.")
    annotators_per_prompt: int = setting(
        2, ge=1, le=1000, meaning="People who annotate each prompt.", source="ImageReward H: one, and inspectors"
    )
    noise: float = setting(
        0.1,
        gt=0,
        le=1,
        meaning="Mean standard deviation of what people see, in units of worth; each has half to one and a half of it.",
    )
    lean: float = setting(0.07, ge=0, le=0.2, meaning="Standard deviation of the weight people move from fidelity to alignment.")
    contradiction_share: float = setting(
        0.02, ge=0, le=1, meaning="Share of records whose ratings of the best and the worst image are swapped."
    )
    unclear_share: float = setting(0.03, ge=0, le=1, meaning="Share of prompts that people find unclear.")
    seed: int = setting(0, ge=0, meaning="Seed of people and noise.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) nobody can judge that stops the run."
    )

    @model_validator(mode="after")
    def _people(self) -> SimulateAnnotationsConfig:
        if self.annotators_per_prompt > self.annotators:
            raise ValueError("annotators_per_prompt is above annotators")
        return self


STAGE = Stage(
    name="simulate-annotations",
    version=2,
    reads=("selected-prompts", "images"),
    writes="annotation-files",
    determinism="bitwise",
    config=SimulateAnnotationsConfig,
    run="irpipe.stages.simulate_annotations.run:run",
)
