"""Raw answers in our own JSON Lines: one line per image and annotator (docs/formats.md)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from irpipe.schemas.discovery import data_files, splits_of
from irpipe.schemas.files import is_text, read_jsonl
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, prompt_tokens
from irpipe.schemas.values import is_finite
from irpipe.stages.load_rich_feedback.record import Answer, BadRecordError, Point

_LIKERT = (1, 5)
_KNOWN = ("uid", "image", "prompt", "annotator", "width", "height", "points", "misaligned_words", "scores", "split")
_SPLITS = ("train", "validation", "test", None)


def read_own(path: Path) -> Iterator[Answer | BadRecordError]:
    """The answers of a file or folder in turn."""
    files = list(data_files(path, (".jsonl", ".ndjson"), "load-rich-feedback.path").files) if path.is_dir() else [path]
    splits = splits_of(files, path if path.is_dir() else path.parent)
    row = 0
    for file in files:
        for _, value, fault in read_jsonl(file):
            try:
                if fault is not None or not isinstance(value, dict):
                    raise BadRecordError("not a JSON object", fault or str(value)[:80])
                yield checked_answer(row, value, splits[file])
            except BadRecordError as error:
                yield error
            row += 1


def checked_answer(row: int, value: Mapping[str, Any], split: str | None) -> Answer:
    """An answer whose every value is right.

    Raises:
        BadRecordError: one is not.
    """
    unknown = sorted(set(value) - set(_KNOWN))
    if unknown:
        raise BadRecordError("unknown keys", ", ".join(map(str, unknown)))
    path, uid = _text(value, "image", needed=False), _text(value, "uid", needed=False)
    if (path is None) == (uid is None):
        raise BadRecordError("an image is named by either image or uid", "both" if path else "neither")
    prompt = _text(value, "prompt")
    annotator = _text(value, "annotator")
    assert prompt is not None
    assert annotator is not None
    own_split = value.get("split", split)
    if own_split not in _SPLITS:
        raise BadRecordError("split is not train, validation or test", str(own_split)[:80])
    return Answer(
        row=row,
        annotator=annotator,
        prompt=prompt,
        width=_pixels(value, "width"),
        height=_pixels(value, "height"),
        uid=uid or "",
        path=path,
        points=_points(value.get("points", [])),
        places=_places(value.get("misaligned_words", []), prompt),
        scores=checked_scores(value.get("scores", {})),
        split=own_split,
    )


def _text(value: Mapping[str, Any], name: str, *, needed: bool = True) -> str | None:
    text = value.get(name)
    if text is None and not needed:
        return None
    if not is_text(text) or not str(text).strip():
        raise BadRecordError(f"no {name}" if text is None else f"{name} is no text", None if text is None else repr(text)[:80])
    return str(text)


def _pixels(value: Mapping[str, Any], name: str) -> int:
    pixels = value.get(name)
    if not is_side(pixels):
        raise BadRecordError("width and height of the image are not known", f"{name} = {pixels!r}"[:80])
    return pixels


def is_side(pixels: Any) -> TypeGuard[int]:
    """Whether it can be the width or the height of an image."""
    return isinstance(pixels, int) and not isinstance(pixels, bool) and 1 <= pixels <= 100_000


def _points(values: Any) -> list[Point]:
    if not isinstance(values, list):
        raise BadRecordError("points are no list", repr(values)[:80])
    points = []
    for value in values:
        if not isinstance(value, dict) or value.get("kind") not in KINDS:
            raise BadRecordError(f"a point's kind is none of {', '.join(KINDS)}", repr(value)[:80])
        points.append(checked_point(value["kind"], value.get("x"), value.get("y")))
    return points


def checked_point(kind: str, x: Any, y: Any) -> Point:
    """A point inside the image.

    Raises:
        BadRecordError: it is outside, or no point.
    """
    for share in (x, y):
        if not is_finite(share):
            raise BadRecordError("a point's place is no number", repr((x, y))[:80])
        if not 0 <= share <= 1:
            raise BadRecordError("a point is outside the image", f"{(x, y)!r:.80} of (0..1, 0..1)")
    return Point(kind, float(x), float(y))


def _places(values: Any, prompt: str) -> list[int]:
    if not isinstance(values, list) or not all(isinstance(place, int) and not isinstance(place, bool) for place in values):
        raise BadRecordError("misaligned_words is no list of places", repr(values)[:80])
    count = len(prompt_tokens(prompt))
    if any(not 0 <= place < count for place in values):
        raise BadRecordError("a misaligned word is not in the prompt", f"{values} of {count} tokens")
    return sorted(set(values))


def checked_scores(values: Any) -> dict[str, float | None]:
    """Scores on the Likert scale by aspect; None where one was not given.

    Raises:
        BadRecordError: an aspect is unknown, or a score is not from 1 to 5.
    """
    if not isinstance(values, Mapping) or set(values) - set(ASPECTS):
        raise BadRecordError("scores are not by aspect", f"{values!r:.80}; known: {', '.join(ASPECTS)}")
    for aspect, score in values.items():
        if score is None:
            continue
        if not is_finite(score):
            raise BadRecordError("a score is no number", f"{aspect} = {score!r}"[:80])
        if not _LIKERT[0] <= score <= _LIKERT[1]:
            raise BadRecordError("a score is not from 1 to 5", f"{aspect} = {score!r}"[:80])
    return {aspect: None if values.get(aspect) is None else float(values[aspect]) for aspect in ASPECTS}
