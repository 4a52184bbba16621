"""Metrics of sets of images."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

IMAGE_SETS = Table(
    "image_sets",
    "One row per set of images and figure.",
    (
        Column("set", pa.string(), "The generator, the node, or the kind of chosen images."),
        Column(
            "figure", pa.string(), "fid and kid (lower is better), inception-score (higher), or fid_over_X: less the fid of X."
        ),
        Column("value", pa.float64(), "Its value."),
        Column("low", pa.float64(), "Lower end of its 95 % interval, by bootstrap over prompts.", nullable=True),
        Column("high", pa.float64(), "Upper end.", nullable=True),
        Column("deviation", pa.float64(), "Standard deviation over splits (inception-score).", nullable=True),
        Column("images", pa.int64(), "Images of the set."),
        Column("reference_images", pa.int64(), "Images that it was compared with.", nullable=True),
    ),
)
