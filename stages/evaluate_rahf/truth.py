"""What the micro world knows: what annotators look at, what nobody can better, and whether a map reads the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.pictures import rich_truth_of
from irpipe.microworld.render import SIDE
from irpipe.microworld.rich import RADIUS, Region, RichTruth, Slips, answer
from irpipe.models.maps import discs
from irpipe.pipeline.hashing import row_id
from irpipe.schemas.rich_feedback import ASPECTS, KINDS
from irpipe.stages.evaluate_rahf.figures import Bootstrap, Feedback, Row, weighted_mean

_DOWN, _RIGHT = np.mgrid[0:SIDE, 0:SIDE] + 0.5
_CORE = 0.8  # of a thing's radius: where the pointing test looks


@dataclass(frozen=True)
class Known:
    """The truth about images, and how annotators differ from it."""

    truths: Sequence[RichTruth]
    slips: Slips
    words: Sequence[int]  # of each prompt

    @classmethod
    def of(cls, prompts: Sequence[str], images: Sequence[bytes], words: Sequence[int], raters: Mapping[str, Any]) -> Known:
        """Of encoded images and their prompts.

        Raises:
            NotOfThisWorldError: an image or a prompt is not of the micro world.
        """
        truths = [rich_truth_of(prompt, data) for prompt, data in zip(prompts, images, strict=True)]
        return cls(truths, Slips(**raters["slips"]), words)

    def panel(self, count: int, seed: int, image_ids: Sequence[int]) -> Feedback:
        """The mean of so many further annotators of each image: of 1, another person; of many, what the truth allows."""
        scores = np.empty((len(self.truths), len(ASPECTS)))
        maps: dict[str, list[NDArray[np.float64]]] = {kind: [] for kind in KINDS}
        labels = []
        for number, truth in enumerate(self.truths):
            rng = np.random.default_rng([seed, row_id("panel", count, int(image_ids[number]))])
            answers = [answer(truth, self.slips, rng) for _ in range(count)]
            scores[number] = (np.mean([one.scores for one in answers], axis=0) - 1) / 4
            points = {"implausibility": [one.implausible for one in answers], "misalignment": [one.misaligned for one in answers]}
            for kind, of_each in points.items():
                maps[kind].append(np.mean([discs(of_one, (SIDE, SIDE), RADIUS) for of_one in of_each], axis=0))
            votes = np.zeros(self.words[number])
            for one in answers:
                votes[list(one.words)] += 1
            labels.append((2 * votes > count).tolist())
        return Feedback({aspect: scores[:, place] for place, aspect in enumerate(ASPECTS)}, maps, labels)

    def every_content_word(self) -> Feedback:
        """Every word that asks for something is called misaligned."""
        pairs = zip(self.truths, self.words, strict=True)
        return Feedback(labels=[[place in truth.content for place in range(count)] for truth, count in pairs])

    def pointing(self, name: str, mine: Feedback, things: Sequence[Sequence[Region]], bootstrap: Bootstrap) -> list[Row]:
        """Whether a misalignment map is higher on the wrong one of two things, of which one is right: .5 is chance.

        Args:
            things: the wrong and the right thing of each image; empty where there are not two such.
        """
        if "misalignment" not in mine.maps:
            return []
        values = np.array(
            [_points(found, pair) if pair else np.nan for found, pair in zip(mine.maps["misalignment"], things, strict=True)]
        )
        of: Callable[[NDArray[np.float64]], float] = weighted_mean(values)
        low, high = bootstrap.interval(of)
        value = of(np.ones(len(values)))
        row = {"predictor": name, "output": "misalignment", "figure": "pointing", "value": value if np.isfinite(value) else None}
        return [row | {"low": low, "high": high, "count": int(np.isfinite(values).sum())}]


def _points(found: NDArray[np.float64], pair: Sequence[Region]) -> float:
    """1 where a map (32, 32) is higher on the wrong thing than on the right one, .5 where it is the same."""
    wrong, right = (found[np.hypot(_RIGHT - thing.x, _DOWN - thing.y) < _CORE * thing.radius].mean() for thing in pair)
    return 1.0 if wrong > right else 0.5 if wrong == right else 0.0


def wrong_and_right(truth: RichTruth) -> list[Region]:
    """The wrong and the right one of two things that an image shows; nothing where it does not show one of each."""
    wrong = [region for region in truth.regions if region.kind == "thing"]
    right = [thing for thing in truth.things if not any((thing.x, thing.y) == (one.x, one.y) for one in wrong)]
    return [wrong[0], right[0]] if len(truth.things) == 2 and len(wrong) == len(right) == 1 else []
