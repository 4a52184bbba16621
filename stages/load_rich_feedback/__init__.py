"""Read rich feedback (points, misaligned words, scores) in any supported format, and aggregate it per image.

Reads: RichHF-18K's TFRecords, its Parquet mirror, raw answers in our own JSON Lines or Label Studio's export (`path`); or the raw
    answers of a stage that writes them. Pick-a-Pic's Parquet (`pickapic`) for RichHF-18K's images and prompts.
Writes: the tables `rich_feedback`, `heatmaps`, `rejected`; of raw answers also `rich_points`, `rich_words`, `rich_ratings` and
    `agreement.json`; `images` where the source has them.
Paper: Rich Human Feedback (RichHF), sections 3.1, 3.2 and 3.4, figures 2 to 4.
Deviates: a tie of votes on a word is aligned; the paper has three annotators, and no ties.
Cost: O(records), streamed; agreement of raw answers O(annotators^2) per image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from irpipe.pipeline.stage import Config, FilePath, Stage, setting

Format = Literal["richhf-tfrecord", "richhf-parquet", "jsonl", "label-studio"]
PUBLISHED = ("richhf-tfrecord", "richhf-parquet")


class LoadRichFeedbackConfig(Config):
    path: FilePath | None = setting(
        None,
        role="external",
        meaning="Rich feedback: a file, or a folder of files whose names say train, dev (or validation) or test. Unset: the"
        " recipe's stage that writes raw answers.",
    )
    format: Format | None = setting(None, meaning="Format of path; must be given with it, but for .jsonl and .tfrecord files.")
    pickapic: FilePath | None = setting(
        None,
        role="external",
        meaning="Pick-a-Pic's Parquet, a file or a folder: images and prompts of RichHF-18K, joined by uid.",
        source="RichHF 3.3: images of Pick-a-Pic",
    )
    require_prompts: bool = setting(
        True, meaning="Whether records without a known prompt are rejected. false: they are kept, and their words are null."
    )
    radius: float = setting(
        0.05,
        gt=0,
        le=1,
        meaning="Radius of the disc that a point covers, as a share of the image's height.",
        source="RichHF 3.1: 1/20",
    )
    map_size: int = setting(
        512,
        ge=8,
        le=4096,
        meaning="Longest side of the heatmaps of raw answers; smaller images have maps of their own size.",
        source="RichHF-18K: 512",
    )
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad records (of at least 100) that stops the run."
    )

    def unused(self) -> dict[str, str]:
        why: dict[str, str] = {}
        if self.path is None:
            why |= dict.fromkeys(("format", "pickapic"), "path is not given")
        elif self.format in ("jsonl", "label-studio"):
            why |= dict.fromkeys(("pickapic", "require_prompts"), f"{self.format} has prompts of its own")
        if self.format == "richhf-parquet":
            why["pickapic"] = "richhf-parquet has images and prompts of its own"
        if self.format in PUBLISHED:
            why |= dict.fromkeys(("radius", "map_size"), f"{self.format} has heatmaps, not points")
        return why


def _reads(config: LoadRichFeedbackConfig) -> Sequence[str]:
    return () if config.path is not None else ("rich-annotation-files",)


STAGE = Stage(
    name="load-rich-feedback",
    version=1,
    reads=_reads,
    writes="rich-feedback",
    determinism="bitwise",
    extra=lambda config: "richhf" if config.format == "richhf-tfrecord" else None,
    config=LoadRichFeedbackConfig,
    run="irpipe.stages.load_rich_feedback.run:run",
)
