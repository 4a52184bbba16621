"""A tuned generator: its card `generator.json`, and the places of the weights beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import read_json

CARD, LORA, PIPELINE = "generator.json", "lora", "pipeline"
KIND = "generator"


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
        negative_prompt: the text that the training put before the prompts of bad images, to be given as negative prompt.
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
