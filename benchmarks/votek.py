"""Vote-k: 400 of 4,000 real prompts, k = 150, against a plain transcription of the published algorithm."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.common import real_vectors, show, timed
from irpipe.schemas.graph import Graph
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.run import search
from irpipe.stages.prompt_graph.search import Points
from irpipe.stages.select_prompts.votek import Ballot, vote_k
from tests.oracles import fast_vote_k, knn_graph

POOL, COUNT, K = 4000, 400, 150


def main(folder: Path) -> None:
    del folder
    vectors = real_vectors()[:POOL]
    ours, (picks, scores) = timed(lambda: _select(vectors))
    plain, (expected, expected_scores) = timed(lambda: fast_vote_k(knn_graph(vectors, K), COUNT))
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    same = sum(one == two for one, two in zip(picks, expected, strict=True))
    show("400 of 4,000", irpipe=f"{ours:.2f} s", plain=f"{plain:.0f} s", ratio=f"{plain / ours:.0f}x", same_picks=same)


def _select(vectors: np.ndarray) -> tuple[list[int], list[float]]:
    points = Points(vectors, np.arange(len(vectors)))
    blocks = list(search(PromptGraphConfig(k=K), points, [], lambda count: None))
    targets = np.concatenate([block.targets for block in blocks]).astype(np.int32)
    graph = Graph(np.arange(POOL + 1, dtype=np.int64) * K, targets.ravel(), np.zeros(POOL, dtype=np.int32))
    return vote_k(Ballot(graph, 10), np.arange(POOL), COUNT)
