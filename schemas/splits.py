"""Which split each prompt went to."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

PROMPT_SPLITS = Table(
    "prompt_splits",
    "The split of each annotated prompt, also of those without pairs.",
    (
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("split", pa.dictionary(pa.int32(), pa.string()), "train, validation or test."),
        Column("component", pa.int32(), "Prompts with the same number are related and share a split."),
    ),
)
