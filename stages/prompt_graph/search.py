"""Nearest neighbours by cosine: every pair compared in blocks, or the lists of an inverted file."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.schemas.embeddings import unit_rows

_BLOCK = 4096  # queries compared at once
_SLICE = 300_000  # queries searched at once through an index: bounds the memory of their results
_ADD_BLOCK = 65_536
_TRAIN_PER_LIST = 40  # sampled points per list for k-means
_RECALL_SAMPLE = 500  # points whose neighbours are also searched exactly


@dataclass(frozen=True)
class Points:
    """One set of the pool: rows `members` (n,) of the vectors (pool, d)."""

    vectors: NDArray[Any]
    members: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.members)

    def block(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """Unit rows, (m, d)."""
        return unit_rows(self.vectors, self.members[rows])


@dataclass(frozen=True)
class Neighbours:
    """The k nearest others of some points, nearest first.

    Attributes:
        sources: (m,) int64, which points.
        targets: (m, k) int64.
        similarities: (m, k) float32, cosines.
    """

    sources: NDArray[np.int64]
    targets: NDArray[np.int64]
    similarities: NDArray[np.float32]


def exact(points: Points, k: int, advance: Callable[[int], None]) -> Iterator[Neighbours]:
    """Compare every point with all. Cost: 2 n^2 d floating-point operations; memory n d floats."""
    import faiss

    vectors = points.block()
    for start in range(0, len(points), _BLOCK):
        sources = np.arange(start, min(start + _BLOCK, len(points)))
        similarities, targets = faiss.knn(vectors[sources], vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        yield without_self(sources, targets, similarities)
        advance(len(sources))


def without_self(sources: NDArray[np.int64], targets: NDArray[Any], similarities: NDArray[np.float32]) -> Neighbours:
    """k of (m, k + 1) neighbours of (m,) points: without the point itself, or without the last where it is not among them.

    Ties in similarity are in the order of points.
    """
    order = np.lexsort((targets, -similarities), axis=1)
    targets, similarities = np.take_along_axis(targets, order, 1), np.take_along_axis(similarities, order, 1)
    is_self = targets == sources[:, None]
    drop = np.where(is_self.any(axis=1), is_self.argmax(axis=1), targets.shape[1] - 1)
    keep = np.arange(targets.shape[1]) != drop[:, None]
    shape = (len(sources), targets.shape[1] - 1)
    return Neighbours(sources, targets[keep].reshape(shape), similarities[keep].reshape(shape))


def indexed(points: Points, k: int, probes: int, seed: int, advance: Callable[[int], None]) -> Iterator[Neighbours]:
    """Compare each point with the lists of an inverted file that are nearest to it.

    faiss's big-batch search takes all queries of a list at once, so the work is matrix products.
    Cost: 2 n^1.5 probes d / 4 floating-point operations (4 sqrt(n) lists); memory n d halves, and 1.8 kB per point
    of a slice at k = 150.
    """
    from faiss.contrib.big_batch_search import big_batch_search

    index = build_index(points, probes, seed)
    for start in range(0, len(points), _SLICE):
        sources = np.arange(start, min(start + _SLICE, len(points)))
        products = _Products(len(sources), index.nlist, advance)
        with redirect_stdout(io.StringIO()):  # it prints its progress
            similarities, targets = big_batch_search(
                index,
                points.block(sources),
                k + 1,
                method="pairwise_distances",
                pairwise_distances=products,
                threaded=1,
                verbose=1,
            )
        products.finish()
        for block in range(0, len(sources), _BLOCK):
            rows = slice(block, block + _BLOCK)
            yield without_self(sources[rows], targets[rows], similarities[rows])


def build_index(points: Points, probes: int, seed: int) -> Any:
    """An inverted file of 4 sqrt(n) lists over the points in half precision."""
    import faiss

    d, lists = points.vectors.shape[1], max(1, round(4 * math.sqrt(len(points))))
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(d), d, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    index.cp.spherical, index.cp.seed, index.cp.niter = True, seed + 1, 10
    index.cp.max_points_per_centroid, index.cp.min_points_per_centroid = _TRAIN_PER_LIST, 1
    sample = np.random.default_rng(seed).permutation(len(points))[: _TRAIN_PER_LIST * lists]
    index.train(points.block(np.sort(sample)))
    for start in range(0, len(points), _ADD_BLOCK):
        index.add(points.block(slice(start, start + _ADD_BLOCK)))
    index.nprobe = min(probes, lists)
    return index


class _Products:
    """Inner products of a list's queries and points; it also reports the search's progress."""

    def __init__(self, queries: int, lists: int, advance: Callable[[int], None]) -> None:
        self._queries, self._lists, self._advance = queries, lists, advance
        self._done = self._reported = 0

    def __call__(self, queries: NDArray[np.float32], points: NDArray[np.float32], metric: int) -> NDArray[np.float32]:  # noqa: ARG002 (faiss names it)
        """(q, p) inner products of queries (q, d) and points (p, d)."""
        self._done += 1
        self._tell(self._done * self._queries // (self._lists + 1))
        return queries @ points.T

    def finish(self) -> None:
        """All lists are done (empty ones are never searched)."""
        self._tell(self._queries)

    def _tell(self, queries_done: int) -> None:
        if queries_done > self._reported:
            self._advance(queries_done - self._reported)
            self._reported = queries_done


def recall_of(targets: NDArray[np.int64], sample: NDArray[np.int64], points: Points) -> float:
    """Share of the true neighbours of a sample of points that were found.

    Args:
        targets: (m, k), the neighbours found for the sample (m,).
    """
    import faiss

    hits = total = 0
    k = targets.shape[1]
    best = faiss.ResultHeap(len(sample), k + 1, keep_max=True)
    queries = points.block(sample)
    for start in range(0, len(points), _ADD_BLOCK):
        block = points.block(slice(start, start + _ADD_BLOCK))
        similarities, nearest = faiss.knn(queries, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        best.add_result(similarities, nearest + start)
    best.finalize()
    true = without_self(sample, best.I, best.D).targets
    for row, expected in zip(targets, true, strict=True):
        hits += int(np.isin(expected, row).sum())
        total += k
    return hits / total


def recall_sample(count: int, seed: int) -> NDArray[np.int64]:
    """The points (m,) whose neighbours are also searched exactly, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:_RECALL_SAMPLE])
