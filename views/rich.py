"""Rich feedback, annotated and predicted, and how well predictions agree with people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from irpipe.models.maps import decoded
from irpipe.models.pictures import decode
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.view import Block, Card, Chart, Gallery, Grid, Subject, Text, Thumbnail
from irpipe.schemas.images import ImageReader
from irpipe.schemas.rich_feedback import ASPECTS, KINDS
from irpipe.views.pictures import SIDE, shrunk

_SHOWN = 40
# From nothing to all annotators: dark grey to yellow, which people without red, green or blue cones tell apart by brightness.
_COLOUR = np.array([253, 231, 37], dtype=np.float64)
_SCALE = "the yellower, the more annotators marked it: 0 % as the picture, 100 % all yellow"


def feedback(subject: Subject) -> Sequence[Block]:
    """Agreement, and the images of the worst plausibility with their heatmaps, words and scores."""
    metrics = subject.record.metrics
    rows = subject.ask(
        f"SELECT uid, image_id, prompt, words, {', '.join(ASPECTS)}, annotators FROM feedback"
        f" ORDER BY plausibility NULLS LAST, uid LIMIT {_SHOWN}",
        feedback=subject.artifact.table("rich_feedback"),
    )
    means = subject.ask(
        "SELECT " + ", ".join(f"avg({aspect}) AS {aspect}" for aspect in ASPECTS) + ", count(*) AS images FROM feedback",
        feedback=subject.artifact.table("rich_feedback"),
    )[0]
    told = ", ".join(f"{aspect} {means[aspect]:.2f}" for aspect in ASPECTS if means[aspect] is not None)
    blocks: list[Block] = [Text(f"{means['images']:,} images; mean scores from 0 to 1: {told}.", headline=True)]
    return [*blocks, *_agreement(metrics.get("agreement")), *_pictures(subject, rows)]


def _agreement(figures: Mapping[str, Any] | None) -> list[Block]:
    """RichHF's figures 2 to 4; nothing where one source has aggregated already, or a model predicted."""
    if figures is None:
        return []
    columns = ("score", "images", "all equal", "within one point", "alpha")
    rows = [(aspect, *(figures[aspect][name] for name in ("images", "equal", "within_one", "alpha"))) for aspect in ASPECTS]
    overlaps = ", ".join(f"{kind} {value:.2f}" for kind, value in figures["iou"].items() if value is not None)
    note = f"overlap of two people's discs (IoU): {overlaps or 'none'}"
    against = figures["against_all"]
    told = [Text(f"Their scores go against everybody else's: {', '.join(against)}.")] if against else []
    return [Grid("Agreement of annotators", columns, rows, note), *told]


def _pictures(subject: Subject, rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Each image beside its heatmaps laid over it, with words that do not fit in brackets; nothing where there are no images."""
    images = subject.artifact if "images" in subject.artifact.manifest.tables else subject.related("images")
    if images is None:
        return []
    ids = {int(row["image_id"], 16): row for row in rows if row["image_id"] is not None}
    maps: dict[str, dict[str, bytes]] = {}
    uids = ", ".join(f"'{row['uid']}'" for row in rows) or "NULL"
    for one in subject.ask(f"SELECT uid, kind, image FROM maps WHERE uid IN ({uids})", maps=subject.artifact.table("heatmaps")):
        maps.setdefault(one["uid"], {})[one["kind"]] = one["image"]["bytes"]
    cards = []
    for image in ImageReader(images.table("images")).rows(["image"], list(ids)):
        row = ids[image["image_id"]]
        cards.append((float(row["plausibility"] or 0.0), _card(row, image["image"]["bytes"], maps.get(row["uid"], {}))))
    cards.sort(key=lambda pair: pair[0])
    return [Gallery("Images of the lowest plausibility", [card for _, card in cards], _SCALE)]


def _card(row: Mapping[str, Any], data: bytes, maps: Mapping[str, bytes]) -> Card:
    scores = ", ".join(f"{aspect} {row[aspect]:.2f}" for aspect in ASPECTS if row[aspect] is not None)
    words = " ".join(f"[{word['word']}]" if word["misaligned"] else word["word"] for word in row["words"] or [])
    try:
        picture = decode(data).convert("RGB")
    except InputError:
        picture = Image.new("RGB", (SIDE, SIDE), (128, 128, 128))
    shown = [Thumbnail(shrunk(picture), "the image", row["plausibility"])]
    shown += [Thumbnail(shrunk(overlay(picture, maps[kind])), kind, None) for kind in KINDS if kind in maps]
    return Card(f"{words or row['prompt'] or row['uid']} ({scores})", shown)


def overlay(picture: Image.Image, heatmap: bytes) -> Image.Image:
    """A picture in grey with its heatmap laid over it in one colour."""
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    share = decoded(heatmap)
    if share.shape != grey.shape[:2]:
        resized = Image.fromarray(np.float32(share), mode="F").resize(picture.size, Image.Resampling.BILINEAR)
        share = np.asarray(resized, dtype=np.float64)
    mixed = grey * (1 - share[..., None]) + _COLOUR * share[..., None]
    return Image.fromarray(np.rint(mixed).astype(np.uint8))


def evaluation(subject: Subject) -> Sequence[Block]:
    """RichHF's tables 1 to 4, and the scores' correlations with intervals."""
    rows = subject.ask("SELECT * FROM figures", figures=subject.artifact.table("rahf_figures"))
    correlations = [row for row in rows if row["figure"] == "plcc" and row["value"] is not None]
    alt = f"correlation with people of {len({row['predictor'] for row in correlations})} predictors, a panel per score"
    blocks: list[Block] = [
        Chart(
            "Pearson's correlation with people, 95 % intervals",
            alt,
            "intervals",
            [row for row in correlations if row["output"] == aspect],
            "predictor",
            "value",
            low="low",
            high="high",
            x_title=aspect,
            y_title=aspect,
            headline=aspect == "overall",
        )
        for aspect in ASPECTS
    ]
    for title, outputs in (
        ("Table 1: scores", ASPECTS),
        ("Tables 2 and 3: heatmaps", KINDS),
        ("Table 4: misaligned words", ("words",)),
    ):
        part = [row for row in rows if row["output"] in outputs and row["value"] is not None]
        columns = ("predictor", "output", "figure", "value", "low", "high", "count")
        blocks.append(Grid(title, columns, [tuple(row[column] for column in columns) for row in part]))
    return blocks
