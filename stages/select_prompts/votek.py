"""Vote-k by lazy greedy selection, with scores compared exactly.

score(u) = sum over unselected voters v of u of s(v),  s(v) = rho^-|{selected l that v votes for}|
(Su et al. 2022, section 3). Picking a prompt only lowers scores, so an outdated score is an upper bound, and the
best candidate is found once its fresh score is still first in the heap (Minoux 1978).
"""

from __future__ import annotations

import heapq
from operator import mul

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from irpipe.schemas.graph import Graph


class Ballot:
    """The votes of one graph, and how many selected prompts each voter has voted for.

    Scores are integers in units of rho^-depth, so equal scores are equal, whatever the order of summing. A voter
    with more than `depth` selected neighbours counts as having `depth`.
    """

    depth = 40

    def __init__(self, graph: Graph, rho: int) -> None:
        n = len(graph.sets)
        votes = sparse.csr_matrix((np.ones(len(graph.targets), dtype=np.int8), graph.targets, graph.offsets), shape=(n, n))
        by_target = votes.tocsc()
        self._voters, self._starts = by_target.indices, by_target.indptr
        # How many selected prompts each voter votes for; a voter that is selected itself stands one beyond the depth,
        # where its vote weighs nothing. 64 bits, since that is what bincount takes without a copy.
        self._heard = np.zeros(n, dtype=np.int64)
        self._weights = [*(rho ** (self.depth - level) for level in range(self.depth + 1)), 0]
        self._unit = rho**self.depth

    def voters(self, vertex: int) -> NDArray[np.int32]:
        """The voters of a vertex, (m,)."""
        voters: NDArray[np.int32] = self._voters[self._starts[vertex] : self._starts[vertex + 1]]
        return voters

    def score(self, vertex: int) -> int:
        """The vertex's score now, in units of rho^-depth."""
        levels = np.bincount(self._heard[self.voters(vertex)])
        return sum(map(mul, levels.tolist(), self._weights))

    def pick(self, vertex: int) -> None:
        """Select a vertex."""
        voters = self.voters(vertex)
        heard = self._heard[voters]
        self._heard[voters] = heard + (heard < self.depth)
        self._heard[vertex] = self.depth + 1

    def as_float(self, score: int) -> float:
        return float(score / self._unit)


def vote_k(ballot: Ballot, candidates: NDArray[np.int64], count: int) -> tuple[list[int], list[float]]:
    """Pick the best candidate, count times. Ties go to more voters, then to the lower row.

    Args:
        ballot: the votes; picks are marked in it.
        candidates: (m,) rows that may be picked.
        count: at most the number of candidates.

    Returns:
        the picks and the score of each when it was picked. Once no candidate has an unselected voter, scores are 0.
    """
    heap = [(-ballot.score(row), -len(ballot.voters(row)), row) for row in candidates.tolist()]
    heapq.heapify(heap)
    picks: list[int] = []
    scores: list[float] = []
    while len(picks) < count:
        bound, voters, row = heap[0]
        fresh = -ballot.score(row)
        if fresh != bound:
            heapq.heapreplace(heap, (fresh, voters, row))
            continue
        heapq.heappop(heap)
        ballot.pick(row)
        picks.append(row)
        scores.append(ballot.as_float(-fresh))
    return picks, scores
