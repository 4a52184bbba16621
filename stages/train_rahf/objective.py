"""The losses of RAHF as objectives of a training."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.maps import map_squares, through_jpeg
from irpipe.models.reward.rahf import Fused, padded
from irpipe.models.reward.rich import RichRewardModel
from irpipe.models.training.objective import Figures, Objective, Samples, micro_batches, noise_seed, own_share, shuffled
from irpipe.pipeline.errors import InputError
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, prompt_tokens
from irpipe.stages.train_rahf import TrainRahfConfig
from irpipe.stages.train_rahf.augment import augmented
from irpipe.stages.train_rahf.data import Examples

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)
_IGNORED = -100
_READ_ROWS = 256

FlaggedWords = tuple[Sequence[Sequence[int]], Sequence[bool]]
"""The words of a prompt as token ids, and which are misaligned."""


@dataclass(frozen=True)
class Batch:
    """Images in one forward pass, each once per prompt.

    Attributes:
        rows: their rows; pictures: (n, size, size, 3) uint8; maps: (n, 2, size, size) uint8.
        images: the number of each row's image; rows of one image are together.
        step_rows, step_tokens: rows and decoder tokens of the whole step, on all processes: losses are means over them.
    """

    rows: list[int]
    pictures: Tensor
    maps: Tensor
    images: Sequence[int] = ()
    step_rows: int = 0
    step_tokens: int = 0


class RahfObjective(Objective):
    """The weighted sum of the mean squared errors of maps and scores and the words' cross-entropy (RichHF, section 4.3).

    Args:
        read: pictures (n, size, size, 3) by rows of the examples.
        examples: the training images.
    """

    name, weight, order = "loss", 1.0, "rahf"

    def __init__(
        self,
        config: TrainRahfConfig,
        model: RichRewardModel,
        examples: Examples,
        read: Callable[[Sequence[int]], NDArray[np.uint8]],
        accelerator: Accelerator,
    ) -> None:
        self.config, self.examples = config, examples
        self.model: Any = model  # which methods it has, its outputs say
        self.read, self.accelerator = read, accelerator
        self.carried: list[list[float]] = []
        self.words: Sequence[Any] = [()] * len(examples)
        self.tokens = [0] * len(examples)
        if "words" in model.outputs:
            self.words = self.model.words_of(examples.prompts).pieces
            self.tokens = [len(self.model.sequence(*pair)) for pair in zip(self.words, examples.labels, strict=True)]
        self.images = self.rows_of_images()
        self.may_flip = [not any(_SIDES.search(examples.prompts[row]) for row in rows) for rows in self.images]

    def prepare(self, step: int, save: Any) -> None:  # noqa: ARG002 # nothing is made that a kill could lose
        """Training mode."""
        self.model.train()

    def rows_of_images(self) -> list[list[int]]:
        """What a step draws: with a contrast of prompts the rows of each image, by its pixels, otherwise each row alone.

        Raises:
            InputError: no image has several prompts.
        """
        if not self.config.prompt_contrast:
            return [[row] for row in range(len(self.examples))]
        images: dict[bytes, list[int]] = {}
        for rows in micro_batches(range(len(self.examples)), _READ_ROWS):
            for row, picture in zip(rows, self.read(rows), strict=True):
                images.setdefault(hashlib.sha256(picture).digest(), []).append(row)
        if all(len(rows) == 1 for rows in images.values()):
            raise InputError(
                "no image has feedback under several prompts, which prompt_contrast compares",
                where="rich-feedback",
                fix="--set train-rahf.prompt_contrast=0",
            )
        return list(images.values())

    def step_images(self, step: int) -> list[int]:
        """The images of a step: every one once before any comes again."""
        size = self.config.batch_size
        return shuffled(len(self.images), self.config.training.seed, self.order, range(step * size, (step + 1) * size))

    def parts(self, step: int) -> Sequence[Batch]:
        """See `Objective`."""
        images = self.step_images(step)
        rows = [row for image in images for row in self.images[image]]
        tokens = self.step_tokens(step, rows)
        mine = [images[place] for place in own_share(len(images), self.accelerator)]
        parts = micro_batches(mine, self.config.training.micro_batch_size)
        return [replace(self.step_batch(part, step), step_rows=len(rows), step_tokens=tokens) for part in parts]

    def step_tokens(self, step: int, rows: Sequence[int]) -> int:  # noqa: ARG002 # of captions, which words are replaced
        """Decoder tokens of the rows of a step."""
        return sum(self.tokens[row] for row in rows)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Rows as they are, each for itself."""
        size = self.model.preprocess.image_size
        maps = map_squares([self.examples.maps[row] for row in rows], size)
        return Batch(list(rows), torch.from_numpy(self.read(rows)), torch.from_numpy(maps), range(len(rows)))

    def step_batch(self, images: Sequence[int], step: int) -> Batch:
        """Some images of a step, each under all its prompts, with the step's JPEG."""
        shown = [image for image in images for _ in self.images[image]]
        made = self.batch([row for image in images for row in self.images[image]])
        if self.config.augmentation.jpeg_quality < 100:
            for place, image in enumerate(shown):
                rng = np.random.default_rng(self._seed(step, image, "jpeg"))
                if rng.random() < 0.5:
                    quality = int(rng.integers(self.config.augmentation.jpeg_quality, 100))
                    made.pictures[place] = torch.tensor(through_jpeg(made.pictures[place].numpy(), quality))
        return replace(made, images=shown)

    def _seed(self, step: int, row: int, what: str) -> int:
        return noise_seed(self.config.training.seed, what, step, row)

    def loss(self, step: int, part: Batch) -> tuple[Tensor, Figures]:
        """See `Objective`. An augmented prompt is for one map, one score and the words per step, in turn."""
        device = self.accelerator.device
        pictures, maps = (part.pictures.to(device).permute(0, 3, 1, 2).float() / 255, part.maps.to(device).float() / 255)
        seeds = [self._seed(step, image, "augmentation") for image in part.images]
        may_flip = [self.may_flip[image] for image in part.images]
        pictures, maps = augmented(pictures, maps, seeds, may_flip, self.config.augmentation)
        together = self.config.variant != "augmented-prompt"
        kinds = KINDS if together else (KINDS[step % len(KINDS)],)
        aspects = ASPECTS if together else (ASPECTS[step % len(ASPECTS)],)
        images = part.images if self.config.prompt_contrast else None
        losses, _ = self.losses(part.rows, pictures, maps, kinds, aspects, images)
        heat, loss = self.config.heatmap_weight, torch.zeros((), device=device)
        figures = {name: Samples(values.detach()) for name, values in losses.items() if name != "words"}
        if "words" in losses:
            words = losses.pop("words")
            loss = loss + self.config.word_weight * words.sum() / part.step_tokens
            counts = torch.tensor([self.tokens[row] for row in part.rows], dtype=torch.float64)
            figures["words"] = Samples(words.detach().double().cpu() / counts, counts)
        weights = {"heatmaps": heat, "scores": self.config.score_weight, "contrast": heat * self.config.prompt_contrast}
        for name in filter(losses.__contains__, weights):
            loss = loss + weights[name] * losses[name].sum() / part.step_rows
        return loss, figures

    def losses(
        self,
        rows: Sequence[int],
        pictures: Tensor,
        maps: Tensor,
        kinds: Sequence[str] = KINDS,
        aspects: Sequence[str] = ASPECTS,
        images: Sequence[int] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Of each row: squared error of its maps, a sum over kinds; of its scores, a mean; the words' cross-entropy, a sum; of
        what the model gives.

        `contrast` is the squared error of how its maps differ from their mean over the prompts of its image: what all prompts
        share cancels out, so it gets smaller only where the prompt is read.

        Args:
            pictures: (n, 3, size, size) from 0 to 1; maps: (n, 2, size, size).
            kinds, aspects: those that are asked; they stand for all.
            images: (n,) which image each row shows; None: without the contrast.

        Returns:
            The losses, each (n,), and the predicted scores (n, aspects).
        """
        model = self.model
        pixels = model.preprocess.normalised(pictures)
        image = model.look(pixels)
        texts = model.encode_texts([self.examples.prompts[row] for row in rows])
        shared = model.shared(image, texts)
        found = torch.stack([model.score(image, texts, aspect, shared) for aspect in aspects], dim=1)
        losses = {"scores": self.score_losses(rows, found, aspects)}
        if "heatmaps" in model.outputs:
            wrong = [model.heatmap(pixels, image, texts, kind, shared) - maps[:, KINDS.index(kind)] for kind in kinds]
            losses |= map_losses(torch.stack(wrong, dim=1), images)
        if "words" in model.outputs:
            words = [(self.words[row], self.examples.labels[row]) for row in rows]
            losses["words"] = self.word_losses(shared or model.fuse(image, texts, "words"), words)
        return losses, found

    def score_losses(self, rows: Sequence[int], found: Tensor, aspects: Sequence[str]) -> Tensor:
        """(n,) the mean squared error of scores (n, aspects), of those that people gave."""
        truth = torch.from_numpy(self.examples.scores[list(rows)]).to(found.device)
        wanted = truth[:, [ASPECTS.index(aspect) for aspect in aspects]]
        errors = torch.where(wanted.isnan(), 0.0, found - wanted.nan_to_num()) ** 2
        return errors.sum(dim=1) / (~wanted.isnan()).sum(dim=1).clamp(min=1)

    def word_losses(self, fused: Fused, words: Sequence[FlaggedWords]) -> Tensor:
        """(n,) cross-entropy of the flagged prompts, a sum over tokens; padding is left out."""
        states, mask = fused
        sequences = padded([self.model.sequence(*pair) for pair in words], _IGNORED, states.device)
        logits = self.model.sequence_logits(states, mask, sequences.clamp(min=0))
        losses = F.cross_entropy(logits.float().transpose(1, 2), sequences, ignore_index=_IGNORED, reduction="none")
        return losses.sum(dim=1)


class CaptionObjective(RahfObjective):
    """Which words of a caption were replaced by another caption's words, of clean captioned images.

    The replaced words stand in the prompt as well: the image alone tells them. RichHF's pre-training mixture has captions.
    """

    name = order = "captions"

    def rows_of_images(self) -> list[list[int]]:
        """Each captioned image has one caption."""
        return [[row] for row in range(len(self.examples))]

    def step_batch(self, images: Sequence[int], step: int) -> Batch:  # noqa: ARG002 # captioned images stay as they are
        """Images by row; they have no maps."""
        return Batch(list(images), torch.from_numpy(self.read(images)), torch.empty(0))

    def step_tokens(self, step: int, rows: Sequence[int]) -> int:
        """See `RahfObjective`."""
        captions = [self.corrupted(step, row) for row in rows]
        return sum(len(self.model.sequence(*pair)) for pair in self.sequences(captions))

    def sequences(self, captions: Sequence[tuple[list[str], list[bool]]]) -> list[FlaggedWords]:
        """Captions with their words as token ids."""
        pieces = self.model.words_of([" ".join(words) for words, _ in captions]).pieces
        return list(zip(pieces, [wrong for _, wrong in captions], strict=True))

    def loss(self, step: int, part: Batch) -> tuple[Tensor, Figures]:
        """See `Objective`."""
        model, device = self.model, self.accelerator.device
        image = model.look(model.preprocess.normalised(part.pictures.to(device).permute(0, 3, 1, 2).float() / 255))
        captions = [self.corrupted(step, row) for row in part.rows]
        texts, words = model.encode_texts([" ".join(words) for words, _ in captions]), self.sequences(captions)
        losses = self.word_losses(model.fuse(image, texts, "words"), words)
        counts = torch.tensor([len(model.sequence(*pair)) for pair in words], dtype=torch.float64)
        return losses.sum() / part.step_tokens, {"captions": Samples(losses.detach().double().cpu() / counts, counts)}

    def corrupted(self, step: int, row: int) -> tuple[list[str], list[bool]]:
        """A caption's words, some of them another caption's, and which."""
        rng = np.random.default_rng(self._seed(step, row, "captions"))
        words = prompt_tokens(self.examples.prompts[row])
        others = prompt_tokens(self.examples.prompts[int(rng.integers(len(self.examples)))])
        wrong = [bool(others) and bool(rng.random() < self.config.captions.replaced) for _ in words]
        made = [str(rng.choice(others)) if replace else word for word, replace in zip(words, wrong, strict=True)]
        return made, [new != old for new, old in zip(made, words, strict=True)]


def map_losses(errors: Tensor, images: Sequence[int] | None) -> dict[str, Tensor]:
    """Each (n,), of errors of maps (n, kinds, h, w): their squares, and with the image of each row the contrast
    of its prompts."""
    squares, whole = {"heatmaps": errors**2}, len(KINDS) / errors.shape[1]
    if images is not None:
        squares["contrast"] = about_mean(errors, images) ** 2
    return {name: whole * values.mean(dim=(2, 3)).sum(dim=1) for name, values in squares.items()}


def about_mean(values: Tensor, groups: Sequence[int]) -> Tensor:
    """Values (n, ...) less the mean of their group, by the group of each (n,)."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = F.one_hot(torch.tensor([numbers[group] for group in groups], device=values.device)).to(values.dtype)
    means = (member / member.sum(dim=0)).T @ values.flatten(1)
    return values - (member @ means).view_as(values)
