"""Choose images to tune a generator on, by their scores: preferred ones, and ones that nobody prefers.

Reads: the images with their scores, their prompts (from splits, or selected prompts), and the annotations whose prompts are left
    out; or, with `path`, a file of scores alone.
Writes: the tables `chosen_images` and `rejected`.
Paper: HPS, sections 6 and 7.2, and the released code's selection; RAHF, section 5.1 (`best` above a threshold).
Deviates: scores are divided by their standard deviation within prompts before the softmax, since the scale of a cosine is an
    accident of its training; the blur filter sees edges of every direction; half of the non-preferred images are left out, as
    the authors did (align_sd, issue 9). `rules = "as-published"` does none of it.
Cost: O(images), and with the blur filter one decoding of each; memory 60 bytes per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import FilePath, First, Stage, setting

Rules = Literal["standardised", "as-published"]

# What `rules = "as-published"` sets (released code, select_training_images.py and process_diffusiondb.py).
PUBLISHED = {"alpha": 2.0, "temperature": 1.0, "non_preferred_share": 1.0, "min_images": 4, "blur_threshold": 10.0}


class ChooseImagesConfig(MapConfig):
    path: FilePath | None = setting(
        None,
        role="external",
        meaning="Scores instead of the recipe's: JSON lines with id, prompt, score and blurry, as the released code writes them.",
    )
    scorer: str = setting("reward-model", meaning="Whose scores choose: one of score-images.")
    select: Literal["best-and-worst", "best", "blindly"] = setting(
        "best-and-worst",
        meaning="best-and-worst: of each prompt the best image, and as non-preferred the worst, if they stand out. best: the best"
        " ones above `threshold`. blindly: as many as best-and-worst, drawn without a look at their scores, as a control.",
        source="HPS 6; RAHF 5.1 for best",
    )
    rules: Rules = setting(
        "standardised",
        meaning="as-published: the released code's, all of it: raw scores, alpha 2, at least 4 images, its blur filter, all"
        " non-preferred images.",
        source="released code, select_training_images.py and process_diffusiondb.py",
    )
    alpha: float = setting(
        2.0,
        ge=1,
        le=1000,
        meaning="An image stands out if its share of the softmax of its prompt's scores (or, for bad ones, of their negatives)"
        " is above alpha / images.",
        source="HPS 6: 2.0",
    )
    temperature: float | None = setting(
        None,
        gt=0,
        meaning="What scores are divided by before the softmax. Unset: their standard deviation within prompts.",
        source="HPS 6: 1",
    )
    min_images: int = setting(
        4, ge=2, le=10_000, meaning="Prompts with fewer sharp images are left out.", source="released code: 4"
    )
    blur_threshold: float = setting(
        10.0,
        ge=0,
        le=255,
        meaning="An image is blurred if no two neighbouring pixels differ by so much in a channel. 0: no filter.",
        source="released code: 10 of 255",
    )
    non_preferred_share: float = setting(
        0.5, ge=0, le=1, meaning="Share of the non-preferred images that is kept, by lot.", source="align_sd, issue 9: about half"
    )
    best: int = setting(1, ge=1, le=1000, meaning="Images per prompt (select = best).", source="RAHF 5.1: 1 of 8")
    threshold: float | None = setting(
        None,
        meaning="Raw scores above which an image is good (select = best). Unset: all.",
        source="RAHF 5.1: .8",
    )
    annotated_prompts: Literal["leave-out", "use"] = setting(
        "leave-out",
        meaning="Prompts that people annotated: a scorer that learnt from them knows the answers. use: the record says so.",
    )
    seed: int = setting(0, ge=0, meaning="Seed of what is drawn by lot.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad rows or images (of at least 100) that stops the run."
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.select == "best" and self.best >= self.min_images:
            yield "best is not below min_images: of some prompts all images would be chosen"

    def unused(self) -> dict[str, str]:
        idle = super().unused()
        if self.path is not None:
            idle |= dict.fromkeys(("scorer", "annotated_prompts"), "path holds the scores")
            idle |= dict.fromkeys(("blur_threshold", "num_processes", "executor"), "path says what is blurry")
        if self.rules == "as-published":
            idle |= dict.fromkeys(PUBLISHED, "rules is 'as-published'")
        ours = ("alpha", "temperature", "non_preferred_share")
        other = ours if self.select == "best" else ("best", "threshold")
        return idle | dict.fromkeys(other, f"select is {self.select!r}")

    def rule(self, name: str) -> Any:
        """The value of a rule: the published one under `rules = "as-published"`, else the setting's."""
        return PUBLISHED[name] if self.rules == "as-published" else getattr(self, name)


def _reads(config: ChooseImagesConfig) -> Sequence[str | First]:
    if config.path is not None:
        return ()
    texts = First(("splits", "selected-prompts"))
    return ("images", "scores", texts, *(("annotations",) if config.annotated_prompts == "leave-out" else ()))


STAGE = Stage(
    name="choose-images",
    version=1,
    reads=_reads,
    writes="chosen-images",
    determinism="bitwise",
    config=ChooseImagesConfig,
    run="irpipe.stages.choose_images.run:run",
)
