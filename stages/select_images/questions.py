"""Questions as settings spell them, and how many images of each kind are taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import floor, prod

_QUESTION = re.compile(r"\s*([a-z][a-z0-9_-]*)\s*:\s*(.+?\?)\s*(.+)")
_WEIGHT = re.compile(r"(.+?)\s+(\d*\.?\d+)")
_LIKE_A_NUMBER = re.compile(r"[-+.]?\d.*")
_TAKEN = ("image",)  # a column of labels
Kind = tuple[str, ...]
"""An answer to each question."""


@dataclass(frozen=True)
class Question:
    """A question and the weight of each of its answers."""

    name: str
    text: str
    weights: Mapping[str, float]


def parse(spelled: str) -> Question | None:
    """A question of ``name: text? answer, answer 2``; None where it is none."""
    found = _QUESTION.fullmatch(spelled)
    if found is None:
        return None
    weights: dict[str, float] = {}
    for part in (part.strip() for part in found[3].split(",")):
        weighed = _WEIGHT.fullmatch(part)
        answer, weight = (weighed[1], float(weighed[2])) if weighed else (part, 1.0)
        if not answer or answer in weights or (len(answer.split()) > 1 and _LIKE_A_NUMBER.fullmatch(answer.split()[-1])):
            return None
        weights[answer] = weight
    return Question(found[1], found[2], weights) if len(weights) > 1 and any(weights.values()) else None


def questions_of(spelled: Sequence[str]) -> list[Question]:
    """The questions of a config without faults."""
    return [question for question in map(parse, spelled) if question is not None]


def faults_of(spelled: Sequence[str]) -> Iterator[str]:
    """What is wrong with the setting."""
    names = [question.name for question in questions_of(spelled)]
    for one in spelled:
        if parse(one) is None:
            yield f"questions: {one!r} is not spelled as 'name: question? answer, answer' with two different answers or more"
    for name in (name for name in names if name in _TAKEN):
        yield f"questions: no question is named {name!r}, as the labels' column of images is"
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"questions: {name!r} is there twice"


def weights_of(questions: Sequence[Question]) -> dict[Kind, float]:
    """The weight of every kind of image."""
    return {
        kind: prod(one.weights[answer] for one, answer in zip(questions, kind, strict=True))
        for kind in product(*(one.weights for one in questions))
    }


def quotas(available: Mapping[Kind, int], weights: Mapping[Kind, float], count: int) -> dict[Kind, int]:
    """How many images of each kind are taken: in the ratio of their weights, and where a kind has fewer, all of it.

    What scarce kinds lack goes to the others; what a share leaves over goes to the largest remainders, the first kinds first.
    """
    wanted = {kind: number for kind, number in available.items() if weights[kind] > 0}
    count, taken = min(count, sum(wanted.values())), dict.fromkeys(available, 0)
    level = 0.0
    while wanted:
        level = count / sum(weights[kind] for kind in wanted)
        scarce = [kind for kind, number in wanted.items() if number <= level * weights[kind]]
        for kind in scarce:
            taken[kind] = wanted.pop(kind)
            count -= taken[kind]
        if not scarce:
            break
    shares = {kind: level * weights[kind] for kind in wanted}
    taken |= {kind: floor(share) for kind, share in shares.items()}
    left = count - sum(taken[kind] for kind in shares)
    for kind in sorted(shares, key=lambda kind: floor(shares[kind]) - shares[kind])[:left]:
        taken[kind] += 1
    return taken
