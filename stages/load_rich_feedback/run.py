"""The work of `load-rich-feedback`."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from irpipe.models.pictures import decode
from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError, RecipeError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import image_id
from irpipe.schemas.images import ImageShards, image_row
from irpipe.schemas.prompts import prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.rich_feedback import (
    ASPECTS,
    HEATMAPS,
    RAW_RECORDS,
    RICH_FEEDBACK,
    RICH_POINTS,
    RICH_RATINGS,
    RICH_WORDS,
    prompt_tokens,
    unrepresentable,
)
from irpipe.schemas.table import Table, TableWriter
from irpipe.stages.load_rich_feedback import PUBLISHED, LoadRichFeedbackConfig
from irpipe.stages.load_rich_feedback.aggregate import aggregate, check_together
from irpipe.stages.load_rich_feedback.agreement import agreement
from irpipe.stages.load_rich_feedback.label_studio import read_label_studio
from irpipe.stages.load_rich_feedback.own import read_own
from irpipe.stages.load_rich_feedback.pickapic import find_pictures
from irpipe.stages.load_rich_feedback.published import read_published
from irpipe.stages.load_rich_feedback.record import Answer, BadRecordError, Feedback

_BY_ENDING = {".jsonl": "jsonl", ".ndjson": "jsonl", ".tfrecord": "richhf-tfrecord"}
_WRITTEN_AT_ONCE = 256  # rows: a heatmap has some kilobytes
_MOST_NAMED = 5


def run(config: LoadRichFeedbackConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    path = context.sources["path"][0] if config.path else inputs["rich-annotation-files"].file(RAW_RECORDS)
    kind = format_of(config, path)
    rejections = Rejections(config.max_rejected, path.name)
    with Writer(out) as writer:
        if kind in PUBLISHED:
            read, more = write_published(config, path, kind, writer, rejections, context)
        else:
            read, more = write_answers(config, path, kind, writer, rejections, context)
    rejections.check(read, writer.kept)
    rejected = rejections.write(out)
    metrics = {"images": writer.images, **more, **writer.figures(), "rejected_for": rejections.counts()}
    return Report(Rows(read, read - rejected, rejected), metrics)


def format_of(config: LoadRichFeedbackConfig, path: Path) -> str:
    """The format of the records.

    Raises:
        RecipeError: it must be given.
    """
    kind = config.format or ("jsonl" if config.path is None else _BY_ENDING.get(ending_of(path)))
    if kind is None:
        formats = "richhf-tfrecord, richhf-parquet, jsonl, label-studio"
        raise RecipeError(f"the format of {path.name} is not given", fix=f"--set load-rich-feedback.format=... ({formats})")
    return kind


class Writer:
    """Writes the tables piece by piece; memory holds one row group of each, and counts."""

    def __init__(self, out: Path) -> None:
        self.out, self._stack = out, ExitStack()
        self._writers: dict[str, TableWriter] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {table.name: [] for table in (RICH_FEEDBACK, HEATMAPS)}
        self._pictures: ImageShards | None = None
        self._splits: Counter[str] = Counter()
        self._odd: Counter[str] = Counter()
        self.kept = self.images = 0

    def __enter__(self) -> Writer:
        for table in (RICH_FEEDBACK, HEATMAPS):
            path = self.out / f"{table.name}.parquet"
            self._writers[table.name] = self._stack.enter_context(table.writer(path, _WRITTEN_AT_ONCE))
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            if error[0] is None:
                for table in (RICH_FEEDBACK, HEATMAPS):
                    self._flush(table)
        finally:
            self._stack.__exit__(*error)

    def feedback(self, feedback: Feedback) -> None:
        """Add an image's feedback.

        Raises:
            BadRecordError: its labels do not fit its prompt.
        """
        words = feedback.words()
        prompt = feedback.prompt
        row: dict[str, Any] = {
            "uid": feedback.uid,
            "image_id": feedback.image_id,
            "prompt_id": prompt_id(prompt) if prompt else None,
        }
        row |= {"prompt": prompt, **{aspect: feedback.scores.get(aspect) for aspect in ASPECTS}, "words": words}
        row |= {"labels": feedback.labels, "annotators": feedback.annotators, "split": feedback.split}
        maps = [
            {"uid": feedback.uid, "kind": kind, "image": {"bytes": data, "path": f"{feedback.uid}-{kind}"}}
            for kind, data in feedback.maps.items()
        ]
        self._add(RICH_FEEDBACK, [row])
        self._add(HEATMAPS, maps)
        self.kept += 1
        self.images += 1
        self._splits[feedback.split or "none"] += 1
        self._odd.update(unrepresentable(prompt_tokens(prompt)) if prompt else [])

    def picture(self, identity: int, uid: str, prompt: str, data: bytes) -> None:
        """Add an image.

        Raises:
            InputError: it does not decode.
        """
        image = decode(data)
        if self._pictures is None:
            self._pictures = self._stack.enter_context(ImageShards(self.out))
        digest, format_ = hashlib.sha256(data).hexdigest(), image.format or "PNG"
        self._pictures.append(image_row(identity, prompt_id(prompt), data, f"{uid}.jpg", digest, image.size, format_))

    def figures(self) -> dict[str, Any]:
        """Images by split, and tokens that RichHF's own text form would lose."""
        odd = [repr(token) for token in sorted(self._odd)]
        return {"splits": dict(sorted(self._splits.items())), "tokens_the_published_text_loses": odd[:_MOST_NAMED]}

    def _add(self, table: Table, rows: list[dict[str, Any]]) -> None:
        waiting = self._rows[table.name]
        waiting += rows
        if len(waiting) >= _WRITTEN_AT_ONCE:
            self._flush(table)

    def _flush(self, table: Table) -> None:
        rows = self._rows[table.name]
        self._writers[table.name].append({column.name: [row[column.name] for row in rows] for column in table.columns})
        rows.clear()


