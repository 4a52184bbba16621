"""One reader per format of prompt files; every one streams."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError, did_you_mean, nearest
from irpipe.schemas.files import cells, is_text, open_parquet, read_batches, read_csv, read_jsonl, read_lines
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.values import given
from irpipe.stages.embed_prompts import EmbedPromptsConfig

_NSFW = ("prompt_nsfw", "image_nsfw")
_DIFFUSIONDB = {"image_name", "prompt", "part_id", *_NSFW}
_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".txt": "text"}


_COLUMN = "embed-prompts.prompt_column"


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
    limits = zip(_NSFW, (config.max_prompt_nsfw, config.max_image_nsfw), strict=True)
    nsfw = [name for name, limit in limits if limit is not None]
    if nsfw and kind not in ("diffusiondb", "parquet"):
        raise InputError(f"max_{nsfw[0]} needs a column {nsfw[0]}, which {kind} files do not have", where=str(path))
    if kind in ("diffusiondb", "parquet"):
        yield from _read_parquet(path, config.prompt_column, nsfw, rejections)
    elif kind == "jsonl":
        yield from _read_jsonl(path, config.prompt_column, rejections)
    elif kind == "csv":
        for number, row in read_csv(path, [config.prompt_column], _COLUMN):
            if None in row:
                rejections.refuse(number, "more cells than columns")
                yield PromptRow(number, None)
            else:
                yield PromptRow(number, _text(row[config.prompt_column], number, rejections))
    else:
        for number, line in read_lines(path):
            yield PromptRow(number, line)


def guess_format(path: Path) -> str:
    """The format, by the file's ending; DiffusionDB's metadata is recognised by its columns."""
    kind = _ENDINGS.get(ending_of(path))
    if kind is None:
        raise InputError(
            f"the format of {path.name} cannot be guessed from its ending",
            fix="--set embed-prompts.format=jsonl (or csv, parquet, text, diffusiondb)",
        )
    if kind == "parquet" and set(open_parquet(path).schema_arrow.names) >= _DIFFUSIONDB:
        return "diffusiondb"
    return kind


def _read_parquet(path: Path, column: str, nsfw: list[str], rejections: Rejections) -> Iterator[PromptRow]:
    number = 0
    for batch in read_batches(path, [column, *nsfw]):
        scores = {name: [_score(value, name, path) for value in cells(batch[name])[0]] for name in nsfw}
        texts, faults = cells(batch[column])
        for index, text in enumerate(texts):
            row = {name: values[index] for name, values in scores.items()}
            if index in faults:
                rejections.refuse(number, "prompt is no text", faults[index])
            yield PromptRow(number, None if index in faults else _text(text, number, rejections), **row)
            number += 1


def _score(value: object, name: str, path: Path) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float):
        raise InputError(f"the column {name!r} holds no numbers but {value!r}", where=str(path))
    return None if math.isnan(value) else value


def _read_jsonl(path: Path, column: str, rejections: Rejections) -> Iterator[PromptRow]:
    any_text, met = False, set[str]()
    for number, record, fault in read_jsonl(path):
        met |= record.keys() if isinstance(record, dict) and not any_text else set()
        if fault is not None:
            rejections.refuse(number, "not JSON", fault)
            yield PromptRow(number, None)
        elif not isinstance(record, dict) or column not in record:
            rejections.refuse(number, f"no field {column!r}", repr(record)[:80])
            yield PromptRow(number, None)
        else:
            any_text = True
            yield PromptRow(number, _text(record[column], number, rejections))
    if not any_text:
        raise InputError(
            f"no line of {path.name} is a JSON object with a field {column!r}{did_you_mean(column, met) if met else ''}",
            where=str(path),
            fix=f"--set {_COLUMN}={nearest(column, met) or 'NAME'}" if met else None,
        )


def _text(value: object, number: int, rejections: Rejections) -> str | None:
    if given(value) is None:
        return ""
    if not is_text(value):
        rejections.refuse(number, "prompt is no text", repr(value)[:80])
        return None
    return str(value)
