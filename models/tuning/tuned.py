"""Tuned generators, loaded for sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from irpipe.models.generators import ImageGenerator, Sampling, load
from irpipe.models.loading import load_errors
from irpipe.models.whole import refuse_differences
from irpipe.pipeline.stage import Model
from irpipe.schemas.generator import LORA, PIPELINE, GeneratorCard


def load_tuned(base: Model, folder: Path, card: GeneratorCard, sampling: Sampling, device: str) -> ImageGenerator:
    """A tuned generator as diffusers loads it: the base with its LoRA, or a pipeline of its own.

    Raises:
        ModelError: it cannot be loaded.
    """
    if card.trained == "unet":
        return load(replace(base, name=card.stage, folder=folder / PIPELINE), sampling, device)
    generator = load(base, sampling, device)
    with load_errors(Model(card.stage, "", folder), "the tuned generator", f"{LORA}/pytorch_lora_weights.safetensors"):
        generator.pipeline.load_lora_weights(folder / LORA)
        _check_adapters(generator.pipeline.unet, folder / LORA)
    return generator


def _check_adapters(unet: Any, folder: Path) -> None:
    """Whether a UNet got all adapters of a file: the libraries leave out those that fit no layer.

    Raises:
        ModelError: names those that it did not get, or got from elsewhere.
    """
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict
    from safetensors import safe_open

    (path,) = folder.glob("*.safetensors")
    with safe_open(path, "pt") as file:
        given = {name.removeprefix("unet."): tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    names = list(getattr(unet, "peft_config", {}))
    got = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=names[0])) if names else {}
    misshapen = [name for name in given.keys() & got.keys() if given[name] != tuple(got[name].shape)]
    refuse_differences(str(path), got.keys() - given.keys(), given.keys() - got.keys(), misshapen)