def write_published(
    config: LoadRichFeedbackConfig, path: Path, kind: str, writer: Writer, rejections: Rejections, context: Context
) -> tuple[int, dict[str, Any]]:
    """Records that are aggregated already, joined with their images and prompts. Returns how many were read, and counts."""
    prompts = join(context.sources["pickapic"][0], path, kind, writer, context) if config.pickapic else {}
    seen: set[str] = set()
    read = without_prompt = 0
    with context.progress("reading rich feedback", None, "records") as bar:
        for row, record in enumerate(read_published(path, kind)):
            read += 1
            bar.advance(1)
            try:
                if isinstance(record, BadRecordError):
                    raise record
                if record.uid in seen:
                    raise BadRecordError("the image stands twice", record.uid)
                record.prompt = record.prompt or prompts.get(record.uid)
                without_prompt += record.prompt is None
                if record.prompt is None and config.require_prompts:
                    rejections.refuse(row, "its prompt is not known", f"{record.uid}; {_WITHOUT}")
                    continue
                if record.prompt is not None:
                    record.image_id = image_id(prompt_id(record.prompt), f"{record.uid}.jpg")
                    if record.image is not None:
                        writer.picture(record.image_id, record.uid, record.prompt, record.image)
                writer.feedback(record)
                seen.add(record.uid)
            except BadRecordError as error:
                rejections.refuse(row, error.reason, error.detail)
            except InputError as error:
                rejections.refuse(row, "the image does not decode", error.what)
    return read, {"without_prompt": without_prompt}


_WITHOUT = "name Pick-a-Pic's Parquet by load-rich-feedback.pickapic, or set require_prompts=false"


def join(pickapic: Path, path: Path, kind: str, writer: Writer, context: Context) -> dict[str, str]:
    """Write the images that the records name, and return the prompts by uid."""
    wanted = {record.uid for record in read_published(path, kind) if isinstance(record, Feedback)}
    prompts: dict[str, str] = {}
    missing = Counter(dict.fromkeys(("bytes", "decodable"), 0))
    for picture in find_pictures(pickapic, wanted, context):
        prompts[picture.uid] = picture.caption
        if picture.data is None:
            missing["bytes"] += 1
            continue
        try:
            identity = image_id(prompt_id(picture.caption), f"{picture.uid}.jpg")
            writer.picture(identity, picture.uid, picture.caption, picture.data)
        except InputError:
            missing["decodable"] += 1
    context.say(
        f"Pick-a-Pic has {len(prompts):,} of {len(wanted):,} images; {missing['bytes']:,} are without bytes,"
        f" {missing['decodable']:,} do not decode"
    )
    return prompts


def write_answers(
    config: LoadRichFeedbackConfig, path: Path, kind: str, writer: Writer, rejections: Rejections, context: Context
) -> tuple[int, dict[str, Any]]:
    """Raw answers, and what they say together. Returns how many were read, and the agreement."""
    images: dict[str, list[Answer]] = {}
    read = 0
    with context.progress("reading answers", None, "answers") as bar:
        for row, answer in enumerate(answers_of(path, kind)):
            read += 1
            bar.advance(1)
            try:
                if isinstance(answer, BadRecordError):
                    raise answer
                together = images.setdefault(answer.uid, [])
                check_together(together, answer)
                together.append(answer)
            except BadRecordError as error:
                rejections.refuse(row, error.reason, error.detail)
    images = {uid: answers for uid, answers in images.items() if answers}
    with context.progress("aggregating", len(images), "images") as bar:
        for answers in images.values():
            writer.feedback(aggregate(answers, config.radius, config.map_size))
            bar.advance(1)
    write_raw([answer for answers in images.values() for answer in answers], writer)
    figures = agreement(images, config.radius, config.map_size)
    (writer.out / "agreement.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return read, {"annotators": len({a.annotator for answers in images.values() for a in answers}), "agreement": figures}


def answers_of(path: Path, kind: str) -> Iterator[Answer | BadRecordError]:
    """The raw answers of a file or folder."""
    return read_own(path) if kind == "jsonl" else read_label_studio(path)


def write_raw(answers: list[Answer], writer: Writer) -> None:
    """The tables of raw answers."""
    points = [(a.uid, a.annotator, p.kind, p.x, p.y) for a in answers for p in a.points]
    words = [(a.uid, a.annotator, place, prompt_tokens(a.prompt)[place]) for a in answers for place in a.places]
    ratings = [(a.uid, a.annotator, *(a.scores.get(aspect) for aspect in ASPECTS)) for a in answers]
    for table, rows in ((RICH_POINTS, points), (RICH_WORDS, words), (RICH_RATINGS, ratings)):
        columns = list(zip(*rows, strict=True)) or [()] * len(table.columns)
        table.write(writer.out, {column.name: list(values) for column, values in zip(table.columns, columns, strict=True)})
