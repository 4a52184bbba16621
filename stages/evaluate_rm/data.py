"""Pairs and scores, and which pairs are counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from irpipe.pipeline.errors import InputError, RejectedError
from irpipe.pipeline.store import Artifact
from irpipe.schemas.evaluation import REJECTED_EVALUATION_PAIRS
from irpipe.schemas.pairs import PAIRS
from irpipe.schemas.scores import SCORER_CARDS, SCORES
from irpipe.stages.evaluate_rm import EvaluateRmConfig


@dataclass(frozen=True)
class ScorerData:
    """A scorer's scores and raw scores by image id.

    Attributes:
        reward_model: whether it was trained on preferences.
        log_odds: whether differences of raw scores are log odds, so that it can be calibrated.
    """

    scores: Mapping[int, float]
    raw: Mapping[int, float]
    reward_model: bool = False
    log_odds: bool = False


def counted_pairs(
    pairs: Mapping[str, NDArray[Any]], scorers: Mapping[str, ScorerData], config: EvaluateRmConfig, out: Path
) -> NDArray[np.bool_]:
    """(p,) which pairs are counted: those that all scorers scored. The others go to the table `rejected`.

    Raises:
        RejectedError: too many have images without scores.
    """
    keep = scored_by_all(pairs, scorers)
    lost = int((~keep).sum())
    REJECTED_EVALUATION_PAIRS.write(out, {"pair_id": pairs["pair_id"][~keep], "reason": ["image not scored"] * lost})
    if len(keep) >= 100 and (~keep).mean() > config.max_rejected:
        raise RejectedError(
            f"{lost:,} of {len(keep):,} pairs have images without scores",
            where="scores",
            fix="--set score-images.split=all scores every image, or raise evaluate-rm.max_rejected",
        )
    return keep


def read_pairs(artifact: Artifact, split: str) -> dict[str, NDArray[Any]]:
    """Columns (p,) of the pairs of a split.

    Raises:
        InputError: there are none.
    """
    table = PAIRS.read(artifact.table("pairs"))
    table = table.filter(pc.equal(table["split"].cast("string"), split))
    if not table.num_rows:
        raise InputError(
            f"the pairs have no {split} split", where="pairs", fix="--set split-prompts.test_share=0.1, or more prompts"
        )
    plain = {"pair_id", "prompt_id", "ranking_id", "better", "worse"}
    return {
        name: table[name].to_numpy() if name in plain else np.array(table[name].to_pylist(), dtype=object)
        for name in table.column_names
    }


def read_scores(artifact: Artifact) -> tuple[dict[str, ScorerData], dict[int, tuple[int, str | None]]]:
    """Every scorer's scores, and prompt and generator of each image."""
    table = SCORES.read(artifact.table("scores"))
    cards = {row["scorer"]: row for row in SCORER_CARDS.read(artifact.table("scorer_cards")).to_pylist()}
    scorers: dict[str, ScorerData] = {}
    for name in dict.fromkeys(table["scorer"].to_pylist()):
        part = table.filter(pc.equal(table["scorer"].cast("string"), name))
        ids = part["image_id"].to_pylist()
        scorers[name] = ScorerData(
            dict(zip(ids, part["score"].to_pylist(), strict=True)),
            dict(zip(ids, part["raw"].to_pylist(), strict=True)),
            cards[name]["reward_model"],
            cards[name]["log_odds"],
        )
    origins = zip(*(table[name].to_pylist() for name in ("image_id", "prompt_id", "generator")), strict=True)
    return scorers, {image: (prompt, generator) for image, prompt, generator in origins}


def scored_by_all(pairs: Mapping[str, NDArray[Any]], scorers: Mapping[str, ScorerData]) -> NDArray[np.bool_]:
    """(p,) whether all scorers scored both images of a pair: all are compared on the same pairs.

    Raises:
        InputError: there is no such pair.
    """
    common = set.intersection(*(set(scorer.scores) for scorer in scorers.values()))
    ends = zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True)
    scored = np.array([better in common and worse in common for better, worse in ends])
    if not scored.any():
        raise InputError(
            "no pair has scores for both its images: pairs and scores are of different images",
            where="scores",
            fix="irpipe lineage score-images; --set score-images.split=all scores every image",
        )
    return scored
