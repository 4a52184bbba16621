"""Our own formats, which docs/formats.md describes: records, rows of images, and pairs, in JSON Lines, CSV, Parquet or Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError, did_you_mean
from irpipe.schemas.files import check_columns, columns_of, read_csv, read_jsonl, read_rows
from irpipe.schemas.values import given
from irpipe.stages.load_annotations.raw import RawRecord, take_names

Row = tuple[int, Any, str | None]
"""A row's number, its values by our names, and its fault."""

_COLUMN = "load-annotations.columns.{}"
_SURPLUS = "more cells than columns"
_RATINGS = ("overall", "alignment", "fidelity")
_JSONL_FIELDS = {
    "ranking_id",
    "prompt_id",
    "prompt",
    "annotator",
    "images",
    "ranking",
    "overall",
    "alignment",
    "fidelity",
    "problems",
    "labels",
    "split",
}
_CSV_COLUMNS = {
    "ranking_id",
    "prompt",
    "annotator",
    "image",
    "rank",
    *_RATINGS,
    "problems",
    "category",
    "intent_unclear",
    "unsafe",
    "split",
}
_PAIR_COLUMNS = {"ranking_id", "prompt", "annotator", "image_a", "image_b", "winner", "label", "split"}
_OF_A_RECORD = ("prompt", "split", "category", "intent_unclear", "unsafe")  # columns whose cells agree in all rows of one


def records(path: Path, start: int, names: Mapping[str, str]) -> Iterator[RawRecord]:
    """One row per (prompt, annotator) with lists, or one row per image: by whether there is a column `images`.

    Raises:
        InputError: a column is missing, unknown, or named in vain.
    """
    if ending_of(path) in (".jsonl", ".ndjson"):
        for number, item, fault in _rows(path, names, ()):
            row = start + number
            yield _own(row, item) if fault is None else RawRecord(row, str(row), fault=("not JSON", fault))
    elif ending_of(path) != ".csv" and names.get("images", "images") in columns_of(path):
        for number, item, fault in _rows(path, names, _JSONL_FIELDS):
            row = start + number
            record = _own(row, {name: value for name, value in item.items() if value is not None})
            record.fault = record.fault if fault is None else ("a cell cannot be read", fault)
            yield record
    else:
        yield from _of_images(path, start, names)


def _rows(path: Path, names: Mapping[str, str], known: Sequence[str] | set[str], needed: Sequence[str] = ()) -> Iterator[Row]:
    """Every row of a file, its values by our names.

    Args:
        names: theirs by ours, where they differ.
        known: our columns, others being an error; none: the reader of a row judges.
        needed: their columns that must be there, besides those in `names`.
    """
    ours = {theirs: name for name, theirs in names.items()}
    if ending_of(path) in (".jsonl", ".ndjson"):
        met: set[Any] = set()
        for number, item, fault in read_jsonl(path):
            met |= item.keys() & ours.keys() if isinstance(item, dict) else set()
            yield number, _renamed(item, ours) if isinstance(item, dict) else item, fault
        check_columns(list(met), list(ours), str(path))
        return
    if ending_of(path) == ".csv":
        for number, cells in read_csv(path, [*names.values(), *needed], _COLUMN):
            if number == 0:
                _refuse_unknown([ours.get(name, name) for name in cells if name is not None], known, path)
            yield number, _renamed(cells, ours), _SURPLUS if None in cells else None
        return
    present = columns_of(path)
    check_columns(present, [*names.values(), *needed], str(path), _COLUMN)
    _refuse_unknown([ours.get(name, name) for name in present], known, path)
    for number, values, fault in read_rows(path, present):
        yield number, _renamed(values, ours), fault


def _renamed(item: Mapping[Any, Any], ours: Mapping[str, str]) -> dict[Any, Any]:
    """A row by our names; a column of theirs that is called as one of ours that another takes is left out."""
    taken = set(ours.values())
    return {ours.get(name, name): value for name, value in item.items() if name in ours or name not in taken}


def _refuse_unknown(present: Sequence[str], known: Sequence[str] | set[str], path: Path) -> None:
    for name in present if known else ():
        if name and name not in known and not name.startswith("__index_level_"):  # both are an index that pandas writes
            raise InputError(f"unknown column {name!r}{did_you_mean(name, known)}", where=str(path))


def _own(row: int, item: Any) -> RawRecord:
    record = RawRecord(row, str(row))
    if not isinstance(item, dict):
        record.fault = ("not an object", repr(item)[:80])
        return record
    unknown = [name for name in item if name not in _JSONL_FIELDS]
    missing = [name for name in ("prompt", "images") if name not in item]
    if unknown or missing:
        word = "unknown field" if unknown else "missing field"
        name = (unknown or missing)[0]
        record.fault = (word, f"{name}{did_you_mean(name, _JSONL_FIELDS if unknown else item)}")
    take_names(record, item.get("ranking_id"), item.get("annotator"))
    record.prompt, record.images = item.get("prompt"), item.get("images")
    record.ranks, record.problems, record.split = item.get("ranking"), item.get("problems"), item.get("split")
    record.ratings = {aspect: item[aspect] for aspect in _RATINGS if aspect in item}
    labels = {} if given(item.get("labels")) is None else item["labels"]
    if not isinstance(labels, dict):
        record.fault = ("labels are no object", repr(labels)[:80])
    else:
        record.labels = labels
    return record


