"""Tuned generators, and their comparison with the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from irpipe.pipeline.view import Block, Card, Chart, Gallery, Grid, Subject, Text, Thumbnail
from irpipe.schemas.comparison import main_judge
from irpipe.schemas.generator import HELD_OUT_MEASURES, GeneratorCard
from irpipe.views.pictures import CaptionedImage, prompt_texts, text, thumbnails
from irpipe.views.reward_model import thinned

_PROMPTS = 12
_UNITS = {
    "reward": "standard deviations of its scores",
    "held_out": "score of the held-out scorer",
    "similarity": "cosine of prompt and image",
    "denoising_loss": "mean squared error of the noise",
    "pretraining_loss": "mean squared error of the noise",
    "pool_loss": "mean squared error of the noise",
    "learning_rate": "per step",
}


def tuned(subject: Subject) -> Sequence[Block]:
    """Evaluations on held-out prompts, why the run ended, and images before and after."""
    card, artifact, metrics = GeneratorCard.read(subject.artifact.path), subject.artifact, subject.record.metrics
    curves = subject.ask("SELECT step, split, figure, value FROM curves ORDER BY figure, step", curves=artifact.table("curves"))
    changes = [
        (name, value["before"], value["after"], value["error"])
        for name, value in metrics.items()
        if isinstance(value, dict) and {"before", "after", "error"} <= set(value)
    ]
    end = f"Stopped at step {card.steps:,}: {card.stopped_for}." if card.stopped_for else f"Ran all {card.steps:,} steps."
    weights = f"The weights kept are those of step {card.kept_step:,}{'' if card.kept_step else ', the base as it was'}."
    measures = "measure", "before", "kept", "standard error of the change"
    return [
        Text(f"{subject.record.node} of {card.base}, {card.trained}. {end} {weights}", headline=True),
        Text(
            "reward: by the reward model that it is tuned with. held_out: by another reward model, not used"
            " in training. similarity: CLIP's, of prompt and image. denoising_loss: on captioned images; rises with forgetting."
        ),
        Grid("Held-out measures before and after", measures, changes),
        _evaluations(curves, card),
        _training(curves, card),
        _before_and_after(subject, card),
    ]


def _evaluations(curves: Sequence[Mapping[str, Any]], card: GeneratorCard) -> Chart:
    alt = (
        "each measure on held-out prompts over the steps: the reward that is trained for, scorers that are not trained on,"
        " the denoising loss on captioned images, and image statistics"
    )
    return _curves("Evaluations", alt, _panels(curves, "validation"), card)


def _training(curves: Sequence[Mapping[str, Any]], card: GeneratorCard) -> Chart:
    return _curves("Training", "figures of the training steps", _panels(curves, "train"), card)


def _curves(title: str, alt: str, rows: Sequence[dict[str, Any]], card: GeneratorCard) -> Chart:
    """A panel per figure, with its unit, and the step whose weights are kept."""
    kept = {f"kept: step {card.kept_step:,}": float(card.kept_step)}
    return Chart(title, alt, "line", rows, "step", "value", panel="figure", units=_UNITS, steps=kept)


def _panels(curves: Sequence[Mapping[str, Any]], split: str) -> list[dict[str, Any]]:
    """Curves of a split by figure, without standard errors, each with few enough points to draw."""
    by_figure: dict[str, list[dict[str, Any]]] = {}
    for row in curves:
        if row["split"] == split and not row["figure"].endswith("_error"):
            by_figure.setdefault(row["figure"], []).append(dict(row))
    return [row for rows in by_figure.values() for row in thinned(rows)]


def _before_and_after(subject: Subject, card: GeneratorCard) -> Gallery:
    """Images of the same prompts and seeds, before and after tuning; after: the saved weights, or the last evaluation's."""
    files = subject.artifact.table("images")
    rows = subject.ask("SELECT image_id, prompt_id, image.path AS path FROM images ORDER BY prompt_id, path", images=files)
    last = max((int(row["path"].split("/")[-1].split("-")[0]) for row in rows), default=0)
    after = card.kept_step or last
    by_prompt: dict[str, list[CaptionedImage]] = {}
    kept_note = "kept" if card.kept_step else "not kept"
    held_out = _held_out(subject)
    for when, step in (("before", 0), (f"after {after:,} steps, {kept_note}", after)):
        for row in rows:
            evaluation, turn = row["path"].split("/")[-1].removesuffix(".png").split("-")
            if int(evaluation) == step:
                score = held_out.get((step, row["prompt_id"]))
                image = CaptionedImage(int(row["image_id"], 16), f"{when}, noise {int(turn) + 1}", score)
                by_prompt.setdefault(row["prompt_id"], []).append(image)
    prompts = list(by_prompt.items())[:_PROMPTS]
    texts = prompt_texts(subject, [prompt for prompt, _ in prompts])
    pictures = thumbnails(files, [image for _, images in prompts for image in images])
    cards = [Card(texts.get(prompt, f"prompt {prompt}"), _compared(images, pictures)) for prompt, images in prompts]
    note = f"{len(cards):,} of {len(by_prompt):,} prompts; the same noise before and after; scores of the prompt, held out"
    if not card.kept_step:
        note += "; the saved weights are the base's: these are of the last evaluation"
    return Gallery("Before and after", cards, note, headline=True)


