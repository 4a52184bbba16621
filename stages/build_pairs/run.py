"""The work of `build-pairs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from irpipe.pipeline.errors import RejectedError
from irpipe.pipeline.hashing import mix_row_ids
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.pairs import PAIRS, REJECTED_PAIRS
from irpipe.schemas.splits import SPLITS
from irpipe.stages.build_pairs import BuildPairsConfig
from irpipe.stages.build_pairs.aggregate import aggregates
from irpipe.stages.build_pairs.expand import Rankings, candidate_pairs, read_rankings
from irpipe.stages.build_pairs.facts import Facts, gather_facts

# Why a candidate is no pair, in the order in which reasons are tested.
REASONS = ("prompt label", "image problem", "image not at hand", "same image", "not compared", "tie", "conflict")
_REASONS = pa.array(REASONS)
_SPLITS = pa.array(SPLITS)


@dataclass(frozen=True)
class Candidates:
    """Candidate pairs of a block of rankings.

    Attributes:
        block: the rankings.
        first, second: (p,) row numbers in the block.
        sign: (p,) int8: 1 the first is better, -1 the second, 0 neither.
        reason: (p,) int8: index in `REASONS`, or -1 for a pair.
        prompt: (p,) int64: index of the prompt in `Facts`.
    """

    block: Rankings
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    sign: NDArray[np.int8]
    reason: NDArray[np.int8]
    prompt: NDArray[np.int64]


def run(config: BuildPairsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    annotations = inputs["annotations"]
    facts = gather_facts(config, inputs)
    weights = weigh(config, annotations, facts) if config.weighting == "prompt" else np.ones(len(facts.prompt_ids))
    counts = np.zeros(len(REASONS), dtype=np.int64)
    by_split = np.zeros(len(SPLITS), dtype=np.int64)
    with (
        PAIRS.writer(out / "pairs.parquet") as pairs,
        REJECTED_PAIRS.writer(out / "rejected.parquet") as rejected,
        context.progress("pairing", ranked_images(annotations), "images") as bar,
    ):
        for batch in candidates(config, annotations, facts):
            keep = batch.reason < 0
            pairs.append(pair_columns(batch, keep, facts, weights))
            rejected.append(rejected_columns(batch, ~keep, facts))
            counts += np.bincount(batch.reason[~keep], minlength=len(REASONS))
            by_split += np.bincount(facts.splits[batch.prompt[keep]], minlength=len(SPLITS))
            bar.advance(len(batch.block.images))
        num_pairs, num_rejected = pairs.rows, rejected.rows
    reasons = dict(zip(REASONS, counts.tolist(), strict=True))
    if not num_pairs:
        raise RejectedError(f"none of {num_rejected:,} candidate pairs can be kept: {reasons}", where="build-pairs")
    metrics = {
        "candidate_pairs": num_pairs + num_rejected,
        "pairs": num_pairs,
        "ties": reasons["tie"],
        "conflicts": reasons["conflict"],
        "rejected_for": {reason: count for reason, count in reasons.items() if count},
        "pairs_by_split": dict(zip(SPLITS, by_split.tolist(), strict=True)),
        "prompts_by_split": dict(zip(SPLITS, np.bincount(facts.splits, minlength=len(SPLITS)).tolist(), strict=True)),
    }
    return Report(Rows(num_pairs + num_rejected, num_pairs, num_rejected), metrics)


def ranked_images(annotations: Artifact) -> int:
    return sum(pq.read_metadata(file).num_rows for file in annotations.table("rankings"))


def candidates(config: BuildPairsConfig, annotations: Artifact, facts: Facts) -> Iterator[Candidates]:
    """All candidate pairs in blocks, each with its reason if it is no pair."""
    blocks = read_rankings(annotations.table("rankings"))
    if config.aggregate == "none":
        yield from (examine(block, {}, facts) for block in blocks)
        return
    rankings = list(blocks)  # a set of images may have been ranked anywhere: memory O(rankings)
    if rankings:
        yield examine(*aggregates(Rankings.joined(rankings), config.aggregate), facts)


def examine(block: Rankings, signs: Mapping[tuple[int, int], int], facts: Facts) -> Candidates:
    """The candidate pairs of a block.

    Args:
        signs: the majority's sign of pairs of aggregates, by row numbers; their ranks are -1.
    """
    first, second = candidate_pairs(block.starts)
    ranks_first, ranks_second = block.ranks[first], block.ranks[second]
    sign = np.sign(ranks_second.astype(np.int64) - ranks_first).astype(np.int8)
    conflict = np.zeros(len(first), dtype=bool)
    if signs:
        for index in np.flatnonzero(ranks_first < 0).tolist():
            opinion = signs.get((int(first[index]), int(second[index])))
            sign[index] = opinion or 0
            conflict[index] = opinion == 0
    prompt = facts.index_of(block.prompts)[first]
    images_first, images_second = block.images[first], block.images[second]
    tests = {
        "prompt label": facts.dropped[prompt],
        "image problem": facts.in_either(facts.problem_images, block.images, first, second),
        "image not at hand": facts.without_file(block.images, first, second),
        "same image": facts.same_image(images_first, images_second),
        "not compared": (sign == 0) & ~conflict & block.choices[first],
        "tie": (sign == 0) & ~conflict,
        "conflict": conflict,
    }
    reason = np.full(len(first), -1, dtype=np.int8)
    for number in reversed(range(len(REASONS))):
        mask = tests[REASONS[number]]
        if mask is not None:
            reason[mask] = number
    return Candidates(block, first, second, sign, reason, prompt)


def pair_columns(batch: Candidates, keep: NDArray[np.bool_], facts: Facts, weights: NDArray[np.float64]) -> dict[str, Any]:
    """Columns of the table `pairs`, for a mask (p,) of candidates and weights (prompts,)."""
    block, first_is_better = batch.block, batch.sign[keep] > 0
    first, second, prompt = batch.first[keep], batch.second[keep], batch.prompt[keep]
    better, worse = np.where(first_is_better, first, second), np.where(first_is_better, second, first)
    ids = block.rankings[better], block.images[better], block.images[worse]
    by_majority = block.ranks[better] < 0
    return {
        "pair_id": mix_row_ids(*ids),
        "prompt_id": block.prompts[better],
        "ranking_id": ids[0],
        "better": ids[1],
        "worse": ids[2],
        "rank_better": pa.array(block.ranks[better], mask=by_majority),
        "rank_worse": pa.array(block.ranks[worse], mask=by_majority),
        "annotator": block.annotators.take(pa.array(better)),
        "category": dictionary(facts.categories[prompt], facts.category_names),
        "weight": weights[prompt],
        "split": dictionary(facts.splits[prompt], _SPLITS),
    }


def rejected_columns(batch: Candidates, drop: NDArray[np.bool_], facts: Facts) -> dict[str, Any]:
    """Columns of the table `rejected`, for a mask (p,) of candidates."""
    first, second = batch.first[drop], batch.second[drop]
    return {
        "ranking_id": batch.block.rankings[first],
        "prompt_id": batch.block.prompts[first],
        "first": batch.block.images[first],
        "second": batch.block.images[second],
        "reason": dictionary(batch.reason[drop], _REASONS),
        "split": dictionary(facts.splits[batch.prompt[drop]], _SPLITS),
    }


def weigh(config: BuildPairsConfig, annotations: Artifact, facts: Facts) -> NDArray[np.float64]:
    """1 / pairs of each prompt, (prompts,)."""
    counts = np.zeros(len(facts.prompt_ids), dtype=np.int64)
    for batch in candidates(config, annotations, facts):
        counts += np.bincount(batch.prompt[batch.reason < 0], minlength=len(counts))
    return 1.0 / np.maximum(counts, 1)


def dictionary(codes: NDArray[Any], names: Any) -> Any:
    """An Arrow dictionary column from codes (n,); codes below 0 are null."""
    return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32), mask=codes < 0), names)
