"""The splits of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATED_PROMPTS
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.table import Column, Table

SPLITS = ("train", "validation", "test")
PROMPT_SPLITS = Table(
    "prompt_splits",
    "The split of each prompt: the selected ones in their order, then others that were annotated.",
    (
        Column("prompt_id", pa.uint64(), "Id of the prompt's text.", distinct=True),
        Column("prompt", pa.string(), "The text."),
        Column("split", pa.dictionary(pa.int32(), pa.string()), "train, validation or test."),
        Column("component", pa.int32(), "Prompts with the same number are related and share a split."),
    ),
)


def read_splits(splits: Artifact) -> dict[str, dict[int, str]]:
    """The texts of the prompts of each split, by id, in the table's order."""
    rows = PROMPT_SPLITS.read(splits.table(PROMPT_SPLITS.name), ["prompt_id", "prompt", "split"]).to_pylist()
    texts: dict[str, dict[int, str]] = {name: {} for name in SPLITS}
    for row in rows:
        texts[row["split"]][row["prompt_id"]] = row["prompt"]
    return texts


def prompts_table(inputs: Mapping[str, Artifact]) -> Any:
    """Ids and texts of prompts, from the first of these inputs that is read: splits, annotations, selected prompts.

    Returns:
        an Arrow table with the columns `prompt_id` and `prompt` (less memory than Python strings).
    """
    for kind, table in (("splits", PROMPT_SPLITS), ("annotations", ANNOTATED_PROMPTS), ("selected-prompts", SELECTED_PROMPTS)):
        if kind in inputs:
            return table.read(inputs[kind].table(table.name), ["prompt_id", "prompt"])
    return pa.table({"prompt_id": pa.array([], pa.uint64()), "prompt": pa.array([], pa.string())})
