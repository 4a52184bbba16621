"""Comparison of generators."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from irpipe.schemas.table import Column, Table

COMPARISON = Table(
    "comparison",
    "Table 4 of the paper: each generator by each judge. Intervals are 95 %, by bootstrap over prompts.",
    (
        Column("judge", pa.string(), "A scorer, or oracle, alignment, fidelity."),
        Column("generator", pa.string(), "base, best-of-n, guided-SCALE, or the node that tuned it."),
        Column("wins", pa.float64(), "Comparisons won against every other one, of the same prompt and seed; a tie is a half."),
        Column("win_rate", pa.float64(), "Share of comparisons with the base that it wins; null for the base.", nullable=True),
        Column("win_rate_low", pa.float64(), "Lower end of its interval.", nullable=True),
        Column("win_rate_high", pa.float64(), "Upper end of its interval.", nullable=True),
        Column("mean", pa.float64(), "Mean worth of its images."),
        Column("gain", pa.float64(), "Mean worth above the base's.", nullable=True),
        Column("gain_low", pa.float64(), "Lower end of its interval.", nullable=True),
        Column("gain_high", pa.float64(), "Upper end of its interval.", nullable=True),
        Column("images", pa.int64(), "Images that were compared."),
        Column("images_made", pa.int64(), "Images that had to be made for them."),
    ),
)
WORTHS = Table(
    "worths",
    "What every judge says of every image.",
    (
        Column("judge", pa.string(), "A scorer, or oracle, alignment, fidelity."),
        Column("generator", pa.string(), "base, best-of-n, guided-SCALE, or the node that tuned it."),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("turn", pa.int32(), "Which of the prompt's images, from 0: its noise is the same for all generators."),
        Column("image_id", pa.uint64(), "Id of the image."),
        Column("worth", pa.float64(), "Higher is better; of a reward model, the normalised score."),
    ),
)


def main_judge(judges: Iterable[str]) -> str:
    """Whose scores stand beside images: the oracle's where there is one, else the first scorer's."""
    names = list(judges)
    return "oracle" if "oracle" in names else names[0]
