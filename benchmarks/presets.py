"""Whether the presets for small GPUs fit: train-rm, refl and generate-images at the published sizes, on random weights.

They are those of docs/refl.md and docs/howto/one-gpu.md, run under a cap of memory as on a smaller card; times are medians over
steps, of what a step prepares (rollouts) and of the step itself. Without an NVIDIA GPU they run at the micro world's size.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.choices import VIT_L, tower
from benchmarks.common import peak_in_child, show
from benchmarks.large_pipeline import save as save_pipeline
from benchmarks.reward_model import LARGE, TINY_TEXT, TINY_VISION, random_model
from irpipe.microworld.build.tokenizer import clip_tokenizer
from irpipe.models.training.loop import Trainer
from irpipe.pipeline.external import shipped_folder

_SHARE = 0.9  # of a card's memory: the rest is the driver's and what fragments
_RECIPE = """
recipe = "presets"
store = "artifacts"
[reads]
images = "generate-images"
[simulate-prompts]
count = 80
[embed-prompts]
embedder = "lexical"
[select-prompts]
method = "random"
count = 24
[generate-images]
models = ["micro-generator"]
num_steps = 5
guidance_scale = 1.0
dtype = "float32"
batch_size = 64
device = "cpu"
[simulate-annotations]
[load-annotations]
label_source = "model"
[split-prompts]
near_duplicate = "off"
[build-pairs]
[train-rm]
model = "models/reward"
image_size = {image_size}
epochs = 1
batch_pairs = 64
training.dtype = "bfloat16"
[simulate-captions]
count = 40
[refl]
model = "models/generator"
steps = 2
batch_size = {batch}
pretraining.batch_size = {batch}
evaluation.every = 2
evaluation.prompts = 2
evaluation.kept_images = 2
evaluation.num_steps = 4
evaluation.captioned_images = 4
evaluation.held_out_model = "models/held-out"
evaluation.similarity_model = "models/clip"
[draw]
stage = "generate-images"
models = ["models/generator"]
min_images = 1
max_images = 1
safety_checker = false
"""


class Preset(NamedTuple):
    """A command, the memory in GB of the card that it is for, and its settings."""

    name: str
    node: str
    card: int
    settings: tuple[str, ...]


RECOMPUTED = "training.checkpoint_activations=true"
PRESETS = (
    Preset("train-rm, 16 images", "train-rm", 16, ("training.micro_batch_size=16",)),
    Preset("train-rm, 4 images, recomputed", "train-rm", 16, ("training.micro_batch_size=4", RECOMPUTED)),
    Preset("draw, 2 images", "draw", 16, ("batch_size=2",)),
    *(
        Preset(
            f"refl, LoRA, samples at a time: {samples}",
            "refl",
            card,
            (f"training.micro_batch_size={samples}", f"training.sample_batch_size={sampled}", RECOMPUTED),
        )
        for card, samples, sampled in ((8, 1, 2), (12, 2, 4), (24, 4, 8))
    ),
    Preset(
        "refl, whole UNet, samples at a time: 1",
        "refl",
        40,
        ("trainable=unet", "training.dtype=float16", "training.micro_batch_size=1", RECOMPUTED),
    ),
)


class Size(NamedTuple):
    """Samples per step of refl, and the presets that are run."""

    batch: int
    presets: tuple[Preset, ...]


FULL, TINY = Size(8, PRESETS), Size(2, PRESETS[1:4])  # a reward model comes first, which refl reads


def main(folder: Path, size: Size) -> None:
    large = size is FULL and torch.cuda.is_available()
    save_models(folder / "models", large)
    recipe = _RECIPE.replace("{batch}", str(size.batch)).replace("{image_size}", "224" if large else "32")
    (folder / "irpipe.toml").write_text(recipe, encoding="utf-8")
    for preset in size.presets:
        figures, _ = peak_in_child(measured, folder, preset, large)
        show(preset.name, **({"card": f"{preset.card} GB"} if large else {}), **figures)


def save_models(folder: Path, large: bool) -> None:
    """Save random weights: a generator, two reward models and a CLIP, of the published sizes or of the micro world's."""
    folder.mkdir()
    reward = random_model(*(LARGE if large else (TINY_VISION, TINY_TEXT)))
    reward.save_pretrained(folder / "reward")
    with torch.no_grad():
        for value in reward.parameters():
            value.mul_(0.9)
    reward.save_pretrained(folder / "held-out")
    if not large:
        (folder / "generator").symlink_to(shipped_folder("micro-generator"))
        (folder / "clip").symlink_to(shipped_folder("micro-clip"))
        return
    save_pipeline(folder / "generator")
    save_clip(folder / "clip")


def save_clip(folder: Path) -> None:
    """A CLIP ViT-L/14 with random weights and the micro world's words."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer, size = clip_tokenizer(), VIT_L
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = tower(size.width, size.depth) | {"image_size": size.side, "patch_size": size.patch}
    text = tower(size.text_width, size.text_depth) | {"vocab_size": len(tokenizer), "max_position_embeddings": 77} | ends
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.text_width)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": size.side}, crop_size=size.side).save_pretrained(folder)


def settings_of(preset: Preset, large: bool) -> tuple[str, ...]:
    """A preset's settings; at the micro world's size also what that needs."""
    small = {
        "train-rm": (),
        "draw": ("dtype=float32", "num_steps=2"),
        "refl": ("training.dtype=float32", "num_steps=3", "first_late_step=1", "last_late_step=2"),
    }
    return preset.settings + (() if large else small[preset.node])


def measured(folder: Path, preset: Preset, large: bool) -> dict[str, str]:
    """Run a preset, under its card's memory, in this process: its peak, and what a step takes."""
    if large:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, _SHARE * preset.card * 1e9 / whole))
    clocks = {name: clocked(name) for name in ("_prepare", "_step")}
    began = time.perf_counter()
    errors = io.StringIO()
    with redirect_stderr(errors):
        ended_well = run(folder, preset.node, settings_of(preset, large), "--force")
    if not ended_well:
        if "out of memory" not in errors.getvalue():
            raise RuntimeError(errors.getvalue())
        return {"fits": "no"}
    figures = {"seconds": f"{time.perf_counter() - began:.1f}"}
    if large:
        figures["peak"] = f"{torch.cuda.max_memory_reserved() / 1e9:.1f} GB"
    if preset.node != "draw":  # the first step also warms the GPU up
        figures |= {name.strip("_"): f"{np.median(seconds[1:]):.2f} s" for name, seconds in clocks.items()}
    return figures


def clocked(name: str) -> list[float]:
    """Seconds of each call of a method of the training loop from now on."""
    seconds: list[float] = []
    method: Callable[..., Any] = getattr(Trainer, name)

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = method(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        return result

    setattr(Trainer, name, timed)
    return seconds


def run(folder: Path, node: str, settings: tuple[str, ...], *flags: str) -> bool:
    """`irpipe run NODE` in a folder; whether it ended well."""
    from irpipe.cli import main as irpipe

    given = [part for setting in settings for part in ("--set", f"{node}.{setting}")]
    before, sys.argv = Path.cwd(), ["irpipe", "run", node, "--quiet", *flags, *given]
    os.chdir(folder)
    try:
        irpipe()
    except SystemExit as end:
        return not end.code
    finally:
        os.chdir(before)
    return True
