"""build-pairs: 10 million pairs to Parquet, and whether memory grows with them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.common import peak_in_child, quiet_context, show, timed
from irpipe.pipeline.manifest import describe
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import (
    ANNOTATED_PROMPTS,
    ANNOTATION_IMAGES,
    ANNOTATIONS,
    PROMPT_LABELS,
    RANKINGS,
    RATINGS,
)
from irpipe.schemas.splits import PROMPT_SPLITS

_SPLITS = "splits"
IMAGES = 7  # C(7, 2) = 21 pairs a ranking, less about a fifth of ties


class Size(NamedTuple):
    """Prompts, and their rankings: some, and several times as many."""

    prompts: int
    rankings: tuple[int, int]


FULL, TINY = Size(20_000, (150_000, 600_000)), Size(20, (60, 200))


def main(folder: Path, size: Size) -> None:
    for rankings in size.rankings:
        name = folder / str(rankings)
        _write(name, size.prompts, rankings)
        (seconds, kept, candidates), peak = peak_in_child(_build, name)
        show(
            f"{candidates / 1e6:.1f} M candidates, {kept / 1e6:.1f} M pairs",
            seconds=f"{seconds:.1f}",
            pairs_per_second=f"{kept / seconds / 1e6:.2f} M",
            peak_memory=f"{peak:.2f} GB",
        )
    (seconds, count), peak = peak_in_child(_self_join, folder / str(size.rankings[-1]))
    show(
        "the same by a DuckDB self-join",
        seconds=f"{seconds:.1f}",
        pairs_per_second=f"{count / seconds / 1e6:.2f} M",
        peak_memory=f"{peak:.2f} GB",
    )


def _write(folder: Path, prompts: int, rankings: int) -> None:
    """The tables of an annotations artifact, prompts that many annotators ranked, and in a folder within it the splits."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    prompt_ids = rng.integers(0, 1 << 63, prompts, dtype=np.uint64)
    image_ids = rng.integers(0, 1 << 63, (prompts, IMAGES), dtype=np.uint64)
    prompt_of = np.sort(rng.integers(0, prompts, rankings))
    ranking_ids = rng.integers(0, 1 << 63, rankings, dtype=np.uint64)
    texts = [f"prompt {row}" for row in range(prompts)]
    ANNOTATED_PROMPTS.write(folder, {"prompt_id": prompt_ids, "prompt": texts})
    splits = {"split": ["train" if row % 10 else "test" for row in range(prompts)], "component": np.arange(prompts)}
    (folder / _SPLITS).mkdir()
    PROMPT_SPLITS.write(folder / _SPLITS, {"prompt_id": prompt_ids, "prompt": texts, **splits})
    ANNOTATION_IMAGES.write(
        folder,
        {
            "image_id": image_ids.ravel(),
            "prompt_id": np.repeat(prompt_ids, IMAGES),
            "path": [f"{row}.png" for row in range(prompts * IMAGES)],
        },
    )
    ANNOTATIONS.write(
        folder,
        {
            "ranking_id": ranking_ids,
            "prompt_id": prompt_ids[prompt_of],
            "source_row": np.arange(rankings),
            "annotator": [None] * rankings,
            "split": [None] * rankings,
        },
    )
    with RANKINGS.writer(folder / "rankings.parquet") as writer:
        for start in range(0, rankings, 10_000):
            rows = slice(start, start + 10_000)
            count = len(ranking_ids[rows])
            writer.append(
                {
                    "ranking_id": np.repeat(ranking_ids[rows], IMAGES),
                    "prompt_id": np.repeat(prompt_ids[prompt_of[rows]], IMAGES),
                    "image_id": image_ids[prompt_of[rows]].ravel(),
                    "rank": rng.integers(1, 6, count * IMAGES),
                    "annotator": [f"annotator {row % 500}" for row in range(count) for _ in range(IMAGES)],
                    "choice": np.zeros(count * IMAGES, dtype=bool),
                }
            )
    for table in (PROMPT_LABELS, RATINGS):
        table.write(folder, {column.name: [] for column in table.columns})


def _build(folder: Path) -> tuple[float, int, int]:
    from irpipe.stages.build_pairs import BuildPairsConfig
    from irpipe.stages.build_pairs.run import run

    out = folder / "out"
    out.mkdir()
    inputs = {name: Artifact(path, describe(path)) for name, path in (("annotations", folder), ("splits", folder / _SPLITS))}
    seconds, report = timed(lambda: run(BuildPairsConfig(), inputs, out, quiet_context(folder / "work")))
    return seconds, report.rows.kept, report.rows.read


def _self_join(folder: Path) -> tuple[float, int]:
    """Better and worse of every untied pair of a ranking, with less beside them: no pair id, category, weight or split."""
    import duckdb

    query = (
        f"COPY (SELECT one.ranking_id, one.prompt_id, one.image_id AS better, two.image_id AS worse, one.rank AS rank_better,"
        f" two.rank AS rank_worse, one.annotator FROM '{folder}/rankings.parquet' one JOIN '{folder}/rankings.parquet' two"
        f" USING (ranking_id) WHERE one.rank < two.rank) TO '{folder}/joined.parquet'"
    )
    with duckdb.connect() as connection:
        connection.execute("SET temp_directory = ''")
        seconds, answer = timed(lambda: connection.execute(query).fetchone())
    return seconds, answer[0]
