"""Images: generated, imported, or captioned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from irpipe.pipeline.view import Block, Card, Gallery, Grid, Subject, Thumbnail
from irpipe.views.pictures import CaptionedImage, gallery_by_prompt, listed, prompt_texts, thumbnail, thumbnails

_DRAWN_ANEW_SHOWN = 40


def images(subject: Subject) -> Sequence[Block]:
    """Counts by generator and size, and the images of the first prompts."""
    files = subject.artifact.table("images")
    rows = subject.ask(
        "SELECT generator, width, height, count(*) AS images, count(DISTINCT prompt_id) AS prompts, count(fault) AS faults"
        " FROM images GROUP BY ALL ORDER BY images DESC",
        images=files,
    )
    made_by = [
        (row["generator"], f"{row['width']} x {row['height']}", row["images"], row["prompts"], row["faults"]) for row in rows
    ]
    table = Grid("Made by", ("generator", "pixels", "images", "prompts", "faults"), made_by)
    gallery = gallery_by_prompt(subject, files, partial(prompt_texts, subject))
    return [table, *_kinds(subject), *_drawn_anew(subject), gallery]


def _kinds(subject: Subject) -> list[Block]:
    """Of images that select-images chose: how many of each kind there were, and how many were chosen."""
    if "attribute_counts" not in subject.artifact.manifest.tables:
        return []
    columns = ("answers", "before", "chosen", "test")
    rows = subject.ask("SELECT * FROM counts ORDER BY answers", counts=subject.artifact.table("attribute_counts"))
    return [Grid("Kinds of images", columns, [tuple(row[column] for column in columns) for row in rows])]


def _drawn_anew(subject: Subject) -> list[Block]:
    """Of images that inpaint-images made: before, mask and after, those first that gained the most."""
    originals = subject.related("images")
    if "inpainted" not in subject.artifact.manifest.tables or originals is None:
        return []
    rows = subject.ask(
        "SELECT image_id, original_id, prompt_id, masked, plausibility_before, plausibility FROM inpainted"
        f" WHERE candidate IS NOT NULL ORDER BY plausibility - plausibility_before DESC, image_id LIMIT {_DRAWN_ANEW_SHOWN}",
        inpainted=subject.artifact.table("inpainted"),
    )
    before = [CaptionedImage(int(row["original_id"], 16), "before", row["plausibility_before"]) for row in rows]
    after = [CaptionedImage(int(row["image_id"], 16), "after", row["plausibility"]) for row in rows]
    pictures = thumbnails(originals.table("images"), before) | thumbnails(subject.artifact.table("images"), after)
    query = f"SELECT original_id, image FROM masks WHERE original_id IN ({listed(row['original_id'] for row in rows)})"
    masks = {row["original_id"]: row["image"]["bytes"] for row in subject.ask(query, masks=subject.artifact.table("masks"))}
    texts = prompt_texts(subject, {row["prompt_id"] for row in rows})
    cards = []
    for row, first, last in zip(rows, before, after, strict=True):
        mask = Thumbnail(thumbnail(masks[row["original_id"]]), f"mask, {row['masked']:.0%} of it", None)
        shown = [pictures[first], mask, pictures[last]] if first in pictures and last in pictures else [mask]
        cards.append(Card(texts.get(row["prompt_id"], f"prompt {row['prompt_id']}"), shown))
    note = "white is drawn anew; scores are the predicted plausibility; those first that gained the most"
    return [Gallery("Drawn anew", cards, note)]


def captioned(subject: Subject) -> Sequence[Block]:
    """The first images and their captions."""

    def texts(prompts: Sequence[str]) -> dict[str, str]:
        query = f"SELECT prompt_id, prompt FROM captions WHERE prompt_id IN ({listed(prompts)})"
        return {row["prompt_id"]: row["prompt"] for row in subject.ask(query, captions=subject.artifact.table("captions"))}

    return [gallery_by_prompt(subject, subject.artifact.table("images"), texts)]
