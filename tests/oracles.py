"""Plain transcriptions of published algorithms, slow and obvious, that ours are held against."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def knn_graph(points: np.ndarray, k: int) -> list[list[int]]:
    """Each point's k nearest others by cosine, in float64; ties to the lower row."""
    units = points.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    similarity = units @ units.T
    np.fill_diagonal(similarity, -np.inf)
    return [np.lexsort((np.arange(len(row)), -row))[:k].tolist() for row in similarity]


def fast_vote_k(neighbours: list[list[int]], count: int, rho: float = 10.0) -> tuple[list[int], list[float]]:
    """Greedy selection with discounted votes (Su et al. 2022), every score summed anew for every pick.

    Voters count rho^-(selected prompts they vote for), unless they are selected themselves. Ties: more voters first,
    then the lower row.
    """
    voters: dict[int, list[int]] = {}
    for voter, targets in enumerate(neighbours):
        for target in targets:
            voters.setdefault(target, []).append(voter)
    order = sorted(voters, key=lambda row: (-len(voters[row]), row))
    heard = [0] * len(neighbours)
    selected: list[int] = []
    scores: list[float] = []
    while len(selected) < count:
        best, best_score = None, 0.0
        for row in order:
            if row in selected:
                continue
            score = 0.0
            for voter in voters[row]:
                if voter not in selected:
                    score += rho ** -heard[voter]
            if score > best_score * (1 + 1e-9):  # equal sums may differ by rounding
                best, best_score = row, score
        if best is None:
            break
        selected.append(best)
        scores.append(best_score)
        for voter in voters[best]:
            heard[voter] += 1
    return selected, scores


def pairs_of(images: list[str], ranks: list[int]) -> set[tuple[str, str]]:
    """Every (better, worse) of a ranking; ties make none."""
    pairs = set()
    for one, two in combinations(range(len(images)), 2):
        if ranks[one] != ranks[two]:
            better, worse = (one, two) if ranks[one] < ranks[two] else (two, one)
            pairs.add((images[better], images[worse]))
    return pairs
