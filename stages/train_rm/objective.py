"""The loss of pairs or choices as an objective of a training, with its own guard against collapse."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from irpipe.models.training.objective import Figures, Objective, Samples, Save, not_finite
from irpipe.pipeline.errors import TrainingError
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.batches import (
    Batch,
    BatchReader,
    augment,
    losses_of,
    losses_of_equal_scores,
    pair_figures,
    pixels_of,
    scores_of,
)
from irpipe.stages.train_rm.data import Groups, noise_seed, steps_of_epoch

_FLAT_LOSS, _FLAT_STD = (
    2e-3,
    1e-2,
)  # so near the loss of equal scores, and so little between a prompt's images, that nothing was learnt
_GUARD_STEPS = 10  # whose mean the guard looks at
_SCALE_GROUPS = 200  # training prompts that a head's scale is fitted on
_SCALES = (0.02, 2.0)
_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


class PairwiseObjective(Objective):
    """The mean loss of a step's choices by weight: -log softmax of the better image among itself and the worse ones.

    Of pairs that is -log sigmoid(better - worse). Source: ImageReward, equation 1; HPS, section 5.

    Args:
        model: a `RewardModel` on the accelerator's device.
        groups: training prompts with their images and pairs.
        prompts: texts by prompt id.

    Attributes:
        steps: the groups of each step.
        carried: of each of the last steps, until the guard has looked: loss above that of equal scores and weight of its pairs,
            standard deviation of scores within a prompt, number of prompts; sums over all processes.
    """

    name, weight = "loss", 1.0

    def __init__(
        self,
        config: TrainRmConfig,
        model: Any,
        groups: Groups,
        prompts: Mapping[int, str],
        reader: BatchReader,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.model, self.groups = config, model, groups
        self.reader, self.accelerator = reader, accelerator
        self.carried: list[list[float]] = []
        seed = config.training.seed
        self.epochs = [steps_of_epoch(groups, config.batch_pairs, seed, epoch) for epoch in range(config.epochs)]
        self.steps: list[NDArray[np.int64]] = [numbers for epoch in self.epochs for numbers in epoch]
        self._may_flip = {identity: not _SIDES.search(text) for identity, text in prompts.items()}
        self._augmented = bool(config.random_shift or config.horizontal_flip or config.noise_std)
        self._sums = np.zeros(4)

    # -- steps --------------------------------------------------------------------------------------------------------

    def prepare(self, step: int, save: Save) -> None:  # noqa: ARG002 # nothing is made that a kill could lose
        """Training mode."""
        self.model.train()

    def parts(self, step: int) -> Sequence[Batch]:
        """See `Objective`."""
        return self.reader.batches(self.groups, self.steps[step].tolist())

    def loss(self, step: int, part: Batch) -> tuple[Tensor, Figures]:
        """See `Objective`."""
        pixels = pixels_of(part, self.accelerator.device)
        if self._augmented:
            pixels = augment(
                pixels, part.counts, self._seeds(step, part), [self._may_flip[one] for one in part.prompts], self.config
            )
        scores = scores_of(self.model, part, pixels)
        losses, weights = losses_of(self.model, scores, part), part.weights.to(scores.device)
        loss = (losses * weights).sum() / self._weight_of(step)
        if not bool(torch.isfinite(loss)):
            raise self._not_finite(step, part, scores)
        figures = pair_figures(scores.detach(), losses.detach(), part)
        self._sums += sums_of(figures, losses_of_equal_scores(part).to(scores.device))
        return loss, figures

    def _weight_of(self, step: int) -> float:
        """The weight of all pairs of a step."""
        groups = self.groups
        parts = (groups.weights[groups.pair_starts[n] : groups.pair_starts[n + 1]].sum() for n in self.steps[step])
        return float(sum(parts))

    @contextmanager
    def around(self, step: int, part: Batch) -> Iterator[None]:
        """Each prompt's dropout and stochastic depth draw from a stream of its own."""
        groups = zip(part.counts, self._seeds(step, part), strict=True)
        with self.model.noise.of(list(groups)):
            yield

    def _seeds(self, step: int, part: Batch) -> list[int]:
        return [noise_seed(self.config.training.seed, step, prompt) for prompt in part.prompts]

    def _not_finite(self, step: int, batch: Batch, scores: Tensor) -> TrainingError:
        bad = ~torch.isfinite(scores)
        groups = np.repeat(np.arange(len(batch.counts)), batch.counts)[bad.cpu().numpy()]
        prompts = ", ".join(f"{batch.prompts[group]:016x}" for group in sorted(set(groups.tolist()))[:3])
        where = f"of the prompts {prompts}" if prompts else "though all scores are finite"
        return not_finite("the loss", f"in step {step + 1:,}: scores {where}", "train-rm")

    # -- the guard ----------------------------------------------------------------------------------------------------

    def finish(self, step: int) -> None:
        """Detect collapse early (loss still that of equal scores, all scores alike).

        Raises:
            TrainingError: it has collapsed.
        """
        last = min(self.config.collapse_after, len(self.steps))
        if step < last:
            sums = torch.from_numpy(self._sums)
            if self.accelerator.num_processes > 1:
                sums = self.accelerator.reduce(sums.to(self.accelerator.device), "sum").cpu()
            self.carried = [*self.carried, sums.tolist()][-_GUARD_STEPS:]
        self._sums = np.zeros(4)
        if step + 1 != last:
            return
        loss, weight, std, prompts = np.sum(self.carried, axis=0)
        self.carried = []
        if abs(loss / weight) < _FLAT_LOSS and std / prompts < _FLAT_STD:
            raise TrainingError(
                f"the reward model collapsed: after {step + 1:,} steps the loss is that of equal scores (for pairs ln 2) but for"
                f" {abs(loss / weight):.1e}, and a prompt's images differ by {std / prompts:.1e} in score",
                fix="--set train-rm.head=itm and a BLIP with a matching head, a higher train-rm.optimizer.learning_rate, or, to"
                " let it go on, --set train-rm.collapse_after=0",
            )

    # -- before the first step ----------------------------------------------------------------------------------------

    def fit_scale(self) -> float:
        """Multiply the model's scores by the positive number that makes the loss on training pairs lowest. Returns the number."""
        numbers = list(range(min(len(self.groups), _SCALE_GROUPS)))
        self.model.eval()
        gaps, weights = [], []
        for batch in self.reader.batches(self.groups, numbers, all_processes=False):
            with torch.no_grad(), self.accelerator.autocast():
                scores = scores_of(self.model, batch, pixels_of(batch, self.accelerator.device)).double().cpu()
            gaps.append((scores[batch.better] - scores[batch.worse]).numpy())
            weights.append(batch.weights.double().numpy())
        gap, weight = np.concatenate(gaps), np.concatenate(weights)

        def loss(scale: float) -> float:
            return float((np.logaddexp(0, -scale * gap) * weight).sum())

        best = torch.tensor(minimize_scalar(loss, bounds=_SCALES, method="bounded").x, dtype=torch.float32)
        if self.accelerator.num_processes > 1:  # devices may differ in the last bits, and weights must not
            best = self.accelerator.reduce(best.to(self.accelerator.device), "mean").cpu()
        self.model.scale_scores(float(best))
        return round(float(best), 6)


def sums_of(figures: Mapping[str, Samples], equal: Tensor) -> NDArray[np.float64]:
    """Loss above that of equal scores, (p,), and weight of pairs, standard deviation and number of prompts."""
    loss, stds = figures["loss"], figures["score_std"].values
    assert loss.weights is not None, "pairs have weights"
    above = float(((loss.values - equal) * loss.weights).sum())
    return np.array([above, float(loss.weights.sum()), float(stds.sum()), len(stds)])
