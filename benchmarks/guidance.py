"""What score guidance costs: a sampling with every step guided against the plain one, by several reward models.

At the micro world's size; RAHF is untrained: the work is the same. With an NVIDIA GPU also Stable Diffusion 1.4 and BLIP
large, of random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.common import gpu_peak, least_seconds, show
from benchmarks.rahf import T5
from irpipe.models.generators import ImageGenerator, Sampling, load
from irpipe.models.guidance.config import GuidanceSettings
from irpipe.models.guidance.sampler import GuidedGenerator
from irpipe.models.reward import load_reward_model
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import start_from_blip
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model


class Size(NamedTuple):
    """Images at a time, denoising steps, and how often each is measured."""

    images: int
    steps: int
    rounds: int


FULL, TINY = Size(64, 20, 3), Size(2, 2, 1)


def main(folder: Path, size: Size) -> None:
    blip = Model("micro-blip", "", shipped_folder("micro-blip"))
    rewards: dict[str, Any] = {
        "ImageReward's kind": load_reward_model(shipped_folder("micro-judge")),
        "RAHF": start_from_blip(blip, "multi-head", HeadSizes((48,), (24, 12), 1, 8, (32, 16), (64,)), T5, 0),
    }
    compare(Model("micro-generator", "", shipped_folder("micro-generator")), rewards, size, "cpu", "float32")
    if size is FULL and torch.cuda.is_available():
        large(folder)


def large(folder: Path) -> None:
    """The published sizes, on a GPU."""
    from benchmarks.large_pipeline import save
    from benchmarks.reward_model import LARGE, random_model

    reward = random_model(*LARGE).to("cuda")
    model = Model("large", "", save(folder / "large"))
    compare(model, {"BLIP large": reward}, Size(4, 10, 2), "cuda", "bfloat16")


def compare(model: Model, rewards: Mapping[str, Any], size: Size, device: str, dtype: Literal["float32", "bfloat16"]) -> None:
    """Show what plain and guided samplings of a generator cost."""

    def generator() -> ImageGenerator:
        return load(model, Sampling(size.steps, 1.0, "own", None, None, "", dtype, False), device)

    unguided = per_image(size, generator(), device)
    show(f"plain sampling, {model.name}", ms_per_image=f"{1e3 * unguided:.1f}")
    for name, reward in rewards.items():
        guided = GuidedGenerator(generator(), reward.eval(), name, 1.0, GuidanceSettings(), model.name)
        seconds = per_image(size, guided, device)
        show(f"guided by {name}", ms_per_image=f"{1e3 * seconds:.1f}", ratio=f"{seconds / unguided:.2f}", **gpu_peak(device))


def per_image(size: Size, by: ImageGenerator, device: str) -> float:
    """The shortest time of a batch, seconds per image."""
    encodings = by.encode(["a large red circle above a small blue square"], 1)
    rows, seeds = [0] * size.images, list(range(size.images))
    return least_seconds(lambda: by.sample(encodings, rows, seeds), size.rounds, device) / size.images
