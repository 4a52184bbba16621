"""The work of `inpaint-images`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.files import read_json
from irpipe.schemas.images import ImageShards, in_shards, row_groups
from irpipe.schemas.inpainted import INPAINTED, MASKS
from irpipe.schemas.rejected import Rejections
from irpipe.stages.inpaint_images import InpaintImagesConfig
from irpipe.stages.inpaint_images.shards import REASONS, ROWS, ShardInpainter

_ROWS_PER_SHARD = 128


def run(config: InpaintImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    groups = row_groups(inputs["images"].table("images"))
    shards = {f"{number:05}": shard for number, shard in enumerate(in_shards(groups, _ROWS_PER_SHARD))}
    made = context.map(
        ShardInpainter(config, inputs, context.models),
        shards,
        "drawing",
        "images",
        size=lambda shard: sum(group.rows for group in shard),
        processes=config.num_processes,
        executor=config.executor,
    )
    rejections, read = Rejections(config.max_rejected, "images"), 0
    with (
        ImageShards(out) as images,
        INPAINTED.writer(out / "inpainted.parquet") as table,
        MASKS.writer(out / "masks.parquet", 256) as masks,
    ):
        for shard in made:
            reasons = read_json(shard / REASONS)
            for row, reason in enumerate(reasons, read):
                if reason is not None:
                    rejections.refuse(row, reason)
            read += len(reasons)
            for row in pq.read_table(shard / ROWS, partitioning=None).to_pylist():
                images.append(row)
            for writer, name in ((table, INPAINTED.name), (masks, MASKS.name)):
                rows = pq.read_table(shard / f"{name}.parquet", partitioning=None)
                writer.append({column: rows[column] for column in rows.column_names})
    kept = read - len(rejections)
    rejections.check(read, kept)
    return Report(Rows(read, kept, rejections.write(out)), figures(out))


def figures(out: Path) -> dict[str, float | int | None]:
    """How many images were drawn anew, were left since nothing was marked, or since no try was better; and what that changed."""
    rows = INPAINTED.read([out / "inpainted.parquet"]).to_pylist()
    drawn = [row for row in rows if row["candidate"] is not None]
    tried = [row for row in rows if row["plausibility_before"] is not None]
    gains = [row["plausibility"] - row["plausibility_before"] for row in tried]
    return {
        "drawn_anew": len(drawn),
        "without_mask": len(rows) - len(tried),
        "no_better_try": len(tried) - len(drawn),
        "masked_share": round(float(np.mean([row["masked"] for row in rows])), 4) if rows else None,
        "plausibility_gained": round(float(np.mean(gains)), 4) if gains else None,
    }
