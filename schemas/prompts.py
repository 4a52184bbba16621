"""Prompts: their identity, the pool they are chosen from, and the chosen ones."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

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
    """Unicode NFC, runs of white space as one space, none at the ends; nothing where nothing can be seen."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text if (text.isascii() and text.isprintable()) or text.translate(_INVISIBLE).strip() else ""


def prompt_id(text: str) -> int:
    """Id of a prompt, from its cleaned text, so that sources that differ in white space agree."""
    return row_id("prompt", clean(text))


def normalise(text: str) -> str:
    """The form in which equal prompts agree: letters, marks, numbers and symbols in NFKC, without case and punctuation.

    What cannot be seen (joiners, soft hyphens, variation selectors) is left out. Punctuation that changes what a word or a number
    means stays: the signs of numbers, decimal points, fractions, per cent, and the hash of C#. A text of punctuation alone stays.
    """
    if text.isascii():
        visible = text.lower()
    else:
        visible = _FLAG.sub(_spelled, text).translate(_INVISIBLE)
        visible = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", visible).casefold()).translate(_ONE_FORM)
    marked = _MEANINGFUL.sub(lambda found: chr(_KEPT[found.group()]), visible)
    return " ".join(marked.translate(_WORDS).split()) or " ".join(visible.split())


def _spelled(flag: re.Match[str]) -> str:
    """A flag of a region, whose name is written in invisible letters (Unicode's emoji tag sequences), in visible ones."""
    return flag[0][0] + "".join(chr(ord(tag) - 0xE0000) for tag in flag[1])


_FLAG = re.compile("\U0001f3f4([\U000e0020-\U000e007e]+)\U000e007f")
# Code points that show nothing, beside those of the category Cf: Unicode's Default_Ignorable_Code_Point, the empty Braille
# pattern, and the noncharacters that stand for kept punctuation here.
_SHOW_NOTHING = [
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x2800, 0x3164, 0xFFA0),
    *range(0x180B, 0x1810),
    *range(0xFDD0, 0xFDF0),
    *range(0xFE00, 0xFE10),
    *range(0xFFF0, 0xFFF9),
    *range(0xE0000, 0xE1000),
]
_ONE_FORM = {0x2044: "/", 0x2212: "-"}  # the fraction slash that NFKC makes, and the minus sign
_KEPT = {sign: 0xFDD0 + number for number, sign in enumerate("-+.,/%#")}
_MEANINGFUL = re.compile(
    r"""[-+.,/%\#](?:                       # the sign first, which makes the search five times as fast
        (?<=[-+]) (?<![^\W_].) (?=\.?\d)    # -5, +.5
        | (?<=[.,/]) (?<=\d.) (?=\d)        # 3.5, 1/2
        | (?<=\.) (?<![^\W_].) (?=\d)       # .5
        | (?<=%) (?<=\d.)                   # 50%
        | (?<=\#) (?<=[^\W\d_].) (?!\w)     # C#
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Invisible(dict[int, Any]):
    """For `str.translate`: leaves out what cannot be seen, but for white space."""

    def __missing__(self, code: int) -> Any:
        letter = chr(code)
        unseen = unicodedata.category(letter) in ("Cf", "Cc") and not letter.isspace()
        self[code] = None if unseen else code
        return self[code]


class _Words(dict[int, Any]):
    """For `str.translate`: punctuation and white space become word borders, and emoji words of their own."""

    def __missing__(self, code: int) -> Any:
        category = unicodedata.category(chr(code))
        border = " " if category[0] in "PZ" or chr(code).isspace() else code
        self[code] = f" {chr(code)} " if category == "So" else border
        return self[code]


_INVISIBLE = _Invisible(dict.fromkeys(_SHOW_NOTHING))
_WORDS = _Words({code: sign for sign, code in _KEPT.items()} | dict.fromkeys((*range(9), *range(14, 28), 127)))
