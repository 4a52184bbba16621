"""Images: generated, imported, or real ones with captions."""

from __future__ import annotations

from collections.abc import Sequence

from irpipe.pipeline.view import Block, Grid, Shown
from irpipe.views.pictures import gallery_by_prompt, prompt_texts


def images(shown: Shown) -> Sequence[Block]:
    """How many there are, of which generators and sizes, and the first prompts' images."""
    files = shown.artifact.table("images")
    rows = shown.ask(
        "SELECT generator, width, height, count(*) AS images, count(DISTINCT prompt_id) AS prompts, count(fault) AS faults"
        " FROM images GROUP BY ALL ORDER BY images DESC LIMIT 30",
        images=files,
    )
    made_by = [
        (row["generator"], f"{row['width']} x {row['height']}", row["images"], row["prompts"], row["faults"]) for row in rows
    ]
    table = Grid("Made by", ("generator", "pixels", "images", "prompts", "faults"), made_by)
    return [table, gallery_by_prompt(shown, files, prompt_texts(shown))]


def captioned(shown: Shown) -> Sequence[Block]:
    """The first images and their captions."""
    rows = shown.ask("SELECT prompt_id, prompt FROM captions", captions=shown.artifact.table("captions"))
    return [gallery_by_prompt(shown, shown.artifact.table("images"), {row["prompt_id"]: row["prompt"] for row in rows})]
