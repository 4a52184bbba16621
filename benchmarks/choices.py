"""A training step on choices against a plain transcription of HPS's, with a CLIP as wide as ViT-S on a CPU.

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

from benchmarks.common import show, timed
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.losses import choice_loss
from irpipe.models.training.optimizer import make_optimizer
from irpipe.stages.train_rm import RmOptimizer

PROMPTS, IMAGES, TOKENS, WORDS = 5, 4, 77, 15


class Size(NamedTuple):
    """The network's width and depth, the side of its images, and how often each step is measured."""

    width: int
    depth: int
    side: int
    rounds: int


FULL, TINY = Size(384, 12, 224, 3), Size(32, 2, 32, 1)


def main(folder: Path, size: Size) -> None:  # noqa: ARG001 # nothing is written
    step = plain_step(size)
    plain = min(timed(step)[0] for _ in range(size.rounds)) / PROMPTS
    show("plain step", ms_per_choice=f"{1e3 * plain:,.0f}")
    for people in (1, 8):
        for dtype in (torch.float32, torch.bfloat16):
            step = our_step(size, people, dtype)
            ours = min(timed(step)[0] for _ in range(size.rounds)) / (PROMPTS * people)
            name = f"ours, {people} choices per group, {str(dtype).removeprefix('torch.')}"
            show(name, ms_per_choice=f"{1e3 * ours:,.0f}", ratio=f"{plain / ours:.1f}")


def network(size: Size) -> ClipReward:
    """Random weights, with 5 of 12 layers of the image tower and half of the text tower to train, as the paper's share."""
    torch.manual_seed(0)
    common = {
        "hidden_size": size.width,
        "intermediate_size": 4 * size.width,
        "num_hidden_layers": size.depth,
        "num_attention_heads": max(1, size.width // 64),
    }
    vision = common | {"image_size": size.side, "patch_size": 16}
    text = common | {"vocab_size": 1000, "max_position_embeddings": TOKENS, "bos_token_id": 998, "eos_token_id": 999}
    clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=size.width))
    return ClipReward.from_clip(clip, preprocessing="crop")


def data(size: Size, tokens: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Images (20, 3, side, side) of five prompts, and the prompts, (5, tokens)."""
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randn(PROMPTS * IMAGES, 3, size.side, size.side, generator=rng)
    ids = torch.randint(0, 900, (PROMPTS, tokens), generator=rng)
    mask = torch.zeros(PROMPTS, tokens, dtype=torch.long)
    ids[:, WORDS - 1], mask[:, :WORDS] = 999, 1
    return pixels, {"input_ids": ids, "attention_mask": mask}


def plain_step(size: Size) -> Callable[[], None]:
    """Every image with its own text pass, the whole of both towers trained."""
    model, (pixels, texts) = network(size), data(size, TOKENS)
    optimizer = make_optimizer(RmOptimizer(), list(model.parameters()))

    def step() -> None:
        scores = []
        for row in range(PROMPTS * IMAGES):
            text = {name: value[row // IMAGES][None] for name, value in texts.items()}
            scores.append(model(pixels[row][None], text))
        update(model, optimizer, torch.cat(scores), people=1)

    return step


def our_step(size: Size, people: int, dtype: torch.dtype) -> Callable[[], None]:
    """Each image and each text once, the last layers trained, as train-rm computes with a `training.dtype`."""
    model, (pixels, texts) = network(size), data(size, WORDS)
    model.freeze(image_groups=1 + round(size.depth * 10 / 24), text_layers=size.depth // 2)
    optimizer = make_optimizer(RmOptimizer(), [value for value in model.parameters() if value.requires_grad])
    rows = np.repeat(np.arange(PROMPTS), IMAGES)
    spread = {name: value[rows] for name, value in texts.items()}

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            scores = model(pixels, spread)
        update(model, optimizer, scores.float(), people)

    return step


def update(model: ClipReward, optimizer: Any, scores: Tensor, people: int) -> None:
    """One step on the choices of some people, each of another image."""
    counts = torch.full((PROMPTS,), IMAGES)
    logits = model.logits(scores)
    losses = [choice_loss(logits, counts, torch.full((PROMPTS,), person % IMAGES)) for person in range(people)]
    optimizer.zero_grad(set_to_none=True)
    torch.cat(losses).mean().backward()
    optimizer.step()
