"""Scores of images."""

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
        Column("score", pa.float64(), "The score, normalised by the scorer's card where it has one."),
        Column("raw", pa.float64(), "As the scorer gave it."),
    ),
)
SCORER_CARDS = Table(
    "scorer_cards",
    "What the scores of each scorer mean.",
    (
        Column("scorer", pa.string(), "Who scored."),
        Column("reward_model", pa.bool_(), "Whether it is a reward model, trained on preferences."),
        Column("log_odds", pa.bool_(), "Whether differences of its raw scores are log odds of preference."),
        Column("mean", pa.float64(), "A score is (raw - mean) / std; null where scores are raw.", nullable=True),
        Column("std", pa.float64(), "See mean.", nullable=True),
    ),
)
