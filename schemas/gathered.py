"""What shards wrote, as the tables of a run: rows in order, and why some of what was read has none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from irpipe.schemas.files import read_json
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.table import Table, TableWriter

_REASONS = "reasons.json"  # of a shard: why each row that it read was refused, or null


def write_reasons(shard: Path, reasons: Sequence[str | None]) -> None:
    """Keep why each row that a shard read was refused; None: it was not."""
    (shard / _REASONS).write_text(json.dumps(reasons), encoding="utf-8")


def gather(shards: Sequence[Path], writers: Mapping[Table, TableWriter], rejections: Rejections) -> int:
    """Append the tables of finished shards, each `NAME.parquet`, and refuse what they refused.

    Memory: one shard's rows.

    Returns:
        how many rows all shards read.
    """
    read = 0
    for shard in shards:
        reasons = read_json(shard / _REASONS)
        for row, reason in enumerate(reasons, read):
            if reason is not None:
                rejections.refuse(row, reason)
        read += len(reasons)
        for table, writer in writers.items():
            rows = pq.read_table(shard / f"{table.name}.parquet", partitioning=None)
            writer.append({name: rows[name] for name in rows.column_names})
    return read
