"""Prompts: their identity, the pool they are chosen from, and the chosen ones."""

from __future__ import annotations

import unicodedata

import pyarrow as pa

from irpipe.pipeline.hashing import row_id
from irpipe.schemas.table import Column, Table

PROMPTS = Table(
    "prompts",
    "The pool that prompts are selected from. Row i belongs to vector i and to vertex i of the graph.",
    (
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("prompt", pa.string(), "The text, cleaned."),
        Column("source_row", pa.int64(), "Row of the input, from 0, where the text stood first."),
        Column("num_images", pa.int32(), "Rows of the input that have this text."),
    ),
)

SELECTED_PROMPTS = Table(
    "selected_prompts",
    "The chosen prompts, in the order of choice.",
    (
        Column("pick", pa.int32(), "Place in the order of selection, from 0; sets one after the other."),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("prompt", pa.string(), "The text."),
        Column("source_row", pa.int64(), "Row of the input, from 0, where the text stood first."),
        Column("vote_score", pa.float64(), "Score at that pick (vote-k only).", nullable=True),
        Column("set", pa.int32(), "The set of the graph it was chosen from (vote-k only).", nullable=True),
    ),
)


def clean(text: str) -> str:
    """Unicode NFC, runs of white space as one space, none at the ends."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def prompt_id(text: str) -> int:
    """Id of a prompt, from its cleaned text, so that sources that differ in white space agree."""
    return row_id("prompt", clean(text))


def normalise(text: str) -> str:
    """The form in which equal prompts agree: letters and digits in NFKC, without case and punctuation.

    A text without letters and digits is kept as it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(letter if letter.isalnum() else " " for letter in folded).split()
    return " ".join(words) or folded.strip()
