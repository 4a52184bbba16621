"""Rich feedback in its four formats, and choices in a chat: valid inputs and their readers."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from irpipe.stages.load_annotations.discord import ChatOptions, records
from irpipe.stages.load_rich_feedback.label_studio import read_label_studio
from irpipe.stages.load_rich_feedback.own import read_own
from irpipe.stages.load_rich_feedback.published import read_published
from irpipe.stages.load_rich_feedback.record import Answer, BadRecordError
from irpipe.stages.load_rich_feedback.tfrecord import _example_class

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square", "star")]
SCORES = {"plausibility": 2, "alignment": 5, "aesthetics": 3, "overall": 4}
BOT = "bot"


def png(shade: int, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 8), (shade,) * 3 if mode == "RGB" else shade).save(buffer, "PNG")
    return buffer.getvalue()


# -- rich feedback ----------------------------------------------------------------------------------------------------


def own() -> bytes:
    lines = [
        {
            "image": f"{number}.png",
            "prompt": prompt,
            "annotator": "ann",
            "width": 64,
            "height": 32,
            "points": [{"kind": "implausibility", "x": 0.25, "y": 0.5}],
            "misaligned_words": [1],
            "scores": SCORES,
        }
        for number, prompt in enumerate(PROMPTS)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def label_studio() -> bytes:
    size = {"original_width": 64, "original_height": 32, "image_rotation": 0}
    spot = {"x": 25.0, "y": 50.0, "width": 1, "keypointlabels": ["Implausibility"]}
    span = {"start": 2, "end": 5, "text": "", "labels": ["misaligned"]}
    ratings = [
        {"type": "rating", "from_name": name, "to_name": "image", "value": {"rating": one}} for name, one in SCORES.items()
    ]
    tasks = [
        {
            "id": number,
            "data": {"image": f"{number}.png", "prompt": prompt},
            "annotations": [
                {
                    "completed_by": 1,
                    "updated_at": "2026-01-01",
                    "result": [
                        {**size, "type": "keypointlabels", "from_name": "points", "value": spot},
                        {"type": "labels", "from_name": "words", "to_name": "prompt", "value": span | {"text": prompt[2:5]}},
                        *ratings,
                    ],
                }
            ],
        }
        for number, prompt in enumerate(PROMPTS)
    ]
    return json.dumps(tasks).encode()


def answers(read: Callable[[Path], Any], file: str) -> Callable[[Path], Mapping[Any, Any]]:
    """What came of each row that was kept, known by its prompt: Label Studio's rows are answers, of which a task has several."""

    def kept(folder: Path) -> Mapping[Any, Any]:
        found = [one for one in read(folder / file) if isinstance(one, Answer)]
        return {((_row(one.prompt),), one.uid): (one.prompt, one.points, tuple(one.places), dict(one.scores)) for one in found}

    return kept


def _row(prompt: str) -> int:
    return PROMPTS.index(prompt) if prompt in PROMPTS else -1


own_answers, studio_answers = answers(read_own, "a.jsonl"), answers(read_label_studio, "a.json")


def features(number: int) -> dict[str, Any]:
    """The released fields of a record."""
    scores = ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")
    return {
        "filename": f"train/{number}.png",
        **dict.fromkeys(scores, 0.25 + number / 32),
        **dict.fromkeys(("artifact_map", "misalignment_map"), png(number)),
        "prompt_misalignment_label": "1 0 1",
    }


def tfrecord() -> bytes:
    out = b""
    for number in range(len(PROMPTS)):
        example = _example_class()()
        for name, value in features(number).items():
            if isinstance(value, float):
                example.features.feature[name].float_list.value.append(value)
            else:
                example.features.feature[name].bytes_list.value.append(value if isinstance(value, bytes) else value.encode())
        data = example.SerializeToString()
        length = struct.pack("<Q", len(data))
        out += length + _masked(length) + data + _masked(data)
    return out


def _masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def mirror() -> bytes:
    """The same as Parquet, with prompts."""
    rows = [features(number) | {"prompt": prompt} for number, prompt in enumerate(PROMPTS)]
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out)
    return out.getvalue()


def published(kind: str, file: str) -> Callable[[Path], Mapping[Any, Any]]:
    def kept(folder: Path) -> Mapping[Any, Any]:
        found = {}
        for row, one in enumerate(read_published(folder / file, kind)):
            if not isinstance(one, BadRecordError):
                try:
                    words = one.words()
                except BadRecordError:
                    continue
                found[((row,), one.uid)] = (dict(one.scores), dict(one.maps), one.labels, str(words))
        return found

    return kept


# -- a chat -----------------------------------------------------------------------------------------------------------


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def media(folder: Path) -> None:
    for number in range(4 * len(PROMPTS)):
        (folder / f"{number}.png").write_bytes(picture(number))


def chat() -> bytes:
    """Dialogues: a prompt, four images, one of them sent back, and its refinement."""
    messages: list[dict[str, Any]] = []

    def say(user: str, content: str, *files: int) -> None:
        attachments = [
            {"id": str(file), "url": f"{file}.png", "fileName": f"{file}.png", "fileSizeBytes": len(picture(file))}
            for file in files
        ]
        messages.append(
            {
                "id": str(len(messages) + 1),
                "type": "Default",
                "timestamp": f"2022-08-13T09:{len(messages):02}:00+00:00",
                "timestampEdited": None,
                "content": content,
                "author": {"id": user, "name": BOT if user == "9" else "somebody", "isBot": user == "9"},
                "mentions": [{"id": "7"}] if user == "9" else [],
                "attachments": attachments,
            }
        )

    for number, prompt in enumerate(PROMPTS):
        first = 4 * number
        say("7", f'!dream "{prompt}" -n 4')
        say("9", f'!dream "{prompt}" -n 4', *range(first, first + 4))
        say("7", f'!dream "{prompt}"', first + number % 4)
    return json.dumps({"guild": {}, "channel": {}, "messages": messages}).encode()


def choices(folder: Path) -> Mapping[Any, Any]:
    """Prompts and images of the choices. A changed message may end or begin another's dialogue, so all rows count as changed."""
    found = [one for one in records(folder / "x.json", ChatOptions(BOT)) if one.dropped is None]
    return {((0,), one.record): (one.prompt, tuple(one.images), tuple(one.ranks)) for one in found}
