"""All answers on one image become its feedback (RichHF, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from irpipe.models.maps import discs, encoded, map_shape
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, prompt_tokens
from irpipe.stages.load_rich_feedback.record import Answer, BadRecordError, Feedback


def marked_by_each(answers: Sequence[Answer], kind: str, radius: float, longest: int) -> NDArray[np.bool_]:
    """(a, h, w) what each answer marks as one kind.

    Args:
        radius: as a share of the height, whatever the width (section 3.1: 1/20).
    """
    height, width = shape = map_shape(answers[0].width, answers[0].height, longest)
    return np.stack(
        [
            discs([(point.x * width, point.y * height) for point in answer.points if point.kind == kind], shape, radius * height)
            for answer in answers
        ]
    )


def check_together(answers: Sequence[Answer], answer: Answer) -> None:
    """Whether an answer fits the earlier ones on its image.

    Raises:
        BadRecordError: the annotator answered before, or prompt, size or split differ.
    """
    if any(answer.annotator == other.annotator for other in answers):
        raise BadRecordError("the annotator answered twice", f"{answer.annotator} on {answer.uid}")
    for name in ("prompt", "width", "height", "split", "image_id"):
        if answers and getattr(answers[0], name) != getattr(answer, name):
            raise BadRecordError(
                f"{name} differs from that of an earlier answer", f"{getattr(answer, name)!r} on {answer.uid}"[:200]
            )


def aggregate(answers: Sequence[Answer], radius: float, longest: int) -> Feedback:
    """The mean map of the annotators' discs, the majority's words (a tie is aligned), and mean scores, (Likert - 1) / 4."""
    first, count = answers[0], len(answers)
    tokens = prompt_tokens(first.prompt)
    votes = np.zeros(len(tokens), dtype=np.int64)
    for answer in answers:
        votes[list(answer.places)] += 1
    scores: dict[str, float | None] = {}
    for aspect in ASPECTS:
        given = [score for answer in answers if (score := answer.scores.get(aspect)) is not None]
        scores[aspect] = (sum(given) / len(given) - 1) / 4 if given else None
    maps = {kind: encoded(marked_by_each(answers, kind, radius, longest).mean(axis=0)) for kind in KINDS}
    return Feedback(
        uid=first.uid,
        scores=scores,
        maps=maps,
        labels=(2 * votes > count).tolist(),
        shares=(votes / count).tolist(),
        prompt=first.prompt,
        image_id=first.image_id,
        annotators=count,
        split=first.split,
    )
