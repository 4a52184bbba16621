"""Weights and tokenizers from files: read without running code, and put into a model whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from irpipe.models.loading import load_errors
from irpipe.models.whole import refuse_differences
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CARD, CONFIG, WEIGHTS, ScoreCard


def read_config(model: Model) -> dict[str, Any]:
    """What `config.json` in a model's folder says; nothing where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    path = (model.folder or Path()) / CONFIG
    if not path.is_file():
        return {}
    with load_errors(model, "the model", "config.json"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def config_table(config: Any) -> dict[str, Any]:
    """A config of transformers as a table, without the place where it lay: the same model is the same bytes elsewhere."""

    def without_place(table: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in table.items() if name != "_name_or_path"}
        return {name: without_place(value) if isinstance(value, Mapping) else value for name, value in kept.items()}

    return without_place(config.to_dict())


def fill(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights that must be exactly the model's.

    Raises:
        ModelError: names the missing, the unexpected, and those of another shape.
    """
    own = model.state_dict()
    misshapen = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    refuse_differences(what, own.keys() - weights.keys(), weights.keys() - own.keys(), misshapen)
    model.load_state_dict(dict(weights))


def save_model(
    folder: Path, config: Mapping[str, Any], card: ScoreCard, weights: Mapping[str, Tensor], tokenizer: Any = None
) -> None:
    """Write the files of a reward model: config, score card and weights, and the tokenizer if there is one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for name, table in ((CONFIG, config), (CARD, asdict(card))):
        (folder / name).write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def read_checkpoint(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint file, or of the only one in a folder; None where there is none. No code in it is run.

    Raises:
        ModelError: it is damaged, or a pickle of more than tensors.
    """
    if path.is_dir():
        found = sorted(file for pattern in ("*.pt", "*.pth") for file in path.glob(pattern))
        return read_checkpoint(found[0]) if len(found) == 1 else None
    if not path.is_file():
        return None
    with load_errors(Model(path.name, "", path), "the checkpoint", "a file that torch.save or safetensors wrote"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        # Mapped where the format allows it: what is only looked at is not read.
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        for name in ("model", "state_dict"):  # as BLIP and HPS wrap them
            saved = saved.get(name, saved) if isinstance(saved, dict) else saved
        if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
            raise ValueError("it is no state dict")
        return saved


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in a folder, without any code that may lie beside it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def encode_prompts(tokenizer: Any, prompts: Sequence[str], max_length: int, device: torch.device) -> dict[str, Tensor]:
    """Token ids and attention mask, (n, l) each: cut at `max_length` tokens, and padded to the longest."""
    batch = tokenizer(list(prompts), padding="longest", max_length=max_length, truncation=True, return_tensors="pt")
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
