"""The prompt pool and its vectors, and the selected prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from irpipe.pipeline.store import Artifact
from irpipe.pipeline.view import Block, Chart, Grid, Picture, Subject
from irpipe.schemas.embeddings import VECTORS_FILE, open_vectors, unit_rows
from irpipe.schemas.prompts import PROMPTS

_MAP_PICKED, _MAP_OTHERS = 500, 1500
_FIRST = 20


def pool(subject: Subject) -> Sequence[Block]:
    """The first prompts of a pool."""
    rows = subject.ask(f"SELECT prompt FROM prompts LIMIT {_FIRST}", prompts=subject.artifact.table("prompts"))
    total = subject.artifact.manifest.tables["prompts"].rows
    return [Grid("Prompts", ("prompt",), [(row["prompt"],) for row in rows], f"the first {len(rows):,} of {total:,}")]


def selected(subject: Subject) -> Sequence[Block]:
    """A map of the selected prompts in the pool, their coverage of it, and the first of them."""
    files = subject.artifact.table("selected_prompts")
    blocks: list[Block] = []
    metrics = subject.record.metrics
    names = [name for name in ("coverage_mean", "coverage_p5", "redundancy_mean") if metrics.get(name) is not None]
    if names:
        rows_compared = [(name, metrics[name], metrics.get(f"random_{name}")) for name in names]
        blocks.append(
            Grid(
                "Coverage against a random selection",
                ("figure", "selected", "random"),
                rows_compared,
                "similarity of every prompt to its nearest selected one: mean and 5th percentile (higher is better); redundancy:"
                " of every selected one to its nearest other (lower is better)",
            )
        )
    embeddings = subject.related("embeddings")
    if embeddings is not None:
        picked = subject.ask("SELECT source_row FROM selected", selected=files)
        blocks.append(_map(subject, embeddings, np.array([row["source_row"] for row in picked], dtype=np.int64)))
    if "coverage.png" in {file.path for file in subject.artifact.manifest.files}:
        alt = "two histograms: similarities of prompts to the selection, of vote-k and of a random selection"
        blocks.append(Picture("Coverage and redundancy", alt, subject.artifact.file("coverage.png")))
    rows = subject.ask(f"SELECT pick, prompt, vote_score FROM selected ORDER BY pick LIMIT {_FIRST}", selected=files)
    total = subject.artifact.manifest.tables["selected_prompts"].rows
    first = [(row["pick"], row["prompt"], row["vote_score"]) for row in rows]
    return [*blocks, Grid("First picks", ("pick", "prompt", "score"), first, f"{len(first):,} of {total:,}")]


def _map(subject: Subject, embeddings: Artifact, picked: NDArray[np.int64]) -> Chart:
    """A scatter plot of samples of the selected and of the other prompts, in the plane of the vectors' two principal directions.

    Args:
        picked: (m,) source rows of the selected prompts.
    """
    source_rows = PROMPTS.read(embeddings.table("prompts"), ["source_row"])["source_row"].to_numpy()
    is_picked = np.isin(source_rows, picked)
    rng = np.random.default_rng(0)
    indices = np.concatenate(
        [_some(np.flatnonzero(~is_picked), _MAP_OTHERS, rng), _some(np.flatnonzero(is_picked), _MAP_PICKED, rng)]
    )
    rows = ", ".join(map(str, source_rows[indices].tolist())) or "NULL"
    query = f"SELECT source_row, prompt FROM prompts WHERE source_row IN ({rows})"
    prompt_rows = subject.ask(query, prompts=embeddings.table("prompts"))
    texts = {row["source_row"]: row["prompt"] for row in prompt_rows}
    plane = plane_of(unit_rows(open_vectors(embeddings.file(VECTORS_FILE)), indices))
    data = [
        {
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "prompt": texts[int(source_rows[index])][:200],
            "is": "selected" if is_picked[index] else "in the pool",
        }
        for index, (x, y) in zip(indices, plane, strict=True)
    ]
    count, selected, unselected = int(is_picked[indices].sum()), int(is_picked.sum()), int((~is_picked).sum())
    return Chart(
        f"Map of the prompts ({count:,} of {selected:,} selected, {len(indices) - count:,} of {unselected:,} others)",
        f"{len(data):,} prompts as points in the plane in which their vectors vary most, {count:,} of them selected",
        "points",
        data,
        "x",
        "y",
        colour="is",
        detail="prompt",
        axes=False,
    )


def _some(indices: NDArray[np.int64], most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random sample (m,) of indices (n,), sorted; all where there are at most `most`."""
    return indices if len(indices) <= most else np.sort(rng.choice(indices, most, replace=False))


def plane_of(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinates (n, 2) of vectors (n, d) along their two principal directions; zeros where there are none."""
    from sklearn.decomposition import PCA

    plane = np.zeros((len(vectors), 2), dtype=np.float32)
    components = min(2, *vectors.shape)
    if (vectors != vectors[:1]).any():
        plane[:, :components] = PCA(components, svd_solver="full").fit_transform(vectors)
    return plane
