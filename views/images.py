"""Images: generated, imported, or captioned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from irpipe.pipeline.view import Block, Grid, Subject
from irpipe.views.pictures import gallery_by_prompt, listed, prompt_texts


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
    return [table, gallery_by_prompt(subject, files, partial(prompt_texts, subject))]


def captioned(subject: Subject) -> Sequence[Block]:
    """The first images and their captions."""

    def texts(prompts: Sequence[str]) -> dict[str, str]:
        query = f"SELECT prompt_id, prompt FROM captions WHERE prompt_id IN ({listed(prompts)})"
        return {row["prompt_id"]: row["prompt"] for row in subject.ask(query, captions=subject.artifact.table("captions"))}

    return [gallery_by_prompt(subject, subject.artifact.table("images"), texts)]
