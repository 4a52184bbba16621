"""prompt-graph and select-prompts at size: 200,000 prompts made of the real ones, and the law up to 1.8 million."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import larger_pool, made_vectors, peak_in_child, quiet_context, real_vectors, show, timed
from irpipe.schemas.embeddings import open_vectors, save_vectors
from irpipe.schemas.graph import Graph
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.parts import EDGES_FILE, Pool
from irpipe.stages.prompt_graph.run import recall, search
from irpipe.stages.select_prompts.votek import Ballot, vote_k


class Size(NamedTuple):
    """Prompts of the exact search, those of the inverted files (the last: the whole pool), neighbours, and picks."""

    exact: int
    inverted: tuple[int, ...]
    k: int
    picks: int


FULL, TINY = Size(18_000, (50_000, 200_000), 150, 1000), Size(200, (300, 600), 10, 5)


def main(folder: Path, size: Size) -> None:
    larger_pool(folder / "pool.npy", size.inverted[-1], made_vectors(600) if size == TINY else real_vectors())
    seconds, peak = peak_in_child(_search, folder / "pool.npy", size.exact, "exact", size)
    show(
        f"exact, one set of {size.exact:,}",
        seconds=f"{seconds[0]:.1f}",
        hundred_sets=f"{100 * seconds[0] / 60:.0f} min",
        peak=f"{peak:.1f} GB",
    )
    for count in size.inverted:
        (seconds_, recall, picked), peak = peak_in_child(_search, folder / "pool.npy", count, "ivf", size)
        show(
            f"inverted file, {count:,}",
            seconds=f"{seconds_:.0f}",
            recall=f"{recall:.3f}",
            **{f"pick_{size.picks}": f"{picked:.1f} s"},
            peak=f"{peak:.1f} GB",
        )
    law = seconds_ * (1_800_000 / size.inverted[-1]) ** 1.5
    show("law: n^1.5", at_1_800_000=f"{law / 60:.0f} min at most (lists cost less a row as they grow)")


def _search(path: Path, count: int, index: Literal["exact", "ivf"], size: Size) -> tuple[float, float, float]:
    """Seconds of the search, recall, and seconds of the picks, of the first prompts of a pool."""
    with TemporaryDirectory(dir=path.parent) as folder:
        save_vectors(Path(folder, "some.npy"), [open_vectors(path)[:count]], (count, open_vectors(path).shape[1]))
        pool = Pool(PromptGraphConfig(k=size.k, index=index), Path(folder, "some.npy"))
        context = quiet_context(Path(folder, "work"))
        seconds, (lists, made) = timed(lambda: search(pool, context))
        recall_ = recall(pool, 0, made) if lists else 1.0
        edges = [shard / EDGES_FILE for shard in made]
        targets = np.concatenate([pq.read_table(file, columns=["target"])["target"].to_numpy() for file in edges])
    graph = Graph(np.arange(count + 1, dtype=np.int64) * size.k, targets, np.zeros(count, dtype=np.int32))
    picked, _ = timed(lambda: vote_k(Ballot(graph, 10), np.arange(count), size.picks))
    return seconds, recall_, picked
