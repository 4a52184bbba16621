"""One reader per format of prompt files; every one streams."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from irpipe.pipeline.errors import InputError
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.table import check_columns, open_parquet
from irpipe.stages.embed_prompts import EmbedPromptsConfig

_NSFW = ("prompt_nsfw", "image_nsfw")
_DIFFUSIONDB = {"image_name", "prompt", "part_id", *_NSFW}
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


@dataclass(frozen=True)
class PromptRow:
    """A row of a prompt file. `text` is None where the row was refused by the reader."""

    number: int
    text: str | None
    prompt_nsfw: float | None = None
    image_nsfw: float | None = None


def read_prompts(config: EmbedPromptsConfig, path: Path, rejections: Rejections) -> Iterator[PromptRow]:
    """Every row of a prompt file, in order.

    Raises:
        InputError: the file is not of the format, lacks a column, or its format cannot be guessed.
    """
    kind = config.format or guess_format(path)
    nsfw = [name for name, limit in zip(_NSFW, (config.max_prompt_nsfw, config.max_image_nsfw), strict=True) if limit is not None]
    if nsfw and kind not in ("diffusiondb", "parquet"):
        raise InputError(f"max_{nsfw[0]} needs a column {nsfw[0]}, which {kind} files do not have", where=str(path))
    if kind in ("diffusiondb", "parquet"):
        yield from _read_parquet(path, config.prompt_column, nsfw, rejections)
        return
    reader = {"jsonl": _read_jsonl, "csv": _read_csv, "text": _read_text}[kind]
    try:
        yield from reader(path, config.prompt_column, rejections)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None


def guess_format(path: Path) -> str:
    """The format that a file's ending tells; DiffusionDB's metadata is known by its columns."""
    kind = _ENDINGS.get(path.suffix.lower())
    if kind is None:
        raise InputError(
            f"the format of {path.name} cannot be guessed from its ending",
            mend="--set embed-prompts.format=jsonl (or csv, parquet, text, diffusiondb)",
        )
    if kind == "parquet" and set(open_parquet(path).schema_arrow.names) >= _DIFFUSIONDB:
        return "diffusiondb"
    return kind


def _read_parquet(path: Path, column: str, nsfw: list[str], rejections: Rejections) -> Iterator[PromptRow]:
    file = open_parquet(path)
    check_columns(file.schema_arrow.names, [column, *nsfw], str(path))
    number = 0
    for batch in file.iter_batches(columns=[column, *nsfw]):
        scores = {name: [_score(value) for value in batch[name].to_pylist()] for name in nsfw}
        for place, text in enumerate(batch[column].to_pylist()):
            row = {name: values[place] for name, values in scores.items()}
            yield PromptRow(number, _text(text, number, rejections), **row)
            number += 1


def _score(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def _read_jsonl(path: Path, column: str, rejections: Rejections) -> Iterator[PromptRow]:
    with path.open(encoding="utf-8") as file:
        seen = False
        for number, line in enumerate(file):
            try:
                record = json.loads(line)
            except ValueError:
                rejections.refuse(number, "not JSON", line[:80].rstrip())
                yield PromptRow(number, None)
                continue
            if not isinstance(record, dict) or column not in record:
                rejections.refuse(number, f"no field {column!r}", line[:80].rstrip())
                yield PromptRow(number, None)
                continue
            seen = True
            yield PromptRow(number, _text(record[column], number, rejections))
    if not seen:
        raise InputError(f"no line of {path.name} is a JSON object with a field {column!r}", where=str(path))


def _read_csv(path: Path, column: str, rejections: Rejections) -> Iterator[PromptRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        check_columns(list(reader.fieldnames or ()), [column], str(path))
        for number, record in enumerate(reader):
            yield PromptRow(number, _text(record[column], number, rejections))


def _read_text(path: Path, _column: str, _rejections: Rejections) -> Iterator[PromptRow]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            yield PromptRow(number, line)


def _text(value: object, number: int, rejections: Rejections) -> str | None:
    if value is None or value == "":
        return ""
    if not isinstance(value, str):
        rejections.refuse(number, "prompt is no text", repr(value)[:80])
        return None
    return value
