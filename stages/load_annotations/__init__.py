"""Read annotations in any supported format into one canonical form.

Reads: a file or folder of annotations (`path`), or those of a stage that writes annotation files.
Writes: the tables `annotated_prompts`, `annotation_images`, `annotations`, `prompt_labels`, `ratings`, `rankings`,
    `contradictions` and `rejected`, and `agreement.json`.
Paper: ImageReward, section 2 and appendices A.3 and B; HPS, section 3 (choices from a chat).
Deviates: rankings that contradict ratings are reported, where the paper's tool refused them.
Cost: O(records); agreement O(annotators^2) per set of images that several people ranked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Strict

from irpipe.pipeline.settings import Group
from irpipe.pipeline.stage import Config, FilePath, Stage, group, setting

Format = Literal[
    "imagereward-json",
    "imagerewarddb",
    "hps-json",
    "hpdv2-json",
    "hpdv3-json",
    "pickapic",
    "discord",
    "jsonl",
    "csv",
    "parquet",
    "pairs",
]
OWN = ("jsonl", "csv", "parquet", "pairs")
OWN_BY_ENDING = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".arrow": "parquet"}


class ColumnNames(Group):
    """How your columns are called, where our own formats call them otherwise (docs/formats.md)."""

    prompt: str | None = setting(None, meaning="The column of the prompts.")
    annotator: str | None = setting(None, meaning="The column that names who annotated.")
    ranking_id: str | None = setting(None, meaning="The column that names a record.")
    images: str | None = setting(None, meaning="The column with a list of images.")
    ranking: str | None = setting(None, meaning="The column with a list of ranks.")
    image: str | None = setting(None, meaning="The column with one image per row.")
    rank: str | None = setting(None, meaning="The column with one rank per row.")
    image_a: str | None = setting(None, meaning="The column of a pair's first image.")
    image_b: str | None = setting(None, meaning="The column of a pair's second image.")
    winner: str | None = setting(None, meaning="The column that says which of a pair is better: a, b or tie.")
    label: str | None = setting(
        None, meaning="The column that says it by a number: 0 for the first, 1 for the second, 0.5 a tie."
    )
    split: str | None = setting(None, meaning="The column of the splits.")

    def given_names(self) -> dict[str, str]:
        """Their names by ours."""
        return {name: value for name, value in self if value is not None}


class LoadAnnotationsConfig(Config):
    path: FilePath | None = setting(
        None,
        role="external",
        meaning="Annotations: a file, or a folder whose file names say train, validation or test. Unset: the recipe's"
        " stage that writes annotations.",
    )
    format: Format | None = setting(
        None, meaning="Format of path; must be given with it, but for our own formats in .jsonl, .csv, .parquet and .arrow files."
    )
    columns: ColumnNames = group(ColumnNames)
    rank_direction: Literal["lower-is-better", "higher-is-better"] = setting(
        "lower-is-better", meaning="Whether rank 1 is the best or the worst image.", source="ImageReward B.3: slot 1 is best"
    )
    rating_scale: Annotated[tuple[float, float], Strict(False)] = setting(
        (1.0, 7.0),
        meaning="Worst and best value of the ratings (jsonl, csv, imagerewarddb).",
        source="ImageReward B.2: Likert 1-7",
    )
    bot: str = setting(
        "DreamBotMothership",
        role="neutral",
        min_length=1,
        meaning="The bot whose images are chosen from (discord).",
        source="DiffusionDB, scrape-channel.py",
    )
    ambiguous: Literal["default", "accept", "reject"] = setting(
        "default",
        role="neutral",
        meaning="Doubtful choices (discord): the request is missing, or was edited later, the image was re-encoded or not"
        " downloaded, or nothing was refined. default: they count, but two choices of one answer do not. accept: of two the first"
        " counts. reject: no doubtful one counts.",
    )
    salt: FilePath | None = setting(
        None,
        role="external",
        meaning="A file with a secret that users are hashed with (discord); artifacts hold neither. Unset: they are numbered.",
    )
    most_per_user: int = setting(
        0, ge=0, role="neutral", meaning="Choices of one user that count (discord). 0: all.", source="HPS 3: at most 267"
    )
    split: Literal["train", "validation", "test"] | None = setting(
        None, meaning="Split of every record. Unset: the source's own, if it has one."
    )
    label_source: Literal["human", "model"] = setting("human", meaning="Who made the annotations; recorded in the metrics.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad records (of at least 100) that stops the run."
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.rating_scale[0] == self.rating_scale[1]:
            yield "rating_scale has no extent"

    def unused(self) -> dict[str, str]:
        why = {}
        if self.path is None:
            why["format"] = "it describes path, which is not given"
        if self.format is not None and self.format not in OWN:
            why |= {f"columns.{name}": f"{self.format} has its own columns" for name in ColumnNames.model_fields}
        if self.format in ("hps-json", "hpdv3-json", "pickapic", "pairs", "discord"):
            why["rank_direction"] = f"{self.format} holds choices"
        if self.format != "discord":
            why |= dict.fromkeys(("bot", "ambiguous", "salt", "most_per_user"), "format is not 'discord'")
        if self.format in ("hps-json", "pickapic", "imagereward-json", "hpdv2-json", "hpdv3-json", "pairs", "discord"):
            why["rating_scale"] = f"{self.format} holds no ratings"
        return why


def _reads(config: LoadAnnotationsConfig) -> Sequence[str]:
    return () if config.path is not None else ("annotation-files",)


STAGE = Stage(
    name="load-annotations",
    version=3,
    reads=_reads,
    writes="annotations",
    determinism="bitwise",
    config=LoadAnnotationsConfig,
    run="irpipe.stages.load_annotations.run:run",
)
