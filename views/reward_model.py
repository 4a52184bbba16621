"""Reward models, sweeps, scores and evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irpipe.pipeline.view import Block, Card, Chart, Gallery, Grid, Subject, Text
from irpipe.schemas.files import read_json
from irpipe.schemas.rich_feedback import ASPECTS
from irpipe.views.choices import correlations, table_2
from irpipe.views.pictures import CaptionedImage, main_scorer, prompt_texts, text, thumbnails

_PROMPTS, _MISTAKES = 12, 12
_UNITS = {
    "loss": "loss (nats per pair)",
    "accuracy": "share of pairs ordered as people do",
    "heatmaps": "squared error of pixels",
    "scores": "squared error of scores",
    "words": "nats per token",
    **{f"plcc_{aspect}": "Pearson's correlation with people" for aspect in ASPECTS},
}
_POINTS = 400  # of a curve


def reward_model(subject: Subject) -> Sequence[Block]:
    """The score card, and loss and accuracy over the training."""
    card = read_json(subject.artifact.file("score_card.json"))
    rows = [(name, value) for name, value in card.get("metrics", {}).items()]
    rows += [(name, card[name]) for name in ("mean", "std", "normalised_on") if name in card]
    rows += [(f"trained on: {name}", value) for name, value in card.get("trained_on", {}).items()]
    curves = subject.ask("SELECT step, split, figure, value FROM curves ORDER BY step", curves=subject.artifact.table("curves"))
    blocks: list[Block] = [Text(f"Scores: {card.get('meaning', '')}."), Grid("Score card", ("figure", "value"), rows)]
    kept = (
        {f"kept: step {card['metrics']['best_step']:,}": card["metrics"]["best_step"]} if "best_step" in card["metrics"] else {}
    )
    for figure, unit in _UNITS.items():
        data = [{"step": row["step"], "split": row["split"], figure: row["value"]} for row in curves if row["figure"] == figure]
        if data:
            alt = f"{figure} over the steps of training, on training and validation pairs"
            splits = dict.fromkeys(row["split"] for row in data)
            points = [
                row for split in splits for row in thinned([other_row for other_row in data if other_row["split"] == split])
            ]
            title = figure.capitalize()
            blocks.append(Chart(title, alt, "line", points, "step", figure, colour="split", y_title=unit, steps=kept))
    return blocks


def thinned(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Every n-th row, so that a curve keeps at most `_POINTS`; its last one stays."""
    every = -(-len(rows) // _POINTS)
    return [row for index, row in enumerate(rows) if index % every == 0 or index == len(rows) - 1]


def sweep(subject: Subject) -> Sequence[Block]:
    """The models of a sweep, the best first."""
    rows = subject.ask("SELECT * FROM sweep ORDER BY validation_loss", sweep=subject.artifact.table("sweep"))
    columns = list(rows[0]) if rows else []
    models = Grid("Models, the best first", columns, [tuple(row.values()) for row in rows])
    lines = []
    for node, (_, artifact) in subject.read("reward-model").items():
        query = "SELECT step, value AS loss FROM c WHERE split = 'validation' AND figure = 'loss' ORDER BY step"
        lines += [dict(row) | {"model": node} for row in thinned(subject.ask(query, c=artifact.table("curves")))]
    alt = "validation loss over the steps, a line for each model"
    chart = Chart("Validation loss", alt, "line", lines, "step", "loss", colour="model", y_title=_UNITS["loss"])
    return [models, *([chart] if lines else [])]


def scores(subject: Subject) -> Sequence[Block]:
    """Mean and standard deviation by scorer and generator."""
    rows = subject.ask(
        "SELECT scorer::VARCHAR AS scorer, generator::VARCHAR AS generator, count(*) AS images, avg(score) AS mean,"
        " stddev(score) AS deviation, min(score) AS least, max(score) AS most FROM scores GROUP BY ALL ORDER BY ALL",
        scores=subject.artifact.table("scores"),
    )
    columns = ("scorer", "generator", "images", "mean", "deviation", "least", "most")
    return [Grid("Scores", columns, [tuple(row.values()) for row in rows])]


def evaluation(subject: Subject) -> Sequence[Block]:
    """Table 3 with intervals, calibration, the most confident mistakes, and the best and worst images."""
    accuracy = subject.ask(
        "SELECT scorer, value AS accuracy, low, high, count AS pairs FROM scorers WHERE figure = 'accuracy' ORDER BY value DESC",
        scorers=subject.artifact.table("scorers"),
    )
    metrics = subject.record.metrics
    references = {
        "chance": 0.5,
        "people with each other": metrics.get("agreement_of_people"),
        "Bayes bound": metrics.get("bayes_bound"),
    }
    bounds = {name: value for name, value in references.items() if value is not None}
    title = f"Accuracy on pairs of the {subject.record.config.get('split', 'test')} split, with 95 % intervals"
    alt = f"accuracy of {len(accuracy)} scorers, beside {', '.join(f'{name} {value}' for name, value in bounds.items())}"
    return [
        *_headline(subject, accuracy),
        Chart(title, alt, "intervals", accuracy, "scorer", "accuracy", low="low", high="high", references=bounds, headline=True),
        *table_2(subject),
        _other_figures(subject),
        *_best_of(subject),
        *_calibration(subject),
        *correlations(subject),
        *_people(subject),
        *_galleries(subject),
    ]


def _headline(subject: Subject, accuracy: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The accuracy of the reward model, or else of the best scorer, in a sentence."""
    scores_ = subject.related("scores")
    main = main_scorer(subject, scores_.table("scorer_cards")) if scores_ is not None else ""
    row = next((row for row in accuracy if row["scorer"] == main), accuracy[0] if accuracy else None)
    if row is None:
        return []
    interval = f" (95 %: {row['low']:.1%} to {row['high']:.1%})" if row["low"] is not None else ""
    bound = subject.record.metrics.get("bayes_bound")
    bound_note = f"; the highest possible accuracy is {bound:.1%}" if bound is not None else ""
    sentence = f"{row['scorer']} orders {row['accuracy']:.1%}{interval} of {row['pairs']:,} pairs as people do{bound_note}."
    return [Text(sentence, headline=True)]


def _other_figures(subject: Subject) -> Grid:
    figure_rows = subject.ask(
        "SELECT scorer, figure, value FROM scorers WHERE figure != 'accuracy' AND figure NOT LIKE '%choice_accuracy%'"
        " ORDER BY scorer, figure",
        scorers=subject.artifact.table("scorers"),
    )
    names = sorted({row["figure"] for row in figure_rows})
    by_scorer: dict[str, dict[str, float]] = {}
    for row in figure_rows:
        by_scorer.setdefault(row["scorer"], {})[row["figure"]] = row["value"]
    rows = [(name, *(figures.get(figure) for figure in names)) for name, figures in by_scorer.items()]
    return Grid("The other figures of the paper's table 3", ("scorer", *names), rows)


def _people(subject: Subject) -> list[Block]:
    """HPS's table 3, and the votes on images of two generators side by side (figure 3)."""
    rows = subject.ask("SELECT * FROM people", people=subject.artifact.table("agreement"))
    blocks: list[Block] = []
    if rows and rows[0]["who"] == "other people":
        title = "Agreement on pairs, mean and standard deviation over people (HPS, table 3)"
        blocks.append(Grid(title, list(rows[0]), [tuple(row.values()) for row in rows]))
    votes = subject.ask(
        "SELECT generator, other, votes, votes + other_votes AS of, count(*) AS image_pairs FROM study GROUP BY ALL ORDER BY ALL",
        study=subject.artifact.table("votes"),
    )
    if votes:
        note = "image pairs by the number of votes for the first generator's image"
        blocks.append(Grid("Votes side by side (HPS, figure 3)", list(votes[0]), [tuple(row.values()) for row in votes], note))
    return blocks


def _best_of(subject: Subject) -> list[Block]:
    """What the best of n by each scorer is worth, and on how many prompts that rests."""
    rows = subject.ask("SELECT * FROM picks ORDER BY scorer, n", picks=subject.artifact.table("best_of"))
    note = "a prompt with fewer images than n does not count"
    return [Grid("Best of n, by the oracle", list(rows[0]), [tuple(row.values()) for row in rows], note)] if rows else []


def _calibration(subject: Subject) -> list[Block]:
    rows = subject.ask(
        'SELECT scorer, sure, "right", pairs FROM calibration ORDER BY scorer, sure',
        calibration=subject.artifact.table("calibration"),
    )
    alt = "accuracy of a scorer by its confidence; a perfect scorer is on the diagonal"
    x_title, y_title = "confidence: sigmoid(|difference of scores|)", "share ordered as people do"
    chart = Chart("Calibration", alt, "line", rows, "sure", "right", colour="scorer", x_title=x_title, y_title=y_title)
    return [chart] if rows else []


def _galleries(subject: Subject) -> list[Block]:
    """Galleries of images by score, where images, scores and pairs are related."""
    scores_, pairs = subject.related("scores"), subject.related("pairs")
    images = subject.related("images")
    if scores_ is None or pairs is None or images is None:
        return []
    name = main_scorer(subject, scores_.table("scorer_cards"))
    split = str(subject.record.config.get("split", "test"))
    tables = {"pairs": pairs.table("pairs"), "s": scores_.table("scores")}
    mistaken, ranked = _mistakes(subject, name, split, tables), _extremes(subject, name, split, tables)
    texts = prompt_texts(subject, {row["prompt_id"] for row in (*mistaken, *ranked)})
    mistakes = [
        (
            row["prompt_id"],
            CaptionedImage(int(row["worse"], 16), "scored higher", row["score_worse"]),
            CaptionedImage(int(row["better"], 16), f"preferred by {row['agreed']} of {row['people']}", row["score_better"]),
        )
        for row in mistaken
    ]
    extremes = [
        (
            row["prompt_id"],
            CaptionedImage(int(row["best"], 16), "highest score", row["most"]),
            CaptionedImage(int(row["worst"], 16), "lowest score", row["least"]),
        )
        for row in ranked
    ]
    note = f"scores by {name}, prompts of the {split} split"
    return [
        Gallery("Best and worst image of a prompt, by score", _cards(images.table("images"), extremes, texts), note),
        Gallery("The most confident mistakes", _cards(images.table("images"), mistakes, texts), note),
    ]


def _mistakes(subject: Subject, scorer: str, split: str, tables: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """The pairs that a scorer orders against the majority, by the difference of scores."""
    # A pair has one row per annotator; the majority decides.
    return subject.ask(
        f"""WITH votes AS (SELECT prompt_id, least(better, worse) AS one, greatest(better, worse) AS other, count(*) AS people,
                count(*) FILTER (better < worse) AS for_one FROM pairs WHERE split::VARCHAR = {text(split)} GROUP BY ALL),
            held AS (SELECT prompt_id, people, greatest(for_one, people - for_one) AS agreed,
                if(2 * for_one > people, one, other) AS better, if(2 * for_one > people, other, one) AS worse
                FROM votes WHERE 2 * for_one != people)
        SELECT held.*, b.score AS score_better, w.score AS score_worse FROM held
        JOIN s b ON b.image_id = better AND b.scorer::VARCHAR = {text(scorer)}
        JOIN s w ON w.image_id = worse AND w.scorer::VARCHAR = {text(scorer)}
        WHERE w.score > b.score ORDER BY w.score - b.score DESC, better LIMIT {_MISTAKES}""",
        **tables,
    )


def _extremes(subject: Subject, scorer: str, split: str, tables: Mapping[str, Sequence[Path]]) -> list[dict[str, Any]]:
    """The images with the highest and the lowest score of the first prompts."""
    return subject.ask(
        f"""WITH held AS (SELECT DISTINCT prompt_id FROM pairs WHERE split::VARCHAR = {text(split)}
            ORDER BY prompt_id LIMIT {_PROMPTS})
        SELECT prompt_id, arg_max(image_id, score) AS best, max(score) AS most, arg_min(image_id, score) AS worst,
            min(score) AS least
        FROM s SEMI JOIN held USING (prompt_id) WHERE scorer::VARCHAR = {text(scorer)} GROUP BY prompt_id HAVING count(*) > 1
        ORDER BY prompt_id""",
        **tables,
    )


def _cards(
    files: Sequence[Path], rows: Sequence[tuple[str, CaptionedImage, CaptionedImage]], texts: Mapping[str, str]
) -> list[Card]:
    pictures = thumbnails(files, [image for _, *pair in rows for image in pair])
    return [
        Card(
            texts.get(prompt, f"prompt {prompt}"), [pictures[image] for image in pair if image in pictures], {"prompt_id": prompt}
        )
        for prompt, *pair in rows
    ]
