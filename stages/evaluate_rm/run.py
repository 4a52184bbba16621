"""The work of `evaluate-rm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from irpipe.microworld.annotators import Annotator, Impression, best_accuracy
from irpipe.pipeline.errors import InputError, RejectedError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.evaluation import BEST_OF, CALIBRATION, GENERATORS, GROUPS, REJECTED_EVALUATION_PAIRS, SCORERS
from irpipe.schemas.files import read_json
from irpipe.schemas.pairs import PAIRS
from irpipe.schemas.scores import SCORER_CARDS, SCORES
from irpipe.schemas.table import Table
from irpipe.schemas.truth import TRUTH
from irpipe.stages.evaluate_rm import EvaluateRmConfig
from irpipe.stages.evaluate_rm.accuracy import (
    accuracies,
    calibration,
    calibration_error,
    grouped,
    human_agreement,
    intervals,
    right_pairs,
)
from irpipe.stages.evaluate_rm.ranking import (
    best_images,
    best_of,
    mean_scores,
    read_human_ranking,
    read_rankings,
    recall_and_filter,
    rho,
    wins,
)
from irpipe.stages.evaluate_rm.report import draw, table_1, table_3

ORACLE = "oracle"
_BOUND_RECORDS = 20_000


@dataclass(frozen=True)
class Judge:
    """A scorer's scores and raw scores by image id.

    Attributes:
        reward_model: whether it was trained on preferences.
        log_odds: whether differences of raw scores are log odds, so that it can be calibrated.
    """

    scores: Mapping[int, float]
    raw: Mapping[int, float]
    reward_model: bool = False
    log_odds: bool = False


def run(config: EvaluateRmConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    pairs = read_pairs(inputs["pairs"], config.split)
    judges, images = read_scores(inputs["scores"])
    truth = TRUTH.read(inputs["truth"].table("truth")).to_pylist() if config.truth else []
    if truth:
        worth = {row["image_id"]: float(row["utility"]) for row in truth}
        judges[ORACLE] = Judge(worth, worth)
    kept = scored_by_all(pairs, judges)
    REJECTED_EVALUATION_PAIRS.write(
        out, {"pair_id": pairs["pair_id"][~kept], "reason": ["image not scored"] * int((~kept).sum())}
    )
    if len(kept) >= 100 and (~kept).mean() > config.max_rejected:
        raise RejectedError(
            f"{int((~kept).sum()):,} of {len(kept):,} pairs have images without scores",
            where="scores",
            fix="--set score-images.split=all scores every image, or raise evaluate-rm.max_rejected",
        )
    used = {name: column[kept] for name, column in pairs.items()}
    human = human_agreement(used["better"], used["worse"], used["annotator"].tolist())
    rows = judge_rows(config, used, judges)
    bound = bayes_bound(truth, used["prompt_id"], inputs["annotation-files"], config.seed) if truth else None
    groups = group_rows(used, judges)
    bins = calibration_rows(used, judges)
    generators = generator_rows(config, images, judges, context)
    picks = best_of_rows(config, truth, used["prompt_id"], judges)
    for table, content in ((SCORERS, rows), (GROUPS, groups), (CALIBRATION, bins), (GENERATORS, generators), (BEST_OF, picks)):
        write(table, content, out)
    report = table_3(rows, bound, human, config) + table_1(generators)
    (out / "report.txt").write_text(report, encoding="utf-8")
    draw(rows, bins, picks, bound, out / "evaluation.png")
    metrics = figures(rows, bins, bound, human, generators, [name for name, judge in judges.items() if judge.reward_model])
    return Report(Rows(len(kept), int(kept.sum()), int((~kept).sum())), metrics)


def read_pairs(artifact: Artifact, split: str) -> dict[str, NDArray[Any]]:
    """Columns of the pairs of a split.

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


def read_scores(artifact: Artifact) -> tuple[dict[str, Judge], dict[int, tuple[int, str | None]]]:
    """Every scorer's scores, and prompt and generator of each image."""
    table = SCORES.read(artifact.table("scores"))
    cards = {row["scorer"]: row for row in SCORER_CARDS.read(artifact.table("scorer_cards")).to_pylist()}
    judges: dict[str, Judge] = {}
    for name in dict.fromkeys(table["scorer"].to_pylist()):
        part = table.filter(pc.equal(table["scorer"].cast("string"), name))
        ids = part["image_id"].to_pylist()
        judges[name] = Judge(
            dict(zip(ids, part["score"].to_pylist(), strict=True)),
            dict(zip(ids, part["raw"].to_pylist(), strict=True)),
            cards[name]["reward_model"],
            cards[name]["log_odds"],
        )
    known = zip(*(table[name].to_pylist() for name in ("image_id", "prompt_id", "generator")), strict=True)
    return judges, {image: (prompt, generator) for image, prompt, generator in known}


