"""Rankings to candidate pairs: blocks of whole rankings, expanded without a loop over pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

_ROWS_PER_BLOCK = 1 << 17


@dataclass(frozen=True)
class Rankings:
    """Ranked images, the rows of a ranking together.

    Attributes:
        rankings, prompts, images: (n,) uint64 ids.
        ranks: (n,) int32, lower is better.
        annotators: (n,) Arrow dictionary of names.
        choices: (n,) bool, rows of records whose equal ranks were not compared.
        starts: (m + 1,) int64; ranking j has the rows `starts[j]` to `starts[j + 1]`.
    """

    rankings: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    images: NDArray[np.uint64]
    ranks: NDArray[np.int32]
    annotators: Any
    choices: NDArray[np.bool_]
    starts: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        rankings: NDArray[np.uint64],
        prompts: NDArray[np.uint64],
        images: NDArray[np.uint64],
        ranks: NDArray[np.int32],
        names: Any,
        choices: NDArray[np.bool_],
    ) -> Self:
        """From columns, (n,) each."""
        changes = np.flatnonzero(rankings[1:] != rankings[:-1]) + 1
        starts = np.concatenate([[0], changes, [len(rankings)]]) if len(rankings) else np.zeros(1, dtype=np.int64)
        annotators = names if isinstance(names, pa.DictionaryArray) else pa.array(names, pa.string()).dictionary_encode()
        return cls(rankings, prompts, images, ranks, annotators, choices, starts)

    @classmethod
    def joined(cls, blocks: Sequence[Self]) -> Self:
        """Several blocks as one."""
        return cls.of(
            np.concatenate([block.rankings for block in blocks]),
            np.concatenate([block.prompts for block in blocks]),
            np.concatenate([block.images for block in blocks]),
            np.concatenate([block.ranks for block in blocks]),
            [name for block in blocks for name in block.annotators.to_pylist()],
            np.concatenate([block.choices for block in blocks]),
        )

    def records(self) -> Iterator[slice]:
        """The rows of each ranking."""
        for start, stop in zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True):
            yield slice(start, stop)

    def annotator(self, row: int) -> str | None:
        name: str | None = self.annotators[row].as_py()
        return name


def read_rankings(files: Sequence[Path]) -> Iterator[Rankings]:
    """The table `rankings` in blocks of whole rankings. Memory: one block."""
    waiting: list[Any] = []
    for file in files:
        reader = pq.ParquetFile(file, read_dictionary=["annotator"])
        for batch in reader.iter_batches(batch_size=_ROWS_PER_BLOCK):
            ids = batch["ranking_id"].to_numpy()
            last = _tail(ids)
            if last == 0:
                waiting.append(batch)
                continue
            yield _block([*waiting, batch.slice(0, last)])
            waiting = [batch.slice(last)]
    if waiting and sum(len(batch) for batch in waiting):
        yield _block(waiting)


def _tail(ids: NDArray[np.uint64]) -> int:
    """The row where the last ranking of a batch starts, from (rows,) ranking ids: it may continue in the next batch."""
    earlier = np.flatnonzero(ids != ids[-1])
    return int(earlier[-1]) + 1 if len(earlier) else 0


def _block(batches: list[Any]) -> Rankings:
    table = pa.Table.from_batches(batches).unify_dictionaries().combine_chunks()
    names = table["annotator"].chunk(0) if table["annotator"].num_chunks else pa.array([], pa.string()).dictionary_encode()
    ids, prompts, images, ranks = (table[name].to_numpy() for name in ("ranking_id", "prompt_id", "image_id", "rank"))
    return Rankings.of(ids, prompts, images, ranks, names, table["choice"].to_numpy())


def candidate_pairs(starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the two images of every pair of every ranking, in the order of rankings, then of rows.

    Args:
        starts: (m + 1,) first row of each ranking, and the number of rows.

    Returns:
        two arrays (p,), p the sum over rankings of k (k - 1) / 2.
    """
    sizes = np.diff(starts)
    if not len(sizes):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    counts = sizes * (sizes - 1) // 2
    # One template of row pairs per size, concatenated; each pair reads its entry of its ranking's template.
    templates = {int(size): np.triu_indices(int(size), 1) for size in np.unique(sizes)}
    offset_of = np.zeros(int(sizes.max()) + 1, dtype=np.int64)
    offset = 0
    for size, (first, _) in templates.items():
        offset_of[size] = offset
        offset += len(first)
    first_rows, second_rows = (np.concatenate([pair[side] for pair in templates.values()]) for side in (0, 1))
    pair_starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    index = np.arange(int(counts.sum())) + np.repeat(offset_of[sizes] - pair_starts, counts)
    base = np.repeat(starts[:-1], counts)
    return base + first_rows[index], base + second_rows[index]
