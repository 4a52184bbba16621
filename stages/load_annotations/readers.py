"""One reader per format. Each yields raw records, which `check.py` checks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from irpipe.pipeline.errors import InputError, did_you_mean
from irpipe.schemas.discovery import data_files, splits_of
from irpipe.schemas.files import check_columns, read_json, read_rows
from irpipe.schemas.values import given, is_finite
from irpipe.stages.load_annotations import OWN, own
from irpipe.stages.load_annotations.raw import RawRecord, take_names


def read_records(
    path: Path, kind: str, say: Callable[[str], None], names: Mapping[str, str] = MappingProxyType({})
) -> Iterator[RawRecord]:
    """Every record of a file, or of the files of a folder in the order of their names.

    Args:
        names: of columns, ours by theirs (our own formats).
        say: is told which files are left out.

    Raises:
        InputError: no file of the format, or one that is not of it; or only some files tell their split.
    """
    if not path.is_dir():
        yield from _reader(kind, names)(path, 0)
        return
    found = data_files(path, ENDINGS[kind], "load-annotations.path")
    for line in found.left_out_lines():
        say(line)
    start = 0
    for file, split in splits_of(found.files, path).items():
        last = start - 1
        for record in _reader(kind, names)(file, start):
            last = max(last, record.row, record.last_row)
            record.record = f"{file.relative_to(path)}:{record.record}"  # files may count from 1 each
            record.split = split if given(record.split) is None else record.split
            yield record
        start = last + 1


def _reader(kind: str, names: Mapping[str, str]) -> Callable[[Path, int], Iterator[RawRecord]]:
    reader: Callable[..., Iterator[RawRecord]] = _READERS[kind]
    return partial(reader, names=names) if kind in OWN else reader


def _load_list(path: Path, fields: Sequence[str]) -> list[Any]:
    data = read_json(path)
    if not isinstance(data, list):
        raise InputError(f"{path} is not a JSON list of records", where=str(path))
    first = data[0] if data else None
    if not isinstance(first, dict):
        raise InputError(f"{path} holds no records", where=str(path))
    for name in fields:
        if name not in first:
            raise InputError(f"its records have no field {name!r}{did_you_mean(name, first)}", where=str(path))
    return data


def _items(data: list[Any], start: int, fields: Sequence[str]) -> Iterator[tuple[RawRecord, dict[str, Any]]]:
    for row, item in enumerate(data, start):
        record = RawRecord(row, str(row))
        if not isinstance(item, dict):
            record.fault = ("not an object", repr(item)[:80])
        elif missing := [name for name in fields if name not in item]:
            record.fault = ("missing field", ", ".join(missing))
        yield record, item if isinstance(item, dict) else {}


def _imagereward(path: Path, start: int) -> Iterator[RawRecord]:
    """`train.json` and similar: id, prompt, generations, ranking (lower is better)."""
    fields = ("id", "prompt", "generations", "ranking")
    for record, item in _items(_load_list(path, fields), start, fields):
        take_names(record, item.get("id"))
        record.prompt, record.images, record.ranks = item.get("prompt"), item.get("generations"), item.get("ranking")
        yield record


def _hps(path: Path, start: int) -> Iterator[RawRecord]:
    """HPS v1: one chosen image per prompt; the others were not compared."""
    fields = ("human_preference", "prompt", "file_path")
    for record, item in _items(_load_list(path, fields), start, fields):
        take_names(record, item.get("id"), item.get("user_hash"))
        record.prompt, record.images = item.get("prompt"), item.get("file_path")
        choice = item.get("human_preference")
        if record.fault is None and isinstance(record.images, list):
            if type(choice) is not int or not 0 <= choice < len(record.images):
                record.fault = ("choice is no image's index", repr(choice))
            else:
                record.ranks = [1 if index == choice else 2 for index in range(len(record.images))]
                record.oriented = record.choice = True
        yield record


def _hpdv2(path: Path, start: int) -> Iterator[RawRecord]:
    """HPD v2: train (human_preference, 1 is preferred) or test (rank and raw_annotations, lower is better)."""
    data = _load_list(path, ("prompt",))
    train = "human_preference" in data[0]
    fields = ("prompt", "file_path", "human_preference") if train else ("prompt", "image_path", "rank")
    check_columns(list(data[0]), fields, str(path))
    for record, item in _items(data, start, fields):
        record.prompt, record.images = item.get("prompt"), item.get("file_path" if train else "image_path")
        if record.fault is not None:
            yield record
        elif train:
            marks = item["human_preference"]
            if not isinstance(marks, list) or any(mark not in (0, 1) for mark in marks):
                record.fault = ("preference is not 0 or 1", repr(marks)[:80])
            else:
                record.ranks = [2 - int(mark) for mark in marks]
                record.oriented = True
            yield record
        elif item.get("raw_annotations"):
            yield from _hpdv2_votes(record, item["raw_annotations"])
        else:
            record.ranks = _whole_ranks(item["rank"])
            yield record


def _hpdv3(path: Path, start: int) -> Iterator[RawRecord]:
    """HPD v3: two images per record, `path1` is preferred."""
    fields = ("prompt", "path1", "path2")
    for record, item in _items(_load_list(path, fields), start, fields):
        record.prompt, record.images = item.get("prompt"), [item.get("path1"), item.get("path2")]
        record.ranks, record.oriented = [1, 2], True
        yield record


def _hpdv2_votes(record: RawRecord, votes: Any) -> Iterator[RawRecord]:
    for number, vote in enumerate(votes if isinstance(votes, list) else [votes]):
        single = RawRecord(record.row, f"{record.record}/{number}", record.prompt, None, record.images)
        if isinstance(vote, dict) and "rank" in vote:
            take_names(single, single.record, vote.get("user_hash"))
            single.ranks = vote["rank"]
        else:
            single.fault = ("raw annotation without rank", repr(vote)[:80])
        yield single


def _whole_ranks(values: Any) -> Any:
    """Averaged ranks as whole ranks in the same order; anything else unchanged, for the check to refuse."""
    if not isinstance(values, list) or not all(is_finite(value) for value in values):
        return values
    order = sorted(set(values))
    return [order.index(value) + 1 for value in values]


_PUBLISHED_RATINGS = {"overall": "overall_rating", "alignment": "image_text_alignment_rating", "fidelity": "fidelity_rating"}


def _imagerewarddb(path: Path, start: int) -> Iterator[RawRecord]:
    """ImageRewardDB's metadata: one row per image, joined by prompt_id. Direction: lower rank is better."""
    columns = ["image_path", "prompt_id", "prompt", "classification", "rank", *_PUBLISHED_RATINGS.values()]
    amount = "image_amount_in_total"
    groups: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, item, fault in read_rows(path, [*columns, amount]):
        record = RawRecord(start + number, "", fault=("a cell cannot be read", fault) if fault is not None else None)
        take_names(record, item["prompt_id"])
        if record.fault is None and not record.record:
            record.fault = ("no prompt_id", None)
        if record.fault is not None:
            yield record
        else:
            groups.setdefault(record.record, []).append((start + number, item))
    for name, members in groups.items():
        items = [item for _, item in members]
        record = RawRecord(members[0][0], name, items[0]["prompt"], last_row=members[-1][0])
        record.images, record.ranks = [item["image_path"] for item in items], [item["rank"] for item in items]
        record.ratings = {aspect: [item[column] for item in items] for aspect, column in _PUBLISHED_RATINGS.items()}
        record.labels = {"category": items[0]["classification"]}
        if len({item["prompt"] for item in items}) > 1:
            record.fault = ("one prompt_id, several prompts", name)
        elif any(item["classification"] != items[0]["classification"] for item in items):
            record.fault = ("rows disagree on classification", name)
        elif any(item[amount] is not None and item[amount] != len(items) for item in items):
            record.fault = ("rows do not add up to image_amount_in_total", f"{len(items)} of {items[0][amount]}")
        yield record


