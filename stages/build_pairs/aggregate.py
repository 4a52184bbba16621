"""Combining several rankings of the same images into one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from irpipe.pipeline.hashing import row_id
from irpipe.stages.build_pairs.expand import Rankings

# Fitted strengths closer than this are a tie: the fit itself stops at about a tenth of it.
_SAME_STRENGTH = 1e-4


def aggregates(rankings: Rankings, method: str) -> tuple[Rankings, dict[tuple[int, int], int]]:
    """One ranking for each set of images of a prompt.

    A set that only one record ranked is kept as it is. Only records of the same set of images are combined.

    Returns:
        the rankings, and for `majority` the sign of each pair of an aggregate by its two row numbers:
        1 the first is better, -1 the second, 0 as many votes for either, and no entry for pairs that all tied.
    """
    parts: list[dict[str, NDArray[Any]]] = []
    names: list[str | None] = []
    signs: dict[tuple[int, int], int] = {}
    first_row = 0
    for prompt, members in _image_sets(rankings):
        first = members[0]
        images = rankings.images[first]
        if len(members) == 1:
            ranking, ranks = int(rankings.rankings[first.start]), rankings.ranks[first]
            annotator = rankings.annotator(first.start)
        else:
            votes = _votes(rankings, members, images)
            ranking = row_id("aggregate", method, sorted(int(rankings.rankings[rows.start]) for rows in members))
            ranks, annotator = _joint_ranks(votes, method), None
            if method == "majority":
                signs.update(_majority(votes, first_row))
        count = len(images)
        parts.append(
            {
                "rankings": np.full(count, ranking, dtype=np.uint64),
                "prompts": np.full(count, prompt, dtype=np.uint64),
                "images": images,
                "ranks": ranks,
                "choices": np.full(count, all(rankings.choices[rows.start] for rows in members)),
            }
        )
        names += [annotator] * count
        first_row += count
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Rankings.of(**columns, names=names), signs


def _image_sets(rankings: Rankings) -> list[tuple[int, list[slice]]]:
    """For each set of images of a prompt, the prompt and the rows of the records that rank it."""
    groups: dict[tuple[int, frozenset[int]], list[slice]] = {}
    for rows in rankings.records():
        image_set = frozenset(rankings.images[rows].tolist())
        groups.setdefault((int(rankings.prompts[rows.start]), image_set), []).append(rows)
    return [(prompt, members) for (prompt, _), members in groups.items()]


def _votes(rankings: Rankings, members: Sequence[slice], images: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(annotators, images) ranks, averaged over ties, in one order of images."""
    order = {int(image): index for index, image in enumerate(images.tolist())}
    votes = np.empty((len(members), len(images)))
    for row, rows in enumerate(members):
        indices = [order[int(image)] for image in rankings.images[rows].tolist()]
        votes[row, indices] = rankdata(rankings.ranks[rows])
    return votes


def _joint_ranks(votes: NDArray[np.float64], method: str) -> NDArray[np.int32]:
    """The aggregate's ranks (images,) from votes (annotators, images)."""
    if method == "borda":
        return dense(votes.sum(axis=0))
    if method == "bradley-terry":
        return _bradley_terry(votes)
    return np.full(votes.shape[1], -1, dtype=np.int32)  # a majority of pairs need not be a ranking


def _bradley_terry(votes: NDArray[np.float64]) -> NDArray[np.int32]:
    """Ranks (images,) by strengths fitted to votes (annotators, images) (Bradley and Terry 1952; choix, lightly regularised)."""
    import choix

    wins = [pair for row in votes for pair in _ordered_pairs(row)]
    if not wins:
        return np.ones(votes.shape[1], dtype=np.int32)
    strengths = choix.opt_pairwise(votes.shape[1], wins, alpha=1e-2, tol=1e-8)
    order = np.argsort(-strengths, kind="stable")
    steps = np.diff(-strengths[order], prepend=-strengths[order][:1]) > _SAME_STRENGTH
    ranks = np.empty(len(strengths), dtype=np.int32)
    ranks[order] = 1 + np.cumsum(steps)
    return ranks


def dense(values: NDArray[np.float64]) -> NDArray[np.int32]:
    """(n,) ranks without gaps of (n,) values, the least value first."""
    ranks: NDArray[np.int32] = rankdata(values, method="dense").astype(np.int32)
    return ranks


def _ordered_pairs(row: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """The untied pairs (better, worse) of one annotator's ranks (images,)."""
    for first, second in combinations(range(len(row)), 2):
        if row[first] != row[second]:
            yield (first, second) if row[first] < row[second] else (second, first)


def _majority(votes: NDArray[np.float64], start: int) -> Iterator[tuple[tuple[int, int], int]]:
    """The majority's sign of every pair of rows, from votes (annotators, images); the first image is row `start`."""
    for first, second in combinations(range(votes.shape[1]), 2):
        opinions = np.sign(votes[:, second] - votes[:, first])
        if opinions.any():
            yield (start + first, start + second), int(np.sign(opinions.sum()))
