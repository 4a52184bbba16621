"""Label Studio's JSON export of rich feedback: points, spans of the prompt and ratings.

The task's data has the prompt (`prompt`, `caption` or `text`) and the image (`uid`, or `image`, whose file name without ending is
the uid). Points are KeyPointLabels whose label is a kind (implausibility, misalignment), in per cent; words are Labels on the
text; scores are Ratings whose names are the aspects. Its server checks nothing, so all of it is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from irpipe.schemas.files import is_text, read_json
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, token_spans
from irpipe.schemas.values import is_finite
from irpipe.stages.load_rich_feedback.own import checked_point, checked_scores, is_side
from irpipe.stages.load_rich_feedback.record import Answer, BadRecordError, Point

_PROMPTS = ("prompt", "caption", "text")


def read_label_studio(path: Path) -> Iterator[Answer | BadRecordError]:
    """The answers of an export in turn: of each task and annotator the latest that was submitted, without drafts and predictions.

    Raises:
        InputError: it is not JSON.
    """
    export = read_json(path)
    tasks = export if isinstance(export, list) else [export]
    row = 0
    for task in tasks:
        for answer in _of_task(task):
            if isinstance(answer, Answer):
                answer.row = row
            yield answer
            row += 1


def _of_task(task: Any) -> Iterator[Answer | BadRecordError]:
    annotations = task.get("annotations", task.get("completions")) if isinstance(task, dict) else None
    if not isinstance(annotations, list) or not isinstance(task.get("data"), dict):
        yield BadRecordError("not a task of Label Studio's JSON export", str(task)[:80])
        return
    latest: dict[str, str] = {}
    for annotation in annotations:
        if isinstance(annotation, dict) and not annotation.get("was_cancelled"):
            person = _person(annotation)
            latest[person] = max(latest.get(person, ""), str(annotation.get("updated_at", "")))
    for annotation in annotations:
        try:
            yield _answer(task["data"], annotation, latest)
        except BadRecordError as error:
            yield error


def _person(annotation: Mapping[str, Any]) -> str:
    who = annotation.get("completed_by")
    return str(who.get("id", who.get("email")) if isinstance(who, dict) else who)


def _answer(data: Mapping[str, Any], annotation: Any, latest: dict[str, str]) -> Answer:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result"), list):
        raise BadRecordError("no annotation of Label Studio", str(annotation)[:80])
    if annotation.get("was_cancelled"):
        raise BadRecordError("skipped by the annotator")
    person = _person(annotation)
    if str(annotation.get("updated_at", "")) != latest.get(person):
        raise BadRecordError("the annotator answered again later", person)
    latest.pop(person)  # of two at the same time the first counts
    prompt = next((data[name] for name in _PROMPTS if is_text(data.get(name)) and data[name].strip()), None)
    uid = data.get("uid") or PurePosixPath(str(data.get("image") or "")).stem
    if prompt is None or not uid:
        raise BadRecordError("no prompt" if prompt is None else "no image")
    results = [result for result in annotation["result"] if isinstance(result, dict)]
    width, height = _size(data, results)
    points, places, scores = [], set(), {}
    for result in results:
        kind, value = result.get("type"), result.get("value")
        if not isinstance(value, dict):
            raise BadRecordError("a result has no value", str(result)[:80])
        if kind == "keypointlabels":
            points += _points(value)
        elif kind == "labels":
            places |= _places(prompt, value)
        elif kind == "rating" and result.get("from_name") in ASPECTS:
            scores[result["from_name"]] = value.get("rating")
        else:
            raise BadRecordError("a result that is no rich feedback", f"{kind} {result.get('from_name')!r}")
    return Answer(
        row=0,
        annotator=person,
        prompt=prompt,
        width=width,
        height=height,
        uid=str(uid),
        points=points,
        places=sorted(places),
        scores=checked_scores(scores),
    )


def _size(data: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Width and height of the image, which Label Studio writes beside points; else the task's own."""
    sizes: list[tuple[Any, Any]] = [
        (result.get("original_width"), result.get("original_height")) for result in results if "original_width" in result
    ]
    sizes += [(data["width"], data["height"])] if {"width", "height"} <= data.keys() else []
    if not sizes or not all(is_side(side) for size in sizes for side in size):
        raise BadRecordError("width and height of the image are not known", f"{sizes!r:.80}")
    if len(set(sizes)) != 1:
        raise BadRecordError("the image has several sizes", f"{sorted(set(sizes))!r:.80}")
    return sizes[0]


def _points(value: Mapping[str, Any]) -> list[Point]:
    labels = value.get("keypointlabels")
    kinds = [str(label).strip().lower() for label in labels] if isinstance(labels, list) else []
    if len(kinds) != 1 or kinds[0] not in KINDS:
        raise BadRecordError(f"a point's label is none of {', '.join(KINDS)}", str(labels))
    x, y = (part / 100 if is_finite(part) else part for part in (value.get("x"), value.get("y")))
    return [checked_point(kinds[0], x, y)]


def _places(prompt: str, value: Mapping[str, Any]) -> set[int]:
    """The tokens that a span touches. Offsets count UTF-16 units where the browser made them: the text says which they are."""
    try:
        begin, end = int(value["start"]), int(value["end"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise BadRecordError("a span has no begin and end", str(value)[:80]) from None
    text = value.get("text")
    spans = {(begin, end), (_code_point(prompt, begin), _code_point(prompt, end))}
    fitting = [span for span in sorted(spans) if 0 <= span[0] < span[1] <= len(prompt) and text in (None, prompt[slice(*span)])]
    if len(fitting) != 1:
        raise BadRecordError("a span's text is not what the prompt has there", str(value)[:80])
    begin, end = fitting[0]
    places = {place for place, (first, last) in enumerate(token_spans(prompt)) if first < end and begin < last}
    if not places:
        raise BadRecordError("a span has no word", str(value)[:80])
    return places


def _code_point(text: str, unit: int) -> int:
    """The character at a UTF-16 unit; -1 outside of the text."""
    data = text.encode("utf-16-le")
    return len(data[: 2 * unit].decode("utf-16-le", "ignore")) if 0 <= 2 * unit <= len(data) else -1
