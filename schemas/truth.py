"""Ground truth of the micro world's images. Only evaluation stages may read it."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

TRUTH = Table(
    "truth",
    "The oracle's verdict on every image, by its own prompt.",
    (
        Column("image_id", pa.uint64(), "Id of the image.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("alignment", pa.float32(), "Share of the prompt's requirements that are met, 0 to 1."),
        Column("fidelity", pa.float32(), "How near the image is to a clean scene, 0 to 1."),
        Column("utility", pa.float32(), "What both are worth, 0 to 1."),
        Column("wrong_words", pa.list_(pa.int32()), "Places, from 0, of the prompt's words that the image does not satisfy."),
        Column("defects", pa.binary(32 * 32), "Defect map: 32 rows of 32 bytes, 0 clean to 255."),
        Column("split", pa.string(), "The part of the world the prompt's scene belongs to."),
    ),
)