def scored_by_all(pairs: Mapping[str, NDArray[Any]], judges: Mapping[str, Judge]) -> NDArray[np.bool_]:
    """(p,) whether everybody scored both images of a pair: all are compared on the same pairs.

    Raises:
        InputError: nobody scored any.
    """
    common = set.intersection(*(set(judge.scores) for judge in judges.values()))
    ends = zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True)
    kept = np.array([better in common and worse in common for better, worse in ends])
    if not kept.any():
        raise InputError(
            "no pair has scores for both its images: pairs and scores come of different images",
            where="scores",
            fix="irpipe lineage score-images; --set score-images.split=all scores every image",
        )
    return kept


def judge_rows(config: EvaluateRmConfig, pairs: Mapping[str, NDArray[Any]], judges: Mapping[str, Judge]) -> list[dict[str, Any]]:
    """Rows of `scorers`."""
    rankings = read_rankings({name: column.tolist() for name, column in pairs.items()})
    rows = []
    for name, judge in judges.items():
        right = right_pairs(judge.scores, pairs["better"], pairs["worse"])
        spans = intervals(right, pairs["prompt_id"], config.bootstrap, config.seed)
        for figure, value in accuracies(right, pairs["prompt_id"]).items():
            low, high = spans.get(figure, (None, None))
            rows.append({"scorer": name, "figure": figure, "value": value, "low": low, "high": high, "count": len(right)})
        for figure, (value, count) in recall_and_filter(rankings, judge.scores, config.at).items():
            rows.append({"scorer": name, "figure": figure, "value": value, "low": None, "high": None, "count": count})
    return rows


def group_rows(pairs: Mapping[str, NDArray[Any]], judges: Mapping[str, Judge]) -> list[dict[str, Any]]:
    """Rows of `groups`."""
    gaps = [
        None if better is None or worse is None else worse - better
        for better, worse in zip(pairs["rank_better"], pairs["rank_worse"], strict=True)
    ]
    labels = {"rank_gap": gaps, "category": pairs["category"].tolist(), "annotator": pairs["annotator"].tolist()}
    rows = []
    for name, judge in judges.items():
        right = right_pairs(judge.scores, pairs["better"], pairs["worse"])
        for by, given in labels.items():
            for label, count, accuracy in grouped(right, given):
                rows.append({"scorer": name, "part": by, "label": label, "pairs": count, "accuracy": accuracy})
    return rows


def calibration_rows(pairs: Mapping[str, NDArray[Any]], judges: Mapping[str, Judge]) -> list[dict[str, Any]]:
    """Rows of `calibration`, of those whose differences are log odds."""
    rows = []
    for name, judge in judges.items():
        if judge.log_odds:
            ends = zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True)
            gaps = np.array([judge.raw[better] - judge.raw[worse] for better, worse in ends])
            right = right_pairs(judge.scores, pairs["better"], pairs["worse"])
            rows += [{"scorer": name, **one} for one in calibration(gaps, right)]
    return rows


def generator_rows(
    config: EvaluateRmConfig, images: Mapping[int, tuple[int, str | None]], judges: Mapping[str, Judge], context: Context
) -> list[dict[str, Any]]:
    """Rows of `generators`, over all scored images; none where one generator made them all and people ranked none."""
    human = read_human_ranking(context.sources["human_ranking"][0]) if config.human_ranking else {}
    made = {image: (prompt, generator) for image, (prompt, generator) in images.items() if generator is not None}
    names = {generator for _, generator in made.values()}
    unknown = sorted(human.keys() - names)
    if unknown:
        raise InputError(
            f"{unknown[0]!r} of the human ranking made none of the scored images",
            where=str(config.human_ranking),
            expected=f"generators: {', '.join(sorted(names)) or 'none is known'}",
        )
    if len(names) < 2:
        if human:
            raise InputError("one generator made all scored images: there is nothing to rank", where=str(config.human_ranking))
        return []
    rows = []
    for name, judge in judges.items():
        of = [(generator, prompt, judge.scores[image]) for image, (prompt, generator) in made.items() if image in judge.scores]
        generators, prompts, scores = (list(column) for column in zip(*of, strict=True))
        means, won = mean_scores(generators, prompts, scores), wins(best_images(generators, prompts, scores))
        rows += [
            {"scorer": name, "generator": one, "mean": means[one], "wins": won[one], "human": human.get(one)}
            for one in sorted(means, key=lambda one: -means[one])
        ]
    return rows


