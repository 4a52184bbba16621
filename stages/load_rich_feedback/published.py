"""RichHF-18K: the released TFRecords, and Parquet with the same fields, images and prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from irpipe.models.pictures import decode
from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import data_files, splits_of
from irpipe.schemas.files import check_columns, columns_of, is_text, read_rows
from irpipe.schemas.values import is_finite
from irpipe.stages.load_rich_feedback.record import BadRecordError, Feedback
from irpipe.stages.load_rich_feedback.tfrecord import read_examples

# Released names; higher is better for all four scores (README of the release).
_SCORES = {
    "plausibility": "artifact_score",
    "alignment": "misalignment_score",
    "aesthetics": "aesthetics_score",
    "overall": "overall_score",
}
_MAPS = {"implausibility": "artifact_map", "misalignment": "misalignment_map"}
_LABELS = "prompt_misalignment_label"
_FIELDS = ("filename", *_SCORES.values(), *_MAPS.values(), _LABELS)
_SPLITS = {"train": "train", "dev": "validation", "validation": "validation", "test": "test"}
_PROMPTS = ("prompt", "caption")


def read_published(path: Path, kind: str) -> Iterator[Feedback | BadRecordError]:
    """The records of a file or folder in turn.

    Raises:
        InputError: a file is damaged or of another format.
    """
    ending = ".tfrecord" if kind == "richhf-tfrecord" else ".parquet"
    files = list(data_files(path, (ending,), "load-rich-feedback.path").files) if path.is_dir() else [path]
    splits = splits_of(files, path if path.is_dir() else path.parent)
    for file in files:
        for values in _examples(file) if kind == "richhf-tfrecord" else _rows(file):
            try:
                yield _feedback(values, splits[file])
            except BadRecordError as error:
                yield error


def _examples(file: Path) -> Iterator[dict[str, Any] | BadRecordError]:
    for features in read_examples(file):
        yield BadRecordError("no tf.train.Example") if features is None else _single(features)


def _single(features: Mapping[str, Any]) -> dict[str, Any] | BadRecordError:
    """The one value of each known feature; unknown features are left out."""
    values: dict[str, Any] = {}
    for name in _FIELDS:
        found = features.get(name, [])
        if len(found) != 1:
            return BadRecordError(f"{name} is missing" if not found else f"{name} has {len(found)} values")
        values[name] = found[0]
    return values


def _rows(file: Path) -> Iterator[dict[str, Any] | BadRecordError]:
    """Rows of Parquet with the released fields.

    Raises:
        InputError: a column is missing.
    """
    present = columns_of(file)
    more = [name for name in ("image", *_PROMPTS) if name in present]
    check_columns(present, _FIELDS, str(file))
    for _, row, fault in read_rows(file, [*_FIELDS, *more]):
        yield row if fault is None else BadRecordError("cannot be read", fault)


def _feedback(values: dict[str, Any] | BadRecordError, split: str | None) -> Feedback:
    """A checked record.

    Raises:
        BadRecordError: a value is of another kind, out of range, or no map.
    """
    if isinstance(values, BadRecordError):
        raise values
    name = PurePosixPath(_text(values, "filename"))
    scores = {aspect: _score(values, field) for aspect, field in _SCORES.items()}
    maps = {kind: _bytes(values[field], field) for kind, field in _MAPS.items()}
    sizes = {kind: _map_size(data, kind) for kind, data in maps.items()}
    if len(set(sizes.values())) > 1:
        raise BadRecordError("the heatmaps differ in shape", str(sizes))
    image = values.get("image")
    prompt = next((values[name] for name in _PROMPTS if values.get(name) is not None), None)
    if prompt is not None and not is_text(prompt):
        raise BadRecordError("the prompt is no text")
    return Feedback(
        uid=name.stem,
        scores=scores,
        maps=maps,
        labels=_labels(values),
        prompt=prompt,
        split=split or _SPLITS.get(name.parts[0]) if len(name.parts) > 1 else split,
        image=None if image is None else _bytes(image, "image"),
    )


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values[name]
    try:
        text = value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        raise BadRecordError(f"{name} is not UTF-8") from None
    if not isinstance(text, str) or not text:
        raise BadRecordError(f"{name} is no text", repr(value)[:80])
    return text


def _score(values: Mapping[str, Any], name: str) -> float:
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise BadRecordError(f"{name} is no number", repr(value)[:80])
    if not 0 <= value <= 1:
        raise BadRecordError(f"{name} is not from 0 to 1", f"{value:g}")
    return float(value)


def _bytes(value: Any, name: str) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadRecordError(f"{name} is no image", repr(value)[:80])
    return data


def _map_size(data: bytes, kind: str) -> tuple[int, int]:
    """Width and height of a heatmap."""
    try:
        image = decode(data)
    except InputError as error:
        raise BadRecordError(f"the {kind} map does not decode", error.what) from None
    if image.mode != "L" and len(image.getbands()) > 1:
        bands = [band.getextrema() for band in image.convert("RGB").split()]
        if len(set(bands)) > 1:
            raise BadRecordError(f"the {kind} map has colours", image.mode)
    return image.size


def _labels(values: Mapping[str, Any]) -> list[bool]:
    """Whether each token is misaligned; released as 0, misaligned, and 1."""
    value = values[_LABELS]
    parts = list(value) if isinstance(value, list | tuple) else _text(values, _LABELS).split()
    if any(str(part) not in ("0", "1") for part in parts):
        raise BadRecordError("labels are not 0 and 1", str(value)[:80])
    return [str(part) == "0" for part in parts]
