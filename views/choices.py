"""Choices and what comes of them: table 2, the images that a generator is tuned on, and metrics of sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from irpipe.pipeline.view import Block, Card, Chart, Gallery, Grid, Subject, Text
from irpipe.views.pictures import CaptionedImage, text, thumbnails

_PROMPTS = 60
_POINTS = 1000  # of a scatter plot


def table_2(subject: Subject) -> list[Block]:
    """Accuracy on choices with intervals, in all and by the number of images; nothing where nobody made choices."""
    rows = subject.ask(
        "SELECT scorer, figure, value, low, high, count FROM scorers WHERE figure LIKE '%choice_accuracy%' ORDER BY value DESC",
        scorers=subject.artifact.table("scorers"),
    )
    figures = {row["figure"] for row in rows}
    if not rows:
        return []
    main = next(name for name in ("expected_choice_accuracy", "choice_accuracy") if name in figures)
    metrics = subject.record.metrics
    bounds = {"chance": "choice_chance", "another person": "choice_another_person", "Bayes bound": "choice_best"}
    references = {name: metrics[key] for name, key in bounds.items() if key in metrics}
    data = [{"scorer": row["scorer"], "accuracy": row["value"]} | dict(row) for row in rows if row["figure"] == main]
    names = [main, "choice_accuracy", *sorted((name for name in figures if "_of_" in name), reverse=True)]
    names += sorted(name for name in figures if "_over_" in name)
    by_scorer: dict[str, dict[str, float]] = {}
    for row in rows:
        by_scorer.setdefault(row["scorer"], {})[row["figure"]] = row["value"]
    columns = list(dict.fromkeys(names))
    alt = f"how often each of {len(data)} scorers puts the image first that people chose, beside chance and the bounds"
    return [
        Chart(
            f"Accuracy on {data[0]['count']:,} choices, with 95 % intervals",
            alt,
            "intervals",
            data,
            "scorer",
            "accuracy",
            low="low",
            high="high",
            references=references,
        ),
        Grid(
            "HPS's table 2: choices of one image among several",
            ("scorer", *columns),
            [(name, *(values.get(column) for column in columns)) for name, values in by_scorer.items()],
            "equal scores share 1 / k; expected: over people's noise, where the truth is known",
        ),
    ]


def correlations(subject: Subject) -> list[Block]:
    """How alike the scorers score, and the first two reward models or scorers against each other, image by image."""
    if "correlations" not in subject.artifact.manifest.tables:
        return []
    rows = subject.ask(
        "SELECT scorer, other, figure, value FROM correlations", correlations=subject.artifact.table("correlations")
    )
    figures = list(dict.fromkeys(row["figure"] for row in rows))
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        pairs.setdefault((row["scorer"], row["other"]), {})[row["figure"]] = row["value"]
    lines = [(*pair, *(values.get(figure) for figure in figures)) for pair, values in pairs.items()]
    note = "over all images of the split, and as the mean of the prompts' own"
    table = Grid("How alike scorers score (HPS's figure 6)", ("scorer", "other", *figures), lines, note)
    return [table, *_scatter(subject, list(pairs))]


def _scatter(subject: Subject, pairs: Sequence[tuple[str, str]]) -> list[Block]:
    """The scores of a reward model against CLIP's; nothing where either did not score."""
    scores = subject.related("scores")
    pair = next((pair for pair in pairs if "clip" in pair and not {"random", "oracle"} & set(pair)), None)
    if scores is None or pair is None:
        return []
    first, second = sorted(pair, key=lambda name: name != "clip")
    points = subject.ask(
        f"SELECT a.score AS x, b.score AS y FROM s a JOIN s b USING (image_id) WHERE a.scorer::VARCHAR = {text(first)}"
        f" AND b.scorer::VARCHAR = {text(second)} ORDER BY hash(image_id) LIMIT {_POINTS}",
        s=scores.table("scores"),
    )
    alt = f"scores of {second} against those of {first}, a point per image"
    data = [{first: point["x"], second: point["y"]} for point in points]
    return [Chart(f"{second} against {first}", alt, "points", data, first, second)]


def chosen(subject: Subject) -> Sequence[Block]:
    """How many images were chosen of how many prompts, and the preferred and non-preferred ones of the first prompts."""
    metrics = subject.record.metrics
    rows = [
        (
            kind,
            metrics.get(kind),
            metrics.get(f"share_of_prompts_{kind}"),
            metrics.get(f"score_above_mean_{kind}"),
        )
        for kind in ("preferred", "non-preferred")
    ]
    sentence = (
        f"Of {metrics['images']:,} images of {metrics['prompts']:,} prompts {metrics['preferred']:,} are preferred and"
        f" {metrics['non-preferred']:,} are not. Scores differ within prompts by {metrics['spread_within_prompts']:.3g} (standard"
        f" deviation), and were divided by {metrics['temperature']:.3g}."
    )
    columns = ("kind", "images", "share of prompts", "score above the mean of its prompt")
    return [Text(sentence, headline=True), Grid("Chosen images", columns, rows), *_gallery(subject)]


def _gallery(subject: Subject) -> list[Block]:
    """The chosen images of the first prompts; nothing of a file of scores."""
    images = subject.related("images")
    rows = subject.ask(
        "SELECT image_id, prompt_id, prompt, kind::VARCHAR AS kind, score, confidence FROM chosen WHERE image_id IS NOT NULL"
        " ORDER BY prompt_id, kind DESC",
        chosen=subject.artifact.table("chosen_images"),
    )
    if images is None or not rows:
        return []
    by_prompt: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    shown = list(by_prompt.values())[:_PROMPTS]
    captioned = {
        row["image_id"]: CaptionedImage(int(row["image_id"], 16), row["kind"], row["score"]) for of_one in shown for row in of_one
    }
    pictures = thumbnails(images.table("images"), list(captioned.values()))
    cards = [
        Card(
            of_one[0]["prompt"],
            [pictures[captioned[row["image_id"]]] for row in of_one if captioned[row["image_id"]] in pictures],
        )
        for of_one in shown
    ]
    note = f"{len(cards):,} of {len(by_prompt):,} prompts, by id; raw scores"
    return [Gallery("Preferred and non-preferred images", cards, note)]


def image_metrics(subject: Subject) -> Sequence[Block]:
    """FID with intervals, and all figures."""
    rows = subject.ask("SELECT * FROM image_sets", image_sets=subject.artifact.table("image_sets"))
    fids = [{"fid": row["value"]} | dict(row) for row in rows if row["figure"] == "fid"]
    columns = ("set", "figure", "value", "low", "high", "deviation", "images", "reference_images")
    note = f"features by {subject.record.config.get('extractor')}; figures of different networks do not compare"
    table = Grid("Metrics of sets", columns, [tuple(row[column] for column in columns) for row in rows], note)
    if not fids:
        return [table]
    alt = f"FID of {len(fids)} sets of images to the reference, with intervals over prompts"
    return [Chart("FID, with 95 % intervals", alt, "intervals", fids, "set", "fid", low="low", high="high"), table]
