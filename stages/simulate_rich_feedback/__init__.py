"""Simulate rich feedback on the micro world's images: points, misaligned words and four scores of several people each.

Reads: the selected prompts and their images, of the micro world.
Writes: `rich_feedback.jsonl`, raw answers in our own format; `raters.json`, how people differ from the truth; `rejected`.
Paper: RichHF, section 3.1: three annotators per image, two kinds of points, words, and four scores of 1 to 5.
Deviates: annotators follow a formula (`irpipe.microworld.rich`).
Cost: about 5 ms per image and 1 ms per answer on one core.
"""

from __future__ import annotations

from collections.abc import Iterator

from irpipe.pipeline.stage import Config, Stage, setting


class SimulateRichFeedbackConfig(Config):
    annotators: int = setting(12, ge=1, le=1000, meaning="Number of annotators.")
    annotators_per_image: int = setting(3, ge=1, le=100, meaning="Annotators per image.", source="RichHF 3.1: 3")
    max_images: int = setting(
        0, ge=0, meaning="Images of a prompt that are annotated, the first ones by id. 0: all.", source="RichHF 3.3: one or two"
    )
    seed: int = setting(0, ge=0, meaning="Seed of annotators and slips.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) that nobody can judge that stops the run."
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.annotators_per_image > self.annotators:
            yield "annotators_per_image is above annotators"


STAGE = Stage(
    name="simulate-rich-feedback",
    version=1,
    reads=("selected-prompts", "images"),
    writes="rich-annotation-files",
    determinism="bitwise",
    config=SimulateRichFeedbackConfig,
    run="irpipe.stages.simulate_rich_feedback.run:run",
)
