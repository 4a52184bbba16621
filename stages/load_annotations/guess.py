"""The format of annotations that do not say theirs: ours by its ending, or an error that names the likely one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import data_files
from irpipe.schemas.files import columns_of, read_csv, read_json, read_jsonl
from irpipe.stages.load_annotations import OWN_BY_ENDING

_WHERE = "load-annotations.path"
_ENDINGS = (*OWN_BY_ENDING, ".json")


def guess_format(path: Path) -> str:
    """The format of a file, or of the first file of a folder, by its ending and what it holds.

    Raises:
        InputError: it must be given, since it is not ours; names the likely one.
    """
    file = data_files(path, _ENDINGS, _WHERE).files[0] if path.is_dir() else path
    likely = _likely(_first_record(file))
    ours = OWN_BY_ENDING.get(ending_of(file))
    if ours is not None and likely is None:
        return ours
    raise InputError(
        f"the format of {path.name} must be given"
        + (f": {file.name} looks like {likely}" if likely else f": {file.name} looks like none that is known"),
        where=_WHERE,
        fix=f"--set load-annotations.format={likely or 'NAME'} (irpipe cite load-annotations lists them)",
    )


def _first_record(file: Path) -> dict[str, Any]:
    """The first record of a file; of Parquet its columns alone."""
    ending = ending_of(file)
    if ending in (".parquet", ".arrow"):
        return dict.fromkeys(columns_of(file))
    if ending == ".json":
        data = read_json(file)
        first = data[0] if isinstance(data, list) and data else None
    elif ending == ".csv":
        first = next((cells for _, cells in read_csv(file, [])), None)
    else:
        first = next((value for _, value, _ in read_jsonl(file)), None) if ending in OWN_BY_ENDING else None
    return first if isinstance(first, dict) else {}


def _likely(record: dict[str, Any]) -> str | None:
    """The published format, or pairs, whose fields a record has."""
    for fields, kind in (
        ({"image_0_uid", "image_1_uid"}, "pickapic"),
        ({"image_amount_in_total"}, "imagerewarddb"),
        ({"generations", "ranking"}, "imagereward-json"),
        ({"image_path", "raw_annotations"}, "hpdv2-json"),
        ({"image_path", "rank"}, "hpdv2-json"),
        ({"path1", "path2"}, "hpdv3-json"),
        ({"image_a", "image_b"}, "pairs"),
    ):
        if fields <= record.keys():
            return kind
    if {"human_preference", "file_path"} <= record.keys():
        return "hpdv2-json" if isinstance(record["human_preference"], list) else "hps-json"
    return None
