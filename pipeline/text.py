"""Values from data as safe text: no control characters, nothing that reorders text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from typing import Any

LONGEST = 400  # characters; longer texts are cut, and say so
_REORDERING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def visible(text: Any, longest: int = LONGEST) -> str:
    """Text without control characters: these are shown rather than obeyed. It is cut where it is too long."""
    letters = "".join(_visible_letter(letter) for letter in str(text)[:longest])
    return f"{letters} … ({len(str(text)):,} characters)" if len(str(text)) > longest else letters


def _visible_letter(letter: str) -> str:
    if letter in "\n\t":
        return " "
    code = ord(letter)
    if code < 32:
        return chr(0x2400 + code)  # the picture of a control character
    # Control characters, halves of surrogate pairs, and what reorders the text behind it.
    return f"<U+{code:04X}>" if unicodedata.category(letter) in ("Cc", "Cs") or code in _REORDERING else letter


def number(value: Any) -> str:
    """A number with four digits and separated thousands; of a mapping or list each value."""
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value)
    if isinstance(value, float):
        return "not a number" if math.isnan(value) else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{visible(name)}: {number(item)}" for name, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(number(item) for item in value)
    return visible(value)
