"""What is known of prompts and images before pairs are made: O(prompts), and O(images) only where files are read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from irpipe.pipeline.errors import LeakError, RecipeError
from irpipe.pipeline.stage import given
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATED_PROMPTS, ANNOTATION_IMAGES, ANNOTATIONS, PROMPT_LABELS, RATINGS
from irpipe.schemas.embeddings import VECTORS_FILE, open_vectors, unit_rows
from irpipe.schemas.images import IMAGES
from irpipe.schemas.prompts import PROMPTS
from irpipe.stages.build_pairs import BuildPairsConfig
from irpipe.stages.build_pairs.splits import Link, components, cut, links_by_text, links_by_value, links_by_vector


@dataclass(frozen=True)
class Images:
    """Image ids in order, and for each a number that equal bytes share."""

    ids: NDArray[np.uint64]
    content: NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """Prompts by place, and images that make no pairs.

    Attributes:
        prompt_ids: (n,) uint64.
        splits: (n,) int8, places in `SPLITS`.
        components: (n,) int32, numbers of related prompts.
        dropped: (n,) bool, prompts whose labels take them out.
        categories: (n,) int64, places in `category_names`, -1 for none.
        problem_images: ids of images that a problem takes out, sorted.
        images: the images at hand; None where files are not read.
    """

    prompt_ids: NDArray[np.uint64]
    splits: NDArray[np.int8]
    components: NDArray[np.int32]
    dropped: NDArray[np.bool_]
    categories: NDArray[np.int64]
    category_names: Any
    problem_images: NDArray[np.uint64]
    images: Images | None
    figures: dict[str, Any]
    _order: NDArray[np.int64] = field(repr=False)

    def place_of(self, prompt_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The place of each prompt."""
        places: NDArray[np.int64] = self._order[np.searchsorted(self.prompt_ids, prompt_ids, sorter=self._order)]
        return places

    def in_either(
        self, known: NDArray[np.uint64], images: NDArray[np.uint64], first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """Pairs with an image among the known ones; None where none is known."""
        if not len(known):
            return None
        hit = np.isin(images, known)
        return hit[first] | hit[second]

    def not_at_hand(
        self, images: NDArray[np.uint64], first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """Pairs with an image whose file was missing or broken."""
        if self.images is None:
            return None
        missing = ~np.isin(images, self.images.ids)
        return missing[first] | missing[second]

    def same_image(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.bool_] | None:
        """Pairs whose two files have the same bytes."""
        if self.images is None:
            return None
        places = [np.searchsorted(self.images.ids, side).clip(max=len(self.images.ids) - 1) for side in (first, second)]
        known = [self.images.ids[place] == side for place, side in zip(places, (first, second), strict=True)]
        same: NDArray[np.bool_] = known[0] & known[1] & (self.images.content[places[0]] == self.images.content[places[1]])
        return same


def gather_facts(config: BuildPairsConfig, inputs: Mapping[str, Artifact]) -> Facts:
    """Read what is known and cut the splits.

    Raises:
        LeakError: the source's splits divide related prompts.
    """
    annotations = inputs["annotations"]
    prompts = ANNOTATED_PROMPTS.read(annotations.table("annotated_prompts"))
    prompt_ids, texts = prompts["prompt_id"].to_numpy(), prompts["prompt"].to_pylist()
    order = np.argsort(prompt_ids)
    place = dict(zip(prompt_ids.tolist(), range(len(prompt_ids)), strict=True))
    images = open_images(inputs["images"]) if config.use_images else None
    links = links_by_text(texts) + links_by_path(annotations, place)
    if config.use_images:
        links += links_by_bytes(inputs["images"], place)
    near, figures = near_links(config, inputs, prompt_ids)
    links += near
    splits = cut(texts, links, given_splits(annotations, place, texts), (config.validation_share, config.test_share), config.seed)
    related = components(len(texts), links)
    figures = {"components": int(related.max()) + 1, "related_prompts": len(links), **figures}
    dropped, categories, names = label_facts(annotations, place, config.drop_labels)
    problem_images = images_with(annotations, config.drop_image_problems)
    return Facts(prompt_ids, splits, related, dropped, categories, names, problem_images, images, figures, order)


def open_images(images: Artifact) -> Images:
    """Ids and contents of the images at hand."""
    table = IMAGES.read(images.table("images"), ["image_id", "image_digest"])
    ids = table["image_id"].to_numpy()
    content = table["image_digest"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(ids)
    return Images(ids[order], content[order].astype(np.int64))


def links_by_path(annotations: Artifact, place: Mapping[int, int]) -> list[Link]:
    """Links between prompts that share an image by its given path."""
    table = ANNOTATION_IMAGES.read(annotations.table("annotation_images"), ["prompt_id", "path"])
    # Only paths that stand twice matter, and nearly none does: Python never sees the rest.
    counts = table.group_by("path").aggregate([("path", "count")])
    shared = counts.filter(pc.field("path_count") > 1)["path"].combine_chunks()
    rows = table.filter(pc.is_in(table["path"], value_set=shared))
    pairs = zip(rows["prompt_id"].to_pylist(), rows["path"].to_pylist(), strict=True)
    return links_by_value(((place[prompt], path) for prompt, path in pairs), "annotated on the same image")


def links_by_bytes(images: Artifact, place: Mapping[int, int]) -> list[Link]:
    """Links between prompts that share an image by its bytes."""
    table = IMAGES.read(images.table("images"), ["prompt_id", "image_digest"])
    pairs = zip(table["prompt_id"].to_pylist(), table["image_digest"].to_pylist(), strict=True)
    return links_by_value(((place[prompt], digest) for prompt, digest in pairs), "annotated on images of the same bytes")


def near_links(
    config: BuildPairsConfig, inputs: Mapping[str, Artifact], prompt_ids: NDArray[np.uint64]
) -> tuple[list[Link], dict[str, Any]]:
    """Links between near-duplicates, where vectors are at hand; and how many prompts have a vector."""
    if config.near_duplicate == "off" or "embeddings" not in inputs:
        if config.near_duplicate != "off" and given(config, "near_duplicate"):
            raise RecipeError(
                "build-pairs.near_duplicate has no effect: the annotations come from no embedded prompts",
                fix="--set build-pairs.near_duplicate=off, or in the recipe [build-pairs.reads] embeddings = 'embed-prompts'",
            )
        return [], {"prompts_with_vector": 0}
    embeddings = inputs["embeddings"]
    pool = PROMPTS.read(embeddings.table("prompts"), ["prompt_id"])["prompt_id"].to_numpy()
    rows = np.argsort(pool, kind="stable")
    found = rows[np.searchsorted(pool, prompt_ids, sorter=rows).clip(max=len(pool) - 1)]
    places = np.flatnonzero(pool[found] == prompt_ids)
    points = unit_rows(open_vectors(embeddings.file(VECTORS_FILE)), found[places])
    return links_by_vector(places, points, config.near_duplicate), {"prompts_with_vector": len(places)}


def given_splits(annotations: Artifact, place: Mapping[int, int], texts: Sequence[str]) -> dict[int, str]:
    """Splits that the source says, by place of the prompt.

    Raises:
        LeakError: one prompt stands in two of them.
    """
    table = ANNOTATIONS.read(annotations.table("annotations"), ["prompt_id", "split"]).drop_null()
    given: dict[int, str] = {}
    for prompt, split in zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True):
        known = given.setdefault(place[prompt], split)
        if known != split:
            raise LeakError(
                f"the prompt {texts[place[prompt]][:80]!r} stands in the splits {known} and {split}",
                fix="fix the source's splits, or leave them out and let build-pairs cut",
            )
    return given


def label_facts(
    annotations: Artifact, place: Mapping[int, int], drop_labels: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], Any]:
    """Prompts that a label takes out, and each prompt's category: the most frequent, none where two are."""
    table = PROMPT_LABELS.read(annotations.table("prompt_labels"))
    dropped = np.zeros(len(place), dtype=bool)
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for row in table.to_pylist():
        where = place[row["prompt_id"]]
        if (row["intent_unclear"] and "intent_unclear" in drop_labels) or set(row["unsafe"]) & set(drop_labels):
            dropped[where] = True
        if row["category"] is not None:
            votes[where][row["category"]] += 1
    names = sorted({name for counter in votes.values() for name in counter})
    categories = np.full(len(place), -1, dtype=np.int64)
    for where, counter in votes.items():
        (name, most), *rest = counter.most_common(2)
        if not rest or rest[0][1] < most:
            categories[where] = names.index(name)
    return dropped, categories, pa.array(names, pa.string())


def images_with(annotations: Artifact, problems: Sequence[str]) -> NDArray[np.uint64]:
    """Ids of the images that any annotator gave one of these problems, sorted."""
    if not problems:
        return np.empty(0, dtype=np.uint64)
    table = RATINGS.read(annotations.table("ratings"), ["image_id", "problems"])
    flat = pa.table(
        {
            "image_id": table["image_id"].combine_chunks().take(pc.list_parent_indices(table["problems"].combine_chunks())),
            "problem": pc.list_flatten(table["problems"].combine_chunks()),
        }
    )
    hit = flat.filter(pc.is_in(flat["problem"], value_set=pa.array(problems)))
    found: NDArray[np.uint64] = np.unique(hit["image_id"].to_numpy())
    return found
