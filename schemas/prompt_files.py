"""Files of prompts that are excluded from training or selection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import open_parquet, read_csv, read_json, read_jsonl, read_lines, read_rows
from irpipe.schemas.values import given


def prompts_of(path: Path) -> Iterator[str]:
    """The prompts of a file, or of an artifact's tables: text, JSON, JSONL, CSV or Parquet with a field `prompt`.

    Raises:
        InputError: the file holds none.
    """
    ending = ending_of(path)
    if path.is_dir():
        tables = [file for file in sorted(path.rglob("*.parquet")) if "prompt" in open_parquet(file).schema_arrow.names]
        if not tables:
            raise InputError(f"{path} has no table with a column 'prompt'", where="exclude")
        for file in tables:
            yield from prompts_of(file)
    elif ending == ".parquet":
        for row, values, fault in read_rows(path, ["prompt"]):
            if fault is not None:
                raise InputError(f"row {row} of {path} cannot be read: {fault}", where="exclude")
            if given(values["prompt"]) is not None:
                yield values["prompt"]
    elif ending == ".txt":
        yield from (line for _, line in read_lines(path))
    elif ending == ".csv":
        yield from (cells["prompt"] or "" for _, cells in read_csv(path, ["prompt"]))
    else:
        records = read_json(path) if ending == ".json" else (value for _, value, _ in read_jsonl(path))
        yield from (_prompt_field(record, path) for record in records)


def _prompt_field(record: Any, path: Path) -> str:
    text = record.get("prompt", record.get("text")) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise InputError(f"{path} has a record without a field 'prompt'", where="exclude")
    return text