def _pickapic(path: Path, start: int) -> Iterator[RawRecord]:
    """Pick-a-Pic: two images per row, label 1, 0 or 0.5 each (a tie)."""
    columns = ["caption", "image_0_uid", "image_1_uid", "label_0", "label_1", "has_label", "ranking_id", "user_id"]
    for number, item, fault in read_rows(path, columns):
        record = RawRecord(start + number, str(start + number), item["caption"])
        record.images = [item["image_0_uid"], item["image_1_uid"]]
        record.oriented = True
        take_names(record, item["ranking_id"], item["user_id"])
        labels, labelled = (item["label_0"], item["label_1"]), given(item["has_label"])
        if fault is not None:
            record.fault = ("a cell cannot be read", fault)
        elif labelled is not None and labelled not in (True, False):
            record.fault = ("has_label is neither true nor false", repr(labelled)[:80])
        elif not labelled:
            record.dropped = ("no label", None)
        elif labels not in ((1.0, 0.0), (0.0, 1.0), (0.5, 0.5)):
            record.fault = ("labels are no choice", repr(labels)[:80])
        else:
            record.ranks = [1 if label >= max(labels) else 2 for label in labels]
        yield record


_READERS: Mapping[str, Any] = {
    "imagereward-json": _imagereward,
    "imagerewarddb": _imagerewarddb,
    "hps-json": _hps,
    "hpdv2-json": _hpdv2,
    "hpdv3-json": _hpdv3,
    "pickapic": _pickapic,
    "jsonl": own.records,
    "csv": own.records,
    "parquet": own.records,
    "pairs": own.pairs,
}
ENDINGS = {
    "imagereward-json": (".json",),
    "imagerewarddb": (".parquet",),
    "hps-json": (".json",),
    "hpdv2-json": (".json",),
    "hpdv3-json": (".json",),
    "pickapic": (".parquet",),
    "jsonl": (".jsonl", ".ndjson"),
    "csv": (".csv",),
    "parquet": (".parquet", ".arrow"),
    "pairs": (".csv", ".jsonl", ".ndjson", ".parquet", ".arrow"),
}
