"""Thumbnails, and the images of a table by prompt."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from irpipe.models.pictures import decode
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.view import Card, Gallery, Shown, Thumbnail
from irpipe.schemas.images import ImageReader

SIDE = 160  # pixels of a thumbnail's longer side
_QUALITY = 80
PROMPTS_SHOWN, IMAGES_SHOWN = 60, 9


@dataclass(frozen=True)
class Wanted:
    """An image to be shown: its id, what is written below it, and its score."""

    image_id: int
    caption: str
    score: float | None = None


def thumbnail(data: bytes) -> bytes:
    """A picture, at most `SIDE` pixels long, as WebP; small pictures are enlarged by whole factors so that pixels stay sharp.

    Raises:
        InputError: it is none.
    """
    image = decode(data).convert("RGB")
    longest = max(image.size)
    if longest <= SIDE // 2:
        image = image.resize((image.width * (SIDE // longest), image.height * (SIDE // longest)), Image.Resampling.NEAREST)
    else:
        wide, high = (max(1, round(side * SIDE / longest)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, "WEBP", quality=_QUALITY)
    return written.getvalue()


def thumbnails(files: Sequence[Path], wanted: Sequence[Wanted]) -> dict[Wanted, Thumbnail]:
    """Thumbnails of some images. What cannot be decoded is a grey square that says why; what is not there is left out.

    Memory: one row group and the thumbnails, whatever the number of images. Each row group is read at most once.
    """
    by_id: dict[int, list[Wanted]] = {}
    for one in wanted:
        by_id.setdefault(one.image_id, []).append(one)
    found = {}
    for row in ImageReader(files).rows(["image", "fault"], by_id):
        fault = row["fault"]
        try:
            data = thumbnail(row["image"]["bytes"] or b"")
        except InputError as error:
            data, fault = _BLANK, fault or error.what
        for one in by_id[row["image_id"]]:
            found[one] = Thumbnail(data, f"{one.caption} ({fault})" if fault else one.caption, one.score)
    return found


def _blank() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (128, 128, 128)).save(written, "WEBP")
    return written.getvalue()


_BLANK = _blank()


def listed(ids: Iterable[str]) -> str:
    """Row ids, 16 hex digits each, as SQL lists them."""
    return ", ".join(f"row_id('{one}')" for one in ids) or "NULL"


def prompt_texts(shown: Shown, prompts: Iterable[str]) -> dict[str, str]:
    """Texts of some prompts by id (16 hex digits), from whatever near artifact has them."""
    kinds = (("splits", "prompt_splits"), ("selected-prompts", "selected_prompts"), ("annotations", "annotated_prompts"))
    for kind, table in kinds:
        artifact = shown.near(kind)
        if artifact is not None:
            query = f"SELECT prompt_id, prompt FROM texts WHERE prompt_id IN ({listed(prompts)})"
            return {row["prompt_id"]: row["prompt"] for row in shown.ask(query, texts=artifact.table(table))}
    return {}


def prompt_tags(shown: Shown, prompts: Sequence[str]) -> dict[str, dict[str, str]]:
    """Category and split of some prompts by id, where annotations and splits are near."""
    tags: dict[str, dict[str, str]] = {}
    annotations, splits, some = shown.near("annotations"), shown.near("splits"), f"WHERE prompt_id IN ({listed(prompts)})"
    if annotations is not None:
        query = f"SELECT prompt_id, mode(category) AS category FROM labels {some} AND category IS NOT NULL GROUP BY ALL"
        for row in shown.ask(query, labels=annotations.table("prompt_labels")):
            tags.setdefault(row["prompt_id"], {})["category"] = row["category"]
    if splits is not None:
        for row in shown.ask(f"SELECT prompt_id, split::VARCHAR AS split FROM s {some}", s=splits.table("prompt_splits")):
            tags.setdefault(row["prompt_id"], {})["split"] = row["split"]
    return tags


def image_scores(shown: Shown, images: Iterable[str]) -> tuple[str, dict[str, float]]:
    """The reward model's scores of some images by id, or those of the first other scorer; its name."""
    scores = shown.near("scores")
    name = main_scorer(shown, scores.table("scorer_cards")) if scores is not None else ""
    if scores is None or not name:
        return "", {}
    query = f"SELECT image_id, score FROM s WHERE scorer::VARCHAR = {text(name)} AND image_id IN ({listed(images)})"
    return name, {row["image_id"]: row["score"] for row in shown.ask(query, s=scores.table("scores"))}


def main_scorer(shown: Shown, files: Sequence[Path]) -> str:
    """The first reward model among the scorers, else the first of them; nothing where there is none."""
    rows = shown.ask("SELECT scorer FROM cards ORDER BY reward_model DESC, scorer", cards=files)
    return str(rows[0]["scorer"]) if rows else ""


def text(value: str) -> str:
    """A text as SQL quotes it."""
    return "'" + value.replace("'", "''") + "'"


def gallery_by_prompt(shown: Shown, files: Sequence[Path], texts: Callable[[Sequence[str]], Mapping[str, str]]) -> Gallery:
    """The images of the first prompts by id; ids are hashes, so that these are a sample drawn blindly.

    Args:
        texts: of some prompts, by id.
    """
    chosen = shown.ask(
        f"""WITH of_prompt AS (SELECT image_id, prompt_id, generator, row_number() OVER (PARTITION BY prompt_id ORDER BY image_id)
            AS place FROM images),
        chosen AS (SELECT DISTINCT prompt_id FROM images ORDER BY prompt_id LIMIT {PROMPTS_SHOWN})
        SELECT image_id, prompt_id, generator FROM of_prompt SEMI JOIN chosen USING (prompt_id)
        WHERE place <= {IMAGES_SHOWN} ORDER BY prompt_id, image_id""",
        images=files,
    )
    total = shown.ask("SELECT count(*) AS images, count(DISTINCT prompt_id) AS prompts FROM images", images=files)[0]
    prompts = list(dict.fromkeys(row["prompt_id"] for row in chosen))
    scorer, scores = image_scores(shown, [row["image_id"] for row in chosen])
    tags, told = prompt_tags(shown, prompts), texts(prompts)
    by_prompt: dict[str, list[Wanted]] = {}
    for row in chosen:
        one = Wanted(int(row["image_id"], 16), row["generator"] or "", scores.get(row["image_id"]))
        by_prompt.setdefault(row["prompt_id"], []).append(one)
    found = thumbnails(files, [one for wanted in by_prompt.values() for one in wanted])
    cards = [
        Card(
            told.get(prompt, f"prompt {prompt}"),
            [found[one] for one in wanted if one in found],
            {"prompt_id": prompt} | tags.get(prompt, {}) | {"generator": ", ".join(sorted({one.caption for one in wanted}))},
        )
        for prompt, wanted in by_prompt.items()
    ]
    note = f"{len(cards):,} of {total['prompts']:,} prompts, {len(found):,} of {total['images']:,} images: the first by id"
    return Gallery("Images by prompt", cards, f"{note}; scores by {scorer}" if scorer else note)
