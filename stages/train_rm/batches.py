"""Batches of groups, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.reward.losses import choice_loss, pairwise_loss
from irpipe.models.training.objective import Samples
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.data import Groups, pack, share

Texts = Mapping[str, Tensor]
"""What a reward model makes of texts: tensors with one row per text."""


@dataclass(frozen=True)
class Batch:
    """Groups in one forward pass.

    Attributes:
        images: (n, size, size, 3) uint8.
        texts: of each group, (g, ...).
        counts: images of each group; prompts: (g,) their ids.
        better, worse: (p,) indices of a pair's images in `images`; weights: (p,).
        choices: (p,) the choice that each pair is a part of, from 0.
    """

    images: Tensor
    texts: Texts
    counts: list[int]
    prompts: list[int]
    better: Tensor
    worse: Tensor
    weights: Tensor
    choices: Tensor


@dataclass(frozen=True)
class BatchReader:
    """Makes batches of groups, cut to micro-batches and shared out over processes.

    Attributes:
        read: images (n, size, size, 3) by their rows.
        texts: of all prompts; row_of: their rows by prompt id.
        size: about so many images per batch.
    """

    read: Callable[[NDArray[np.int64]], Tensor]
    texts: Texts
    row_of: Mapping[int, int]
    size: int
    accelerator: Accelerator

    def batches(self, groups: Groups, numbers: Sequence[int], *, all_processes: bool = True) -> list[Batch]:
        """This process's batches of some groups, or all of them where the processes do not share the work.

        Texts are padded to the longest of all these groups, so that scores and noise are the same however they are cut.
        """
        rows = [self.row_of[int(prompt)] for prompt in groups.prompts[list(numbers)]]
        encoded = shortened({name: values[rows] for name, values in self.texts.items()})
        index = {number: position for position, number in enumerate(numbers)}
        sizes = {number: int(groups.image_counts[number]) for number in numbers}
        mine = share(numbers, sizes, self.accelerator.num_processes)[self.accelerator.process_index] if all_processes else numbers
        return [
            self._batch(groups, part, {name: values[[index[one] for one in part]] for name, values in encoded.items()})
            for part in pack(mine, sizes, self.size)
        ]

    def _batch(self, groups: Groups, numbers: Sequence[int], texts: Texts) -> Batch:
        counts = [int(groups.image_counts[number]) for number in numbers]
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.concatenate([groups.image_rows[groups.image_starts[n] : groups.image_starts[n + 1]] for n in numbers])
        pairs = [slice(groups.pair_starts[n], groups.pair_starts[n + 1]) for n in numbers]
        better, worse = (
            np.concatenate([ends[pair] + start for pair, start in zip(pairs, starts[:-1], strict=True)])
            for ends in (groups.better, groups.worse)
        )
        weights = np.concatenate([groups.weights[pair] for pair in pairs])
        _, choices = np.unique(np.concatenate([groups.choices[pair] for pair in pairs]), return_inverse=True)
        prompts = [int(groups.prompts[n]) for n in numbers]
        pairs_of = (torch.from_numpy(values) for values in (better, worse, weights, choices))
        return Batch(self.read(rows), texts, counts, prompts, *pairs_of)


def shortened(texts: Texts) -> Texts:
    """Texts without the padding that none of them needs, by the attention mask; without a mask, as they are."""
    mask = texts.get("attention_mask")
    if mask is None:
        return texts
    length = int(mask.sum(dim=1).max())
    return {name: values[:, :length] for name, values in texts.items()}


def scores_of(model: Any, batch: Batch, pixels: Tensor) -> Tensor:
    """Raw scores (n,) by a reward model of a batch's images, whose pixels (n, 3, size, size) are from 0 to 1."""
    counts = torch.tensor(batch.counts)
    texts = {name: values.repeat_interleave(counts, dim=0).to(pixels.device) for name, values in batch.texts.items()}
    scores: Tensor = model(model.preprocess.normalised(pixels), texts)
    return scores.float()


def pixels_of(batch: Batch, device: torch.device) -> Tensor:
    """(n, 3, size, size) from 0 to 1, on a device."""
    return batch.images.to(device).permute(0, 3, 1, 2).float() / 255


def losses_of(model: Any, scores: Tensor, batch: Batch) -> Tensor:
    """The loss of the choice that each pair is a part of, (p,), of raw scores (n,).

    A choice between two is a pair. A model whose scores are no log odds says what they are (`logits`).
    """
    better, worse, choices = (values.to(scores.device) for values in (batch.better, batch.worse, batch.choices))
    logits = model.logits(scores) if hasattr(model, "logits") else scores
    counts = torch.bincount(choices)
    if len(counts) == len(choices):
        return pairwise_loss(logits[better], logits[worse])
    first = torch.empty_like(counts).scatter_(0, choices, better)  # of a choice all pairs have the same better image
    order = torch.cat([torch.arange(len(counts), device=scores.device), choices]).argsort(stable=True)
    values = logits[torch.cat([first, worse])[order]]
    return choice_loss(values, counts + 1, torch.zeros_like(counts))[choices]


def losses_of_equal_scores(batch: Batch) -> Tensor:
    """The loss of each pair's choice where all scores are alike, (p,): ln of the number of its images."""
    counts = torch.bincount(batch.choices)
    return (counts + 1).double().log()[batch.choices]


def pair_figures(scores: Tensor, losses: Tensor, batch: Batch) -> dict[str, Samples]:
    """Loss and accuracy of each pair, by weight, and the standard deviation of scores within each prompt."""
    weights = batch.weights.to(scores.device).double()
    correct = scores[batch.better.to(scores.device)] > scores[batch.worse.to(scores.device)]
    stds = torch.stack([part.double().std(correction=0) for part in scores.split(batch.counts)])
    return {
        "loss": Samples(losses.double(), weights),
        "accuracy": Samples(correct.double(), weights),
        "score_std": Samples(stds),
    }


def augment(
    pixels: Tensor, counts: Sequence[int], seeds: Sequence[int], may_flip: Sequence[bool], config: TrainRmConfig
) -> Tensor:
    """Shift, flip and add noise to images (n, 3, size, size), all of a prompt alike but for the noise.

    Args:
        counts: (g,) images of each prompt; seeds: (g,) of its draws; may_flip: (g,) whether a flip leaves its text true.
    """
    parts = []
    for images, seed, flippable in zip(pixels.split(list(counts)), seeds, may_flip, strict=True):
        draw = torch.Generator().manual_seed(seed >> 1)
        right, down = torch.randint(-config.random_shift, config.random_shift + 1, (2,), generator=draw).tolist()
        edge, size = config.random_shift, images.shape[-1]
        part = F.pad(images, (edge,) * 4, mode="replicate")[..., edge - down :, edge - right :][..., :size, :size]
        flips = config.horizontal_flip and bool(torch.rand((), generator=draw) < 0.5)
        std = config.noise_std * torch.rand((), generator=draw)
        noise = (std * torch.randn(part.shape, generator=draw)).to(part.device) if config.noise_std else 0.0
        parts.append((part.flip(-1) if flips and flippable else part) + noise)
    return torch.cat(parts)
