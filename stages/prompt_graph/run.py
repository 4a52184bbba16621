"""The work of `prompt-graph`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.shards import put_in_place
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.embeddings import VECTORS_FILE
from irpipe.schemas.graph import EDGES, VERTICES
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.parts import EDGES_FILE, SAMPLE_FILE, ListMaker, Parts, Pool, Searcher, is_indexed
from irpipe.stages.prompt_graph.search import recall_of, recall_sample


def run(config: PromptGraphConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    pool = Pool(config, inputs["embeddings"].file(VECTORS_FILE))
    count = len(pool.vectors)
    if config.sets > count:
        raise InputError(
            f"{count} prompts cannot be divided into {config.sets} sets",
            where="prompt-graph.sets",
            fix="--set prompt-graph.sets=1",
        )
    VERTICES.write(out, {"set": pool.set_of})
    lists, made = search(pool, context)
    edges = 0
    (out / EDGES.name).mkdir()
    for shard in made:
        edges += pq.read_metadata(shard / EDGES_FILE).num_rows
        put_in_place(shard / EDGES_FILE, out / EDGES.name / f"{shard.name}.parquet")
    recalls = [recall(pool, number, [shard for shard in made if shard.name.startswith(f"{number:05}-")]) for number in lists]
    metrics = {"vertices": count, "edges": edges, "sets": config.sets, "recall": round(float(np.mean(recalls or [1.0])), 4)}
    return Report(Rows(count, count, 0), metrics)


def search(pool: Pool, context: Context) -> tuple[dict[int, Path], list[Path]]:
    """Files of the inverted lists by set, and the shards of a `Searcher` in the order of sets and rows."""
    config, lists = pool.config, indexes(pool, context)
    made = context.map(
        Searcher(pool),
        Parts(pool, lists),
        "searching",
        "prompts",
        size=lambda part: len(part.rows),
        processes=config.num_processes,
        executor=config.executor,
    )
    return lists, made


def indexes(pool: Pool, context: Context) -> dict[int, Path]:
    """Files of the inverted lists of each set that is searched by an index."""
    config = pool.config
    sizes = np.bincount(pool.set_of, minlength=config.sets).tolist()
    numbers = [number for number, size in enumerate(sizes) if size > 1 and is_indexed(config, size)]
    if not numbers:
        return {}
    made = context.map(
        ListMaker(pool),
        {f"{number:05}.npz": number for number in numbers},
        "indexing",
        "prompts",
        size=sizes.__getitem__,
        processes=config.num_processes,
        executor=config.executor,
    )
    return dict(zip(numbers, made, strict=True))


def recall(pool: Pool, number: int, shards: Sequence[Path]) -> float:
    """Share of the true neighbours of a set's sample that its index found."""
    points = pool.points(number)
    found = np.concatenate([np.load(shard / SAMPLE_FILE, allow_pickle=False) for shard in shards])
    return recall_of(found, recall_sample(len(points), pool.config.seed), points)
