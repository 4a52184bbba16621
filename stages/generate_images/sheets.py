"""Contact sheets: a page of prompts with their images, and the ids to find them again."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from irpipe.pipeline.hashing import show_row_id
from irpipe.schemas.images import ImageReader

PROMPTS_PER_SHEET = 8
_THUMBNAIL, _MARGIN, _LINE, _LETTERS = 128, 8, 14, 180


def draw_sheets(images: ImageReader, prompts: Mapping[int, str], count: int, out: Path) -> None:
    """Write `sheets/0.png`, ...: one row per prompt, in the order of the images."""
    prompt_ids = list(prompts)[: count * PROMPTS_PER_SHEET]
    if prompt_ids:
        (out / "sheets").mkdir()
    members: dict[int, list[int]] = {}
    for row in images.rows(["prompt_id"]):
        members.setdefault(row["prompt_id"], []).append(row["image_id"])
    for sheet in range(0, len(prompt_ids), PROMPTS_PER_SHEET):
        rows: dict[int, list[tuple[int, bytes, str | None]]] = {id_: [] for id_ in prompt_ids[sheet : sheet + PROMPTS_PER_SHEET]}
        image_ids = [member for identity in rows for member in members.get(identity, ())]
        for row in images.rows(["prompt_id", "image", "fault"], image_ids):
            rows[row["prompt_id"]].append((row["image_id"], row["image"]["bytes"], row["fault"]))
        draw_sheet(rows, prompts).save(out / "sheets" / f"{sheet // PROMPTS_PER_SHEET}.png")


def draw_sheet(rows: Mapping[int, list[tuple[int, bytes, str | None]]], prompts: Mapping[int, str]) -> Image.Image:
    """One sheet. Images are scaled to 128 pixels; small ones in whole multiples, pixel by pixel."""
    columns = max(1, *(len(images) for images in rows.values()))
    height = _THUMBNAIL + 4 * _LINE + _MARGIN
    page = Image.new("RGB", (columns * (_THUMBNAIL + _MARGIN) + _MARGIN, len(rows) * height + _MARGIN), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for number, (identity, images) in enumerate(rows.items()):
        top = _MARGIN + number * height
        caption = textwrap.shorten(f"{show_row_id(identity)}  {prompts[identity]}", _LETTERS, placeholder=" ...")
        lines = textwrap.wrap(caption, max(20, columns * (_THUMBNAIL + _MARGIN) // 7))[:2]
        draw.text((_MARGIN, top), "\n".join(lines), "black", font)
        for column, (image_id, data, fault) in enumerate(images):
            left = _MARGIN + column * (_THUMBNAIL + _MARGIN)
            page.paste(_thumbnail(data), (left, top + 2 * _LINE + 4))
            draw.text((left, top + 2 * _LINE + 6 + _THUMBNAIL), fault or show_row_id(image_id), "red" if fault else "grey", font)
    return page


def _thumbnail(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        picture = image.convert("RGB")
    if max(picture.size) <= _THUMBNAIL // 2:
        times = _THUMBNAIL // max(picture.size)
        return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture
