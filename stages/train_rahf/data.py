"""The images that RAHF learns from, with their feedback."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.pictures import PictureFiles, decode_all
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context
from irpipe.pipeline.store import Artifact
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.rich_feedback import ASPECTS, HEATMAPS, KINDS, RICH_FEEDBACK
from irpipe.schemas.splits import read_splits


@dataclass(frozen=True)
class Examples:
    """Images with their prompts and feedback, all in one order.

    Attributes:
        rows: (n,) in the table of feedback; image_ids, splits: (n,).
        scores: (n, 4) by aspect, NaN where nobody said; labels: of each prompt's words.
        maps: (n, 2) encoded heatmaps by kind, each with the image's own shape.
    """

    rows: NDArray[np.int64]
    image_ids: NDArray[np.uint64]
    prompts: Sequence[str]
    scores: NDArray[np.float32]
    labels: Sequence[Sequence[bool]]
    maps: Sequence[Mapping[str, bytes]]
    splits: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.prompts)

    def of(self, keep: Sequence[int] | NDArray[np.int64]) -> Examples:
        """Those of some rows (m,)."""
        rows = np.asarray(keep, dtype=np.int64)
        return Examples(
            self.rows[rows],
            self.image_ids[rows],
            [self.prompts[row] for row in rows],
            self.scores[rows],
            [self.labels[row] for row in rows],
            [self.maps[row] for row in rows],
            self.splits[rows],
        )


def read_examples(inputs: Mapping[str, Artifact], rejections: Rejections, *, own_splits: bool) -> Examples:
    """The feedback whose image, prompt and split are known. The others are rejected, each with its reason.

    Args:
        own_splits: the feedback's own splits count; otherwise those of the recipe, by prompt.
    """
    feedback = inputs["rich-feedback"]
    rows = RICH_FEEDBACK.read(feedback.table(RICH_FEEDBACK.name)).to_pylist()
    maps: dict[str, dict[str, bytes]] = {}
    for one in HEATMAPS.read(feedback.table(HEATMAPS.name)).to_pylist():
        maps.setdefault(one["uid"], {})[one["kind"]] = one["image"]["bytes"]
    split_of = {} if own_splits else {prompt: name for name, texts in read_splits(inputs["splits"]).items() for prompt in texts}
    kept, splits, places = [], [], []
    for number, row in enumerate(rows):
        split = row["split"] if own_splits else split_of.get(row["prompt_id"])
        reason = _unusable(row, maps, split)
        if reason is not None:
            rejections.refuse(number, reason, row["uid"])
            continue
        kept.append(row)
        places.append(number)
        splits.append(split)
    return Examples(
        np.array(places, dtype=np.int64),
        np.array([row["image_id"] for row in kept], dtype=np.uint64),
        [row["prompt"] for row in kept],
        np.array([[np.nan if row[name] is None else row[name] for name in ASPECTS] for row in kept], dtype=np.float32).reshape(
            -1, 4
        ),
        [[word["misaligned"] for word in row["words"]] for row in kept],
        [maps[row["uid"]] for row in kept],
        np.array(splits, dtype=np.str_),
    )


def _unusable(row: Mapping[str, Any], maps: Mapping[str, Mapping[str, bytes]], split: str | None) -> str | None:
    if row["image_id"] is None or row["words"] is None:
        return "its image or prompt is not known"
    if set(maps.get(row["uid"], ())) != set(KINDS):
        return "a heatmap is missing"
    return "its prompt is in no split" if split is None else None


def open_pictures(
    inputs: Mapping[str, Artifact], kind: str, image_ids: NDArray[np.uint64], size: int, context: Context, workers: int | None
) -> tuple[PictureFiles, dict[int, str]]:
    """Decoded squares of images (n,), and why some have none, by id.

    Raises:
        InputError: none of them is there.
    """
    pictures, faults = decode_all(inputs[kind].table("images"), image_ids, size, context, workers, "pad")
    if len(faults) == len(image_ids):
        raise InputError(
            f"none of the {len(image_ids):,} images can be used: {next(iter(faults.values()), 'there is none')}",
            where=kind,
            fix="feedback and images must be of the same images: irpipe lineage load-rich-feedback",
        )
    return pictures, faults
