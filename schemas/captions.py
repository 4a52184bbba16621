"""Captioned images: the table `images`, and their captions."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

CAPTIONS = Table(
    "captions",
    "Captions of images, each once.",
    (
        Column("prompt_id", pa.uint64(), "Id of the caption's text."),
        Column("prompt", pa.string(), "The text."),
    ),
)