def _held_out(subject: Subject) -> dict[tuple[int, str], float]:
    """The held-out scorer's score by step and prompt; none of artifacts without that table."""
    if HELD_OUT_MEASURES.name not in subject.artifact.manifest.tables:
        return {}
    query = "SELECT step, prompt_id, value FROM measures WHERE figure = 'held_out'"
    rows = subject.ask(query, measures=subject.artifact.table(HELD_OUT_MEASURES.name))
    return {(row["step"], row["prompt_id"]): row["value"] for row in rows}


def _compared(images: Sequence[CaptionedImage], pictures: Mapping[CaptionedImage, Thumbnail]) -> list[Thumbnail]:
    """The thumbnails of a prompt, those of the highest score marked; none where all have the same."""
    scores = [image.score for image in images if image.score is not None]
    best = max(scores) if len(set(scores)) > 1 else None
    return [replace(pictures[image], best=best is not None and image.score == best) for image in images if image in pictures]


def comparison(subject: Subject) -> Sequence[Block]:
    """Table 4 with intervals, and images of the same prompt and noise side by side."""
    rows = subject.ask("SELECT * FROM comparison", comparison=subject.artifact.table("comparison"))
    gains = [row for row in rows if row["gain"] is not None]
    judge = main_judge(row["judge"] for row in gains) if gains else ""
    gains_text = ", ".join(
        f"{row['generator']} {row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"
        for row in gains
        if row["judge"] == judge
    )
    columns = ("judge", "generator", "wins", "win_rate", "gain", "gain_low", "gain_high", "images", "images_made")
    prompts = subject.ask("SELECT count(DISTINCT prompt_id) AS prompts FROM w", w=subject.artifact.table("worths"))[0]["prompts"]
    headline = f"Gain over the base by {judge} on {prompts:,} prompts, with 95 % intervals: {gains_text}."
    return [
        Text(headline, headline=bool(gains)),
        Chart(
            "Gain over the base, with 95 % intervals",
            "each judge's mean gain of every generator over the base",
            "intervals",
            gains,
            "generator",
            "gain",
            low="gain_low",
            high="gain_high",
            panel="judge",
            headline=True,
        ),
        Grid("The paper's table 4", columns, [tuple(row[name] for name in columns) for row in rows], f"{prompts:,} prompts"),
        *_tunings(subject),
        _side_by_side(subject),
    ]


def _tunings(subject: Subject) -> Iterable[Chart]:
    """The evaluations of all compared tunings, a panel per figure with a line per tuning."""
    rows = []
    for node, (_, artifact) in subject.read("generator").items():
        curves = subject.ask("SELECT step, split, figure, value FROM c ORDER BY figure, step", c=artifact.table("curves"))
        rows += [row | {"tuning": node} for row in _panels(curves, "validation")]
    if rows:
        alt = "each measure on held-out prompts over the steps, a line for each of the compared tunings"
        yield Chart(
            "Evaluations of the tunings", alt, "line", rows, "step", "value", colour="tuning", panel="figure", units=_UNITS
        )


def _side_by_side(subject: Subject) -> Gallery:
    """Images of the same prompt and noise, each with its score by one scorer."""
    files, scores = subject.artifact.table("images"), subject.artifact.table("worths")
    judges = [row["judge"] for row in subject.ask("SELECT DISTINCT judge FROM worths ORDER BY judge", worths=scores)]
    judge = main_judge(judges)
    rows = subject.ask(
        f"""WITH chosen AS (SELECT DISTINCT prompt_id FROM worths ORDER BY prompt_id LIMIT {_PROMPTS})
        SELECT prompt_id, generator, image_id, worth FROM worths SEMI JOIN chosen USING (prompt_id)
        WHERE turn = 0 AND judge = {text(judge)} ORDER BY prompt_id, generator""",
        worths=scores,
    )
    by_prompt: dict[str, list[CaptionedImage]] = {}
    for row in rows:
        image = CaptionedImage(int(row["image_id"], 16), row["generator"], row["worth"])
        images = by_prompt.setdefault(row["prompt_id"], [])
        images.insert(0 if row["generator"] == "base" else len(images), image)
    texts = prompt_texts(subject, by_prompt)
    pictures = thumbnails(files, [image for captioned in by_prompt.values() for image in captioned])
    cards = [
        Card(texts.get(prompt, f"prompt {prompt}"), _compared(captioned, pictures)) for prompt, captioned in by_prompt.items()
    ]
    note = f"the first {len(cards):,} prompts by id, one noise; worth by {judge}"
    return Gallery("Side by side", cards, note, headline=True)
