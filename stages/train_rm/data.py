"""What a step trains on: prompts with their images and pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import row_id
from irpipe.schemas.annotations import ANNOTATED_PROMPTS
from irpipe.schemas.pairs import PAIRS

Loss = Literal["pairwise", "choice", "plackett-luce"]

_MOST_IMAGES = 32  # of a prompt in one step; beyond, each of its rankings stands for itself


@dataclass(frozen=True)
class PairRows:
    """Pairs of some split, as columns of p rows."""

    pair_id: NDArray[np.uint64]
    prompt_id: NDArray[np.uint64]
    ranking_id: NDArray[np.uint64]
    better: NDArray[np.uint64]
    worse: NDArray[np.uint64]
    weight: NDArray[np.float32]
    split: NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.pair_id)

    def of(self, keep: NDArray[np.bool_]) -> PairRows:
        """The rows that are kept."""
        return PairRows(*(getattr(self, name)[keep] for name in self.__dataclass_fields__))

    @property
    def images(self) -> NDArray[np.uint64]:
        """Every image, once, in the order of its prompt and then of its id: what a step reads lies together."""
        prompts, images = np.tile(self.prompt_id, 2), np.concatenate([self.better, self.worse])
        order = np.lexsort((images, prompts))
        images = images[order]
        return images[np.sort(np.unique(images, return_index=True)[1])]


def read_pairs(files: Sequence[Path], splits: Sequence[str]) -> PairRows:
    """The pairs of some splits."""
    table = PAIRS.read(files, list(PairRows.__dataclass_fields__))
    table = table.filter(pc.is_in(table["split"].cast("string"), value_set=pc.cast(list(splits), "string")))
    columns = {name: table[name].to_numpy() for name in PairRows.__dataclass_fields__ if name != "split"}
    return PairRows(**columns, split=np.array(table["split"].cast("string").to_pylist(), dtype=np.str_))


def fewer_prompts(pairs: PairRows, most: int) -> PairRows:
    """The pairs of so many training prompts, 0 for all, and all others. Ids are hashes: their order is random and nested."""
    of_training = np.unique(pairs.prompt_id[pairs.split == "train"])
    if not most or most >= len(of_training):
        return pairs
    return pairs.of((pairs.split != "train") | (pairs.prompt_id < of_training[most]))


def of_loss(pairs: PairRows, loss: Loss) -> PairRows:
    """The pairs that a loss asks about: all, or those of the first image of each ranking."""
    if loss != "choice":
        return pairs
    ends = np.concatenate([np.stack([pairs.ranking_id, end], axis=1) for end in (pairs.better, pairs.worse)])
    _, place = np.unique(ends, axis=0, return_inverse=True)
    better, worse = np.split(place.reshape(-1), 2)
    return pairs.of(~np.isin(better, worse))


def choices_of(pairs: PairRows, loss: Loss) -> NDArray[np.int64]:
    """(p,) the choice that each pair is a part of: of its better image among all that its ranking puts below it."""
    if loss == "pairwise":
        return np.arange(len(pairs))
    _, choices = np.unique(np.stack([pairs.ranking_id, pairs.better], axis=1), axis=0, return_inverse=True)
    return choices.reshape(-1).astype(np.int64)


def read_prompts(files: Sequence[Path]) -> dict[int, str]:
    """Texts of annotated prompts by id."""
    table = ANNOTATED_PROMPTS.read(files)
    return dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Groups:
    """Prompts with all their images and pairs (a prompt of very many images: one of its rankings).

    Attributes:
        prompts: (g,) ids.
        image_rows: rows of the images, all groups' one after the other; group i has those from `image_starts[i]`.
        better, worse: indices of a pair's images within its group; group i has the pairs from `pair_starts[i]`.
        weights: of the pairs; those of one choice share one pair's.
        choices: of each pair, the choice that it is a part of.
    """

    prompts: NDArray[np.uint64]
    image_rows: NDArray[np.int64]
    image_starts: NDArray[np.int64]
    better: NDArray[np.int64]
    worse: NDArray[np.int64]
    weights: NDArray[np.float32]
    choices: NDArray[np.int64]
    pair_starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def pair_counts(self) -> NDArray[np.int64]:
        """(g,) pairs of each group."""
        return np.diff(self.pair_starts)

    @property
    def image_counts(self) -> NDArray[np.int64]:
        """(g,) images of each group."""
        return np.diff(self.image_starts)


def group(pairs: PairRows, images: NDArray[np.uint64], loss: Loss = "pairwise") -> Groups:
    """Gather pairs by prompt.

    Args:
        images: (n,) all images; a pair's image is given by its row there.

    Cost: O(p log p); memory 70 bytes per pair.
    """
    sorted_images, choices = np.argsort(images), choices_of(pairs, loss)
    better, worse = (sorted_images[np.searchsorted(images, ids, sorter=sorted_images)] for ids in (pairs.better, pairs.worse))
    unit = split_large(pairs)
    units, first, of_unit = np.unique(unit, return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # groups stand in the order of their first pair
    index = np.empty(len(units), dtype=np.int64)
    index[order] = np.arange(len(units))
    of_unit = index[of_unit]
    keys = np.unique(np.stack([np.tile(of_unit, 2), np.concatenate([better, worse])], axis=1), axis=0)
    image_starts = np.searchsorted(keys[:, 0], np.arange(len(units) + 1))
    by_unit = np.argsort(of_unit, kind="stable")
    codes = keys[:, 0] * len(images) + keys[:, 1]

    def local(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return (np.searchsorted(codes, of_unit * len(images) + rows) - image_starts[of_unit])[by_unit]

    return Groups(
        prompts=pairs.prompt_id[first[order]],
        image_rows=keys[:, 1],
        image_starts=image_starts,
        better=local(better),
        worse=local(worse),
        weights=(pairs.weight / np.bincount(choices)[choices]).astype(np.float32)[by_unit],
        choices=choices[by_unit],
        pair_starts=np.searchsorted(of_unit[by_unit], np.arange(len(units) + 1)),
    )


def split_large(pairs: PairRows) -> NDArray[np.uint64]:
    """What each pair is grouped by: its prompt, or its ranking where the prompt has very many images."""
    ends = np.unique(np.stack([np.tile(pairs.prompt_id, 2), np.concatenate([pairs.better, pairs.worse])], axis=1), axis=0)
    prompts, counts = np.unique(ends[:, 0], return_counts=True)
    large = prompts[counts > _MOST_IMAGES]
    return np.where(np.isin(pairs.prompt_id, large), pairs.ranking_id, pairs.prompt_id)


def steps_of_epoch(groups: Groups, batch_pairs: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The groups of each step of an epoch, in an order drawn from seed and epoch: whole groups, to about `batch_pairs` pairs."""
    order = np.random.default_rng([seed, epoch]).permutation(len(groups))
    counts = groups.pair_counts
    steps: list[list[int]] = [[]]
    held = 0
    for number in order.tolist():
        if held and abs(held - batch_pairs) <= abs(held + counts[number] - batch_pairs):
            steps.append([])
            held = 0
        steps[-1].append(number)
        held += int(counts[number])
    return [np.array(step, dtype=np.int64) for step in steps]


