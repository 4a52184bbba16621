"""Answers about images: of a model, in shards, or of a table of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from PIL import Image

from irpipe.models.loading import worker_device
from irpipe.models.pictures import decode
from irpipe.models.vqa import VisualQuestions
from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.stage import Context, Model
from irpipe.schemas.files import check_columns, read_csv, read_json, read_jsonl, read_rows
from irpipe.schemas.images import ImageReader, RowGroup, in_shards
from irpipe.schemas.selected_images import IMAGE_ANSWERS
from irpipe.schemas.values import given
from irpipe.stages.select_images import SelectImagesConfig
from irpipe.stages.select_images.questions import Question, questions_of

_ROWS_PER_SHARD = 512
_FAULTS = "faults.json"  # of a shard: why images have no answers, by id
Answers = dict[int, list[tuple[str, float | None]]]
"""By image, to each question the answer and its share among the answers."""


def ask(config: SelectImagesConfig, reader: ImageReader, context: Context) -> tuple[Answers, dict[int, str]]:
    """A model's answers about all images, and why some have none."""
    made = context.map(
        ShardAnswerer(config, context.models["model"][0]),
        {f"{number:05}": groups for number, groups in enumerate(in_shards(reader.groups, _ROWS_PER_SHARD))},
        "asking",
        "images",
        size=lambda groups: sum(group.rows for group in groups),
        processes=config.num_processes,
        executor=config.executor,
    )
    answers: Answers = {}
    faults: dict[int, str] = {}
    for shard in made:
        rows = pq.read_table(shard / f"{IMAGE_ANSWERS.name}.parquet", partitioning=None)
        for image, answer, share in zip(*(rows[name].to_pylist() for name in ("image_id", "answer", "share")), strict=True):
            answers.setdefault(image, []).append((answer, share))
        faults |= {int(image): why for image, why in read_json(shard / _FAULTS).items()}
    return answers, faults


@dataclass
class ShardAnswerer:
    """Writes the answers about the images of some row groups."""

    config: SelectImagesConfig
    model: Model

    def __call__(self, groups: list[RowGroup], draft: Path) -> None:
        rows: list[dict[str, Any]] = []
        faults: dict[int, str] = {}
        batch: list[tuple[int, Image.Image]] = []
        for row in ImageReader(groups=groups).rows(["image", "fault"]):
            try:
                if row["fault"] is not None:
                    raise InputError(row["fault"])
                batch.append((row["image_id"], decode(row["image"]["bytes"])))
            except InputError as error:
                faults[row["image_id"]] = error.what
            if len(batch) == self.config.batch_size:
                rows += self._answer(batch)
                batch = []
        rows += self._answer(batch)
        draft.mkdir()
        IMAGE_ANSWERS.write(draft, {column.name: [row[column.name] for row in rows] for column in IMAGE_ANSWERS.columns})
        (draft / _FAULTS).write_text(json.dumps(faults), encoding="utf-8")

    def _answer(self, batch: Sequence[tuple[int, Image.Image]]) -> Iterator[dict[str, Any]]:
        """Rows of `image_answers`, image by image."""
        if not batch:
            return
        image = self._model.look(self._model.pixels([picture for _, picture in batch]))
        answered = [self._model.shares(image, one.text, list(one.weights)).cpu() for one in self._questions]
        for place, (identity, _) in enumerate(batch):
            for question, shares in zip(self._questions, answered, strict=True):
                best = int(shares[place].argmax())
                share, answer = float(shares[place, best]), list(question.weights)[best]
                yield {"image_id": identity, "attribute": question.name, "answer": answer, "share": share}

    @cached_property
    def _questions(self) -> list[Question]:
        return questions_of(self.config.questions)

    @cached_property
    def _model(self) -> VisualQuestions:
        return VisualQuestions(self.model, worker_device(self.config.device), getattr(torch, self.config.dtype))


def read_labels(path: Path, questions: Sequence[Question], reader: ImageReader) -> tuple[Answers, dict[int, str], int]:
    """The answers in a table of labels, why images have none, and how many labels are of no image.

    Raises:
        InputError: the file is none that is known, lacks a column, has a broken row, or labels an image twice.
    """
    names: dict[str, int | None] = {}
    for row in reader.rows(["image.path"]):
        names[row["image"]["path"]] = None if row["image"]["path"] in names else row["image_id"]  # None: of several images
    names |= {show_row_id(image): image for image in reader.ids.tolist()}
    answers: Answers = {}
    faults: dict[int, str] = {}
    seen: set[int] = set()
    strangers = 0
    for number, row in _rows(path, ["image", *(question.name for question in questions)]):
        if (name := str(row["image"])) not in names:
            strangers += 1
            continue
        image = names[name]
        if image is None:
            raise InputError(
                f"row {number} labels {name!r}, the path of several images",
                where=str(path),
                expected="the image's id, 16 hex digits",
            )
        if image in seen:
            raise InputError(f"row {number} labels the image {row['image']} again", where=str(path), expected="one row per image")
        seen.add(image)
        told = [_answer_of(row[question.name]) for question in questions]
        wrong = [(one.name, answer) for one, answer in zip(questions, told, strict=True) if answer not in one.weights]
        if wrong:
            faults[image] = f"its label {wrong[0][0]} is {wrong[0][1]}, which is no answer"
        else:
            answers[image] = [(str(answer), None) for answer in told]
    faults |= {image: "it has no label" for image in reader.ids.tolist() if image not in seen}
    return answers, faults, strangers


def _answer_of(value: Any) -> str | None:
    """A label as text: a whole number too, as JSON and Parquet may have it."""
    value = given(value)
    return None if value is None else value if isinstance(value, str) else repr(value)


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The number (from 0) and the cells of every row.

    Raises:
        InputError: as `read_labels`.
    """
    ending = ending_of(path)
    if ending == ".csv":
        for number, cells in read_csv(path, columns):
            yield number, {name: cells[name] for name in columns}
        return
    for number, row, fault in read_jsonl(path) if ending in (".jsonl", ".ndjson") else read_rows(path, columns):
        if fault is not None or not isinstance(row, dict):
            raise InputError(f"row {number} cannot be read: {fault or 'it is no object'}", where=str(path))
        check_columns(list(row), columns, f"{path}, row {number}")
        yield number, row
