"""A trained reward model: the files of `irpipe.models.reward`, and the pairs that could not be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import read_json
from irpipe.schemas.table import Column, Table

KIND = "reward-model"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "score_card.json"


@dataclass(frozen=True)
class ScoreCard:
    """The meaning of a model's scores, and its training.

    Attributes:
        mean, std: of raw scores over `normalised_on`; a normalised score is (raw - mean) / std.
        normalised_on: the images of mean and std, in words.
        trained_on: content ids, splits, tie policy and label source of the training data.
        metrics: figures of the training.
        log_odds: whether differences of raw scores are log odds of preference, as a training on pairs makes them.
    """

    mean: float
    std: float
    normalised_on: str
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    meaning: str = "higher is better; compare within one prompt only"
    log_odds: bool = True

    def normalised(self, raw: Any) -> Any:
        """(raw - mean) / std, of a number, an array or a tensor."""
        return (raw - self.mean) / self.std

    @classmethod
    def read(cls, folder: Path) -> ScoreCard:
        """Read it from a model's folder.

        Raises:
            InputError: there is none.
        """
        fields = read_json(folder / CARD)
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"{folder / CARD} is no reward model's: {error}") from None


REJECTED_TRAINING_PAIRS = Table(
    "rejected",
    "Pairs that could not be trained on.",
    (
        Column("pair_id", pa.uint64(), "Id of the pair.", distinct=True),
        Column("reason", pa.string(), "Why: what is wrong with one of its images."),
        Column("image_id", pa.uint64(), "That image.", distinct=True),
    ),
)
SWEEP = Table(
    "sweep",
    "One row per reward model of a sweep, by its best validation.",
    (
        Column("node", pa.string(), "The node that trained it."),
        Column("point", pa.string(), "Its point of the grid: the node's name without the seed."),
        Column("validation_loss", pa.float64(), "Lowest validation loss."),
        Column("validation_accuracy", pa.float64(), "Accuracy on the validation split at that step."),
        Column("best_step", pa.int64(), "That step."),
        Column("steps", pa.int64(), "Steps of the training."),
        Column("model", pa.string(), "Content id of the trained model."),
    ),
)
