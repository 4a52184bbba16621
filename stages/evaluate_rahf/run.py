"""The work of `evaluate-rahf`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.models.maps import EncodedMaps, decoded
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.files import read_csv, read_json
from irpipe.schemas.images import ImageReader
from irpipe.schemas.rahf_figures import RAHF_FIGURES, REJECTED_PREDICTIONS
from irpipe.schemas.rich_feedback import ASPECTS, HEATMAPS, KINDS, RICH_FEEDBACK, prompt_tokens
from irpipe.schemas.scores import SCORES
from irpipe.stages.evaluate_rahf import EvaluateRahfConfig
from irpipe.stages.evaluate_rahf.figures import Bootstrap, Feedback, Row, constant, map_rows, score_rows, word_rows
from irpipe.stages.evaluate_rahf.gradient import gradient_maps
from irpipe.stages.evaluate_rahf.report import KNOWN, draw, report_of
from irpipe.stages.evaluate_rahf.truth import Known, wrong_and_right

PEOPLE, BOUND, CONTENT, CONSTANT = "another person", "the truth allows", "every content word", "constant"
GRADIENT = "CLIP gradient"


def run(config: EvaluateRahfConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    people = read_feedback(inputs["rich-feedback"])
    predictions = {node: read_feedback(artifact) for node, artifact in inputs.all("rich-predictions").items()}
    rows, rejected = common_rows(config, people, predictions)
    truth, prompts = feedback_of(people, rows), [people[uid]["prompt_id"] for uid in rows]
    bootstrap = Bootstrap.of(prompts, config.bootstrap, config.seed)
    found = {CONSTANT: constant(truth)}
    for node, of_node in predictions.items():
        found[node] = feedback_of(of_node, [str(key_of(people[uid], of_node)) for uid in rows])
    for name, mine in found.items():
        check_shapes(name, mine, truth)
    figures = [row for name, mine in found.items() for row in all_rows(name, mine, truth, bootstrap, config)]
    if config.scorers:
        figures += scorer_rows(inputs["scores"], [people[uid]["image_id"] for uid in rows], truth, bootstrap)
    if config.clip_gradient:
        mine = Feedback(maps={"misalignment": EncodedMaps(clip_maps(config, inputs, [people[uid] for uid in rows], context))})
        figures += all_rows(GRADIENT, mine, truth, bootstrap, config)
    if config.truth:
        figures += known_rows(config, inputs, people, rows, found, truth, bootstrap)
    if config.published is not None:
        figures += published_rows(context.sources["published"][0], {row["predictor"] for row in figures})
    RAHF_FIGURES.write(out, {column.name: [row[column.name] for row in figures] for column in RAHF_FIGURES.columns})
    REJECTED_PREDICTIONS.write(out, {"uid": list(rejected), "reason": list(rejected.values())})
    (out / "report.txt").write_text(report_of(figures, config, len(rows), len(set(prompts))), encoding="utf-8")
    draw(figures, out / "evaluation.png")
    return Report(Rows(len(people), len(rows), len(rejected)), metrics_of(figures, list(predictions)))


def read_feedback(artifact: Artifact) -> dict[str, dict[str, Any]]:
    """Rows of `rich_feedback` by uid, each with its encoded `maps` by kind."""
    rows = {row["uid"]: row | {"maps": {}} for row in RICH_FEEDBACK.read(artifact.table(RICH_FEEDBACK.name)).to_pylist()}
    for one in HEATMAPS.read(artifact.table(HEATMAPS.name)).to_pylist():
        rows[one["uid"]]["maps"][one["kind"]] = one["image"]["bytes"]
    return rows


def common_rows(
    config: EvaluateRahfConfig, people: Mapping[str, Any], predictions: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], dict[str, str]]:
    """The images that are evaluated, and why others are not, by uid.

    Raises:
        InputError: there is none.
    """
    rejected: dict[str, str] = {}
    for uid, row in people.items():
        if config.split not in ("all", row["split"]):
            rejected[uid] = "another split"
        elif row["words"] is None or row["image_id"] is None:
            rejected[uid] = "its image or prompt is not known"
        elif missing := [node for node, of_node in predictions.items() if key_of(row, of_node) is None]:
            rejected[uid] = f"no prediction by {missing[0]}"
    rows = [uid for uid in people if uid not in rejected]
    if not rows:
        why = next(iter(rejected.values()), "there is no feedback")
        raise InputError(f"no image is evaluated: {why}", where="rich-feedback", fix="irpipe lineage predict-rich-feedback")
    return rows, rejected


def key_of(row: Mapping[str, Any], predictions: Mapping[str, Any]) -> str | None:
    """The uid under which an image was predicted: its id in hex digits."""
    key = row["uid"] if row["uid"] in predictions else f"{row['image_id']:016x}"
    return key if key in predictions else None


def feedback_of(rows: Mapping[str, Mapping[str, Any]], uids: Sequence[str]) -> Feedback:
    """What is said of some images; a baseline says nothing of words, and some nothing of maps.

    Raises:
        InputError: something is said of some images alone.
    """
    chosen = [rows[uid] for uid in uids]
    kinds = [kind for kind in KINDS if any(kind in row["maps"] for row in chosen)]
    has_words = any(row["words"] is not None for row in chosen)
    for row in chosen:
        if any(kind not in row["maps"] for kind in kinds) or (has_words and row["words"] is None):
            raise InputError(
                f"image {row['uid']} has no heatmap or no words, and others of the same feedback have", where="rich-feedback"
            )
    return Feedback(
        {aspect: np.array([np.nan if row[aspect] is None else row[aspect] for row in chosen]) for aspect in ASPECTS},
        {kind: EncodedMaps([row["maps"][kind] for row in chosen]) for kind in kinds},
        [[word["misaligned"] for word in row["words"]] for row in chosen] if has_words else (),
    )


def check_shapes(name: str, mine: Feedback, truth: Feedback) -> None:
    """Predictions must be of the same pixels and words.

    Raises:
        InputError: a map has another shape, or a prompt other words.
    """
    for kind, maps in mine.maps.items():
        for found, true in zip(maps, truth.maps[kind], strict=True):
            if found.shape != true.shape:
                raise InputError(
                    f"{name}: a {kind} map of {found.shape}, and people's has {true.shape}",
                    fix="the same map_size in both stages",
                )
    for found_words, true_words in zip(mine.labels, truth.labels, strict=bool(mine.labels)):
        if len(found_words) != len(true_words):
            raise InputError(f"{name}: predictions are of other prompts")


def all_rows(name: str, mine: Feedback, truth: Feedback, bootstrap: Bootstrap, config: EvaluateRahfConfig) -> list[Row]:
    """All figures of one predictor."""
    return [
        *score_rows(name, mine, truth, bootstrap),
        *map_rows(name, mine, truth, bootstrap, config.fixation),
        *word_rows(name, mine, truth, bootstrap),
    ]


def scorer_rows(scores: Artifact, image_ids: Sequence[int], truth: Feedback, bootstrap: Bootstrap) -> list[Row]:
    """Correlations of other scorers' scores with each of people's. Their scale is another, so they have no squared error."""
    table = SCORES.read(scores.table("scores"), ["scorer", "image_id", "score"]).to_pydict()
    by_scorer: dict[str, dict[int, float]] = {}
    for scorer, image, score in zip(table["scorer"], table["image_id"], table["score"], strict=True):
        by_scorer.setdefault(scorer, {})[image] = score
    rows = []
    for scorer, of_image in by_scorer.items():
        values = np.array([of_image.get(image, np.nan) for image in image_ids])
        mine = Feedback(dict.fromkeys(ASPECTS, values))
        rows += [row for row in score_rows(scorer, mine, truth, bootstrap) if row["figure"] != "mse"]
    return rows


def clip_maps(config: EvaluateRahfConfig, inputs: Inputs, people: Sequence[Mapping[str, Any]], context: Context) -> list[bytes]:
    """The gradient maps of the images of some feedback, each of the shape of people's.

    Raises:
        InputError: an image is not there.
    """
    data = encoded_images(inputs, people)
    shapes = [decoded(row["maps"]["misalignment"]).shape for row in people]
    return gradient_maps(context.models["clip_model"][0], [row["prompt"] for row in people], data, shapes, config.device, context)


def encoded_images(inputs: Inputs, people: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """The images of some feedback.

    Raises:
        InputError: one is not there.
    """
    ids = [row["image_id"] for row in people]
    data = {row["image_id"]: row["image"]["bytes"] for row in ImageReader(inputs["images"].table("images")).rows(["image"], ids)}
    missing = [row["uid"] for row in people if row["image_id"] not in data]
    if missing:
        raise InputError(
            f"{len(missing):,} images that were annotated are not among those read, such as {missing[0]}", where="images"
        )
    return [data[image] for image in ids]


def known_rows(
    config: EvaluateRahfConfig,
    inputs: Inputs,
    people: Mapping[str, Mapping[str, Any]],
    uids: Sequence[str],
    found: Mapping[str, Feedback],
    truth: Feedback,
    bootstrap: Bootstrap,
) -> list[Row]:
    """Rows of what only the micro world knows."""
    ids, data = [people[uid]["image_id"] for uid in uids], encoded_images(inputs, [people[uid] for uid in uids])
    prompts = [people[uid]["prompt"] for uid in uids]
    raters = read_json(inputs["rich-annotation-files"].file("raters.json"))
    known = Known.of(prompts, data, [len(prompt_tokens(prompt)) for prompt in prompts], raters)
    more = {PEOPLE: known.panel(1, config.seed, ids), BOUND: known.panel(config.panels, config.seed, ids)}
    more[CONTENT] = known.every_content_word()
    things = [wrong_and_right(one) for one in known.truths]
    rows = [row for name, mine in more.items() for row in all_rows(name, mine, truth, bootstrap, config)]
    for name, mine in {**found, **more, "people": truth}.items():
        rows += known.pointing(name, mine, things, bootstrap)
    return rows


def published_rows(path: Path, taken: Collection[str]) -> list[Row]:
    """Figures of others, on images of theirs: without intervals, and of no number of images.

    Args:
        taken: the names of the predictors that are evaluated.

    Raises:
        InputError: a row is no figure of the tables, stands twice, or has the name of an evaluated predictor.
    """
    rows: list[Row] = []
    seen: set[tuple[str, str, str]] = set()
    for number, cells in read_csv(path, ("predictor", "output", "figure", "value")):
        name, output, figure, value = (str(cells[column]) for column in ("predictor", "output", "figure", "value"))
        try:
            found = float(value)
        except ValueError:
            found = float("nan")
        if not name.strip() or (output, figure) not in KNOWN or not np.isfinite(found):
            raise InputError(
                f"row {number} is no figure: {output!r}, {figure!r}, {value!r}",
                where=str(path),
                expected="outputs and figures as in the table rahf_figures, and a number",
            )
        if name in taken or (name, output, figure) in seen:
            why = "has the name of a predictor that is evaluated" if name in taken else "stands there twice"
            raise InputError(f"row {number}, {name!r}, {output}, {figure}, {why}", where=str(path))
        seen.add((name, output, figure))
        rows.append(
            {"predictor": name, "output": output, "figure": figure, "value": found, "low": None, "high": None, "count": 0}
        )
    return rows


def metrics_of(figures: Sequence[Row], nodes: Sequence[str]) -> dict[str, Any]:
    """The main figures of each node, for the record."""
    wanted = {(aspect, "plcc") for aspect in ASPECTS} | {(kind, "cc") for kind in KINDS} | {("words", "f1")}
    wanted |= {("misalignment", "pointing")}
    return {
        node: {
            f"{row['output']} {row['figure']}": round(row["value"], 4)
            for row in figures
            if row["predictor"] == node and (row["output"], row["figure"]) in wanted and row["value"] is not None
        }
        for node in nodes
    }
