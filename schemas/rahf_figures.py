"""Results of an evaluation of rich predictions."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

RAHF_FIGURES = Table(
    "rahf_figures",
    "Each predictor against people: tables 1 to 4 of RichHF in long form.",
    (
        Column(
            "predictor",
            pa.string(),
            "The node of the predictions; a scorer; constant, people, what the truth allows, or as published.",
        ),
        Column("output", pa.string(), "plausibility, alignment, aesthetics, overall, implausibility, misalignment or words."),
        Column(
            "figure", pa.string(), "plcc, srcc, mse, mse_empty, cc, kld, sim, nss, auc_judd, precision, recall, f1, pointing."
        ),
        Column("value", pa.float64(), "The figure; null where it is not defined.", nullable=True),
        Column("low", pa.float64(), "Lower end of its 95 % interval, by bootstrap over prompts.", nullable=True),
        Column("high", pa.float64(), "Upper end.", nullable=True),
        Column("count", pa.int64(), "Images it is over; 0: a published figure, of other images."),
    ),
)
REJECTED_PREDICTIONS = Table(
    "rejected",
    "Feedback that was not evaluated.",
    (
        Column("uid", pa.string(), "The image."),
        Column("reason", pa.string(), "Why."),
    ),
)
