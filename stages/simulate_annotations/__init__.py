"""Write what a campaign of annotators would hand over for the selected prompts.

Reads: the selected prompts.
Writes: `annotations.jsonl`, in our own format, as people's annotation files are.
Paper: ImageReward, section 2 and appendices A.3 and B: 4-9 images a prompt, five slots with at most two images each.
Deviates: there are no images yet, only their names; their worth is drawn at random and each person sees it with noise.
Cost: O(prompts * annotators).
"""

from __future__ import annotations

from irpipe.pipeline.stage import Config, Stage, setting


class SimulateAnnotationsConfig(Config):
    annotators: int = setting(5, ge=1, le=1000, meaning="People in the campaign.")
    annotators_per_prompt: int = setting(
        2, ge=1, le=1000, meaning="People who annotate each prompt.", source="ImageReward H: one, and inspectors"
    )
    min_images: int = setting(4, ge=2, le=10, meaning="Least images of a prompt.", source="ImageReward 2.1")
    max_images: int = setting(9, ge=2, le=10, meaning="Most images of a prompt.", source="ImageReward 2.1")
    unclear_share: float = setting(0.03, ge=0, le=1, meaning="Share of prompts that people find unclear.")
    seed: int = setting(0, ge=0, meaning="Seed of images, people and noise.")


STAGE = Stage(
    name="simulate-annotations",
    version=1,
    reads=("selected-prompts",),
    writes="annotation-files",
    determinism="bitwise",
    config=SimulateAnnotationsConfig,
    run="irpipe.stages.simulate_annotations.run:run",
)
