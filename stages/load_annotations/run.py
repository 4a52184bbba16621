"""The work of `load-annotations`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import StageError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import (
    ANNOTATED_PROMPTS,
    ANNOTATION_IMAGES,
    ANNOTATIONS,
    ASPECTS,
    CHOICES,
    CONTRADICTIONS,
    PROMPT_LABELS,
    RANKINGS,
    RATINGS,
    RECORDS,
    image_id,
    ranking_id,
)
from irpipe.schemas.prompts import prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.stages.load_annotations import LoadAnnotationsConfig, discord
from irpipe.stages.load_annotations.agreement import agreement
from irpipe.stages.load_annotations.check import BadRecordError, Record, check
from irpipe.stages.load_annotations.discord import ChatOptions
from irpipe.stages.load_annotations.guess import guess_format
from irpipe.stages.load_annotations.raw import RawRecord
from irpipe.stages.load_annotations.readers import read_records

Columns = dict[str, list[Any]]


def run(config: LoadAnnotationsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    path = context.sources["path"][0] if config.path else files_in(inputs["annotation-files"])
    kind = config.format or ("hps-json" if path.name == CHOICES and not config.path else guess_format(path))
    rejections = Rejections(config.max_rejected, path.name)
    records, read = gather(config, path, kind, rejections, context)
    rejections.check(read, len(records))
    rejected = rejections.write(out)
    write_tables(records, kind, out)
    contradictions = write_contradictions(records, kind, out)
    figures = {"label_source": config.label_source, **agreement(records)}
    (out / "agreement.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for name in ("by_annotator", "label_source"):
        figures.pop(name, None)
    metrics = {
        "records": len(records),
        "prompts": len({record.prompt for record in records}),
        "annotators": len({record.annotator for record in records if record.annotator is not None}),
        "label_source": config.label_source,
        "contradictions": contradictions,
        "rejected_for": rejections.counts(),
        "agreement": figures,
    }
    return Report(Rows(read, len(records), rejected), metrics)


def files_in(artifact: Artifact) -> Path:
    """What a stage wrote: records in our own format, or a folder of choices in HPS's files."""
    choices = artifact.path / CHOICES
    return choices if choices.is_dir() else artifact.file(RECORDS)


def records_of(config: LoadAnnotationsConfig, path: Path, kind: str, context: Context) -> Iterator[RawRecord]:
    """The records of a chat, or of files."""
    if kind != "discord":
        return read_records(path, kind, context.say, config.columns.given_names())
    salt = context.sources["salt"][0].read_bytes() if config.salt is not None else None
    return discord.records(path, ChatOptions(config.bot, config.ambiguous, salt, config.most_per_user))


def gather(
    config: LoadAnnotationsConfig, path: Path, kind: str, rejections: Rejections, context: Context
) -> tuple[list[Record], int]:
    """All usable records, and the number read."""
    records: list[Record] = []
    identities: set[tuple[str, str | None]] = set()
    read = 0
    with context.progress("reading annotations", None, "records") as bar:
        for raw in records_of(config, path, kind, context):
            read += 1
            bar.advance(1)
            raw.split = config.split or raw.split
            if raw.dropped is not None:
                rejections.drop(raw.row, *raw.dropped)
                continue
            try:
                record = check(raw, higher_is_better=config.rank_direction == "higher-is-better", scale=config.rating_scale)
            except BadRecordError as error:
                rejections.refuse(raw.row, error.reason, error.detail)
                continue
            if (record.record, record.annotator) in identities:
                rejections.refuse(
                    raw.row, "record stands twice", f"{record.record} by {record.annotator or 'an unnamed annotator'}"
                )
                continue
            identities.add((record.record, record.annotator))
            records.append(record)
    return records, read


