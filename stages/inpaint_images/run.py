"""The work of `inpaint-images`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.gathered import gather
from irpipe.schemas.images import IMAGES, ImageShards, in_shards, row_groups
from irpipe.schemas.inpainted import INPAINTED, MASKS
from irpipe.schemas.rejected import Rejections
from irpipe.stages.inpaint_images import InpaintImagesConfig
from irpipe.stages.inpaint_images.shards import ShardInpainter

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
    rejections = Rejections(config.max_rejected, "images")
    with (
        ImageShards(out) as images,
        INPAINTED.writer(out / "inpainted.parquet") as table,
        MASKS.writer(out / "masks.parquet", 256) as masks,
    ):
        read = gather(made, {INPAINTED: table, MASKS: masks}, rejections)
        for shard in made:
            for row in IMAGES.read([shard / f"{IMAGES.name}.parquet"]).to_pylist():
                images.append(row)
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
