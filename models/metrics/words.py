"""Agreement of predicted with annotated misaligned words (RichHF, table 4). The positive class is: misaligned."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np

from irpipe.schemas.rich_feedback import MISALIGNED_SUFFIX

_CUTS = tuple(round(0.05 * number, 2) for number in range(1, 20))
Labels = Sequence[Sequence[bool]]


def precision_recall_f1(found: Labels, true: Labels) -> dict[str, float]:
    """Pooled over all words of all prompts, as the paper has them; 0 where one is not defined.

    Args:
        found, true: of each prompt, whether each of its words is misaligned.
    """
    hits = false = missed = 0
    for mine, theirs in zip(found, true, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            hits += one and other
            false += one and not other
            missed += other and not one
    return _figures(hits, false, missed)


def per_sample(found: Labels, true: Labels) -> dict[str, float]:
    """Means over prompts, as the replication has them: a prompt without misaligned words counts 0, even if that was told."""
    rows = [precision_recall_f1([mine], [theirs]) for mine, theirs in zip(found, true, strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in ("precision", "recall", "f1")}


def _figures(hits: int, false: int, missed: int) -> dict[str, float]:
    precision, recall = hits / max(1, hits + false), hits / max(1, hits + missed)
    return {"precision": precision, "recall": recall, "f1": 2 * hits / max(1, 2 * hits + false + missed)}


def labels_by_matching(predicted: str, target: str) -> tuple[list[bool], list[bool]]:
    """What a predicted text says of each word of the target, and what the target says; words are matched as sequences.

    A lost or a further word does not shift the words after it, as it does where they are matched by place. Words of the target
    that the prediction lacks are told as aligned.
    """
    mine, theirs = predicted.split(), target.split()
    bare = [[word.removesuffix(MISALIGNED_SUFFIX) for word in words] for words in (mine, theirs)]
    true = [word.endswith(MISALIGNED_SUFFIX) for word in theirs]
    found = [False] * len(theirs)
    for block in SequenceMatcher(None, bare[0], bare[1], autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            found[block.b + offset] = mine[block.a + offset].endswith(MISALIGNED_SUFFIX)
    return found, true


def labels_by_place(predicted: str, target: str) -> tuple[list[int], list[int]]:
    """As the replication has it: word by word; 1 misaligned, 0 aligned, -1 where the predicted word is another or missing."""
    mine, theirs = predicted.split(), target.split()
    true = [int(word.endswith(MISALIGNED_SUFFIX)) for word in theirs]
    found = []
    for place, word in enumerate(theirs):
        same = place < len(mine) and mine[place].removesuffix(MISALIGNED_SUFFIX) == word.removesuffix(MISALIGNED_SUFFIX)
        found.append(int(mine[place].endswith(MISALIGNED_SUFFIX)) if same else -1)
    return found, true


def best_cut(shares: Sequence[Sequence[float]], true: Labels) -> tuple[float, float]:
    """The cut of the highest F1 among .05, .10, ... .95, the middle one of equal ones, and that F1."""
    scores = [precision_recall_f1([[share > cut for share in row] for row in shares], true)["f1"] for cut in _CUTS]
    best = [cut for cut, score in zip(_CUTS, scores, strict=True) if score == max(scores)]
    return best[len(best) // 2], max(scores)
