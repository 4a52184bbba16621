"""The work of `evaluate-rm`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.annotators import Annotator, Impression, best_accuracy
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import PEOPLE, RANKINGS
from irpipe.schemas.evaluation import (
    AGREEMENT,
    BEST_OF,
    CALIBRATION,
    CORRELATIONS,
    GENERATORS,
    GROUPS,
    SCORERS,
    VOTES,
)
from irpipe.schemas.files import read_json
from irpipe.schemas.table import Table
from irpipe.schemas.truth import TRUTH
from irpipe.stages.evaluate_rm import EvaluateRmConfig
from irpipe.stages.evaluate_rm.accuracy import (
    accuracies,
    calibration,
    calibration_error,
    correct_pairs,
    grouped,
    intervals,
)
from irpipe.stages.evaluate_rm.choices import Choice, Judged, chances_of, choice_figures, choice_rows, read_choices
from irpipe.stages.evaluate_rm.data import ScorerData, counted_pairs, read_pairs, read_scores
from irpipe.stages.evaluate_rm.ranking import (
    RULES,
    best_images,
    best_of,
    correlations,
    mean_scores,
    read_human_ranking,
    read_rankings,
    recall_and_filter,
    rho,
    wins,
)
from irpipe.stages.evaluate_rm.report import draw, table_1, table_2, table_3
from irpipe.stages.evaluate_rm.study import (
    agreement_by_person,
    agreement_rows,
    draw_votes,
    human_agreement,
    table_of_people,
    user_study,
    vote_rows,
)

ORACLE = "oracle"
_BOUND_RECORDS = 20_000


def run(config: EvaluateRmConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    pairs = read_pairs(inputs["pairs"], config.split)
    scorers, images = read_scores(inputs["scores"])
    truth = TRUTH.read(inputs["truth"].table("truth")).to_pylist() if config.truth else []
    if truth:
        utilities = {row["image_id"]: float(row["utility"]) for row in truth}
        scorers[ORACLE] = ScorerData(utilities, utilities)
    keep = counted_pairs(pairs, scorers, config, out)
    used = {name: column[keep] for name, column in pairs.items()}
    human = human_agreement(agreement_by_person(used))
    rows = scorer_rows(config, used, scorers)
    people = read_people(inputs["annotation-files"]) if truth else []
    choices = read_choices(RANKINGS.read(inputs["annotations"].table("rankings")).to_pydict(), set(pairs["ranking_id"].tolist()))
    judged = judge_choices(choices, scorers, truth, people)
    check_baseline(config, judged, scorers)
    rows += choice_rows(judged, {name: s.scores for name, s in scorers.items()}, config.baseline, config.bootstrap, config.seed)
    bound = judged.bounds.pairs if judged.bounds else bayes_bound(truth, used["prompt_id"], people, config.seed)
    groups = group_rows(used, scorers)
    bins = calibration_rows(used, scorers)
    generators = generator_rows(config, images, scorers, context)
    picks = best_of_rows(config, truth, used["prompt_id"], scorers)
    tables = {SCORERS: rows, GROUPS: groups, CALIBRATION: bins, GENERATORS: generators, BEST_OF: picks}
    tables[AGREEMENT] = people_rows = agreement_rows(used, {name: correct_of(scorer, used) for name, scorer in scorers.items()})
    tables[VOTES] = votes = vote_rows(used, {image: generator for image, (_, generator) in images.items()})
    for table, content in (tables | {CORRELATIONS: correlation_rows(used, scorers)}).items():
        write(table, content, out)
    report = table_3(rows, bound, human, config, inputs["pairs"].content_id) + table_2(rows, judged, config) + table_1(generators)
    report += table_of_people(people_rows) + user_study(votes)
    (out / "report.txt").write_text(report, encoding="utf-8")
    if votes:
        draw_votes(votes, out / "votes.png")
    draw(rows, bins, picks, bound, out / "evaluation.png")
    metrics = figures(rows, bins, bound, human, generators, [name for name, scorer in scorers.items() if scorer.reward_model])
    metrics |= choice_figures(rows, judged)
    return Report(Rows(len(keep), int(keep.sum()), int((~keep).sum())), metrics)


def scorer_rows(
    config: EvaluateRmConfig, pairs: Mapping[str, NDArray[Any]], scorers: Mapping[str, ScorerData]
) -> list[dict[str, Any]]:
    """Rows of the table `scorers`, from columns (p,) of pairs."""
    rankings = read_rankings({name: column.tolist() for name, column in pairs.items()})
    rows = []
    for name, scorer in scorers.items():
        correct = correct_of(scorer, pairs)
        spans = intervals(correct, pairs["prompt_id"], config.bootstrap, config.seed)
        for figure, value in accuracies(correct, pairs["prompt_id"]).items():
            low, high = spans.get(figure, (None, None))
            rows.append({"scorer": name, "figure": figure, "value": value, "low": low, "high": high, "count": len(correct)})
        for rule in config.rules:
            value, count = RULES[rule](rankings, scorer.scores)
            rows.append({"scorer": name, "figure": rule, "value": value, "low": None, "high": None, "count": count})
        for figure, (value, count) in recall_and_filter(rankings, scorer.scores, config.at).items():
            rows.append({"scorer": name, "figure": figure, "value": value, "low": None, "high": None, "count": count})
    return rows


def correct_of(scorer: ScorerData, pairs: Mapping[str, NDArray[Any]]) -> NDArray[np.float64]:
    """(p,) whether a scorer orders pairs with columns (p,) as people do."""
    return correct_pairs(scorer.scores, pairs["better"], pairs["worse"])


def group_rows(pairs: Mapping[str, NDArray[Any]], scorers: Mapping[str, ScorerData]) -> list[dict[str, Any]]:
    """Rows of the table `groups`, from columns (p,) of pairs."""
    gaps = [
        None if better is None or worse is None else worse - better
        for better, worse in zip(pairs["rank_better"], pairs["rank_worse"], strict=True)
    ]
    labels = {"rank_gap": gaps, "category": pairs["category"].tolist(), "annotator": pairs["annotator"].tolist()}
    rows = []
    for name, scorer in scorers.items():
        correct = correct_of(scorer, pairs)
        for part, values in labels.items():
            for label, count, accuracy in grouped(correct, values):
                rows.append({"scorer": name, "part": part, "label": label, "pairs": count, "accuracy": accuracy})
    return rows


def calibration_rows(pairs: Mapping[str, NDArray[Any]], scorers: Mapping[str, ScorerData]) -> list[dict[str, Any]]:
    """Rows of the table `calibration`, from columns (p,) of pairs, for scorers whose differences are log odds."""
    rows = []
    for name, scorer in scorers.items():
        if scorer.log_odds:
            ends = zip(pairs["better"].tolist(), pairs["worse"].tolist(), strict=True)
            gaps = np.array([scorer.raw[better] - scorer.raw[worse] for better, worse in ends])
            correct = correct_of(scorer, pairs)
            rows += [{"scorer": name, **row} for row in calibration(gaps, correct)]
    return rows


def generator_rows(
    config: EvaluateRmConfig, images: Mapping[int, tuple[int, str | None]], scorers: Mapping[str, ScorerData], context: Context
) -> list[dict[str, Any]]:
    """Rows of `generators`, over all scored images; empty where one generator made them all and there is no human ranking."""
    human = read_human_ranking(context.sources["human_ranking"][0]) if config.human_ranking else {}
    generated = {image: (prompt, generator) for image, (prompt, generator) in images.items() if generator is not None}
    names = {generator for _, generator in generated.values()}
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
    for name, scorer in scorers.items():
        scored = [
            (generator, prompt, scorer.scores[image])
            for image, (prompt, generator) in generated.items()
            if image in scorer.scores
        ]
        generators, prompts, scores = (list(column) for column in zip(*scored, strict=True))
        means, win_counts = mean_scores(generators, prompts, scores), wins(best_images(generators, prompts, scores))
        rows += [
            {
                "scorer": name,
                "generator": generator,
                "mean": means[generator],
                "wins": win_counts[generator],
                "human": human.get(generator),
            }
            for generator in sorted(means, key=lambda generator: -means[generator])
        ]
    return rows


def correlation_rows(pairs: Mapping[str, NDArray[Any]], scorers: Mapping[str, ScorerData]) -> list[dict[str, Any]]:
    """Rows of `correlations`, over the images of the pairs."""
    prompt_of: dict[int, int] = {}
    for name in ("better", "worse"):
        prompt_of |= dict(zip(pairs[name].tolist(), pairs["prompt_id"].tolist(), strict=True))
    return correlations({name: scorer.scores for name, scorer in scorers.items()}, prompt_of, sorted(prompt_of))


def best_of_rows(
    config: EvaluateRmConfig, truth: Sequence[Mapping[str, Any]], prompts: NDArray[np.uint64], scorers: Mapping[str, ScorerData]
) -> list[dict[str, Any]]:
    """Rows of `best_of`, on the split's pairs with prompt ids (p,)."""
    by_prompt: dict[int, list[Mapping[str, Any]]] = {}
    prompt_ids = set(prompts.tolist())
    for row in truth:
        if row["prompt_id"] in prompt_ids:
            by_prompt.setdefault(row["prompt_id"], []).append(row)
    rows = []
    for n in (1, *config.best_of) if truth else ():
        large = [candidates for candidates in by_prompt.values() if len(candidates) >= n]
        for name, scorer in scorers.items() if large else ():
            expected = dict.fromkeys(("utility", "alignment", "fidelity"), 0.0)
            for candidates in large:
                order = np.array(
                    sorted(range(len(candidates)), key=lambda i: -scorer.scores.get(candidates[i]["image_id"], -np.inf))
                )
                for aspect in expected:
                    expected[aspect] += best_of(np.array([row[aspect] for row in candidates], dtype=np.float64), order, n) / len(
                        large
                    )
            rows.append({"scorer": name, "n": n, "prompts": len(large), **expected})
    return rows


