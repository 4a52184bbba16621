"""How far annotators agree (RichHF, figures 2 to 4 and section 3.4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.metrics.alpha import alpha
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, prompt_tokens
from irpipe.stages.load_rich_feedback.aggregate import marked_by_each
from irpipe.stages.load_rich_feedback.record import Answer

_LEAST_SHARED = 10  # scores that tell whether two people disagree


def agreement(images: Mapping[str, Sequence[Answer]], radius: float, longest: int) -> dict[str, Any]:
    """Figures over the images of two answers or more; none of an aspect that fewer than two people gave.

    Returns:
        by aspect: `images`, `equal` (share whose scores are all equal), `within_one` (whose largest difference is at most one
        point), `alpha` (Krippendorff's, ordinal); `iou` by kind: mean intersection over union of two people's discs, where one
        has any; `words_alike`: share of tokens that two people label alike; `against_all`: people whose scores go against the
        others'.
    """
    several = [answers for answers in images.values() if len(answers) > 1]
    return {
        **{aspect: _of_aspect(several, aspect) for aspect in ASPECTS},
        "iou": {kind: _overlap(several, kind, radius, longest) for kind in KINDS},
        "words_alike": _words_alike(several),
        "against_all": _against_all(several),
    }


def _of_aspect(several: Sequence[Sequence[Answer]], aspect: str) -> dict[str, Any]:
    units, values, spans = [], [], []
    for unit, answers in enumerate(several):
        given = [score for answer in answers if (score := answer.scores.get(aspect)) is not None]
        if len(given) > 1:
            units += [unit] * len(given)
            values += given
            spans.append(max(given) - min(given))
    if not spans:
        return {"images": 0, "equal": None, "within_one": None, "alpha": None}
    return {
        "images": len(spans),
        "equal": float(np.mean(np.array(spans) == 0)),
        "within_one": float(np.mean(np.array(spans) <= 1)),
        "alpha": alpha(np.array(units), np.array(values), "ordinal"),
    }


def _overlap(several: Sequence[Sequence[Answer]], kind: str, radius: float, longest: int) -> float | None:
    overlaps = []
    for answers in several:
        marked = marked_by_each(answers, kind, radius, longest)
        for first, second in combinations(marked, 2):
            either = np.logical_or(first, second).sum()
            if either:
                overlaps.append(float(np.logical_and(first, second).sum() / either))
    return float(np.mean(overlaps)) if overlaps else None


def _words_alike(several: Sequence[Sequence[Answer]]) -> float | None:
    alike = total = 0
    for answers in several:
        count = len(prompt_tokens(answers[0].prompt))
        for first, second in combinations(answers, 2):
            alike += count - len(set(first.places) ^ set(second.places))
            total += count
    return alike / total if total else None


def _against_all(several: Sequence[Sequence[Answer]]) -> list[str]:
    """People whose scores do not rise with those of any other person on the same images (Pearson's correlation of 0 or less)."""
    shared: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for answers in several:
        for first, second in permutations(answers, 2):
            for aspect in ASPECTS:
                mine, theirs = first.scores.get(aspect), second.scores.get(aspect)
                if mine is not None and theirs is not None:
                    shared[first.annotator, second.annotator].append((mine, theirs))
    agrees: dict[str, bool] = {}
    for (person, _), pairs in shared.items():
        if len(pairs) >= _LEAST_SHARED:
            agrees[person] = agrees.get(person, False) or _correlation(np.array(pairs)) > 0
    return sorted(person for person, some in agrees.items() if not some)


def _correlation(pairs: NDArray[np.float64]) -> float:
    """Of the two columns of (n, 2); 0 where one of them is constant."""
    if not np.ptp(pairs, axis=0).all():
        return 0.0
    return float(np.corrcoef(pairs[:, 0], pairs[:, 1]).ravel()[1])
