"""Values from outside: which are missing, and which may name somebody or something."""

from __future__ import annotations

import math
import sys
from typing import Any, TypeGuard

_SHOWN = 80  # characters
# As writers spell a missing cell in a column of names; somebody may be called Null.
_NOBODY = ("None", "nan", "NaN", "null", "NULL", "<NA>", "NaT")


def given(value: Any) -> Any:
    """A value from outside; None where it is missing: null, NaN, or a text of nothing but white space."""
    if (isinstance(value, float) and math.isnan(value)) or (isinstance(value, str) and not value.strip()):
        return None
    return value


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number, and a finite one that a float can hold; a truth value is none."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def name_of(value: Any) -> str | None:
    """What names a record or a person, as text; None where it is missing.

    A whole number is the same name however its writer spelt it: 9, 9.0 and "9.0" are "9".

    Raises:
        ValueError: it is a list, an object, a truth value, or a number that is not whole.
    """
    value = given(value)
    if isinstance(value, str):
        text = value.strip()
        whole, point, zeros = text.partition(".")
        is_whole = point == "." and zeros.strip("0") == "" and whole.removeprefix("-").isdigit()
        return None if text in _NOBODY else whole if is_whole else text
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return None if value is None else str(value)
    raise ValueError(f"{value!r} is no name"[:_SHOWN])
