"""A tuned generator: its card `generator.json`, and the tables of its tuning."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import read_json
from irpipe.schemas.table import Column, Table

CARD, ADDITIONS, WHOLE = "generator.json", "lora", "pipeline"
KIND = "generator"

TUNING_STEPS = Table(
    "steps",
    "The course of a tuning, one row per step and figure.",
    (
        Column("step", pa.int64(), "Optimiser steps done."),
        Column(
            "figure",
            pa.string(),
            "reward, reward_loss, pretraining_loss, pool_loss, gradient_norm, slope, slope_median, slope_largest, ...",
        ),
        Column("value", pa.float64(), "Its value, a mean over the step's samples where it is one of samples."),
    ),
)
MONITORS = Table(
    "monitors",
    "Evaluations of the generator on held-out prompts and fixed captioned images.",
    (
        Column("step", pa.int64(), "Optimiser steps done."),
        Column("measure", pa.string(), "reward, held_out, similarity, denoising_loss, or a statistic of the images."),
        Column("value", pa.float64(), "Mean over the monitored images, or the loss."),
        Column("error", pa.float64(), "Standard error over prompts of its change since step 0.", nullable=True),
    ),
)


@dataclass(frozen=True)
class GeneratorCard:
    """The card of a tuned generator.

    Attributes:
        base, revision: the model it was tuned from.
        stage: the stage that tuned it.
        trained: lora or unet.
        steps, kept_step: optimiser steps done; the step whose weights these are.
        stopped_for: the reason of the stop rule, or an empty string.
        trained_on: content ids by kind.
        negative_prompt: the text that its training used for bad images, to be given as negative prompt.
    """

    base: str
    revision: str
    stage: str
    trained: str
    steps: int
    kept_step: int
    stopped_for: str
    trained_on: dict[str, str]
    negative_prompt: str = ""

    def write(self, folder: Path) -> None:
        """Write `generator.json`."""
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> GeneratorCard:
        """Read it from a folder.

        Raises:
            InputError: there is none.
        """
        fields = read_json(folder / CARD)
        try:
            return cls(**fields)
        except TypeError as error:
            raise InputError(f"{folder / CARD} is no tuned generator's: {error}") from None
