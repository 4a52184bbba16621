"""Which images are imported: the annotated ones, or some of the existing ones of each selected prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.pipeline.progress import Progress
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATION_IMAGES, image_id
from irpipe.schemas.files import is_text
from irpipe.schemas.prompts import SELECTED_PROMPTS, prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.stages.import_images import ImportImagesConfig
from irpipe.stages.import_images.layouts import Listed
from irpipe.stages.import_images.sources import AMBIGUOUS, Location

LISTED_TWICE = "listed twice"
_NAMED = 3  # prompts without images
_SHOWN = 80  # characters of a prompt or a bad row
_NOTHING: Mapping[str, Any] = {}


class ImageToImport(NamedTuple):
    """An image to import: its ids and path, where its bytes are, and further columns."""

    image_id: int
    prompt_id: int
    path: str
    location: Location
    columns: Mapping[str, Any] = _NOTHING


def annotated_images(annotations: Artifact) -> dict[int, ImageToImport]:
    """The images that somebody annotated, by row."""
    rows = ANNOTATION_IMAGES.read(annotations.table("annotation_images"))
    columns = (rows[name].to_pylist() for name in ("image_id", "prompt_id", "path", "path"))
    return dict(enumerate(map(ImageToImport, *columns)))


def selected_texts(selected: Artifact) -> dict[int, str]:
    """The text of each selected prompt, by id."""
    rows = SELECTED_PROMPTS.read(selected.table("selected_prompts"), ["prompt_id", "prompt"])
    return dict(zip(rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist(), strict=True))


def existing_images(
    listed: Iterable[Listed], texts: Mapping[int, str], config: ImportImagesConfig, rejections: Rejections, bar: Progress
) -> dict[int, ImageToImport]:
    """Images of selected prompts, by row. Rows are counted over images of selected prompts and faulty entries.

    Raises:
        InputError: no selected prompt has images.
    """
    by_folder = {show_row_id(prompt): prompt for prompt in texts}
    images: dict[int, ImageToImport] = {}
    first: dict[int, int] = {}
    other_prompt: str | None = None
    for image in listed:
        bar.advance(1)
        row = len(images) + len(rejections)
        if image.fault is not None:
            rejections.refuse(row, image.fault, str(image.path)[:_SHOWN])
            continue
        name = "" if image.prompt is None else image.prompt
        if not is_text(name):
            rejections.refuse(row, "prompt is no text", repr(name)[:_SHOWN])
            continue
        prompt = by_folder.get(name) if config.layout == "folder" else prompt_id(name)
        if prompt is None or prompt not in texts:
            other_prompt = other_prompt or name
            continue
        if not is_text(image.path):
            rejections.refuse(row, "path is no text", repr(image.path)[:_SHOWN])
            continue
        identity = image_id(prompt, image.path)
        before = first.setdefault(identity, row)
        if before != row and images[before].location == image.location:
            rejections.drop(row, LISTED_TWICE, duplicate_of=before)
            continue
        images[row] = ImageToImport(identity, prompt, image.path, image.location, image.columns)
    if not images and (other_prompt is not None or not len(rejections)):
        raise _no_match(texts, other_prompt, config)
    return images


def _no_match(texts: Mapping[int, str], other_prompt: str | None, config: ImportImagesConfig) -> InputError:
    prompt = next(iter(texts), None)
    selected = "nothing" if prompt is None else f"{show_row_id(prompt)} {texts[prompt][:_SHOWN]!r}"
    images_found = "none of any prompt" if other_prompt is None else f"some of {other_prompt[:_SHOWN]!r}"
    return InputError(
        "no selected prompt has images",
        where=str(config.image_root),
        expected=f"images of {selected}; found {images_found}",
        fix="select prompts of the file that the images are of, or give another layout",
    )


def of_one_name(
    good: Iterable[int], images: Mapping[int, ImageToImport], digests: Mapping[Location, str], rejections: Rejections
) -> list[int]:
    """The rows of good images whose name stands for one image; several rows of equal bytes are one."""
    by_image: dict[int, list[int]] = {}
    for row in good:
        by_image.setdefault(images[row].image_id, []).append(row)
    kept: list[int] = []
    for rows in by_image.values():
        first, *others = sorted(rows)
        if len({digests[images[row].location] for row in rows}) == 1:
            kept.append(first)
            for row in others:
                rejections.drop(row, LISTED_TWICE, duplicate_of=first)
        else:
            for row in rows:
                rejections.refuse(row, AMBIGUOUS, images[row].path)
    return kept


def without_images(texts: Mapping[int, str], images: Mapping[int, ImageToImport]) -> dict[str, Any]:
    """The number of selected prompts without images, and the first of them."""
    with_images = {image.prompt_id for image in images.values()}
    missing = [f"{show_row_id(prompt)} {text[:_SHOWN]}" for prompt, text in texts.items() if prompt not in with_images]
    return {"prompts_without_images": len(missing), "prompts_without_images_first": missing[:_NAMED]}


def choose(
    good: Iterable[int], images: Mapping[int, ImageToImport], config: ImportImagesConfig, rejections: Rejections
) -> list[int]:
    """The rows of good images whose prompts have at least min_images, and at most max_images of each prompt."""
    by_prompt: dict[int, list[int]] = {}
    for row in good:
        by_prompt.setdefault(images[row].prompt_id, []).append(row)
    rows_chosen: list[int] = []
    for rows in by_prompt.values():
        rows.sort(key=lambda row: row_id(images[row].path))
        enough = len(rows) >= config.min_images
        rows_chosen += rows[: config.max_images] if enough else []
        for row in rows[config.max_images :] if enough else rows:
            rejections.drop(row, "more than max_images" if enough else "its prompt has fewer than min_images", images[row].path)
    return rows_chosen


def by_location(images: Mapping[int, ImageToImport], rows: Iterable[int]) -> dict[Location, list[int]]:
    """The rows of each location: several prompts may name one file."""
    locations: dict[Location, list[int]] = {}
    for row in rows:
        locations.setdefault(images[row].location, []).append(row)
    return locations