def read_people(annotations: Artifact) -> list[Annotator]:
    """The simulated annotators; none for real people."""
    path = annotations.path / PEOPLE
    return [Annotator(**person) for person in read_json(path)["people"]] if path.is_file() else []


def judge_choices(
    choices: Sequence[Choice],
    scorers: Mapping[str, ScorerData],
    truth: Sequence[Mapping[str, Any]],
    people: Sequence[Annotator],
) -> Judged:
    """Choices with what simulated people pick of them; those of an image without a score are left out, and counted."""
    scored = set.intersection(*(set(scorer.scores) for scorer in scorers.values()))
    kept = [choice for choice in choices if all(image in scored for image in choice.images)]
    return Judged(kept, chances_of(kept, truth, people) if people else (), unscored=len(choices) - len(kept))


def check_baseline(config: EvaluateRmConfig, judged: Judged, scorers: Mapping[str, ScorerData]) -> None:
    """Whether there is anything to compare with the baseline.

    Raises:
        InputError: it did not score, or nobody made a choice.
    """
    if config.baseline is None:
        return
    if config.baseline not in scorers:
        raise InputError(f"{config.baseline!r} did not score", where="evaluate-rm.baseline", expected=" or ".join(scorers))
    if not judged.choices:
        raise InputError("baseline has no effect: the pairs are not of choices", fix="--set evaluate-rm.baseline=default")


