"""Evaluation of RAHF on the validation images, and what is fitted on them: the normalisers of scores, and the cut for words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray

from irpipe.models.metrics.words import best_cut
from irpipe.models.reward.rahf import Rahf
from irpipe.models.training.objective import Evaluator, Verdict, micro_batches, not_finite, own_share
from irpipe.schemas.reward_model import ScoreCard
from irpipe.schemas.rich_feedback import ASPECTS
from irpipe.stages.train_rahf import TrainRahfConfig
from irpipe.stages.train_rahf.objective import RahfObjective


@dataclass
class RahfEvaluator(Evaluator):
    """Evaluates the losses of an objective over the validation images; all processes take part. The lower, the better.

    Attributes:
        objective: over the validation images; its model is the one that is trained.
    """

    config: TrainRahfConfig
    objective: RahfObjective
    accelerator: Accelerator

    def due(self, step: int) -> bool:
        """See `Evaluator`."""
        return step % self.config.evaluate_every == 0 or step == self.config.steps

    def evaluate(self, step: int) -> Verdict:
        """See `Evaluator`.

        Raises:
            TrainingError: a loss is not finite.
        """
        rows = self.rows()
        parts: list[str] = [name for name in ("heatmaps", "scores", "words") if name in rows[0]]
        weights: dict[str, float] = {
            "heatmaps": self.config.heatmap_weight,
            "scores": self.config.score_weight,
            "words": self.config.word_weight,
        }
        measures = {name: float(np.mean([row[name] for row in rows])) for name in parts}
        if "words" in measures:
            measures["words"] = sum(row["words"] for row in rows) / sum(row["tokens"] for row in rows)
        loss = sum(weights[name] * measures[name] for name in parts)
        if not math.isfinite(loss):
            raise not_finite("the validation loss", f"after step {step:,}", "train-rahf")
        found, true = (np.stack([row[name] for row in rows]) for name in ("found", "true"))
        correlations = {f"plcc_{aspect}": correlation(found[:, k], true[:, k]) for k, aspect in enumerate(ASPECTS)}
        note = f"validation {loss:.4f}, plcc {np.mean(list(correlations.values())):.3f}"
        return Verdict(-loss, {"loss": loss, **measures, **correlations}, note=note)

    def rows(self) -> list[dict[str, Any]]:
        """Losses, number of tokens, predicted and given scores of each image, of all processes."""
        objective, model = self.objective, self.objective.model
        model.eval()
        mine, own = list(own_share(len(objective.examples), self.accelerator)), []
        with torch.no_grad(), self.accelerator.autocast():
            for part in map(objective.batch, micro_batches(mine, self.config.training.micro_batch_size)):
                device = self.accelerator.device
                with objective.around(0, part):
                    pictures = part.pictures.to(device).permute(0, 3, 1, 2).float() / 255
                    losses, scores = objective.losses(part.rows, pictures, part.maps.to(device).float() / 255)
                found = scores.double().cpu().numpy()
                for place, row in enumerate(part.rows):
                    figures = {name: float(values[place]) for name, values in losses.items()}
                    true = objective.examples.scores[row]
                    own.append({"row": row, **figures, "tokens": objective.tokens[row], "found": found[place], "true": true})
        gathered = gather_object(own) if self.accelerator.num_processes > 1 else own
        return sorted(gathered, key=lambda row: int(row["row"]))


def correlation(found: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    """Pearson's correlation of (n,) and (n,), of those that are known; 0 where one is constant."""
    known = ~np.isnan(true)
    if known.sum() < 2 or not np.ptp(found[known]) or not np.ptp(true[known]):
        return 0.0
    return float(np.corrcoef(found[known], true[known])[0, 1])


def fitted_cards(evaluator: RahfEvaluator, meaning: dict[str, Any]) -> dict[str, ScoreCard]:
    """The score card of each aspect, normalised on the validation images."""
    found = np.stack([row["found"] for row in evaluator.rows()])
    images = f"the {len(found):,} images of the validation split"
    return {
        aspect: ScoreCard(
            float(found[:, k].mean()),
            float(found[:, k].std()) or 1.0,
            images,
            meaning=f"{aspect}, from 0, the worst, to 1, as people rate it",
            log_odds=False,
            **meaning,
        )
        for k, aspect in enumerate(ASPECTS)
    }


def fitted_cut(model: Rahf, evaluator: RahfEvaluator) -> tuple[float, float]:
    """The probability above which a word is misaligned, of the highest F1 on the validation images; and that F1."""
    examples, shares, labels = evaluator.objective.examples, [], []
    model.eval()
    size = evaluator.config.training.micro_batch_size
    with torch.no_grad(), evaluator.accelerator.autocast():
        for part in map(evaluator.objective.batch, micro_batches(range(len(examples)), size)):
            pictures = part.pictures.to(model.device).permute(0, 3, 1, 2).float() / 255
            prompts = [examples.prompts[row] for row in part.rows]
            image = model.look(model.preprocess.normalised(pictures))
            shares += model.word_probabilities(image, model.encode_texts(prompts), prompts)
            labels += [examples.labels[row] for row in part.rows]
    return best_cut(shares, labels)
