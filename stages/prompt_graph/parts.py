"""The graph in parts of sets, each a shard: a kill costs one part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.schemas.embeddings import open_vectors
from irpipe.schemas.graph import EDGES
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.search import Lists, Neighbours, Points, build_index, exact, indexed, make_lists, recall_sample

EDGES_FILE, SAMPLE_FILE = f"{EDGES.name}.parquet", "sample.npy"
EXACT_ROWS, INDEXED_ROWS = 20_000, 100_000  # of a part; an index is decoded once per part


def divide(count: int, sets: int, seed: int) -> NDArray[np.int32]:
    """The set of each vertex, (count,): a random division into sets whose sizes differ by one at most."""
    set_of = np.empty(count, dtype=np.int32)
    set_of[np.random.default_rng(seed).permutation(count)] = np.arange(count, dtype=np.int64) * sets // count
    return set_of


def is_indexed(config: PromptGraphConfig, size: int) -> bool:
    """Whether a set of a size is searched by an inverted file."""
    return config.index == "ivf" or (config.index == "auto" and size > config.exact_up_to)


@dataclass
class Pool:
    """The vectors and their division. A process holds one set at a time."""

    config: PromptGraphConfig
    path: Path

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "path": self.path}  # a memory map would be copied with its bytes

    @cached_property
    def vectors(self) -> NDArray[np.float16]:
        """(n, d), memory-mapped."""
        return open_vectors(self.path)

    @cached_property
    def set_of(self) -> NDArray[np.int32]:
        """(n,)."""
        return divide(len(self.vectors), self.config.sets, self.config.seed)

    def points(self, number: int) -> Points:
        """The points of a set."""
        return Points(self.vectors, np.flatnonzero(self.set_of == number))


@dataclass
class ListMaker:
    """Writes the inverted lists of a set, by its number."""

    pool: Pool

    def __call__(self, number: int, draft: Path) -> None:
        lists = make_lists(self.pool.points(number), self.pool.config.seed)
        with draft.open("wb") as file:
            np.savez(file, centroids=lists.centroids, list_of=lists.list_of)


def read_lists(path: Path) -> Lists:
    """What a `ListMaker` wrote."""
    with np.load(path, allow_pickle=False) as file:
        return Lists(file["centroids"], file["list_of"])


@dataclass(frozen=True)
class Part:
    """Some rows of a set, and the set's inverted lists, if it has any."""

    set: int
    rows: range
    lists: Lists | None = None


class Parts(Mapping[str, Part]):
    """All parts by the names of their shards, each made when it is asked for.

    Args:
        lists: files of inverted lists by set.
    """

    def __init__(self, pool: Pool, lists: Mapping[int, Path]) -> None:
        self._files, self._rows = lists, dict[str, tuple[int, range]]()
        self._lists = lru_cache(maxsize=1)(read_lists)  # parts come set by set
        for number, size in enumerate(np.bincount(pool.set_of, minlength=pool.config.sets).tolist()):
            count = -(-size // (INDEXED_ROWS if number in lists else EXACT_ROWS))
            bounds = [part * size // count for part in range(count + 1)]  # sizes differ by one at most
            for start, stop in pairwise(bounds):
                self._rows[f"{number:05}-{start:08}"] = number, range(start, stop)

    def __getitem__(self, name: str) -> Part:
        number, rows = self._rows[name]
        return Part(number, rows, self._lists(self._files[number]) if number in self._files else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


@dataclass
class Searcher:
    """Writes the edges of a part, and of an index what it found for the sample: (m, k) neighbours, -1 where there are fewer."""

    pool: Pool
    _set: tuple[int, Points, Any] | None = field(default=None, init=False)  # the last set, its points, and its index

    def __call__(self, part: Part, draft: Path) -> None:
        points, index = self._open(part)
        k = min(self.pool.config.k, len(points) - 1)
        sample = recall_sample(len(points), self.pool.config.seed)
        sampled = [np.empty((0, k), dtype=np.int64)]
        draft.mkdir()
        with EDGES.writer(draft / EDGES_FILE) as writer:
            for found in self._search(points, index, k, part.rows):
                writer.append(as_edges(points.members, found))
                sampled.append(found.targets[np.isin(found.sources, sample)])
        if index is not None:
            np.save(draft / SAMPLE_FILE, np.concatenate(sampled))

    def _open(self, part: Part) -> tuple[Points, Any]:
        if self._set is None or self._set[0] != part.set:
            self._set = None  # memory holds one index
            points = self.pool.points(part.set)
            index = build_index(points, part.lists, self.pool.config.probes) if part.lists else None
            self._set = part.set, points, index
        return self._set[1:]

    def _search(self, points: Points, index: Any, k: int, rows: range) -> Iterator[Neighbours]:
        if k == 0:
            return iter(())
        return exact(points, k, rows) if index is None else indexed(points, index, k, rows)


def as_edges(members: NDArray[np.int64], neighbours: Neighbours) -> dict[str, NDArray[np.generic]]:
    """Rows of the table `edges`; members: (n,). Missing neighbours, marked -1 by an index, make no edges."""
    present = neighbours.targets >= 0
    return {
        "source": np.repeat(members[neighbours.sources], present.sum(axis=1)).astype(np.int32),
        "target": members[neighbours.targets[present]].astype(np.int32),
        "similarity": neighbours.similarities[present],
    }
