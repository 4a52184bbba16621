"""prompt-graph and select-prompts at size: 200,000 prompts made of the real ones, and the law up to 1.8 million."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from benchmarks.common import larger_pool, peak_in_child, show, timed
from irpipe.schemas.embeddings import open_vectors
from irpipe.schemas.graph import Graph
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.run import search
from irpipe.stages.prompt_graph.search import Points
from irpipe.stages.select_prompts.votek import Ballot, vote_k

K = 150


def main(folder: Path) -> None:
    larger_pool(folder / "pool.npy", 200_000)
    seconds, peak = peak_in_child(_search, folder / "pool.npy", 18_000, "exact")
    show(
        "exact, one set of 18,000",
        seconds=f"{seconds[0]:.1f}",
        hundred_sets=f"{100 * seconds[0] / 60:.0f} min",
        peak=f"{peak:.1f} GB",
    )
    for count in (50_000, 200_000):
        (seconds_, recall, picked), peak = peak_in_child(_search, folder / "pool.npy", count, "ivf")
        show(
            f"inverted file, {count:,}",
            seconds=f"{seconds_:.0f}",
            recall=f"{recall:.3f}",
            pick_1000=f"{picked:.1f} s",
            peak=f"{peak:.1f} GB",
        )
    law = seconds_ * (1_800_000 / 200_000) ** 1.5
    show("law: n^1.5", at_1_800_000=f"{law / 60:.0f} min at most (lists cost less a row as they grow)")


def _search(path: Path, count: int, index: Literal["exact", "ivf"]) -> tuple[float, float, float]:
    recalls: list[float] = []
    points = Points(open_vectors(path), np.arange(count))
    config = PromptGraphConfig(k=K, index=index)
    seconds, blocks = timed(lambda: [block.targets.astype(np.int32) for block in search(config, points, recalls, lambda n: None)])
    targets = np.concatenate(blocks)
    graph = Graph(np.arange(count + 1, dtype=np.int64) * K, targets.ravel(), np.zeros(count, dtype=np.int32))
    picked, _ = timed(lambda: vote_k(Ballot(graph, 10), np.arange(count), 1000))
    return seconds, recalls[0] if recalls else 1.0, picked
