"""Splitting with related prompts in one split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from irpipe.pipeline.errors import LeakError
from irpipe.pipeline.hashing import row_id
from irpipe.schemas.prompts import normalise
from irpipe.schemas.splits import SPLITS
from irpipe.stages.split_prompts.links import Link


def components(count: int, links: Sequence[Link]) -> NDArray[np.int32]:
    """The connected component of each prompt, (count,)."""
    ends = np.array([(link.first, link.second) for link in links], dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_matrix((np.ones(len(ends), dtype=bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    labels: NDArray[np.int32] = sparse.csgraph.connected_components(graph, directed=False)[1]
    return labels


def cut(
    texts: Sequence[str],
    links: Sequence[Link],
    given: dict[int, str],
    shares: tuple[float, float],
    seed: int,
) -> NDArray[np.int8]:
    """The split of each prompt, as its index in `SPLITS`, (n,).

    Whole components go to one split. Given splits are kept; the others are drawn in an order that depends on the seed and the
    texts only: the test split is filled up to its share, then the validation split, and the rest trains. A component too large
    for what is left of a share trains, and so does the only one. A source that has prompts to train on and none to validate on
    lends its share of the former, if that is a prompt at all.

    Args:
        given: split of the prompts whose source names one, by index.
        shares: of validation and test, of all prompts.

    Raises:
        LeakError: related prompts have different given splits.
    """
    labels = components(len(texts), links)
    check_leaks(texts, links, labels, given)
    fixed = {int(labels[index]): SPLITS.index(split) for index, split in given.items()}
    members = members_of(labels)
    order = sorted(members, key=lambda label: min(row_id("split", seed, normalise(texts[index])) for index in members[label]))
    free = [label for label in order if label not in fixed]
    sizes = [sum(len(members[label]) for label, split in fixed.items() if split == number) for number in range(len(SPLITS))]
    quotas = [len(texts), *(max(1, round(share * len(texts))) if share else 0 for share in shares)]
    lends = {"train"} <= set(given.values()) <= {"train", "test"} and shares[0] * len(texts) >= 1
    splits = np.empty(len(texts), dtype=np.int8)
    for label in order:
        choice = fixed.get(label)
        if choice is None or (choice == 0 and lends):
            last_to_train_on = choice is None and label == free[-1] and not sizes[0]
            wanted = (2, 1) if choice is None else (1,)
            choice = 0 if last_to_train_on else filled_up(wanted, len(members[label]), sizes, quotas)
            sizes[choice] += len(members[label])
        splits[members[label]] = choice
    return splits


def filled_up(wanted: Sequence[int], size: int, sizes: Sequence[int], quotas: Sequence[int]) -> int:
    """The first wanted split with room for a component of so many prompts; else that which is trained on."""
    return next((split for split in wanted if sizes[split] + size <= quotas[split]), 0)


def members_of(labels: NDArray[np.int32]) -> dict[int, list[int]]:
    """The prompts of each component, by labels (n,)."""
    members: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(index)
    return members


def check_leaks(texts: Sequence[str], links: Sequence[Link], labels: NDArray[np.int32], given: dict[int, str]) -> None:
    """Related prompts, with equal labels (n,), must not have different given splits.

    Raises:
        LeakError: they have; names two of them and their relation.
    """
    for link in links:
        splits = given.get(link.first), given.get(link.second)
        if None not in splits and splits[0] != splits[1]:
            raise _leak(texts, link.first, link.second, given, link.why)
    first: dict[int, int] = {}
    for index in sorted(given):
        earlier = first.setdefault(int(labels[index]), index)
        if given[earlier] != given[index]:
            raise _leak(texts, earlier, index, given, "related through other prompts")


def _leak(texts: Sequence[str], first: int, second: int, given: dict[int, str], why: str) -> LeakError:
    return LeakError(
        f"the splits {given[first]} and {given[second]} leak: {texts[first][:80]!r} and {texts[second][:80]!r} are {why}",
        fix="fix the source's splits, or leave them out and let split-prompts cut",
    )
