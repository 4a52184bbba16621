"""Vote-k: 400 of 4,000 real prompts, k = 150, against a plain transcription of the published algorithm."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import made_vectors, real_vectors, show, timed
from irpipe.schemas.graph import Graph
from irpipe.stages.prompt_graph.search import Points, exact
from irpipe.stages.select_prompts.votek import Ballot, vote_k
from tests.oracles import fast_vote_k, knn_graph


class Size(NamedTuple):
    """Prompts, picks and neighbours."""

    pool: int
    picks: int
    k: int


FULL, TINY = Size(4000, 400, 150), Size(200, 10, 10)


def main(folder: Path, size: Size) -> None:
    del folder
    vectors = made_vectors(size.pool) if size == TINY else real_vectors()[: size.pool]
    ours, (picks, scores) = timed(lambda: _select(vectors, size))
    plain, (expected, expected_scores) = timed(lambda: fast_vote_k(knn_graph(vectors, size.k), size.picks))
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    same = sum(one == two for one, two in zip(picks, expected, strict=True))
    show(
        f"{size.picks} of {size.pool:,}",
        irpipe=f"{ours:.2f} s",
        plain=f"{plain:.0f} s",
        ratio=f"{plain / ours:.0f}x",
        same_picks=same,
    )


def _select(vectors: np.ndarray, size: Size) -> tuple[list[int], list[float]]:
    points = Points(vectors, np.arange(len(vectors)))
    targets = np.concatenate([block.targets for block in exact(points, size.k, range(size.pool))]).astype(np.int32)
    graph = Graph(np.arange(size.pool + 1, dtype=np.int64) * size.k, targets.ravel(), np.zeros(size.pool, dtype=np.int32))
    return vote_k(Ballot(graph, 10), np.arange(size.pool), size.picks)
