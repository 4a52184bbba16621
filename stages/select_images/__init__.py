"""Choose images to be annotated: as many of each kind, and test prompts of their own.

Reads: images, and their prompts (the selected ones, or those of annotations).
Writes: `images`, the chosen ones; the tables `selected_images`, `image_answers`, `attribute_counts` and `rejected`.
Paper: RichHF, section 3.3: a model that answers questions (PaLI) says which images are photo-realistic and what they show, and a
    balanced sample is taken; test images are of unique prompts.
Deviates: BLIP answers, or a table of labels. The shares of the kinds are not given there. Prompts, not images, are split. Test
    images are drawn by lot, and not balanced.
Cost: one pass of the model's image tower per image, one of its text towers per question and answer; memory O(images) numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Strict

from irpipe.models.published import NO_GENERATOR, VQA
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import FilePath, First, Stage, setting


class SelectImagesConfig(MapConfig):
    labels: FilePath | None = setting(
        None,
        role="external",
        meaning="Answers instead of a model's: CSV, JSON Lines or Parquet with a column image (the path in `images`, or the id as"
        " 16 hex digits) and one per question's name.",
    )
    model: str = setting(
        VQA,
        role="model",
        check=NO_GENERATOR,
        meaning="The model that answers: a BLIP for question answering of transformers.",
        source="RichHF 3.3: PaLI, which is not public",
    )
    questions: Annotated[tuple[str, ...], Strict(False)] = setting(
        (
            "photorealistic: is the image photorealistic? yes 4, no 1",
            "category: which category best describes the image? human, animal, object, indoor scene, outdoor scene",
        ),
        min_length=1,
        meaning="What is asked, as 'name: question? answer, answer'. A number behind an answer is its weight in the sample (1).",
        source="RichHF 3.3; most of its images are photo-realistic, how many is not said",
    )
    count: int = setting(17_000, ge=1, meaning="Images to choose, besides the test prompts'.", source="RichHF 3.3: 17K")
    test_prompts: int = setting(
        1_000, ge=0, meaning="Prompts of the test split; one image of each is chosen.", source="RichHF 3.3: 1K"
    )
    seed: int = setting(0, ge=0, meaning="Seed of the choice.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", meaning="Precision of the model.")
    batch_size: int = setting(32, ge=1, le=4096, role="execution", meaning="Images per forward pass.")
    device: str = setting("auto", role="execution", meaning="Where the model runs: auto, cpu, cuda, cuda:1, mps.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) that cannot be used that stops the run."
    )

    def faults(self) -> Iterator[str]:
        from irpipe.stages.select_images.questions import faults_of

        yield from super().faults()
        yield from faults_of(self.questions)

    def unused(self) -> dict[str, str]:
        idle = dict.fromkeys(("model", "dtype", "batch_size", "device", "num_processes", "executor"), "labels has the answers")
        return super().unused() | (idle if self.labels is not None else {})


STAGE = Stage(
    name="select-images",
    version=1,
    reads=("images", First(("selected-prompts", "annotations"))),
    writes="images",
    determinism="numeric",
    extra="train",
    config=SelectImagesConfig,
    run="irpipe.stages.select_images.run:run",
)
