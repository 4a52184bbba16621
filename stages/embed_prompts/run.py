"""The work of `embed-prompts`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from irpipe.pipeline.errors import StageError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.prompts import PROMPTS, clean, normalise, prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.pool import Pool, take
from irpipe.stages.embed_prompts.readers import PromptRow, read_prompts
from irpipe.stages.embed_prompts.vectors import write_vectors


def run(config: EmbedPromptsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    path = context.sources["path"][0] if config.path else inputs["prompt-pool"].file("prompts.jsonl")
    rejections = Rejections(config.max_rejected, str(path.name))
    pool = gather(config, path, rejections, context)
    pool = enough_images(pool, config.min_images, rejections)
    if config.vectors is not None:
        context.say("given vectors replace the embedder")
    pool, figures = write_vectors(config, pool, rejections, out, context)
    rejections.check(pool.rows_read, len(pool.ids))
    rejected = rejections.write(out)
    PROMPTS.write(
        out,
        {"prompt_id": pool.ids, "prompt": pool.texts, "source_row": pool.source_rows, "num_images": pool.num_images},
    )
    metrics = {"prompts": len(pool.ids), "texts_cleaned": pool.texts_cleaned, "rejected_for": rejections.counts(), **figures}
    return Report(Rows(pool.rows_read, len(pool.ids), rejected), metrics)


def gather(config: EmbedPromptsConfig, path: Path, rejections: Rejections, context: Context) -> Pool:
    """Read, clean and deduplicate rows. Memory: O(prompts kept).

    Raises:
        StageError: two different texts have one id (chance: n^2 / 2^65).
    """
    pool = Pool([], [], [], [], 0)
    indices: dict[int, int] = {}
    with context.progress("reading prompts", None, "rows") as bar:
        for row in read_prompts(config, path, rejections):
            pool.rows_read += 1
            bar.advance(1)
            if row.text is None:
                continue
            text = clean(row.text)
            reason = unwanted(config, row, text)
            if reason is not None:
                rejections.drop(row.number, reason)
                continue
            identity = prompt_id(text)
            identity_of_text = prompt_id(normalise(text)) if config.duplicates == "normalised" else identity
            index = indices.setdefault(identity_of_text, len(pool.ids))
            if index < len(pool.ids) and config.duplicates != "keep":
                if pool.ids[index] == identity and clean(pool.texts[index]) != text:
                    raise StageError(f"the texts {pool.texts[index]!r} and {text!r} have the same id")
                pool.num_images[index] += 1
                rejections.drop(row.number, f"duplicate ({config.duplicates})", duplicate_of=pool.source_rows[index])
                continue
            pool.ids.append(identity)
            pool.texts.append(text if config.clean else row.text)
            pool.texts_cleaned += config.clean and text != row.text
            pool.source_rows.append(row.number)
            pool.num_images.append(1)
    return pool


def unwanted(config: EmbedPromptsConfig, row: PromptRow, text: str) -> str | None:
    """The rule that drops a row, or None."""
    if not text:
        return "empty"
    if len(text) < config.min_characters:
        return "too short"
    if config.max_characters is not None and len(text) > config.max_characters:
        return "too long"
    for name, value, limit in (
        ("prompt_nsfw", row.prompt_nsfw, config.max_prompt_nsfw),
        ("image_nsfw", row.image_nsfw, config.max_image_nsfw),
    ):
        if limit is None:
            continue
        if value is None:
            if not config.keep_unscored:
                return f"no {name}"
        elif value > limit:
            return "blurred" if name == "image_nsfw" and value == 2.0 else f"{name} too high"
    return None


def enough_images(pool: Pool, least: int, rejections: Rejections) -> Pool:
    """The prompts with at least `least` rows."""
    for row, count in zip(pool.source_rows, pool.num_images, strict=True):
        if count < least:
            rejections.drop(row, "too few images", str(count))
    return take(pool, np.array(pool.num_images, dtype=np.int64) >= least)
