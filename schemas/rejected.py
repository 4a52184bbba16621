"""Rows that a stage dropped, each with its reason: filtered by a rule of the recipe, or bad."""

from __future__ import annotations

from array import array
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from irpipe.pipeline.errors import RejectedError
from irpipe.schemas.table import ROW_GROUP, Column, Table

REJECTED = Table(
    "rejected",
    "What was read and not kept.",
    (
        Column("row", pa.int64(), "Where it stood in the input, from 0."),
        Column("reason", pa.string(), "Why it was dropped."),
        Column("detail", pa.string(), "What exactly was wrong.", nullable=True),
        Column("bad", pa.bool_(), "Whether it was unusable, rather than filtered by a rule of the recipe."),
    ),
)

# A few bad rows among few are no reason to stop; 5 % among many mean that the input is not as expected.
_MIN_ROWS_FOR_SHARE = 100
_NAMED = 3


class Rejections:
    """Collects dropped rows: 19 bytes each, and their details if they have any.

    Args:
        max_share: the run ends with an error when more than this share of at least 100 rows is bad.
        where: the name of the input, for messages.
    """

    def __init__(self, max_share: float, where: str) -> None:
        self._max_share, self._where = max_share, where
        self._rows, self._codes, self._bad, self._of = array("q"), array("H"), array("B"), array("q")
        self._reasons: dict[str, int] = {}
        self._details: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def drop(self, row: int, reason: str, detail: str | None = None, *, duplicate_of: int = -1) -> None:
        """A rule of the recipe filters this row.

        Args:
            duplicate_of: the row that it duplicates; becomes the detail, kept in 8 bytes.
        """
        self._add(row, reason, detail, bad=False, duplicate_of=duplicate_of)

    def refuse(self, row: int, reason: str, detail: str | None = None) -> None:
        """This row cannot be used."""
        self._add(row, reason, detail, bad=True)

    def _add(self, row: int, reason: str, detail: str | None, *, bad: bool, duplicate_of: int = -1) -> None:
        if detail is not None:
            # What is wrong with a row may be that it is no text at all.
            self._details[len(self._rows)] = detail.encode("utf-8", "backslashreplace").decode("utf-8")
        self._rows.append(row)
        self._codes.append(self._reasons.setdefault(reason, len(self._reasons)))
        self._bad.append(bad)
        self._of.append(duplicate_of)

    def _detail(self, index: int) -> str | None:
        return f"of row {self._of[index]}" if self._of[index] >= 0 else self._details.get(index)

    def counts(self) -> dict[str, int]:
        """How many rows each reason took, by reason."""
        names = list(self._reasons)
        return {names[code]: count for code, count in sorted(Counter(self._codes).items(), key=lambda item: names[item[0]])}

    def check(self, read: int, kept: int) -> None:
        """Stop if nothing was kept or too many rows were bad: too large a share of at least 100, or more than half of any number.

        Raises:
            RejectedError: nothing was kept, or too large a share was bad; names the first three rows.
        """
        bad = sum(self._bad)
        many = bad > self._max_share * read and (read >= _MIN_ROWS_FOR_SHARE or bad > read / 2)
        if kept and not many:
            return
        summary = f"{bad:,} of {read:,} rows are bad" if kept else f"none of {read:,} rows can be kept"
        named = [index for index in range(len(self._rows)) if self._bad[index] or not bad][:_NAMED]
        names = list(self._reasons)
        rows = "; ".join(
            f"row {self._rows[index]}: {names[self._codes[index]]}"
            + (f" ({self._details[index]})" if index in self._details else "")
            for index in named
        )
        raise RejectedError(
            f"{summary}: {rows}" if rows else summary,
            where=self._where,
            fix="correct these rows, or raise the stage's max_rejected if they are known to be bad"
            if kept
            else "correct these rows, or name their format and columns as the stage's settings do (irpipe cite STAGE)",
        )

    def write(self, folder: Path) -> int:
        """Write `rejected.parquet`, in the order of rows. Returns how many."""
        names = list(self._reasons)
        order = np.argsort(np.array(self._rows, dtype=np.int64), kind="stable").tolist()
        with REJECTED.writer(folder / "rejected.parquet") as writer:
            for start in range(0, len(order), ROW_GROUP):
                indices = order[start : start + ROW_GROUP]
                writer.append(
                    {
                        "row": [self._rows[index] for index in indices],
                        "reason": [names[self._codes[index]] for index in indices],
                        "detail": [self._detail(index) for index in indices],
                        "bad": [bool(self._bad[index]) for index in indices],
                    }
                )
        return len(order)
