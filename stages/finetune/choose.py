"""Which images are trained on, by their rewards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from irpipe.stages.finetune import FinetuneConfig


@dataclass(frozen=True)
class Chosen:
    """An image that is trained on: its prompt and its index among the prompt's, its weight, and whether it is marked as bad."""

    prompt: int
    image: int
    weight: float
    bad: bool = False


def choose(config: FinetuneConfig, rewards: NDArray[np.float64]) -> Sequence[Chosen]:
    """What is trained on.

    Args:
        rewards: (prompts, images per prompt), higher is better; NaN where there is no image, or a blackened one.
    """
    if config.select == "best":
        return best_of_each(rewards, config.best)
    if config.select == "weighted":
        return weighted(rewards, by_prompt=config.scale == "prompt")
    return best_and_worst(rewards, config.alpha)


def best_of_each(rewards: NDArray[np.float64], best: int) -> Sequence[Chosen]:
    """The best images of every prompt, of rewards (prompts, images). NaN is never chosen."""
    order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), axis=1, kind="stable")[:, :best]
    return [
        Chosen(prompt, int(image), 1.0)
        for prompt, images in enumerate(order)
        for image in images
        if np.isfinite(rewards[prompt, image])
    ]


def weighted(rewards: NDArray[np.float64], *, by_prompt: bool) -> Sequence[Chosen]:
    """All images of rewards (prompts, images) but NaN, weighted by their rewards scaled to 0..1."""
    axis = 1 if by_prompt else None
    low, high = (edge(rewards, axis=axis, keepdims=True) for edge in (np.nanmin, np.nanmax))
    scaled = (rewards - low) / np.maximum(high - low, 1e-12)
    return [Chosen(int(prompt), int(image), float(scaled[prompt, image])) for prompt, image in np.argwhere(np.isfinite(rewards))]


def best_and_worst(rewards: NDArray[np.float64], alpha: float) -> Sequence[Chosen]:
    """Of each prompt's rewards, (prompts, images), the best image and, marked, the worst, each only if it stands out.

    Source: HPS, section 6.
    """
    chosen = []
    for prompt, row in enumerate(rewards):
        images = np.flatnonzero(np.isfinite(row))
        for sign in (1.0, -1.0) if len(images) > 1 else ():
            share = softmax(sign * row[images])
            if share.max() > alpha / len(images):
                chosen.append(Chosen(prompt, int(images[share.argmax()]), 1.0, sign < 0))
    return chosen
