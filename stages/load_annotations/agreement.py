"""Agreement of annotators of the same images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from irpipe.models.metrics.alpha import alpha
from irpipe.stages.load_annotations.check import Record


def image_sets(records: Sequence[Record]) -> list[list[Record]]:
    """Fully ranked records (no choices) that several people made of the same images of the same prompt."""
    groups: dict[tuple[str, frozenset[str]], list[Record]] = defaultdict(list)
    for record in records:
        if not record.choice and all(rank is not None for rank in record.ranks):
            groups[record.prompt, frozenset(record.images)].append(record)
    return [group for group in groups.values() if len(group) > 1]


def agreement(records: Sequence[Record]) -> dict[str, Any]:
    """Pairwise agreement, Kendall's W, Krippendorff's alpha, and each annotator's agreement with the others.

    Pairwise agreement is the share of image pairs, untied by both of two people, that they order alike.
    Without images that several people ranked, only their number (0) is returned.
    """
    groups = image_sets(records)
    if not groups:
        return {"image_sets": 0}
    tally: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    total = [0, 0]
    concordance = []
    for group in groups:
        ranks = rank_matrix(group)
        concordance.append(kendalls_w(ranks))
        for first, second in combinations(range(len(group)), 2):
            same, compared = agreeing_pairs(ranks[first], ranks[second])
            for counts in (total, tally[str(group[first].annotator)], tally[str(group[second].annotator)]):
                counts[0] += same
                counts[1] += compared
    return {
        "image_sets": len(groups),
        "pairs_compared": total[1],
        "pairwise_agreement": _share(*total),
        "kendalls_w": round(float(np.mean(concordance)), 4),
        "krippendorffs_alpha": krippendorffs_alpha(groups),
        "by_annotator": {
            name: {"pairs": compared, "agreement": _share(same, compared)} for name, (same, compared) in sorted(tally.items())
        },
    }


def rank_matrix(group: Sequence[Record]) -> NDArray[np.float64]:
    """(annotators, images) ranks averaged over ties, images in the order of the first record."""
    order = group[0].images
    rows = []
    for record in group:
        by_image = dict(zip(record.images, record.ranks, strict=True))
        rows.append(rankdata([by_image[image] for image in order]))
    return np.array(rows)


def agreeing_pairs(first: NDArray[np.float64], second: NDArray[np.float64]) -> tuple[int, int]:
    """The number of pairs that two people, with ranks (n,) each, order alike, and of pairs untied by both."""
    upper = np.triu_indices(len(first), 1)
    product = np.sign(first[upper[0]] - first[upper[1]]) * np.sign(second[upper[0]] - second[upper[1]])
    return int((product > 0).sum()), int((product != 0).sum())


def kendalls_w(ranks: NDArray[np.float64]) -> float:
    """Kendall's coefficient of concordance, corrected for ties (Kendall and Gibbons 1990): 0 none, 1 full.

    W = 12 S / (m^2 (n^3 - n) - m T), S = squared deviations of the rank sums, T = sum over annotators and ties of
    t^3 - t. Annotators who tie everything give no order: W is 1 if all do, since they agree.

    Args:
        ranks: (m annotators, n images), averaged over ties.
    """
    m, n = ranks.shape
    sums = ranks.sum(axis=0)
    deviation = float(((sums - sums.mean()) ** 2).sum())
    ties = sum(
        float((counts**3 - counts).sum()) for counts in (np.unique(row, return_counts=True)[1].astype(float) for row in ranks)
    )
    bound = m**2 * (n**3 - n) - m * ties
    return 12 * deviation / bound if bound > 0 else 1.0


def krippendorffs_alpha(groups: Sequence[Sequence[Record]]) -> float | None:
    """Alpha at the ordinal level over all images that several people ranked; None where all ranks are one."""
    ranks = [dense_ranks(group) for group in groups]
    first = np.cumsum([0, *(table.shape[1] for table in ranks)])
    units = [np.broadcast_to(start + np.arange(table.shape[1]), table.shape) for start, table in zip(first, ranks, strict=False)]
    values = np.concatenate([table.ravel() for table in ranks]).astype(np.float64)
    value = alpha(np.concatenate([table.ravel() for table in units]), values, "ordinal")
    return None if value is None else round(value, 4)


def dense_ranks(group: Sequence[Record]) -> NDArray[np.int64]:
    """(annotators, images) ranks without gaps, since gaps mean nothing."""
    return np.array([rankdata(row, method="dense") for row in rank_matrix(group)], dtype=np.int64)


def _share(part: int, total: int) -> float | None:
    return round(part / total, 4) if total else None