def bayes_bound(
    truth: Sequence[Mapping[str, Any]], prompts: NDArray[np.uint64], people: Sequence[Annotator], seed: int
) -> float | None:
    """The highest possible accuracy on the images of prompts (p,) with these annotators; None for real people."""
    if not people:
        return None
    prompt_ids = set(prompts.tolist())
    impressions: dict[int, list[Impression]] = {}
    for row in truth:
        if row["prompt_id"] in prompt_ids:
            impressions.setdefault(row["prompt_id"], []).append(Impression(float(row["alignment"]), float(row["fidelity"]), 0, 0))
    usable = [images for images in impressions.values() if 2 <= len(images) <= 10]
    draws = max(1, _BOUND_RECORDS // max(1, len(usable)))
    return best_accuracy(usable, people, draws, np.random.default_rng([seed, 1]))[0]


def figures(
    rows: Sequence[Mapping[str, Any]],
    bins: Sequence[Mapping[str, Any]],
    bound: float | None,
    human: tuple[float | None, int],
    generators: Sequence[Mapping[str, Any]],
    reward_models: Sequence[str],
) -> dict[str, Any]:
    """The metrics of the run.

    Args:
        reward_models: the scorers that are reward models.
    """
    accuracy = {row["scorer"]: row for row in rows if row["figure"] == "accuracy"}
    metrics: dict[str, Any] = {"pairs": next(iter(accuracy.values()))["count"]}
    metrics |= {f"accuracy_{name}": round(row["value"], 4) for name, row in accuracy.items()}
    metrics |= {f"by_prompt_{row['scorer']}": round(row["value"], 4) for row in rows if row["figure"] == "accuracy_by_prompt"}
    if human[0] is not None:
        metrics["agreement_of_people"] = round(human[0], 4)
    if bins:
        metrics |= {
            f"calibration_error_{name}": round(calibration_error([row for row in bins if row["scorer"] == name]), 4)
            for name in dict.fromkeys(row["scorer"] for row in bins)
        }
    if bound is not None:
        metrics["bayes_bound"] = round(bound, 4)
        metrics |= {f"share_of_gap_{name}": round((accuracy[name]["value"] - 0.5) / (bound - 0.5), 4) for name in reward_models}
    for name in dict.fromkeys(row["scorer"] for row in generators):
        ranked = [row for row in generators if row["scorer"] == name and row["human"] is not None]
        correlation = rho({row["generator"]: row["mean"] for row in ranked}, {row["generator"]: row["human"] for row in ranked})
        if correlation is not None:
            metrics[f"rho_{name}"] = round(correlation, 4)
    return metrics


def write(table: Table, rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    table.write(out, {column.name: [row[column.name] for row in rows] for column in table.columns})