def pack(numbers: Sequence[int], sizes: Mapping[int, int], most: int) -> Iterator[list[int]]:
    """Cut a list of groups into runs of at most so many images, and at least one group."""
    held: list[int] = []
    for number in numbers:
        if held and sum(sizes[one] for one in held) + sizes[number] > most:
            yield held
            held = []
        held.append(number)
    if held:
        yield held


def share(numbers: Sequence[int], sizes: Mapping[int, int], processes: int) -> list[list[int]]:
    """Deal groups out to processes, the largest first, each to whoever has the fewest images."""
    parts: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for number in sorted(numbers, key=lambda one: (-sizes[one], one)):
        least = loads.index(min(loads))
        parts[least].append(number)
        loads[least] += sizes[number]
    return parts


def noise_seed(seed: int, step: int, prompt_id: int) -> int:
    """Seed of all that is drawn for a prompt in a step, whatever batch and process it is in."""
    return row_id("training noise", seed, step, int(prompt_id))


def check_splits(pairs: PairRows, prompts: Mapping[int, str]) -> None:
    """There must be something to train on, something to validate on, and a text for everything.

    Raises:
        InputError: there is not.
    """
    for split in ("train", "validation"):
        if not (pairs.split == split).any():
            raise InputError(
                f"the pairs have no {split} split, and a reward model needs one",
                where="pairs",
                fix="give several prompts, or raise the shares: --set split-prompts.validation_share=0.1",
            )
    unknown = sorted(set(pairs.prompt_id.tolist()) - prompts.keys())
    if unknown:
        raise InputError(
            f"{len(unknown):,} prompts of the pairs are not among the annotations",
            where="annotations",
            fix="let pairs and annotations come of one recipe",
        )
