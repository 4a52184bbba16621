"""Scorers by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from irpipe.models.loading import device_errors, pick_device
from irpipe.models.plugins import OWN_SCORERS
from irpipe.models.reward.base import aspects_of, load_given, load_reward_model, of_aspect
from irpipe.models.scorers.base import Scorer
from irpipe.models.scorers.baselines import BlipScorer, ClipScorer, RandomScorer, aesthetic_head
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.pipeline.errors import ModelError, RecipeError, StageError, did_you_mean
from irpipe.pipeline.registry import SCORERS, declared
from irpipe.pipeline.stage import Inputs, Model

REWARD_MODEL = "reward-model"


def load_reward_models(inputs: Inputs, models: Mapping[str, Sequence[Model]]) -> dict[str, Any]:
    """The reward models of a run by the names of their scorers: the one that the setting `reward_model` names, or else those
    of the recipe. A single one is the scorer `reward-model`; several go by the names of their nodes.

    Returns:
        `RewardModel`s in evaluation mode.
    """
    if "reward_model" in models:
        return by_aspect({REWARD_MODEL: load_given(models["reward_model"][0])})
    folders = {node: artifact.path for node, artifact in inputs.all(REWARD_MODEL).items()}
    if len(folders) == 1:
        return by_aspect({REWARD_MODEL: load_reward_model(next(iter(folders.values())))})
    return by_aspect({node: load_reward_model(folder) for node, folder in folders.items()})


def by_aspect(models: Mapping[str, Any]) -> dict[str, Any]:
    """Reward models by the names of their scorers: of one that gives several scores its own under its name, the others as
    `name.aspect`."""
    scorers: dict[str, Any] = {}
    for name, model in models.items():
        scorers[name] = model
        scorers |= {f"{name}.{aspect}": of_aspect(model, aspect) for aspect in aspects_of(model) if aspect != model.aspect}
    return scorers


def make_scorers(
    names: Sequence[str],
    models: Mapping[str, Sequence[Model]],
    reward_models: Mapping[str, Any],
    *,
    device: str,
    dtype: str,
    seed: int,
) -> dict[str, Scorer]:
    """Load scorers by name.

    Args:
        names: `reward-model` stands for all of `reward_models`.
        device: where they run: auto, cpu, cuda, ...; dtype: their precision; seed: of the scorer random.
        models: `clip_model`, `aesthetic_model` and `blip_model`, those that are needed.
        reward_models: `RewardModel`s by the names of their scorers.

    Raises:
        RecipeError: there is none of a name.
        ModelError: a model is not at hand, or of another kind.
        StageError: another package's is no scorer.
    """
    taken = sorted(set(reward_models) & (set(names) - {REWARD_MODEL}))
    if taken and REWARD_MODEL in names:
        raise RecipeError(f"{taken[0]!r} is a scorer, and the node of a reward model", fix="give the node another name")
    place = pick_device(device)
    with device_errors(place):
        torch.empty(1, device=place)
    precision = getattr(torch, dtype)
    scorers: dict[str, Scorer] = {}
    for name in dict.fromkeys(names):
        if name == REWARD_MODEL:
            scorers |= {node: RewardModelScorer(model, place, precision) for node, model in reward_models.items()}
        else:
            scorers[name] = _make_scorer(name, seed, models, place, precision)
    return scorers


def _make_scorer(name: str, seed: int, models: Mapping[str, Sequence[Model]], device: str, dtype: torch.dtype) -> Scorer:
    if name == "clip":
        return ClipScorer(models["clip_model"][0], device, dtype)
    if name == "aesthetic":
        if "aesthetic_model" not in models:
            raise ModelError("the scorer aesthetic needs its head", fix="set aesthetic_model to the folder that holds it")
        return ClipScorer(models["clip_model"][0], device, dtype, aesthetic_head(models["aesthetic_model"][0]))
    if name == "blip":
        return BlipScorer(models["blip_model"][0], device, dtype)
    if name == "random":
        return RandomScorer(seed)
    others = declared(SCORERS)
    if name not in others:
        known = (*OWN_SCORERS, *others)
        raise RecipeError(f"there is no scorer {name!r}{did_you_mean(name, known)}", expected=", ".join(known))
    scorer: Scorer = others[name].load()()
    missing = [part for part in ("image_size", "card", "__call__") if not hasattr(scorer, part)]
    if missing:
        raise StageError(
            f"what {others[name].value} returns is no scorer: it has no {' and no '.join(missing)}",
            where=f"the entry point {name!r} of the group {SCORERS!r}",
            expected="see irpipe.models.scorers.base.Scorer",
        )
    return scorer
