"""Tuned generators, loaded for sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from irpipe.models.generators import ImageGenerator, Sampling, load
from irpipe.models.loading import load_errors
from irpipe.models.lora import add_adapters
from irpipe.pipeline.stage import Model
from irpipe.schemas.generator import LORA, PIPELINE, GeneratorCard


def load_tuned(base: Model, folder: Path, card: GeneratorCard, sampling: Sampling, device: str) -> ImageGenerator:
    """A tuned generator: the base with its LoRA, or a pipeline of its own.

    Raises:
        ModelError: it cannot be loaded.
    """
    if card.trained == "unet":
        return load(replace(base, name=card.stage, folder=folder / PIPELINE), sampling, device)
    generator = load(base, sampling, device)
    with load_errors(Model(card.stage, "", folder), "the tuned generator", f"{LORA}/pytorch_lora_weights.safetensors"):
        add_adapters(generator.pipeline.unet, folder / LORA)
    return generator
