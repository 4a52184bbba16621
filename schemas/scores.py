"""What scorers say of images."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

SCORES = Table(
    "scores",
    "One row per scorer and image; higher is better, within one prompt.",
    (
        Column("scorer", pa.dictionary(pa.int32(), pa.string()), "Who scored."),
        Column("image_id", pa.uint64(), "Id of the image.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("generator", pa.dictionary(pa.int32(), pa.string()), "The model that made the image, where known.", nullable=True),
        Column("score", pa.float64(), "The score; of a reward model, normalised by its score card."),
        Column("raw", pa.float64(), "As the scorer gave it; differences of a reward model's are log odds."),
    ),
)
