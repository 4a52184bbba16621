"""Preference pairs, and the candidate pairs that became none."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

PAIRS = Table(
    "pairs",
    "Image pairs of one prompt, the better first. In the order of records, then of image places.",
    (
        Column("pair_id", pa.uint64(), "Id of the pair: of its ranking, its better and its worse image.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("ranking_id", pa.uint64(), "The record (or the aggregate of records) it comes from."),
        Column("better", pa.uint64(), "Image that was preferred.", distinct=True),
        Column("worse", pa.uint64(), "Image that was not.", distinct=True),
        Column("rank_better", pa.int32(), "Rank of the better image; null for a majority of votes.", nullable=True),
        Column("rank_worse", pa.int32(), "Rank of the worse image; null for a majority of votes.", nullable=True),
        Column("annotator", pa.dictionary(pa.int32(), pa.string()), "Who ranked; null for an aggregate.", nullable=True),
        Column("category", pa.dictionary(pa.int32(), pa.string()), "Category of the prompt, if labelled.", nullable=True),
        Column("weight", pa.float32(), "1, or 1 / pairs of its prompt (weighting = 'prompt')."),
        Column("split", pa.dictionary(pa.int32(), pa.string()), "train, validation or test."),
    ),
)

REJECTED_PAIRS = Table(
    "rejected",
    "Candidate pairs that became none.",
    (
        Column("ranking_id", pa.uint64(), "The record (or the aggregate of records) it comes from."),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("first", pa.uint64(), "Image that stands first in the record.", distinct=True),
        Column("second", pa.uint64(), "Image that stands second in the record.", distinct=True),
        Column("reason", pa.dictionary(pa.int32(), pa.string()), "Why it is no pair."),
        Column("split", pa.dictionary(pa.int32(), pa.string()), "The split of its prompt."),
    ),
)
