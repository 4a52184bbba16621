"""The work of `prompt-graph`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.embeddings import VECTORS_FILE, open_vectors
from irpipe.schemas.graph import EDGES, VERTICES
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.search import Neighbours, Points, exact, indexed, recall_of, recall_sample


def run(config: PromptGraphConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    vectors = open_vectors(inputs["embeddings"].file(VECTORS_FILE))
    if config.sets > len(vectors):
        raise InputError(
            f"{len(vectors)} prompts cannot be divided into {config.sets} sets",
            where="prompt-graph.sets",
            fix="--set prompt-graph.sets=1",
        )
    set_of = divide(len(vectors), config.sets, config.seed)
    VERTICES.write(out, {"set": set_of})
    recalls: list[float] = []
    with EDGES.writer(out / "edges.parquet") as writer, context.progress("searching", len(vectors), "prompts") as bar:
        for number in range(config.sets):
            points = Points(vectors, np.flatnonzero(set_of == number))
            for neighbours in search(config, points, recalls, bar.advance):
                writer.append(as_edges(points.members, neighbours))
        edges = writer.rows
    recall = float(np.mean(recalls)) if recalls else 1.0
    metrics = {"vertices": len(vectors), "edges": edges, "sets": config.sets, "recall": round(recall, 4)}
    return Report(Rows(len(vectors), len(vectors), 0), metrics)


def divide(count: int, sets: int, seed: int) -> NDArray[np.int32]:
    """The set of each vertex, (count,): a random division into sets whose sizes differ by one at most."""
    set_of = np.empty(count, dtype=np.int32)
    set_of[np.random.default_rng(seed).permutation(count)] = np.arange(count, dtype=np.int64) * sets // count
    return set_of


def search(
    config: PromptGraphConfig, points: Points, recalls: list[float], advance: Callable[[int], None]
) -> Iterator[Neighbours]:
    """Blocks of the neighbours of every point of one set, in order of the points; the recall of an index is measured."""
    k = min(config.k, len(points) - 1)
    if k == 0:
        return
    if config.index == "exact" or (config.index == "auto" and len(points) <= config.exact_up_to):
        yield from exact(points, k, advance)
        return
    sample = recall_sample(len(points), config.seed)
    sampled = []
    for neighbours in indexed(points, k, config.probes, config.seed, advance):
        sampled.append(neighbours.targets[np.isin(neighbours.sources, sample)])
        yield neighbours
    recalls.append(recall_of(np.concatenate(sampled), sample, points))


def as_edges(members: NDArray[np.int64], neighbours: Neighbours) -> dict[str, NDArray[np.generic]]:
    """Rows of the table `edges`; members: (n,). Missing neighbours, marked -1 by an index, make no edges."""
    present = neighbours.targets >= 0
    return {
        "source": np.repeat(members[neighbours.sources], present.sum(axis=1)).astype(np.int32),
        "target": members[neighbours.targets[present]].astype(np.int32),
        "similarity": neighbours.similarities[present],
    }
