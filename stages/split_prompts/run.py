"""The work of `split-prompts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from irpipe.pipeline.errors import InputError, LeakError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATED_PROMPTS, ANNOTATIONS
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.selected_images import SELECTED_IMAGES
from irpipe.schemas.splits import PROMPT_SPLITS, SPLITS
from irpipe.stages.split_prompts import SplitPromptsConfig
from irpipe.stages.split_prompts.cut import components, cut
from irpipe.stages.split_prompts.links import links_by_bytes, links_by_path, links_by_text, near_links

_FEW = 5  # prompts of a split, below which it is said


def run(config: SplitPromptsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    prompts = read_prompts(inputs, config.source)
    prompt_ids, texts = np.array(list(prompts), dtype=np.uint64), list(prompts.values())
    index = {identity: number for number, identity in enumerate(prompts)}
    annotations = inputs.get("annotations")
    links = links_by_text(texts)
    if annotations is not None:
        links += links_by_path(annotations, index)
    if config.use_images:
        links += links_by_bytes(inputs["images"], index)
    vector_links, figures = near_links(config, inputs, prompt_ids)
    links += vector_links
    given = given_splits(annotations, index, texts) if annotations is not None else {}
    if config.source == "images":
        given = test_prompts(inputs["images"], index)
    splits = cut(texts, links, given, (config.validation_share, config.test_share), config.seed)
    joined = sum(SPLITS[split] == "test" and number not in given for number, split in enumerate(splits.tolist()))
    if config.source == "images" and joined and not config.test_share:
        context.say(f"  {joined:,} prompts are related to test prompts, and join the test split")
    related = components(len(texts), links)
    names = pa.DictionaryArray.from_arrays(pa.array(splits.astype(np.int32)), pa.array(SPLITS))
    PROMPT_SPLITS.write(out, {"prompt_id": prompt_ids, "prompt": texts, "split": names, "component": related})
    by_split = dict(zip(SPLITS, np.bincount(splits, minlength=len(SPLITS)).tolist(), strict=True))
    for name, share in (("validation", config.validation_share), ("test", config.test_share)):
        if by_split[name] < _FEW and (share or by_split[name]):
            context.say(
                f"  {by_split[name]} {name} prompts are too few to tell one model from another:"
                f" --set split-prompts.{name}_share=..., or more prompts"
            )
    metrics = {
        "prompts_by_split": by_split,
        "given_splits": len(given),
        "components": int(related.max()) + 1,
        "related_prompts": len(links),
        **figures,
    }
    return Report(Rows(len(texts), len(texts), 0), metrics)


def read_prompts(inputs: Mapping[str, Artifact], source: str) -> dict[int, str]:
    """Texts by id: of the selected prompts in their order, then of the others that were annotated; or of chosen images.

    Raises:
        InputError: the images are not those of select-images.
    """
    prompts: dict[int, str] = {}
    sources = {"selected-prompts": SELECTED_PROMPTS, "annotations": ANNOTATED_PROMPTS}
    if source == "images":
        sources = {"images": SELECTED_IMAGES}
        if SELECTED_IMAGES.name not in inputs["images"].manifest.tables:
            raise InputError("the images are not those that select-images chose", fix='reads.images = "select-images"')
    for kind, table in sources.items():
        if kind in inputs:
            rows = table.read(inputs[kind].table(table.name), ["prompt_id", "prompt"])
            for identity, text in zip(rows["prompt_id"].to_pylist(), rows["prompt"].to_pylist(), strict=True):
                prompts.setdefault(identity, text)
    return prompts


def given_splits(annotations: Artifact, index: Mapping[int, int], texts: Sequence[str]) -> dict[int, str]:
    """The source's own splits, by index of the prompt.

    Raises:
        LeakError: one prompt is in two of them.
    """
    table = ANNOTATIONS.read(annotations.table("annotations"), ["prompt_id", "split"]).drop_null()
    given: dict[int, str] = {}
    for prompt, split in zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        earlier = given.setdefault(index[prompt], split)
        if earlier != split:
            raise LeakError(
                f"the prompt {texts[index[prompt]][:80]!r} stands in the splits {earlier} and {split}",
                fix="fix the source's splits, or leave them out and let split-prompts cut",
            )
    return given


def test_prompts(images: Artifact, index: Mapping[int, int]) -> dict[int, str]:
    """The splits of the prompts that select-images gave one, by index of the prompt."""
    table = SELECTED_IMAGES.read(images.table(SELECTED_IMAGES.name), ["prompt_id", "split"]).drop_null()
    return {
        index[prompt]: split for prompt, split in zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True)
    }