def best_of_rows(
    config: EvaluateRmConfig, truth: Sequence[Mapping[str, Any]], prompts: NDArray[np.uint64], judges: Mapping[str, Judge]
) -> list[dict[str, Any]]:
    """Rows of `best_of`, on the split's prompts."""
    of_prompt: dict[int, list[Mapping[str, Any]]] = {}
    wanted = set(prompts.tolist())
    for row in truth:
        if row["prompt_id"] in wanted:
            of_prompt.setdefault(row["prompt_id"], []).append(row)
    rows = []
    for n in (1, *config.best_of) if truth else ():
        large = [known for known in of_prompt.values() if len(known) >= n]
        for name, judge in judges.items() if large else ():
            found = dict.fromkeys(("utility", "alignment", "fidelity"), 0.0)
            for known in large:
                order = np.array(sorted(range(len(known)), key=lambda i: -judge.scores.get(known[i]["image_id"], -np.inf)))
                for aspect in found:
                    found[aspect] += best_of(np.array([row[aspect] for row in known], dtype=np.float64), order, n) / len(large)
            rows.append({"scorer": name, "n": n, "prompts": len(large), **found})
    return rows


def bayes_bound(
    truth: Sequence[Mapping[str, Any]], prompts: NDArray[np.uint64], annotations: Artifact, seed: int
) -> float | None:
    """The best accuracy to expect on these prompts' images and of these people; None where people are no formula."""
    path = annotations.path / "people.json"
    if not path.is_file():
        return None
    people = [Annotator(**person) for person in read_json(path)["people"]]
    wanted = set(prompts.tolist())
    seen: dict[int, list[Impression]] = {}
    for row in truth:
        if row["prompt_id"] in wanted:
            seen.setdefault(row["prompt_id"], []).append(Impression(float(row["alignment"]), float(row["fidelity"]), 0, 0))
    whole = [images for images in seen.values() if 2 <= len(images) <= 10]
    draws = max(1, _BOUND_RECORDS // max(1, len(whole)))
    return best_accuracy(whole, people, draws, np.random.default_rng([seed, 1]))[0]


def figures(
    rows: Sequence[Mapping[str, Any]],
    bins: Sequence[Mapping[str, Any]],
    bound: float | None,
    human: tuple[float | None, int],
    generators: Sequence[Mapping[str, Any]],
    reward_models: Sequence[str],
) -> dict[str, Any]:
    """What people want to see first.

    Args:
        reward_models: the scorers that are reward models.
    """
    accuracy = {row["scorer"]: row for row in rows if row["figure"] == "accuracy"}
    told: dict[str, Any] = {"pairs": next(iter(accuracy.values()))["count"]}
    told |= {f"accuracy_{name}": round(row["value"], 4) for name, row in accuracy.items()}
    told |= {f"by_prompt_{row['scorer']}": round(row["value"], 4) for row in rows if row["figure"] == "accuracy_by_prompt"}
    if human[0] is not None:
        told["agreement_of_people"] = round(human[0], 4)
    if bins:
        told |= {
            f"calibration_error_{name}": round(calibration_error([row for row in bins if row["scorer"] == name]), 4)
            for name in dict.fromkeys(row["scorer"] for row in bins)
        }
    if bound is not None:
        told["bayes_bound"] = round(bound, 4)
        told |= {f"share_of_gap_{name}": round((accuracy[name]["value"] - 0.5) / (bound - 0.5), 4) for name in reward_models}
    for name in dict.fromkeys(row["scorer"] for row in generators):
        given = [row for row in generators if row["scorer"] == name and row["human"] is not None]
        correlation = rho({row["generator"]: row["mean"] for row in given}, {row["generator"]: row["human"] for row in given})
        if correlation is not None:
            told[f"rho_{name}"] = round(correlation, 4)
    return told


def write(table: Table, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    table.write(out, {column.name: [row[column.name] for row in rows] for column in table.columns})
