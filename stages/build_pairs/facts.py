"""Facts on prompts and images before pairs are made: memory O(prompts), and O(images) only where files are read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from irpipe.pipeline.errors import InputError, LeakError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATED_PROMPTS, PROMPT_LABELS, RATINGS
from irpipe.schemas.images import IMAGES
from irpipe.schemas.splits import SPLITS, read_splits
from irpipe.stages.build_pairs import BuildPairsConfig


@dataclass(frozen=True)
class Images:
    """Image ids (n,), sorted, and for each a number (n,) that images of equal bytes share."""

    ids: NDArray[np.uint64]
    content: NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """Prompts by index, and images that make no pairs.

    Attributes:
        prompt_ids: (n,) uint64.
        splits: (n,) int8, indices into `SPLITS`.
        dropped: (n,) bool, prompts that are dropped for their labels.
        categories: (n,) int64, indices into `category_names`, -1 for none.
        problem_images: ids of images that are dropped for a problem, sorted.
        images: the images that exist; None where files are not read.
    """

    prompt_ids: NDArray[np.uint64]
    splits: NDArray[np.int8]
    dropped: NDArray[np.bool_]
    categories: NDArray[np.int64]
    category_names: Any
    problem_images: NDArray[np.uint64]
    images: Images | None
    _order: NDArray[np.int64] = field(repr=False)

    def index_of(self, prompt_ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """The index (m,) of each prompt id (m,)."""
        indices: NDArray[np.int64] = self._order[np.searchsorted(self.prompt_ids, prompt_ids, sorter=self._order)]
        return indices

    def in_either(
        self, excluded: NDArray[np.uint64], images: NDArray[np.uint64], first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """(p,) pairs with an image among `excluded`; None where that is empty."""
        if not len(excluded):
            return None
        hit = np.isin(images, excluded)
        return hit[first] | hit[second]

    def without_file(
        self, images: NDArray[np.uint64], first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """(p,) pairs with an image whose file was missing or broken."""
        if self.images is None:
            return None
        missing = ~np.isin(images, self.images.ids)
        return missing[first] | missing[second]

    def same_image(self, first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.bool_] | None:
        """(p,) pairs whose two files have the same bytes."""
        if self.images is None:
            return None
        indices = [np.searchsorted(self.images.ids, side).clip(max=len(self.images.ids) - 1) for side in (first, second)]
        present = [self.images.ids[index] == side for index, side in zip(indices, (first, second), strict=True)]
        same: NDArray[np.bool_] = present[0] & present[1] & (self.images.content[indices[0]] == self.images.content[indices[1]])
        return same


def gather_facts(config: BuildPairsConfig, inputs: Mapping[str, Artifact]) -> Facts:
    """Read the facts.

    Raises:
        InputError: an annotated prompt has no split.
        LeakError: images of equal bytes lie in different splits.
    """
    annotations = inputs["annotations"]
    prompt_ids = ANNOTATED_PROMPTS.read(annotations.table("annotated_prompts"), ["prompt_id"])["prompt_id"].to_numpy()
    order = np.argsort(prompt_ids)
    index = dict(zip(prompt_ids.tolist(), range(len(prompt_ids)), strict=True))
    splits = splits_of(inputs["splits"], prompt_ids)
    images = open_images(inputs["images"]) if config.use_images else None
    if config.use_images:
        check_bytes(inputs["images"], index, splits)
    dropped, categories, names = label_facts(annotations, index, config.drop_labels)
    problem_images = images_with(annotations, config.drop_image_problems)
    return Facts(prompt_ids, splits, dropped, categories, names, problem_images, images, order)


def splits_of(artifact: Artifact, prompt_ids: NDArray[np.uint64]) -> NDArray[np.int8]:
    """The split of each prompt, (n,), as its index in `SPLITS`.

    Raises:
        InputError: a prompt has none.
    """
    split_of = {identity: number for number, name in enumerate(SPLITS) for identity in read_splits(artifact)[name]}
    without = [identity for identity in prompt_ids.tolist() if identity not in split_of]
    if without:
        raise InputError(
            f"{len(without):,} annotated prompts have no split, such as {show_row_id(without[0])}",
            where="splits",
            fix="let splits and annotations come from one recipe: --set split-prompts.source=annotations",
        )
    return np.array([split_of[identity] for identity in prompt_ids.tolist()], dtype=np.int8)


def check_bytes(images: Artifact, index: Mapping[int, int], splits: NDArray[np.int8]) -> None:
    """Images of equal bytes must be in one split; `splits` is (n,), `index` from prompt ids to its rows.

    Raises:
        LeakError: they do not.
    """
    table = IMAGES.read(images.table("images"), ["prompt_id", "image_digest"])
    first: dict[Any, int] = {}
    for prompt, content in zip(table["prompt_id"].to_pylist(), table["image_digest"].to_pylist(), strict=True):
        earlier = first.setdefault(content, prompt)
        if prompt in index and earlier in index and splits[index[prompt]] != splits[index[earlier]]:
            raise LeakError(
                f"the prompts {show_row_id(earlier)} and {show_row_id(prompt)} have images of the same bytes,"
                " and lie in different splits",
                fix="--set split-prompts.use_images=true",
            )


def open_images(images: Artifact) -> Images:
    """Ids and contents of the images."""
    table = IMAGES.read(images.table("images"), ["image_id", "image_digest"])
    ids = table["image_id"].to_numpy()
    content = table["image_digest"].combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.argsort(ids)
    return Images(ids[order], content[order].astype(np.int64))


def label_facts(
    annotations: Artifact, index_of: Mapping[int, int], drop_labels: Sequence[str]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], Any]:
    """Dropped prompts (n,), each prompt's category (n,) (the most frequent; none where two are), and the categories' names."""
    table = PROMPT_LABELS.read(annotations.table("prompt_labels"))
    dropped = np.zeros(len(index_of), dtype=bool)
    votes: dict[int, Counter[str]] = defaultdict(Counter)
    for row in table.to_pylist():
        index = index_of[row["prompt_id"]]
        if (row["intent_unclear"] and "intent_unclear" in drop_labels) or set(row["unsafe"]) & set(drop_labels):
            dropped[index] = True
        if row["category"] is not None:
            votes[index][row["category"]] += 1
    names = sorted({name for counter in votes.values() for name in counter})
    categories = np.full(len(index_of), -1, dtype=np.int64)
    for index, counter in votes.items():
        (name, most), *others = counter.most_common(2)
        if not others or others[0][1] < most:
            categories[index] = names.index(name)
    return dropped, categories, pa.array(names, pa.string())


def images_with(annotations: Artifact, problems: Sequence[str]) -> NDArray[np.uint64]:
    """Ids (m,) of the images that any annotator gave one of these problems, sorted."""
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
    image_ids: NDArray[np.uint64] = np.unique(hit["image_id"].to_numpy())
    return image_ids
