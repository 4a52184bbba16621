"""The similarity graph of prompts: directed edges from each prompt to its k nearest others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from irpipe.schemas.table import Column, Table

EDGES = Table(
    "edges",
    "Each vertex's nearest others within its set, nearest first. Vertices are rows of the table `prompts`.",
    (
        Column("source", pa.int32(), "The vertex that votes."),
        Column("target", pa.int32(), "The vertex it votes for."),
        Column("similarity", pa.float32(), "Cosine of their vectors."),
    ),
)

VERTICES = Table("vertices", "The set of each vertex, in the order of vertices.", (Column("set", pa.int32(), "Its set."),))


@dataclass(frozen=True)
class Graph:
    """Out-edges in compressed rows.

    Attributes:
        offsets: (n + 1,) int64; the targets of vertex i are `targets[offsets[i]:offsets[i + 1]]`.
        targets: (edges,) int32.
        sets: (n,) int32, the set of each vertex.
    """

    offsets: NDArray[np.int64]
    targets: NDArray[np.int32]
    sets: NDArray[np.int32]


def read_graph(edge_files: Sequence[Path], vertex_files: Sequence[Path]) -> Graph:
    """The whole graph without similarities: 4 bytes per edge.

    Edges are stored set by set, so a vertex's edges are together but vertices are not in order.
    """
    sets = VERTICES.read(vertex_files)["set"].to_numpy()
    degrees = np.zeros(len(sets), dtype=np.int64)
    for source, _ in _batches(edge_files, ["source"]):
        degrees += np.bincount(source, minlength=len(sets))
    offsets = np.concatenate([[0], np.cumsum(degrees)])
    targets = np.empty(offsets[-1], dtype=np.int32)
    free = offsets[:-1].copy()  # where each vertex's next edge goes
    for source, target in _batches(edge_files, ["source", "target"]):
        run_starts = np.flatnonzero(np.concatenate([[True], source[1:] != source[:-1]]))
        run_lengths = np.diff(np.concatenate([run_starts, [len(source)]]))
        offset_in_run = np.arange(len(source)) - np.repeat(run_starts, run_lengths)
        targets[free[source] + offset_in_run] = target
        free[source[run_starts]] += run_lengths
    return Graph(offsets, targets, sets)


def _batches(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Batches of the first and the last of some columns, (edges of the batch,) each; no batch is empty."""
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=list(columns)):
            if len(batch):
                yield batch[columns[0]].to_numpy(), batch[columns[-1]].to_numpy()
