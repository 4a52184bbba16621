"""The work of `score-images`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.images import RowGroup, in_shards, row_groups
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.scores import SCORER_CARDS, SCORES
from irpipe.schemas.table import ROW_GROUP
from irpipe.stages.score_images import ScoreImagesConfig
from irpipe.stages.score_images.shards import RAW, SCORE, ShardScorer, read_cards

_ROWS_PER_SHARD = 512


def run(config: ScoreImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    groups = row_groups(inputs["images"].table("images"))
    shards = {f"{number:05}.parquet": shard for number, shard in enumerate(in_shards(groups, _ROWS_PER_SHARD))}
    finished = context.map(
        ShardScorer(config, inputs, context.models),
        shards,
        "scoring",
        "images",
        size=images_in,
        processes=config.num_processes,
        executor=config.executor,
    )
    rejections, read = Rejections(config.max_rejected, "images"), images_in(groups)
    refuse(finished, rejections)
    num_scored = read - len(rejections)
    rejections.check(read, num_scored)
    cards = read_cards(finished)
    names = [card["scorer"] for card in cards]
    write_scores(names, finished, out)
    SCORER_CARDS.write(out, {column.name: [card[column.name] for card in cards] for column in SCORER_CARDS.columns})
    return Report(Rows(read, num_scored, rejections.write(out)), {"scorers": names, "rejected_for": rejections.counts()})


def images_in(groups: Sequence[RowGroup]) -> int:
    """The number of images in some row groups."""
    return sum(group.rows for group in groups)


def refuse(shards: Sequence[Path], rejections: Rejections) -> None:
    """Reject the images that were not scored, by their row among all."""
    start = 0
    for shard in shards:
        table = pq.read_table(shard, columns=["reason", "detail"], partitioning=None)
        for number, row in enumerate(table.to_pylist(), start):
            if row["detail"] is not None:
                rejections.refuse(number, row["reason"], row["detail"])
            elif row["reason"] is not None:
                rejections.drop(number, row["reason"])
        start += table.num_rows


def write_scores(names: Sequence[str], shards: Sequence[Path], out: Path) -> None:
    """The table `scores`: scorers one after the other, images in their order."""
    with SCORES.writer(out / f"{SCORES.name}.parquet") as writer:
        for name in names:
            for table in in_row_groups(scored(name, shards)):
                columns = {column: table[column] for column in table.column_names}
                writer.append({"scorer": [name] * table.num_rows, **columns})


def scored(name: str, shards: Sequence[Path]) -> Iterator[Any]:
    """The scores of one scorer: Arrow tables with columns of `scores`, one per shard."""
    columns = {"image_id": "image_id", "prompt_id": "prompt_id", "generator": "generator"}
    columns |= {SCORE.format(name): "score", RAW.format(name): "raw", "reason": "reason"}
    for shard in shards:
        table = pq.read_table(shard, columns=list(columns), partitioning=None).rename_columns(list(columns.values()))
        yield table.filter(pc.is_null(table["reason"])).drop_columns("reason")


def in_row_groups(tables: Iterator[Any]) -> Iterator[Any]:
    """The same rows in tables of one row group each, so that the file's encoding does not depend on shards."""
    waiting: list[Any] = []
    for table in tables:
        waiting.append(table)
        if sum(part.num_rows for part in waiting) >= ROW_GROUP:
            rows = pa.concat_tables(waiting).combine_chunks()
            yield rows.slice(0, ROW_GROUP)
            waiting = [rows.slice(ROW_GROUP)]
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()
