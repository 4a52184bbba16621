"""The pool, its vectors, and the prompts selected of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.pipeline.view import Block, Chart, Grid, Picture, Shown
from irpipe.schemas.embeddings import VECTORS_FILE, open_vectors, unit_rows

_MAP_POINTS = 2000
_FIRST = 20


def pool(shown: Shown) -> Sequence[Block]:
    """The first prompts of a pool."""
    rows = shown.ask(f"SELECT prompt FROM prompts LIMIT {_FIRST}", prompts=shown.artifact.table("prompts"))
    total = shown.artifact.manifest.tables["prompts"].rows
    return [Grid("Prompts", ("prompt",), [(row["prompt"],) for row in rows], f"the first {len(rows):,} of {total:,}")]


def selected(shown: Shown) -> Sequence[Block]:
    """Where the selected prompts lie in the pool, how well they stand for it, and the first of them."""
    files = shown.artifact.table("selected_prompts")
    blocks: list[Block] = []
    told = shown.record.metrics
    names = [name for name in ("coverage_mean", "coverage_p5", "redundancy_mean") if told.get(name) is not None]
    if names:
        against = [(name, told[name], told.get(f"random_{name}")) for name in names]
        blocks.append(
            Grid(
                "Coverage against a random selection", ("figure", "selected", "random"), against,
                "similarity of every prompt to its nearest selected one: mean and 5th percentile (higher is better); redundancy:"
                " of every selected one to its nearest other (lower is better)",
            )
        )  # fmt: skip
    embeddings = shown.near("embeddings")
    if embeddings is not None:
        picked = shown.ask("SELECT source_row FROM selected", selected=files)
        prompts = shown.ask(
            f"SELECT prompt, source_row FROM prompts USING SAMPLE reservoir({_MAP_POINTS} ROWS) REPEATABLE (0)"
            if embeddings.manifest.tables["prompts"].rows > _MAP_POINTS
            else "SELECT prompt, source_row FROM prompts",
            prompts=embeddings.table("prompts"),
        )
        places = shown.ask("SELECT source_row FROM prompts", prompts=embeddings.table("prompts"))
        row_of = {row["source_row"]: place for place, row in enumerate(places)}
        blocks.append(_map(open_vectors(embeddings.file(VECTORS_FILE)), prompts, {row["source_row"] for row in picked}, row_of))
    if "coverage.png" in {file.path for file in shown.artifact.manifest.files}:
        alt = "two histograms: similarities of prompts to the selection, of vote-k and of a random selection"
        blocks.append(Picture("Coverage and redundancy", alt, shown.artifact.file("coverage.png")))
    rows = shown.ask(f"SELECT pick, prompt, vote_score FROM selected ORDER BY pick LIMIT {_FIRST}", selected=files)
    total = shown.artifact.manifest.tables["selected_prompts"].rows
    first = [(row["pick"], row["prompt"], row["vote_score"]) for row in rows]
    return [*blocks, Grid("First picks", ("pick", "prompt", "score"), first, f"{len(first):,} of {total:,}")]


def _map(
    vectors: NDArray[Any], prompts: Sequence[dict[str, Any]], picked: set[int], row_of: dict[int, int]
) -> Chart:  # fmt: skip
    """Vectors in the plane of their two widest directions."""
    chosen = [row for row in prompts if row["source_row"] in row_of]
    block = unit_rows(vectors, np.array([row_of[row["source_row"]] for row in chosen], dtype=np.int64))
    plane = plane_of(block)
    data = [
        {
            "x": round(float(x), 4), "y": round(float(y), 4), "prompt": row["prompt"][:200],
            "is": "selected" if row["source_row"] in picked else "in the pool",
        }
        for row, (x, y) in zip(chosen, plane, strict=True)
    ]  # fmt: skip
    data.sort(key=lambda row: row["is"])  # the selected ones last, above the others
    count = sum(row["is"] == "selected" for row in data)
    return Chart(
        f"Map of the prompts ({len(data):,} of {len(vectors):,} shown)",
        f"{len(data):,} prompts as points in the plane in which their vectors vary most, {count:,} of them selected",
        "points", data, "x", "y", colour="is", detail="prompt", axes=False,
    )  # fmt: skip


def plane_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinates (n, 2) along the two principal directions of vectors (n, d)."""
    centred = vectors - vectors.mean(axis=0)
    if len(centred) < 2:
        return np.zeros((len(centred), 2), dtype=np.float32)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    plane = centred @ directions[:2].T
    return plane if plane.shape[1] == 2 else np.pad(plane, ((0, 0), (0, 1)))
