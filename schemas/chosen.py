"""Images that a generator is tuned on."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

PREFERRED, NON_PREFERRED = "preferred", "non-preferred"
CHOSEN_IMAGES = Table(
    "chosen_images",
    "Chosen images, a prompt's together: the preferred one before the non-preferred one.",
    (
        Column("source_row", pa.int64(), "The image's row in the table of images, from 0; of a file of scores, its id."),
        Column("image_id", pa.uint64(), "Id of the image; null for a file of scores.", nullable=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("prompt", pa.string(), "The text."),
        Column("kind", pa.dictionary(pa.int32(), pa.string()), "preferred, or non-preferred."),
        Column("score", pa.float64(), "Its score, raw."),
        Column("confidence", pa.float64(), "Its share of the softmax by which it stood out.", nullable=True),
        Column("group_size", pa.int32(), "Images of its prompt that it was chosen from."),
    ),
)
