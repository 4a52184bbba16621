"""A record as a source has it, before it is checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from irpipe.schemas.values import name_of


@dataclass
class RawRecord:
    """A source record, unchecked.

    Attributes:
        row: its row in the source, from 0.
        record: its name in the source.
        fault: why it could not even be read, or None.
        last_row: the last row of the source it was made of, where it is not the first.
        oriented: its ranks follow from choices, so no declared direction applies.
        choice: one image was chosen; the others were not compared.
        dropped: why it is filtered, without being bad, and what exactly; or None.
    """

    row: int
    record: str
    prompt: Any = None
    annotator: Any = None
    images: Any = None
    ranks: Any = None
    ratings: dict[str, Any] = field(default_factory=dict)
    problems: Any = None
    labels: dict[str, Any] = field(default_factory=dict)
    split: Any = None
    fault: tuple[str, str | None] | None = None
    last_row: int = -1
    oriented: bool = False
    choice: bool = False
    dropped: tuple[str, str | None] | None = None


def take_names(record: RawRecord, name: Any, annotator: Any = None) -> None:
    """What a source names a record and its annotator; a record without a name keeps its row."""
    try:
        record.record, record.annotator = name_of(name) or record.record, name_of(annotator)
    except ValueError as error:
        record.fault = record.fault or ("a name is a list, an object or no whole number", str(error))
