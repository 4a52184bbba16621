"""The engine alone: a million images that nobody draws, through each executor, and the store's commands at that size.

A worker writes a shard of rows as import-images does, with 100 bytes for each image's file: the time is the engine's and
Parquet's.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import show, timed
from irpipe.pipeline.collect import garbage
from irpipe.pipeline.commit import place, seal
from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.machines import ExecutorSettings, Machines
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.shards import Executor, make_executor, map_shards, put_in_place
from irpipe.pipeline.store import Store
from irpipe.pipeline.verify import verify
from irpipe.schemas.images import IMAGES

SHARD = 1024  # rows


class Size(NamedTuple):
    """Rows in all."""

    rows: int


FULL, TINY = Size(1_000_000), Size(3000)


@dataclass(frozen=True)
class Null:
    """Writes the rows of a shard: ids and metadata, and bytes that are no picture."""

    def __call__(self, shard: tuple[int, int], draft: Path) -> None:
        first, count = shard
        data = os.urandom(100)
        rows = range(first, first + count)
        columns: dict[str, list[Any]] = {
            "image_id": list(rows),
            "prompt_id": [row // 8 for row in rows],
            "image": [{"bytes": data, "path": f"{row:07}.png"} for row in rows],
            "image_digest": [f"{row:064x}" for row in rows],
            "width": [512] * count,
            "height": [512] * count,
            "format": ["PNG"] * count,
        }
        whole = columns | {column.name: [None] * count for column in IMAGES.columns if column.name not in columns}
        draft.mkdir()
        IMAGES.write(draft, whole)


def main(folder: Path, size: Size) -> None:
    shards = {f"{first:08}": (first, min(SHARD, size.rows - first)) for first in range(0, size.rows, SHARD)}
    for name, processes in (("inline", 1), ("processes", 2), ("ray", 2)):
        machines = Machines(processes, ExecutorSettings(name=name, address="local", workers=2), folder / "store")
        try:
            executor = make_executor(name, machines)
            seconds, paths = timed(partial(mapped, executor, shards, folder / "store" / "work" / name))
        except IrpipeError as error:  # ray is an extra, and does not start everywhere
            show(name, skipped=error.what.splitlines()[0])
            continue
        again, made = timed(partial(mapped, executor, shards, folder / "store" / "work" / name))
        show(name, rows_per_second=f"{size.rows / seconds:,.0f}", resumed_in=f"{again:.1f} s")
        assert made == paths
    commands(folder, made)


def mapped(executor: Executor, shards: dict[str, tuple[int, int]], folder: Path) -> list[Path]:
    """Make the shards that are not there."""
    return map_shards(Null(), shards, folder, lambda _: executor, lambda _: None)


def commands(folder: Path, made: list[Path]) -> None:
    """Show what committing costs, and the store's upkeep."""
    store, out = Store(folder / "store"), folder / "out"
    (out / IMAGES.name).mkdir(parents=True)

    def publish() -> Path:
        for number, shard in enumerate(made):
            put_in_place(shard / f"{IMAGES.name}.parquet", out / IMAGES.name / f"{number:05}.parquet")
        return place(store, out, seal(out, Watcher(), "committing").content_id)

    seconds, target = timed(publish)
    bytes_ = sum(path.stat().st_size for path in target.rglob("*.parquet"))
    show("commit", s=f"{seconds:.1f}", mb_per_second=f"{bytes_ / 1e6 / seconds:,.0f}")
    seconds, _ = timed(lambda: store.holds(target.name))
    show("status (is it whole by sizes)", s=f"{seconds:.2f}")
    seconds, found = timed(lambda: verify(store, Watcher()))
    show("verify", s=f"{seconds:.1f}", mb_per_second=f"{bytes_ / 1e6 / seconds:,.0f}", damaged=len(found[1]))
    started = time.perf_counter()
    unneeded = list(garbage(store))
    show("gc", s=f"{time.perf_counter() - started:.2f}", objects=len(unneeded))
