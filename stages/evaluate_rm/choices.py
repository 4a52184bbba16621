"""Choices of one image among several: how often a scorer's best image is the one that people chose (HPS, table 2)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.microworld.annotators import Annotator, Impression
from irpipe.microworld.choices import ChoiceBounds, choice_bounds, choice_probabilities
from irpipe.stages.evaluate_rm.accuracy import accuracies, intervals

ACCURACY = "choice_accuracy"
EXPECTED = "expected_choice_accuracy"  # over the people's noise, where the truth is known: no drawn choice, no noise of labels


@dataclass(frozen=True)
class Choice:
    """One image that was chosen among some of a prompt's. `images` has the chosen one first."""

    prompt: int
    images: tuple[int, ...]


def read_choices(rankings: Mapping[str, Sequence[Any]], records: Container[int]) -> list[Choice]:
    """The choices among some records: each is of one image, ranked first, and all images that it was shown with.

    Args:
        rankings: columns of the table `rankings`. Its column `choice` tells a choice from a ranking with ties.
        records: ids of the records that count.
    """
    prompts: dict[int, int] = {}
    ranked: dict[int, list[tuple[int, int]]] = defaultdict(list)
    columns = (rankings[name] for name in ("ranking_id", "prompt_id", "image_id", "rank", "choice"))
    for record, prompt, image, rank, is_choice in zip(*columns, strict=True):
        if is_choice and record in records:
            prompts[record] = prompt
            ranked[record].append((rank, image))
    return [Choice(prompt, tuple(image for _, image in sorted(ranked[record]))) for record, prompt in prompts.items()]


def shares_of_best(scores: Mapping[int, float], images: Sequence[int]) -> NDArray[np.float64]:
    """(k,) how probably a scorer picks each of k images: the best of them; several equal ones share."""
    values = np.array([scores[image] for image in images])
    best = (values == values.max()).astype(np.float64)
    shares: NDArray[np.float64] = best / best.sum()
    return shares


@dataclass(frozen=True)
class Judged:
    """Choices with what is known of them.

    Attributes:
        chances: (k,) each, how probably somebody picks each image of a choice; empty where the truth is not known.
        unscored: how many more choices there are, of images without scores.
    """

    choices: Sequence[Choice]
    chances: Sequence[NDArray[np.float64]] = ()
    unscored: int = 0

    @property
    def bounds(self) -> ChoiceBounds | None:
        """What is reached on them by who knows the truth, by another person, and by chance; None without the truth."""
        return choice_bounds(self.chances) if self.chances else None

    def credits(self, scores: Mapping[int, float]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        """By figure: how right a scorer is on each choice, (c,), and which choices count, (c,)."""
        picks = [shares_of_best(scores, choice.images) for choice in self.choices]
        sizes = np.array([len(choice.images) for choice in self.choices])
        right, everywhere = np.array([pick[0] for pick in picks]), np.full(len(picks), fill_value=True)
        figures = {ACCURACY: (right, everywhere)}
        figures |= {f"{ACCURACY}_of_{size}": (right, sizes == size) for size in np.unique(sizes)[::-1].tolist()}
        if self.chances:
            expected = np.array([float(pick @ chance) for pick, chance in zip(picks, self.chances, strict=True)])
            figures[EXPECTED] = (expected, everywhere)
        return figures


def choice_rows(
    judged: Judged, scores: Mapping[str, Mapping[int, float]], baseline: str | None, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table `scorers`: accuracy on choices, in all and by the number of images, with intervals over prompts.

    Args:
        scores: by scorer and image; baseline: one of them, that all others are compared with on the same choices.
    """
    if not judged.choices:
        return []
    prompts = np.array([choice.prompt for choice in judged.choices], dtype=np.uint64)
    figure = EXPECTED if judged.chances else ACCURACY
    by_scorer = {name: judged.credits(by_image) for name, by_image in scores.items()}
    rows = []
    for name, parts in by_scorer.items():
        if baseline is not None and name != baseline:
            values, keep = parts[figure]
            parts[f"{figure}_over_{baseline}"] = (values - by_scorer[baseline][figure][0], keep)
        for part, (values, keep) in parts.items():
            value = accuracies(values[keep], prompts[keep])["accuracy"]
            low, high = intervals(values[keep], prompts[keep], draws, seed).get("accuracy", (None, None))
            rows.append({"scorer": name, "figure": part, "value": value, "low": low, "high": high, "count": int(keep.sum())})
    return rows


def chances_of(
    choices: Sequence[Choice], truth: Sequence[Mapping[str, Any]], people: Sequence[Annotator]
) -> list[NDArray[np.float64]]:
    """(k,) how probably somebody of the micro world's people picks each image of a choice."""
    seen = {row["image_id"]: Impression(float(row["alignment"]), float(row["fidelity"]), 0, 0) for row in truth}
    return [choice_probabilities(people, [seen[image] for image in choice.images]) for choice in choices]


def agreement_on_choices(choices: Sequence[Choice]) -> tuple[float | None, int]:
    """The share of pairs of choices among the same images that are of the same image, and how many such pairs there are."""
    chosen: dict[frozenset[int], list[int]] = defaultdict(list)
    for choice in choices:
        chosen[frozenset(choice.images)].append(choice.images[0])
    alike = total = 0
    for images in chosen.values():
        for index, image in enumerate(images):
            alike += sum(image == other for other in images[index + 1 :])
            total += len(images) - index - 1
    return (alike / total if total else None), total


def choice_figures(rows: Sequence[Mapping[str, Any]], judged: Judged) -> dict[str, float]:
    """The metrics of the run."""
    names = (ACCURACY, EXPECTED)
    metrics = {f"{row['figure']}_{row['scorer']}": round(row["value"], 4) for row in rows if row["figure"] in names}
    if judged.bounds is not None:
        metrics |= {f"choice_{name}": round(value, 4) for name, value in asdict(judged.bounds).items()}
    return metrics
