"""Thumbnails, and the images of a table by prompt."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from irpipe.models.pictures import decode
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.view import Card, Gallery, Subject, Thumbnail
from irpipe.schemas.images import ImageReader

SIDE = 160  # pixels of a thumbnail's longer side
_QUALITY = 80
PROMPTS_SHOWN, IMAGES_SHOWN = 300, 9


@dataclass(frozen=True)
class CaptionedImage:
    """An image to show: its id, caption and score."""

    image_id: int
    caption: str
    score: float | None = None


def thumbnail(data: bytes) -> bytes:
    """A picture, at most `SIDE` pixels long, as WebP; small pictures are enlarged by whole factors so that pixels stay sharp.

    Raises:
        InputError: it is none.
    """
    return shrunk(decode(data).convert("RGB"))


def shrunk(image: Image.Image) -> bytes:
    """See `thumbnail`; of a decoded picture."""
    longest = max(image.size)
    if longest <= SIDE // 2:
        image = image.resize((image.width * (SIDE // longest), image.height * (SIDE // longest)), Image.Resampling.NEAREST)
    else:
        wide, high = (max(1, round(side * SIDE / longest)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=_QUALITY)
    return buffer.getvalue()


def thumbnails(files: Sequence[Path], images: Sequence[CaptionedImage]) -> dict[CaptionedImage, Thumbnail]:
    """Thumbnails of some images. An image that does not decode becomes a grey square with the reason; a missing one is left out.

    Memory: one row group and the thumbnails, whatever the number of images. Each row group is read at most once.
    """
    by_id: dict[int, list[CaptionedImage]] = {}
    for captioned in images:
        by_id.setdefault(captioned.image_id, []).append(captioned)
    made = {}
    for row in ImageReader(files).rows(["image", "fault"], by_id):
        fault = row["fault"]
        try:
            data = thumbnail(row["image"]["bytes"] or b"")
        except InputError as error:
            data, fault = _BLANK, fault or error.what
        for captioned in by_id[row["image_id"]]:
            made[captioned] = Thumbnail(data, f"{captioned.caption} ({fault})" if fault else captioned.caption, captioned.score)
    return made


def _blank() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(buffer, "WEBP")
    return buffer.getvalue()


_BLANK = _blank()


def listed(ids: Iterable[str]) -> str:
    """Row ids, 16 hex digits each, as SQL lists them."""
    return ", ".join(f"row_id('{identity}')" for identity in ids) or "NULL"


def prompt_texts(subject: Subject, prompts: Iterable[str]) -> dict[str, str]:
    """Texts of some prompts by id (16 hex digits), from the first related artifact that has them."""
    kinds = (("splits", "prompt_splits"), ("selected-prompts", "selected_prompts"), ("annotations", "annotated_prompts"))
    for kind, table in kinds:
        artifact = subject.related(kind)
        if artifact is not None:
            query = f"SELECT prompt_id, prompt FROM texts WHERE prompt_id IN ({listed(prompts)})"
            return {row["prompt_id"]: row["prompt"] for row in subject.ask(query, texts=artifact.table(table))}
    return {}


def prompt_tags(subject: Subject, prompts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Category and split of some prompts by id, where annotations and splits are related."""
    tags: dict[str, dict[str, str]] = {}
    annotations, splits, condition = (
        subject.related("annotations"),
        subject.related("splits"),
        f"WHERE prompt_id IN ({listed(prompts)})",
    )
    if annotations is not None:
        query = f"SELECT prompt_id, mode(category) AS category FROM labels {condition} AND category IS NOT NULL GROUP BY ALL"
        for row in subject.ask(query, labels=annotations.table("prompt_labels")):
            tags.setdefault(row["prompt_id"], {})["category"] = row["category"]
    if splits is not None:
        for row in subject.ask(f"SELECT prompt_id, split::VARCHAR AS split FROM s {condition}", s=splits.table("prompt_splits")):
            tags.setdefault(row["prompt_id"], {})["split"] = row["split"]
    return tags


def image_scores(subject: Subject, images: Iterable[str]) -> tuple[str, dict[str, float]]:
    """The reward model's scores of some images by id, or those of the first other scorer; its name."""
    scores = subject.related("scores")
    name = main_scorer(subject, scores.table("scorer_cards")) if scores is not None else ""
    if scores is None or not name:
        return "", {}
    query = f"SELECT image_id, score FROM s WHERE scorer::VARCHAR = {text(name)} AND image_id IN ({listed(images)})"
    return name, {row["image_id"]: row["score"] for row in subject.ask(query, s=scores.table("scores"))}


def main_scorer(subject: Subject, files: Sequence[Path]) -> str:
    """The first reward model among the scorers, else the first of them; nothing where there is none."""
    rows = subject.ask("SELECT scorer FROM cards ORDER BY reward_model DESC, scorer", cards=files)
    return str(rows[0]["scorer"]) if rows else ""


def text(value: str) -> str:
    """A text as SQL quotes it."""
    return "'" + value.replace("'", "''") + "'"


def gallery_by_prompt(subject: Subject, files: Sequence[Path], texts: Callable[[Sequence[str]], Mapping[str, str]]) -> Gallery:
    """The images of the first prompts by id; ids are hashes, so that these are a random sample.

    Args:
        texts: of some prompts, by id.
    """
    rows = subject.ask(
        f"""WITH of_prompt AS (SELECT image_id, prompt_id, generator, row_number() OVER (PARTITION BY prompt_id ORDER BY image_id)
            AS place FROM images),
        chosen AS (SELECT DISTINCT prompt_id FROM images ORDER BY prompt_id LIMIT {PROMPTS_SHOWN})
        SELECT image_id, prompt_id, generator FROM of_prompt SEMI JOIN chosen USING (prompt_id)
        WHERE place <= {IMAGES_SHOWN} ORDER BY prompt_id, image_id""",
        images=files,
    )
    total = subject.ask("SELECT count(*) AS images, count(DISTINCT prompt_id) AS prompts FROM images", images=files)[0]
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows))
    scorer, scores = image_scores(subject, [row["image_id"] for row in rows])
    tags, prompt_text = prompt_tags(subject, prompts), texts(prompts)
    by_prompt: dict[str, list[CaptionedImage]] = {}
    for row in rows:
        image = CaptionedImage(int(row["image_id"], 16), row["generator"] or "", scores.get(row["image_id"]))
        by_prompt.setdefault(row["prompt_id"], []).append(image)
    pictures = thumbnails(files, [image for images in by_prompt.values() for image in images])
    cards = [
        Card(
            prompt_text.get(prompt, f"prompt {prompt}"),
            [pictures[image] for image in images if image in pictures],
            {"prompt_id": prompt} | tags.get(prompt, {}) | {"generator": ", ".join(sorted({image.caption for image in images}))},
        )
        for prompt, images in by_prompt.items()
    ]
    note = f"{len(cards):,} of {total['prompts']:,} prompts, {len(pictures):,} of {total['images']:,} images: the first by id"
    return Gallery("Images by prompt", cards, f"{note}; scores by {scorer}" if scorer else note)
