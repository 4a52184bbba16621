"""Links between related prompts: equal texts, near-duplicates, shared images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from irpipe.pipeline.errors import RecipeError
from irpipe.pipeline.stage import given
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATION_IMAGES
from irpipe.schemas.embeddings import VECTORS_FILE, open_vectors, unit_rows
from irpipe.schemas.images import IMAGES
from irpipe.schemas.prompts import PROMPTS, normalise
from irpipe.stages.split_prompts import SplitPromptsConfig

_BLOCK = 512
_ROUNDING = 1e-5  # of cosines of half-precision vectors


@dataclass(frozen=True)
class Link:
    """Two prompts (by index) that must share a split, and the reason."""

    first: int
    second: int
    why: str


def links_by_value(values: Iterable[tuple[int, Any]], why: str) -> list[Link]:
    """Links between prompts with an equal value: each to the first that has it."""
    first: dict[Any, int] = {}
    links = []
    for index, value in values:
        earlier = first.setdefault(value, index)
        if earlier != index:
            links.append(Link(earlier, index, why))
    return links


def links_by_text(texts: Sequence[str]) -> list[Link]:
    """Links between prompts that are equal after normalisation."""
    return links_by_value(((index, normalise(text)) for index, text in enumerate(texts)), "the same text after normalisation")


def links_by_vector(indices: NDArray[np.int64], points: NDArray[np.float32], threshold: float) -> list[Link]:
    """Links between prompts with similar vectors: enough to connect each component, at most m per block.

    Args:
        indices: (m,) the prompt of each vector.
        points: (m, d), unit rows.

    Cost: 2 m^2 d floating-point operations, in blocks; memory O(block m).
    """
    links = []
    why = f"near-duplicates, cosine at least {threshold:g}, perhaps through others"
    for start in range(0, len(points), _BLOCK):
        similarity = points[start : start + _BLOCK] @ points[start:].T
        adjacency = sparse.csr_matrix(np.triu(similarity >= threshold - _ROUNDING, 1))
        adjacency.resize(similarity.shape[1], similarity.shape[1])
        labels = sparse.csgraph.connected_components(adjacency, directed=False)[1]
        order = np.argsort(labels, kind="stable")
        same = labels[order][1:] == labels[order][:-1]
        for first, second in zip(order[:-1][same].tolist(), order[1:][same].tolist(), strict=True):
            links.append(Link(int(indices[start + first]), int(indices[start + second]), why))
    return links


def links_by_path(annotations: Artifact, index: Mapping[int, int]) -> list[Link]:
    """Links between prompts that share an image by its given path."""
    table = ANNOTATION_IMAGES.read(annotations.table("annotation_images"), ["prompt_id", "path"])
    # Only paths that occur twice matter, and they are few: the others stay in Arrow.
    counts = table.group_by("path").aggregate([("path", "count")])
    shared = counts.filter(pc.field("path_count") > 1)["path"].combine_chunks()
    rows = table.filter(pc.is_in(table["path"], value_set=shared))
    pairs = zip(rows["prompt_id"].to_pylist(), rows["path"].to_pylist(), strict=True)
    return links_by_value(((index[prompt], path) for prompt, path in pairs), "annotated on the same image")


def links_by_bytes(images: Artifact, index: Mapping[int, int]) -> list[Link]:
    """Links between prompts that share an image by its bytes."""
    table = IMAGES.read(images.table("images"), ["prompt_id", "image_digest"])
    pairs = zip(table["prompt_id"].to_pylist(), table["image_digest"].to_pylist(), strict=True)
    values = ((index[prompt], digest) for prompt, digest in pairs if prompt in index)
    return links_by_value(values, "on images of the same bytes")


def near_links(
    config: SplitPromptsConfig, inputs: Mapping[str, Artifact], prompt_ids: NDArray[np.uint64]
) -> tuple[list[Link], dict[str, Any]]:
    """Links between near-duplicates of prompts (n,), where vectors exist; and the number of prompts with a vector."""
    if config.near_duplicate == "off" or "embeddings" not in inputs:
        if config.near_duplicate != "off" and given(config, "near_duplicate"):
            raise RecipeError(
                "split-prompts.near_duplicate has no effect: the prompts were not embedded",
                fix="--set split-prompts.near_duplicate=off, or in the recipe [split-prompts.reads] embeddings = 'embed-prompts'",
            )
        return [], {"prompts_with_vector": 0}
    embeddings = inputs["embeddings"]
    pool = PROMPTS.read(embeddings.table("prompts"), ["prompt_id"])["prompt_id"].to_numpy()
    rows = np.argsort(pool, kind="stable")
    nearest = rows[np.searchsorted(pool, prompt_ids, sorter=rows).clip(max=len(pool) - 1)]
    indices = np.flatnonzero(pool[nearest] == prompt_ids)
    points = unit_rows(open_vectors(embeddings.file(VECTORS_FILE)), nearest[indices])
    return links_by_vector(indices, points, config.near_duplicate), {"prompts_with_vector": len(indices)}
