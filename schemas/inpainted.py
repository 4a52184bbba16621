"""Images whose implausible parts were drawn anew."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.images import ImageTable
from irpipe.schemas.table import Column, Table

INPAINTED = Table(
    "inpainted",
    "One row per image: what it was made from, and what the RAHF says of both.",
    (
        Column("image_id", pa.uint64(), "The image.", distinct=True),
        Column("original_id", pa.uint64(), "The image it was made from; the same where it is as it was.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("masked", pa.float32(), "Share of its pixels that may change."),
        Column("candidate", pa.int32(), "Which try it is, from 0; null where it is as it was.", nullable=True),
        Column("plausibility_before", pa.float32(), "Predicted for the original; null where the mask is empty.", nullable=True),
        Column("plausibility", pa.float32(), "Predicted for the image.", nullable=True),
    ),
)
MASKS = ImageTable(
    "masks",
    "Where images were drawn anew.",
    (
        Column("original_id", pa.uint64(), "The image that was drawn on.", distinct=True),
        Column(
            "image",
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            "Encoded, one channel of 8 bits: 255 is drawn anew.",
        ),
    ),
)