def write_tables(records: Sequence[Record], kind: str, out: Path) -> None:
    """The canonical tables, in the order of records.

    Raises:
        StageError: two different things have one id (chance: n^2 / 2^65).
    """
    prompts: dict[int, str] = {}
    images: dict[int, tuple[int, str]] = {}
    tables: dict[str, Columns] = {table.name: {} for table in (ANNOTATIONS, PROMPT_LABELS, RATINGS, RANKINGS)}
    for record in records:
        prompt, ranking = prompt_id(record.prompt), ranking_id(kind, record.record, record.annotator)
        _unique(prompts, prompt, record.prompt)
        _add_record(tables, record, prompt, ranking)
        for index, path in enumerate(record.images):
            image = image_id(prompt, path)
            _unique(images, image, (prompt, path))
            _add_image(tables, record, index, prompt_id=prompt, image_id=image, ranking_id=ranking)
    ANNOTATED_PROMPTS.write(out, {"prompt_id": list(prompts), "prompt": list(prompts.values())})
    owners, paths = [prompt for prompt, _ in images.values()], [path for _, path in images.values()]
    ANNOTATION_IMAGES.write(out, {"image_id": list(images), "prompt_id": owners, "path": paths})
    for table in (ANNOTATIONS, PROMPT_LABELS, RATINGS, RANKINGS):
        table.write(out, tables[table.name] or {column.name: [] for column in table.columns})


def _add_record(tables: Mapping[str, Columns], record: Record, prompt: int, ranking: int) -> None:
    """Add a record to the tables `annotations` and `prompt_labels`."""
    ids = {"ranking_id": ranking, "prompt_id": prompt}
    _add(tables["annotations"], **ids, source_row=record.row, annotator=record.annotator, split=record.split)
    if record.category is not None or record.intent_unclear is not None or record.unsafe:
        labels = {"category": record.category, "intent_unclear": record.intent_unclear, "unsafe": list(record.unsafe)}
        _add(tables["prompt_labels"], **ids, **labels)


def _add_image(tables: Mapping[str, Columns], record: Record, index: int, **ids: int) -> None:
    """Add an image of a record to the tables `rankings` and `ratings`, where it is ranked and rated."""
    if record.ranks[index] is not None:
        _add(tables["rankings"], **ids, rank=record.ranks[index], annotator=record.annotator, choice=record.choice)
    ratings = {aspect: record.ratings[aspect][index] for aspect in ASPECTS}
    if record.problems[index] or any(value is not None for value in ratings.values()):
        ids = {"ranking_id": ids["ranking_id"], "image_id": ids["image_id"]}
        _add(tables["ratings"], **ids, **ratings, problems=list(record.problems[index]))


def _unique(values_by_id: dict[int, Any], identity: int, value: Any) -> None:
    if values_by_id.setdefault(identity, value) != value:
        raise StageError(f"{values_by_id[identity]!r} and {value!r} have the same id")


def _add(columns: Columns, **values: Any) -> None:
    for name, value in values.items():
        columns.setdefault(name, []).append(value)


def write_contradictions(records: Sequence[Record], kind: str, out: Path) -> dict[str, Any]:
    """Write the table of pairs whose overall ratings contradict their ranks. Returns counts."""
    columns: Columns = {column.name: [] for column in CONTRADICTIONS.columns}
    compared = 0
    affected: Counter[str] = Counter()
    for record in records:
        prompt = prompt_id(record.prompt)
        overall = record.ratings["overall"]
        for first, second in combinations(range(len(record.images)), 2):
            ranks = record.ranks[first], record.ranks[second]
            if None in (*ranks, overall[first], overall[second]) or ranks[0] == ranks[1]:
                continue
            compared += 1
            better, worse = (first, second) if ranks[0] < ranks[1] else (second, first)  # type: ignore[operator]
            if overall[better] < overall[worse]:  # type: ignore[operator]
                affected[record.record] += 1
                _add(
                    columns,
                    ranking_id=ranking_id(kind, record.record, record.annotator),
                    better=image_id(prompt, record.images[better]),
                    worse=image_id(prompt, record.images[worse]),
                    overall_better=overall[better],
                    overall_worse=overall[worse],
                )
    count = CONTRADICTIONS.write(out, columns)
    return {"pairs": count, "of": compared, "records": len(affected)}