def _of_images(path: Path, start: int, names: Mapping[str, str]) -> Iterator[RawRecord]:
    """One row per image of a record, joined by ranking_id and annotator."""
    groups: dict[tuple[str, str | None], list[tuple[int, Any]]] = {}
    faults: dict[tuple[str, str | None], str] = {}
    needed = [names.get(name, name) for name in ("ranking_id", "prompt", "image", "rank")]
    for number, item, fault in _rows(path, names, _CSV_COLUMNS, needed):
        record = RawRecord(start + number, "")
        take_names(record, item["ranking_id"], item.get("annotator"))
        if record.fault is None and not record.record:
            record.fault = ("no ranking_id", None)
        if record.fault is not None:
            yield record
        else:
            groups.setdefault((record.record, record.annotator), []).append((start + number, item))
            if fault is not None:
                faults.setdefault((record.record, record.annotator), fault)
    for (name, annotator), members in groups.items():
        items = [item for _, item in members]
        record = RawRecord(members[0][0], name, items[0]["prompt"], annotator, last_row=members[-1][0])
        record.images, record.ranks = [item["image"] for item in items], [_number(item["rank"]) for item in items]
        record.ratings = {aspect: [_number(item[aspect]) for item in items] for aspect in _RATINGS if aspect in items[0]}
        record.problems = [_words(item.get("problems")) for item in items] if "problems" in items[0] else None
        record.labels, record.split = _labels_of(items[0]), given(items[0].get("split"))
        several = [column for column in _OF_A_RECORD if len({repr(given(item.get(column))) for item in items}) > 1]
        if (name, annotator) in faults:  # a record is not read without one of its rows
            fault = faults[name, annotator]
            record.fault = (fault, name) if fault == _SURPLUS else ("a cell cannot be read", fault)
        elif "prompt" in several:
            record.fault = ("one ranking_id, several prompts", name)
        elif several:
            record.fault = (f"rows disagree on {several[0]}", name)
        yield record


def pairs(path: Path, start: int, names: Mapping[str, str]) -> Iterator[RawRecord]:
    """One row per pair: prompt, image_a, image_b, and which is better, as `winner` (a, b, tie) or `label` (0, 1, 0.5)."""
    checked = False
    for number, item, fault in _rows(path, names, _PAIR_COLUMNS):
        record = RawRecord(start + number, str(start + number), oriented=True)
        if fault is not None or not isinstance(item, dict):
            record.fault = ("a row cannot be read", fault or repr(item)[:80])
            yield record
            continue
        if not checked:
            checked = True
            _check_pair(item, path)
        take_names(record, item.get("ranking_id"), item.get("annotator"))
        unknown = [name for name in item if name not in _PAIR_COLUMNS and not str(name).startswith("__index_level_")]
        if unknown:
            record.fault = ("unknown field", f"{unknown[0]}{did_you_mean(str(unknown[0]), _PAIR_COLUMNS)}")
        record.prompt, record.split = item.get("prompt"), item.get("split")
        record.images = [item.get("image_a"), item.get("image_b")]
        _decide(record, item)
        yield record


def _check_pair(item: Mapping[str, Any], path: Path) -> None:
    check_columns(list(item), ["prompt", "image_a", "image_b"], str(path))
    if ("winner" in item) == ("label" in item):
        raise InputError("a pair needs one of the columns 'winner' and 'label'", where=str(path))


_WINNERS: Mapping[str, list[int]] = {"a": [1, 2], "image_a": [1, 2], "b": [2, 1], "image_b": [2, 1], "tie": [1, 1]}
_LABELS: Mapping[float, list[int]] = {0.0: [1, 2], 1.0: [2, 1], 0.5: [1, 1]}


def _decide(record: RawRecord, item: Mapping[str, Any]) -> None:
    """The ranks of a pair; a pair without a decision is unlabelled."""
    column = "winner" if "winner" in item else "label"
    value = given(item.get(column))
    if column == "label":
        value = _number(value) if isinstance(value, str) else value
        ranks = _LABELS.get(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    else:
        ranks = _WINNERS.get(value.strip().lower()) if isinstance(value, str) else None
    if value is None:
        record.dropped = ("no label", None)
    elif ranks is None:
        expected = "a, b or tie" if column == "winner" else "0 (image_a), 1 (image_b) or 0.5 (a tie)"
        record.fault = record.fault or (f"{column} is none of {expected}", repr(value)[:80])
    record.ranks = ranks


def _labels_of(item: Mapping[str, Any]) -> dict[str, Any]:
    labels: dict[str, Any] = {}
    if given(item.get("category")) is not None:
        labels["category"] = item["category"]
    unclear = given(item.get("intent_unclear"))
    if unclear is not None:
        labels["intent_unclear"] = {"true": True, "false": False}.get(str(unclear).lower(), unclear)
    if given(item.get("unsafe")) is not None:
        labels["unsafe"] = _words(item["unsafe"])
    return labels


def _words(value: Any) -> Any:
    """The words of a cell: separated by `;`, or a list."""
    if isinstance(value, str) or value is None:
        return [word.strip() for word in (value or "").split(";") if word.strip()]
    return value


def _number(value: Any) -> Any:
    """The number in a cell; None where it is empty; the text where it is no number, for the check to refuse."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
