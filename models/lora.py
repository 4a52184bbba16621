"""Low-rank adapters (LoRA) of a UNet from files: of diffusers, and HPS's published ones (align_sd, diffusers 0.14)."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from irpipe.models.weights import read_checkpoint
from irpipe.models.whole import refuse_differences
from irpipe.pipeline.errors import ModelError

_PUBLISHED = re.compile(r"(?P<layer>.+)\.processor\.to_(?P<part>q|k|v|out)_lora\.(?P<side>down|up)\.weight")
_TODAYS = re.compile(r"(?P<layer>.+)\.(?P<side>lora_A|lora_B|lora\.down|lora\.up)\.weight")
_SIDES = {"down": "lora_A", "lora_A": "lora_A", "lora.down": "lora_A", "up": "lora_B", "lora_B": "lora_B", "lora.up": "lora_B"}
_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


def todays_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapters under peft's names within the UNet: ``LAYER.lora_A.weight`` (rank, in) and ``LAYER.lora_B.weight`` (out, rank).

    What is no adapter of a UNet keeps its name. Published files have ``X.processor.to_q_lora.down.weight`` for ``X.to_q.lora_A``.
    """
    return {_todays_name(name.removeprefix("unet.")): value for name, value in weights.items()}


def _todays_name(name: str) -> str:
    if found := _PUBLISHED.fullmatch(name):
        part = "to_out.0" if found["part"] == "out" else f"to_{found['part']}"
        return f"{found['layer']}.{part}.{_SIDES[found['side']]}.weight"
    found = _TODAYS.fullmatch(name)
    return f"{found['layer']}.{_SIDES[found['side']]}.weight" if found else name


def read_adapters(path: Path) -> dict[str, Tensor]:
    """The adapters in a file, or in the only file of that kind in a folder. No code in it is run.

    Raises:
        ModelError: there are none, it is damaged, or its adapters have another scale than 1.
    """
    files = [file for name in _FILES if (file := path / name).is_file()] if path.is_dir() else [path]
    weights = read_checkpoint(files[0]) if len(files) == 1 else None
    if not weights:
        raise ModelError(f"{path} holds no LoRA weights", expected=f"one of {' and '.join(_FILES)}")
    _check_scale(files[0])
    return todays_names(weights)


def _check_scale(path: Path) -> None:
    """Whether adapters are meant with the scale alpha / rank = 1, where a file says it.

    Raises:
        ModelError: they are not.
    """
    if path.suffix != ".safetensors":
        return
    with safe_open(path, "pt") as file:
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    settings = {name.rpartition(".")[2]: value for name, value in metadata.items()}
    alpha, rank = settings.get("lora_alpha"), settings.get("r")
    if alpha is not None and alpha != rank:
        raise ModelError(f"{path} has adapters of rank {rank} and alpha {alpha}, whose scale is not 1", expected="alpha = rank")


def add_adapters(unet: Any, path: Path) -> None:
    """Put adapters from a file into a UNet of diffusers, with the scale 1 (alpha = rank), whole or not at all.

    Raises:
        ModelError: names those that fit no layer, or have no other half, or are of another shape.
    """
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

    weights = read_adapters(path)
    ranks = {name.removesuffix(".lora_A.weight"): len(value) for name, value in weights.items() if ".lora_A." in name}
    layers = sorted(ranks.keys() & dict(unet.named_modules()).keys())
    if not layers:
        raise ModelError(f"{path} holds no LoRA of this UNet: {sorted(weights)[0]} is none of its layers")
    rank = Counter(ranks[layer] for layer in layers).most_common(1)[0][0]
    others = {layer: ranks[layer] for layer in layers if ranks[layer] != rank}
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers, rank_pattern=others, alpha_pattern=others))
    own = get_peft_model_state_dict(unet, adapter_name="default")
    misshapen = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    refuse_differences(str(path), own.keys() - weights.keys(), weights.keys() - own.keys(), misshapen)
    set_peft_model_state_dict(unet, weights, adapter_name="default")
    unet.requires_grad_(False)
