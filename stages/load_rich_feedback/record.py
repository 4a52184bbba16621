"""What is read: one image's feedback, or one person's answer on an image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from irpipe.pipeline.hashing import show_row_id
from irpipe.schemas.annotations import image_id
from irpipe.schemas.prompts import prompt_id
from irpipe.schemas.rich_feedback import prompt_tokens

_IMAGE_ID = re.compile(r"[0-9a-f]{16}")


class BadRecordError(Exception):
    """A record that cannot be used: the reason, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str | None = None) -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass
class Feedback:
    """All that is said of one image.

    Attributes:
        scores: by aspect, 0 to 1; labels: whether each token is misaligned; shares: of votes for that.
        maps: encoded heatmaps by kind.
        image: encoded, where the source has it.
    """

    uid: str
    scores: Mapping[str, float | None]
    maps: Mapping[str, bytes]
    labels: Sequence[bool] | None
    shares: Sequence[float] | None = None
    prompt: str | None = None
    image_id: int | None = None
    annotators: int | None = None
    split: str | None = None
    image: bytes | None = None

    def words(self) -> list[dict[str, object]] | None:
        """The prompt's tokens with their labels; None without either.

        Raises:
            BadRecordError: they differ in number.
        """
        if self.prompt is None or self.labels is None:
            return None
        tokens = prompt_tokens(self.prompt)
        if len(tokens) != len(self.labels):
            raise BadRecordError(
                "labels do not fit the prompt", f"{len(self.labels)} labels, {len(tokens)} tokens: {self.prompt!r}"
            )
        shares: Sequence[float | None] = self.shares if self.shares is not None else [None] * len(tokens)
        return [
            {"word": token, "misaligned": label, "share": share}
            for token, label, share in zip(tokens, self.labels, shares, strict=True)
        ]


@dataclass(frozen=True)
class Point:
    """A point on an image, as shares of its width and height."""

    kind: str
    x: float
    y: float


@dataclass
class Answer:
    """What one person said of one image.

    Attributes:
        path: of the image, from which and the prompt its id follows; uid: where the source names the image otherwise. One of 16
            hex digits is the image's id.
        places: of misaligned tokens; scores: by aspect, 1 to 5, None where not given.
    """

    row: int
    annotator: str
    prompt: str
    width: int
    height: int
    uid: str = ""
    path: str | None = None
    points: Sequence[Point] = ()
    places: Sequence[int] = ()
    scores: Mapping[str, float | None] = field(default_factory=dict)
    split: str | None = None
    image_id: int | None = None

    def __post_init__(self) -> None:
        if self.path is not None:
            self.image_id = image_id(prompt_id(self.prompt), self.path)
            self.uid = show_row_id(self.image_id)
        elif _IMAGE_ID.fullmatch(self.uid):
            self.image_id = int(self.uid, 16)
