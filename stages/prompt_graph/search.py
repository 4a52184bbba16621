"""Nearest neighbours by cosine: exact in blocks, or through clusters of a well-kept library's k-means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 4096  # queries searched at once


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


def exact(points: NDArray[np.float32], k: int) -> Iterator[Neighbours]:
    """Compare every point with all.

    Args:
        points: (n, d), unit rows.

    Cost: 2 n^2 d floating-point operations.
    """
    import faiss

    for start in range(0, len(points), _BLOCK):
        sources = np.arange(start, min(start + _BLOCK, len(points)))
        similarities, targets = faiss.knn(points[sources], points, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        yield without_self(sources, targets, similarities)


def without_self(sources: NDArray[np.int64], targets: NDArray[Any], similarities: NDArray[np.float32]) -> Neighbours:
    """k of k + 1 neighbours: each point itself goes, or the last where it is not among them (exact duplicates).

    Ties in similarity stand in the order of points.
    """
    order = np.lexsort((targets, -similarities), axis=1)
    targets, similarities = np.take_along_axis(targets, order, 1), np.take_along_axis(similarities, order, 1)
    is_self = targets == sources[:, None]
    drop = np.where(is_self.any(axis=1), is_self.argmax(axis=1), targets.shape[1] - 1)
    keep = np.arange(targets.shape[1]) != drop[:, None]
    shape = (len(sources), targets.shape[1] - 1)
    return Neighbours(sources, targets[keep].reshape(shape), similarities[keep].reshape(shape))


_CLUSTER_SIZE = 450  # points a cluster: small enough to be selective, large enough for fast matrix products
_TRAIN_PER_CLUSTER = 40  # sampled points a cluster that k-means learns from
_RECALL_SAMPLE = 500  # points whose neighbours are also searched exactly


def through_clusters(points: NDArray[np.float32], k: int, probes: int, seed: int) -> Neighbours:
    """Compare the points of each cluster with those of the clusters whose centres are nearest to its own.

    Args:
        points: (n, d), unit rows.

    Cost: 2 n probes c d floating-point operations (c points a cluster), beside k-means: linear in n, where an
    inverted file searched point by point grows with n^1.5 and makes no use of matrix products.
    """
    import faiss

    clusters = max(1, len(points) // _CLUSTER_SIZE)
    kmeans = faiss.Kmeans(
        points.shape[1], clusters, niter=8, spherical=True, seed=seed + 1, max_points_per_centroid=_TRAIN_PER_CLUSTER
    )
    kmeans.train(points)
    cluster = kmeans.index.search(points, 1)[1][:, 0]
    members = np.split(np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster, minlength=clusters))[:-1])
    near = kmeans.index.search(kmeans.centroids, min(probes, clusters))[1]
    targets = np.empty((len(points), k), dtype=np.int64)
    similarities = np.empty((len(points), k), dtype=np.float32)
    for own, others in zip(members, near, strict=True):
        if not len(own):
            continue
        pool = np.sort(np.concatenate([members[other] for other in {int(own_cluster) for own_cluster in others}]))
        found_similarities, found = faiss.knn(points[own], points[pool], k + 1, metric=faiss.METRIC_INNER_PRODUCT)
        block = without_self(own, pool[found], found_similarities)
        targets[own], similarities[own] = block.targets, block.similarities
    return Neighbours(np.arange(len(points)), targets, similarities)


def recall_of(found: Neighbours, points: NDArray[np.float32], seed: int) -> float:
    """Share of the true neighbours of a random sample of points that were found."""
    sample = np.sort(np.random.default_rng(seed).permutation(len(points))[:_RECALL_SAMPLE])
    import faiss

    k = found.targets.shape[1]
    similarities, targets = faiss.knn(points[sample], points, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    true = without_self(sample, targets, similarities).targets
    return float(np.mean([np.isin(row, found.targets[place]).mean() for place, row in zip(sample, true, strict=True)]))
