"""A tuned generator: its card `generator.json`, and the places of the weights beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import read_json
from irpipe.schemas.table import Column, Table

CARD, LORA, PIPELINE = "generator.json", "lora", "pipeline"
KIND = "generator"
HELD_OUT_MEASURES = Table(
    "held_out_measures",
    "What each evaluation measured of each held-out prompt whose images are saved: means over the prompt's images.",
    (
        Column("step", pa.int64(), "Optimiser steps done."),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("figure", pa.string(), "reward, held_out or similarity."),
        Column("value", pa.float64(), "Its value."),
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
        negative_prompt: that it was tuned for; `{prompt}` in it is the place of the prompt.
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
