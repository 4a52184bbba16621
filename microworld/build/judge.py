"""A reward model of people whom no recipe asks: the judge that is held out while a generator is tuned for another reward model.

irpipe trains it: the micro recipe with more prompts, other people, and the lower layers frozen as published.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

POOL, PROMPTS = 10_000, 2000
FEWEST_POOL, FEWEST = 200, 40  # with fewer, no prompt may fall to validation
SETTINGS = (
    "simulate-annotations.seed=7",
    "simulate-annotations.annotators_per_prompt=8",
    "train-rm.batch_pairs=1024",
    "train-rm.optimizer.learning_rate=1e-3",
    "train-rm.epochs=6",
    "train-rm.noise_std=0.1",
    "train-rm.optimizer.ema_decay=0.997",
    "train-rm.freeze_rate=0.7",
    "train-rm.training.seed=2",
)


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train it, and save it in half precision. Takes half an hour on two cores."""
    with tempfile.TemporaryDirectory() as name:
        pool, prompts = max(round(POOL * scale), FEWEST_POOL), max(round(PROMPTS * scale), FEWEST)
        sizes = (f"simulate-prompts.count={pool}", f"select-prompts.count={prompts}")
        command = [sys.executable, "-m", "irpipe.cli"]
        subprocess.run([*command, "init"], cwd=name, check=True)
        flags = [part for setting in (*sizes, *SETTINGS) for part in ("--set", setting)]
        told = subprocess.run(
            [*command, "run", "train-rm", "--json", *flags], cwd=name, check=True, stdout=subprocess.PIPE, text=True
        )
        done: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
        shrink(Path(done["path"]), folder)
        return {"validation_accuracy": done["metrics"]["validation_accuracy"]}


def shrink(model: Path, folder: Path) -> None:
    """Copy a trained reward model, its weights in half precision."""
    for name in ("config.json", "score_card.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model / name).read_bytes())
    weights = {name: value.to(torch.float16) for name, value in load_file(model / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
