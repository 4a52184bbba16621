"""The work of `select-prompts`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.embeddings import VECTORS_FILE, open_vectors, unit_rows
from irpipe.schemas.graph import read_graph
from irpipe.schemas.prompt_files import prompts_of
from irpipe.schemas.prompts import PROMPTS, SELECTED_PROMPTS, normalise
from irpipe.schemas.rejected import Rejections
from irpipe.stages.select_prompts import SelectPromptsConfig
from irpipe.stages.select_prompts.coverage import figures, nearest_other, nearest_selected, plot
from irpipe.stages.select_prompts.votek import Ballot, vote_k

Selection = tuple[NDArray[np.int64], NDArray[np.float64] | None, NDArray[np.int32] | None]


def run(config: SelectPromptsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    pool = PROMPTS.read(inputs["embeddings"].table("prompts"))
    vectors = open_vectors(inputs["embeddings"].file(VECTORS_FILE))
    allowed, excluded = candidates(pool, context.sources.get("exclude", ()))
    if config.count > len(allowed):
        raise InputError(
            f"{config.count:,} prompts are asked for and {len(allowed):,} can be selected",
            where="select-prompts.count",
            fix=f"--set select-prompts.count={len(allowed)}",
        )
    picks, scores, sets = select(config, vectors, allowed, inputs, context)
    SELECTED_PROMPTS.write(out, selected_columns(pool, picks, scores, sets))
    rejections = Rejections(1.0, "embed-prompts")
    for row in np.setdiff1d(np.arange(pool.num_rows), picks).tolist():
        rejections.drop(row, "excluded" if excluded[row] else "not selected")
    rejections.write(out)
    metrics = compare(config, vectors, picks, allowed, out, context)
    if scores is not None:
        metrics["picks_without_votes"] = int((scores == 0).sum())
    metrics["excluded"] = int(excluded.sum())
    return Report(Rows(pool.num_rows, len(picks), pool.num_rows - len(picks)), metrics)


def candidates(pool: Any, exclude: tuple[Path, ...]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows (m,) that may be selected, and a mask (n,) of the excluded ones."""
    forbidden = {normalise(text) for path in exclude for text in prompts_of(path)}
    texts = pool["prompt"].to_pylist() if forbidden else []
    excluded = np.array([normalise(text) in forbidden for text in texts] or np.zeros(pool.num_rows), dtype=bool)
    return np.flatnonzero(~excluded), excluded


def select(
    config: SelectPromptsConfig,
    vectors: NDArray[Any],
    allowed: NDArray[np.int64],
    inputs: Mapping[str, Artifact],
    context: Context,
) -> Selection:
    """Rows (count,) in the order of selection; for vote-k also their scores and sets, (count,) each. Vectors: (n, d)."""
    if config.method == "random":
        return random_rows(allowed, config.count, config.seed), None, None
    if config.method == "k-center":
        return k_center(vectors, allowed, config.count, context), None, None
    graph = read_graph(inputs["prompt-graph"].table("edges"), inputs["prompt-graph"].table("vertices"))
    ballot = Ballot(graph, config.rho)
    picks: list[int] = []
    scores: list[float] = []
    with context.progress("selecting", config.count, "prompts") as bar:
        for members, count in shares(graph.sets, allowed, config.count):
            set_picks, set_scores = vote_k(ballot, members, count)
            picks += set_picks
            scores += set_scores
            bar.advance(count)
    rows = np.array(picks, dtype=np.int64)
    return rows, np.array(scores), graph.sets[rows]


def shares(sets: NDArray[np.int32], allowed: NDArray[np.int64], count: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The candidates (m,) of each set and how many of them to pick: as equal as the sets' sizes allow; sets: (n,)."""
    members = [allowed[sets[allowed] == number] for number in range(int(sets.max()) + 1)]
    counts = [0] * len(members)
    remaining = count
    while remaining:
        open_sets = [number for number, rows in enumerate(members) if counts[number] < len(rows)]
        each, extra = divmod(remaining, len(open_sets))
        for position, number in enumerate(open_sets):
            more = min(each + (position < extra), len(members[number]) - counts[number])
            counts[number] += more
            remaining -= more
    yield from ((rows, number) for rows, number in zip(members, counts, strict=True) if number)


def random_rows(allowed: NDArray[np.int64], count: int, seed: int) -> NDArray[np.int64]:
    """A random sample (count,) without replacement of allowed (m,), in random order."""
    rows: NDArray[np.int64] = np.random.default_rng(seed).permutation(allowed)[:count]
    return rows


def k_center(vectors: NDArray[Any], allowed: NDArray[np.int64], count: int, context: Context) -> NDArray[np.int64]:
    """Farthest-first rows (count,) of vectors (n, d) (Gonzalez 1985), from the one nearest to the mean.

    Cost: 2 n count d floating-point operations, one pass over the vectors per pick; float32 vectors in memory.
    """
    points = unit_rows(vectors, allowed)
    picks = [int((points @ points.mean(axis=0)).argmax())]
    nearest = np.full(len(points), -np.inf, dtype=np.float32)
    with context.progress("selecting", count, "prompts") as bar:
        while len(picks) < count:
            np.maximum(nearest, points @ points[picks[-1]], out=nearest)
            nearest[picks[-1]] = np.inf
            picks.append(int(nearest.argmin()))
            bar.advance(1)
    rows: NDArray[np.int64] = allowed[np.array(picks)]
    return rows


def selected_columns(
    pool: Any, picks: NDArray[np.int64], scores: NDArray[np.float64] | None, sets: NDArray[np.int32] | None
) -> dict[str, Any]:
    """Columns of the table `selected_prompts`, (count,) each."""
    rows = pool.take(picks)
    nothing = [None] * len(picks)
    return {
        "pick": np.arange(len(picks)),
        "prompt_id": rows["prompt_id"],
        "prompt": rows["prompt"],
        "source_row": rows["source_row"],
        "vote_score": nothing if scores is None else scores,
        "set": nothing if sets is None else sets,
    }


def compare(
    config: SelectPromptsConfig,
    vectors: NDArray[Any],
    picks: NDArray[np.int64],
    allowed: NDArray[np.int64],
    out: Path,
    context: Context,
) -> dict[str, Any]:
    """Coverage and redundancy of picks (count,) of vectors (n, d) and of a random selection, as metrics and as a plot."""
    chance = random_rows(allowed, len(picks), config.seed)
    coverage = nearest_selected(vectors, picks, "coverage", context), nearest_selected(vectors, chance, "random's", context)
    redundancy = nearest_other(vectors, picks), nearest_other(vectors, chance)
    plot(out / "coverage.png", config.method, coverage, redundancy)
    selected_figures, random_figures = (figures(coverage[index], redundancy[index]) for index in (0, 1))
    return {"selected": len(picks), **selected_figures, **{f"random_{name}": value for name, value in random_figures.items()}}
