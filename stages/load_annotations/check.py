"""Checking raw records and bringing them into canonical form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irpipe.pipeline.errors import did_you_mean
from irpipe.schemas.annotations import ASPECTS, PROBLEMS, SPLITS, UNSAFE
from irpipe.schemas.files import is_text
from irpipe.schemas.prompts import clean
from irpipe.schemas.values import given, is_finite
from irpipe.stages.load_annotations.raw import RawRecord


@dataclass(frozen=True)
class Record:
    """A record in canonical form. Lists have one entry per image.

    Attributes:
        ranks: lower is better; None for an image that was not ranked.
        ratings: by aspect, 0 worst to 1 best; None for an image that was not rated.
    """

    row: int
    record: str
    prompt: str
    annotator: str | None
    images: Sequence[str]
    ranks: Sequence[int | None]
    ratings: Mapping[str, Sequence[float | None]]
    problems: Sequence[Sequence[str]]
    category: str | None
    intent_unclear: bool | None
    unsafe: Sequence[str]
    split: str | None
    choice: bool = False


class BadRecordError(Exception):
    """Why a record cannot be used: a reason and a detail."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def check(raw: RawRecord, *, higher_is_better: bool, scale: tuple[float, float]) -> Record:
    """The canonical form of a raw record.

    Raises:
        BadRecordError: it cannot be used.
    """
    if raw.fault is not None:
        raise BadRecordError(*raw.fault)
    if not is_text(raw.prompt) or not clean(raw.prompt):
        raise BadRecordError("no prompt", repr(raw.prompt)[:80])
    images = _images(raw.images)
    ranks = _ranks(raw.ranks, len(images), higher_is_better and not raw.oriented)
    ratings = {aspect: _ratings(aspect, raw.ratings.get(aspect), len(images), scale) for aspect in ASPECTS}
    problems = _problems(raw.problems, len(images))
    if all(rank is None for rank in ranks) and all(value is None for values in ratings.values() for value in values):
        raise BadRecordError("neither ranks nor ratings")
    category, unclear, unsafe = _labels(raw.labels)
    split = given(raw.split)
    if split is not None and split not in SPLITS:
        raise BadRecordError("unknown split", f"{split}{did_you_mean(str(split), SPLITS)}"[:80])
    if not (is_text(raw.annotator or "") and is_text(raw.record) and is_text(category or "")):
        raise BadRecordError("a name is no text", repr((raw.record, raw.annotator, category))[:80])
    return Record(
        raw.row,
        raw.record,
        clean(raw.prompt),
        raw.annotator,
        images,
        ranks,
        ratings,
        problems,
        category,
        unclear,
        unsafe,
        split,
        raw.choice,
    )


def _images(images: Any) -> list[str]:
    if not isinstance(images, list) or any(not is_text(path) or not path for path in images):
        raise BadRecordError("images are no list of paths", repr(images)[:80])
    if len(images) < 2:
        raise BadRecordError("fewer than two images", str(len(images)))
    twice = next((path for path in images if images.count(path) > 1), None)
    if twice is not None:
        raise BadRecordError("an image stands twice", twice)
    return images


def _ranks(ranks: Any, count: int, higher_is_better: bool) -> list[int | None]:
    if ranks is None:
        return [None] * count
    if not isinstance(ranks, list) or len(ranks) != count:
        raise BadRecordError(
            "ranks and images differ in number", f"{len(ranks) if isinstance(ranks, list) else ranks!r}, {count}"
        )
    ranks = [given(rank) for rank in ranks]
    for rank in ranks:
        if rank is not None and (type(rank) is not int and not (type(rank) is float and rank.is_integer())):
            raise BadRecordError("a rank is no whole number", repr(rank))
        if rank is not None and not 0 <= rank < 1 << 31:
            raise BadRecordError("a rank is negative or beyond 32 bits", repr(rank))
    integers = [None if rank is None else int(rank) for rank in ranks]
    if not higher_is_better:
        return integers
    highest = max((rank for rank in integers if rank is not None), default=0)
    return [None if rank is None else highest - rank + 1 for rank in integers]


def _ratings(aspect: str, values: Any, count: int, scale: tuple[float, float]) -> list[float | None]:
    if values is None:
        return [None] * count
    if not isinstance(values, list) or len(values) != count:
        raise BadRecordError("ratings and images differ in number", aspect)
    low, high = min(scale), max(scale)
    values = [given(value) for value in values]
    for value in values:
        if value is None:
            continue
        if not is_finite(value):
            raise BadRecordError("a rating is no number", f"{aspect} {value!r}")
        if not low <= value <= high:
            raise BadRecordError("a rating is off the scale", f"{aspect} {value!r}, scale {scale[0]:g} to {scale[1]:g}")
    return [None if value is None else (value - scale[0]) / (scale[1] - scale[0]) for value in values]


def _problems(problems: Any, count: int) -> list[list[str]]:
    if problems is None:
        return [[] for _ in range(count)]
    if not isinstance(problems, list) or len(problems) != count or any(not isinstance(item, list) for item in problems):
        raise BadRecordError("problems and images differ in number")
    for item in problems:
        _refuse_unknown(item, PROBLEMS, "unknown problem")
    return problems


def _labels(labels: dict[str, Any]) -> tuple[str | None, bool | None, list[str]]:
    _refuse_unknown(labels, ("category", "intent_unclear", "unsafe"), "unknown label")
    category, unclear, unsafe = (given(labels.get(name)) for name in ("category", "intent_unclear", "unsafe"))
    unsafe = [] if unsafe is None else unsafe
    if category is not None and not isinstance(category, str):
        raise BadRecordError("category is no text", repr(category))
    if unclear is not None and not isinstance(unclear, bool):
        raise BadRecordError("intent_unclear is neither true nor false", repr(unclear))
    if not isinstance(unsafe, list):
        raise BadRecordError("unsafe is no list", repr(unsafe))
    _refuse_unknown(unsafe, UNSAFE, "unknown unsafe flag")
    return category, unclear, unsafe


def _refuse_unknown(words: Any, allowed: Sequence[str], reason: str) -> None:
    for word in words:
        if not isinstance(word, str) or word not in allowed:
            raise BadRecordError(reason, f"{word}{did_you_mean(str(word), allowed)}")
