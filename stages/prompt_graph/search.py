"""Nearest neighbours by cosine: every pair compared in blocks, or the lists of an inverted file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.schemas.embeddings import unit_rows

_BLOCK = 4096  # queries compared at once
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

    @cached_property
    def units(self) -> NDArray[np.float32]:
        """All of them, (n, d)."""
        return self.block()


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


def exact(points: Points, k: int, rows: range) -> Iterator[Neighbours]:
    """Compare some points with all. Cost: 2 rows n d floating-point operations; memory n d floats."""
    import faiss

    vectors = points.units
    for start in range(rows.start, rows.stop, _BLOCK):
        sources = np.arange(start, min(start + _BLOCK, rows.stop))
        similarities, targets = faiss.knn(vectors[sources], vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        yield without_self(sources, targets, similarities)


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


@dataclass(frozen=True)
class Lists:
    """The inverted lists of a set.

    Attributes:
        centroids: (lists, d) float32, of length 1.
        list_of: (n,) int32, the list of each point.
    """

    centroids: NDArray[np.float32]
    list_of: NDArray[np.int32]


def make_lists(points: Points, seed: int) -> Lists:
    """Divide points into 4 sqrt(n) lists, at most n / 4, by spherical k-means of a sample.

    Cost: 800 lists^2 d floating-point operations of k-means and 2 n lists d of dividing: at 1.8 million points half of a search
    with 64 probes.
    """
    import faiss

    d, count = points.vectors.shape[1], max(1, min(round(4 * math.sqrt(len(points))), len(points) // 4))
    means = faiss.Clustering(d, count)
    means.spherical, means.seed, means.niter = True, seed + 1, 10
    means.max_points_per_centroid, means.min_points_per_centroid = _TRAIN_PER_LIST, 1
    sample = np.random.default_rng(seed).permutation(len(points))[: _TRAIN_PER_LIST * count]
    quantizer = faiss.IndexFlatIP(d)
    means.train(points.block(np.sort(sample)), quantizer)
    list_of = np.empty(len(points), dtype=np.int32)
    for start in range(0, len(points), _ADD_BLOCK):
        block = points.block(slice(start, start + _ADD_BLOCK))
        list_of[start : start + len(block)] = quantizer.search(block, 1)[1][:, 0]
    return Lists(quantizer.reconstruct_n(0, count), list_of)


def build_index(points: Points, lists: Lists, probes: int) -> Any:
    """An inverted file (faiss) of the points in half precision. Memory: n d halves."""
    import faiss

    count, d = lists.centroids.shape
    quantizer = faiss.IndexFlatIP(d)
    quantizer.add(lists.centroids)
    index = faiss.IndexIVFScalarQuantizer(quantizer, d, count, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False)
    index.is_trained = True  # halves need no training
    for start in range(0, len(points), _ADD_BLOCK):
        block = points.block(slice(start, start + _ADD_BLOCK))
        list_of = lists.list_of[start : start + len(block)].astype(np.int64)
        index.add_core(len(block), faiss.swig_ptr(block), None, faiss.swig_ptr(list_of))
    index.nprobe = min(probes, count)
    return index


def indexed(points: Points, index: Any, k: int, rows: range) -> Iterator[Neighbours]:
    """Compare some points with the lists of an inverted file that are nearest to them.

    faiss's big-batch search takes all queries of a list at once, so the work is matrix products.
    Cost: 2 rows n^.5 probes d / 4 floating-point operations (4 sqrt(n) lists); memory 1.8 kB per row at k = 150.
    """
    from faiss.contrib.big_batch_search import big_batch_search

    sources = np.arange(rows.start, rows.stop)
    queries = points.block(sources)
    if len(queries) * index.nprobe <= index.nlist + 1:  # faiss refuses so few for its big batches
        similarities, targets = index.search(queries, k + 1)
    else:
        with redirect_stdout(io.StringIO()):  # it prints its progress
            similarities, targets = big_batch_search(
                index, queries, k + 1, method="pairwise_distances", pairwise_distances=_products, threaded=1, verbose=1
            )
    for block in range(0, len(sources), _BLOCK):
        part = slice(block, block + _BLOCK)
        yield without_self(sources[part], targets[part], similarities[part])


def _products(queries: NDArray[np.float32], points: NDArray[np.float32], metric: int) -> NDArray[np.float32]:  # noqa: ARG001 (faiss names it)
    """(q, p) inner products of queries (q, d) and points (p, d)."""
    return queries @ points.T


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
