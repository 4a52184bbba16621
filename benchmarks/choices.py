"""A training step on choices against a plain transcription of HPS's: on a CPU a CLIP as wide as ViT-S, on a GPU ViT-L/14.

The plain step sends every image through the network with its own copy of the prompt, padded to 77 tokens, and trains the whole of
both towers. Ours encodes each image and each text once per step, however many people chose among them, and trains the
last layers, as the paper does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from benchmarks.common import gpu_peak, least_seconds, show
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.losses import choice_loss
from irpipe.models.training.optimizer import make_optimizer
from irpipe.stages.train_rm import RmOptimizer

PROMPTS, IMAGES, TOKENS, WORDS = 5, 4, 77, 15


class Size(NamedTuple):
    """Width and depth of the image and the text tower, side of images and patches, and how often each step is measured."""

    width: int
    depth: int
    text_width: int
    text_depth: int
    side: int
    patch: int
    rounds: int


FULL, TINY = Size(384, 12, 384, 12, 224, 16, 3), Size(32, 2, 32, 2, 32, 16, 1)
VIT_L = Size(1024, 24, 768, 12, 224, 14, 10)


def main(folder: Path, size: Size) -> None:  # noqa: ARG001 # nothing is written
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and size is FULL:
        size = VIT_L
    plain = least_seconds(plain_step(size, torch.float32, device), size.rounds, device) / PROMPTS
    show("plain step, float32", ms_per_choice=f"{1e3 * plain:,.2f}", **gpu_peak(device))
    if device == "cuda":
        half = least_seconds(plain_step(size, torch.bfloat16, device), size.rounds, device) / PROMPTS
        show("plain step, bfloat16", ms_per_choice=f"{1e3 * half:,.2f}", ratio=f"{plain / half:.1f}", **gpu_peak(device))
    for people in (1, 8):
        for dtype in (torch.float32, torch.bfloat16):
            ours = least_seconds(our_step(size, people, dtype, device), size.rounds, device) / (PROMPTS * people)
            name = f"ours, {people} choices per group, {str(dtype).removeprefix('torch.')}"
            show(name, ms_per_choice=f"{1e3 * ours:,.2f}", ratio=f"{plain / ours:.1f}", **gpu_peak(device))


def network(size: Size) -> ClipReward:
    """Random weights of a CLIP."""
    torch.manual_seed(0)
    vision = tower(size.width, size.depth) | {"image_size": size.side, "patch_size": size.patch}
    text = tower(size.text_width, size.text_depth)
    text |= {"vocab_size": 1000, "max_position_embeddings": TOKENS, "bos_token_id": 998, "eos_token_id": 999}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.text_width))
    return ClipReward.from_clip(clip, preprocessing="crop")


def tower(width: int, depth: int) -> dict[str, int]:
    """The sizes of one of CLIP's towers."""
    heads = max(1, width // 64)
    return {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": depth, "num_attention_heads": heads}


def data(size: Size, tokens: int, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (20, 3, side, side) of five prompts, and the prompts, (5, tokens)."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(PROMPTS * IMAGES, 3, size.side, size.side, generator=rng)
    ids = torch.randint(0, 900, (PROMPTS, tokens), generator=rng)
    mask = torch.zeros(PROMPTS, tokens, dtype=torch.long)
    ids[:, WORDS - 1], mask[:, :WORDS] = 999, 1
    return pixels.to(device), {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


def plain_step(size: Size, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Every image with its own text pass, the whole of both towers trained."""
    model, (pixels, texts) = network(size).to(device), data(size, TOKENS, device)
    optimizer = make_optimizer(RmOptimizer(), list(model.parameters()))

    def step() -> None:
        scores = []
        for row in range(PROMPTS * IMAGES):
            text = {name: value[row // IMAGES][None] for name, value in texts.items()}
            with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                scores.append(model(pixels[row][None], text))
        update(model, optimizer, torch.cat(scores).float(), people=1)

    return step


def our_step(size: Size, people: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Each image and each text once, the paper's share of layers trained, as train-rm computes with a `training.dtype`."""
    model, (pixels, texts) = network(size).to(device), data(size, WORDS, device)
    model.freeze(image_groups=1 + round(size.depth * 10 / 24), text_layers=size.text_depth // 2)
    optimizer = make_optimizer(RmOptimizer(), [value for value in model.parameters() if value.requires_grad])
    rows = np.repeat(np.arange(PROMPTS), IMAGES)
    spread = {name: value[rows] for name, value in texts.items()}

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = model(pixels, spread)
        update(model, optimizer, scores.float(), people)

    return step


def update(model: ClipReward, optimizer: Any, scores: Tensor, people: int) -> None:
    """One step on the choices of some people, each of another image."""
    counts = torch.full((PROMPTS,), IMAGES, device=scores.device)
    logits = model.logits(scores)
    losses = [choice_loss(logits, counts, torch.full_like(counts, person % IMAGES)) for person in range(people)]
    optimizer.zero_grad(set_to_none=True)
    torch.cat(losses).mean().backward()
    optimizer.step()
