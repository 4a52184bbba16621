"""Scorers, reward models and extractors that installed packages declare. Imports no torch: stages declare themselves with it.

irpipe.scorers: a name = a function without arguments that returns a `Scorer` (`irpipe.models.scorers.base`).
irpipe.reward_models: the format that the `config.json` of a model's folder names = a class like `RewardModel`
(`irpipe.models.reward.base`).
irpipe.extractors: a name = a function of the device ("cpu", "cuda:0") that returns an
`Extractor` (`irpipe.models.metrics.extractors`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.registry import EXTRACTORS, REWARD_MODELS, SCORERS

OWN_EXTRACTORS = ("clip", "inception")
OWN_SCORERS = ("reward-model", "clip", "aesthetic", "blip", "random")
_CONFIG = "config.json"


def format_of(folder: Path) -> str | None:
    """The format that a model's `config.json` names; None where it names none.

    Raises:
        ModelError: it is no JSON.
    """
    path = folder / _CONFIG
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(f"{_CONFIG} cannot be read: {error}", where=str(path)) from None
    name = config.get("format") if isinstance(config, dict) else None
    return name if isinstance(name, str) else None


def plugins(config: Any, folders: Sequence[Path]) -> Mapping[str, Sequence[str]]:
    """Names of the entry points, by group, that a run loads: scorers and the extractor that its settings name, and the classes of
    the reward models in the folders that it reads."""
    scorers = [name for name in getattr(config, "scorers", ()) if name not in OWN_SCORERS]
    formats = sorted({name for folder in folders if (name := format_of(folder)) is not None})
    extractors = [name for name in [getattr(config, "extractor", None)] if name is not None and name not in OWN_EXTRACTORS]
    return {SCORERS: scorers, REWARD_MODELS: formats, EXTRACTORS: extractors}
