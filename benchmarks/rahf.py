"""What RAHF's predictions cost: one vision pass for all outputs against one per output, and words at once against one by one.

At the micro world's size, on the shipped BLIP's towers, untrained heads: the work is the same. On a GPU also at the paper's size,
ViT B/16 of 384 pixels and T5 base, and training steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import T5Config, ViTConfig

from benchmarks.common import gpu_peak, least_seconds, show
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.reward.rahf import TASKS, VARIANTS, Rahf, RahfConfig, Variant
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import start_from_blip
from irpipe.models.weights import load_tokenizer
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.schemas.rich_feedback import ASPECTS, KINDS

T5 = {"d_model": 64, "d_ff": 128, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}
PROMPT = "a large red circle above a small blue square on a dark background, flat colours"


class Size(NamedTuple):
    """Images at a time, and how often each is measured."""

    images: int
    rounds: int


FULL, TINY = Size(64, 5), Size(2, 1)


def main(folder: Path, size: Size) -> None:  # noqa: ARG001 # nothing is written
    for variant in VARIANTS:
        predictions(variant, micro(variant), size, "cpu")
    if torch.cuda.is_available():
        for variant in VARIANTS:
            model = base(variant).to("cuda")
            predictions(f"{variant}, base size, float32", model, size, "cuda")
            with torch.autocast("cuda", torch.bfloat16):
                predictions(f"{variant}, base size, bfloat16", model, size, "cuda")
            training(variant, model, size)


def micro(variant: Variant) -> Rahf:
    """On the shipped BLIP, as the recipe rahf-micro has it."""
    heads = HeadSizes((48,), (24, 12), 1, 8, (32, 16), (64,))
    return start_from_blip(Model("micro-blip", "", shipped_folder("micro-blip")), variant, heads, T5, 0)


def base(variant: Variant) -> Rahf:
    """Random weights of the paper's size, with the shipped BLIP's tokenizer."""
    tokenizer = load_tokenizer(shipped_folder("micro-blip"))
    t5 = T5Config(d_model=768, d_ff=2048, num_layers=12, num_decoder_layers=12, num_heads=12, dropout_rate=0.0)
    vision = ViTConfig(image_size=384, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tasks = {output: [100 + number] for number, output in enumerate(TASKS)}
    config = RahfConfig(variant, vision.to_dict(), t5.to_dict() | {"decoder_start_token_id": 0}, flag=200, end=1, tasks=tasks)
    return Rahf(config, Preprocessing(384), tokenizer)


def predictions(name: str, model: Rahf, size: Size, device: str) -> None:
    """Show what scores and maps cost, and words."""
    side = model.preprocess.image_size
    pixels, prompts = torch.zeros(size.images, 3, side, side, device=device), [PROMPT] * size.images

    def least(work: Any, slow: bool) -> float:
        return least_seconds(lambda: work(model, pixels, prompts, slow), size.rounds, device) / size.images

    with torch.no_grad():
        apart, shared = least(outputs, True), least(outputs, False)
        one_by_one, at_once = least(words, True), least(words, False)
    show(f"{name}: scores and maps", ms_per_image=f"{1e3 * shared:.2f}", ratio=f"{apart / shared:.2f}", **gpu_peak(device))
    show(f"{name}: words", ms_per_image=f"{1e3 * at_once:.2f}", ratio=f"{one_by_one / at_once:.2f}")


def training(variant: Variant, model: Rahf, size: Size) -> None:
    """Show what a training step costs on a GPU, per image, in float32 and in bfloat16."""
    count = size.images // 2
    pixels, prompts = torch.zeros(count, 3, 384, 384, device="cuda"), [PROMPT] * count
    sequences = torch.tensor([model.sequence(row, [False] * len(row)) for row in model.words_of(prompts).pieces], device="cuda")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(half: bool) -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            texts, image = model.encode_texts(prompts), model.look(pixels)
            shared = model.shared(image, texts)
            states, mask = shared or model.fuse(image, texts, "words")
            several = variant == "multi-head"  # an augmented prompt is for one score and one map per step
            found = [model.score(image, texts, aspect, shared).sum() for aspect in (ASPECTS if several else ASPECTS[:1])]
            found += [model.heatmap(pixels, image, texts, kind, shared).mean() for kind in (KINDS if several else KINDS[:1])]
            loss = sum(found) + model.sequence_logits(states, mask, sequences).float().logsumexp(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    whole = least_seconds(lambda: step(False), size.rounds, "cuda") / count
    show(f"{variant}: training, float32", ms_per_image=f"{1e3 * whole:.2f}", **gpu_peak("cuda"))
    half = least_seconds(lambda: step(True), size.rounds, "cuda") / count
    show(f"{variant}: training, bfloat16", ms_per_image=f"{1e3 * half:.2f}", ratio=f"{whole / half:.2f}", **gpu_peak("cuda"))


def outputs(model: Rahf, pixels: Tensor, prompts: list[str], looks_again: bool) -> None:
    """All scores and maps of pictures (n, 3, size, size), with a vision pass for each or one for all."""
    texts, image = model.encode_texts(prompts), model.look(pixels)
    shared = None if looks_again else model.shared(image, texts)
    for aspect in ASPECTS:
        model.score(model.look(pixels) if looks_again else image, texts, aspect, shared)
    for kind in KINDS:
        model.heatmap(pixels, model.look(pixels) if looks_again else image, texts, kind, shared)


def words(model: Rahf, pixels: Tensor, prompts: list[str], by_word: bool) -> None:
    """The misaligned words of prompts: a decoder pass for each word, or all at once until nothing changes."""
    image, texts = model.look(pixels), model.encode_texts(prompts)
    if not by_word:
        model.word_probabilities(image, texts, prompts)
        return
    states, mask = model.fuse(image, texts, "words")
    pieces = model.words_of(prompts).pieces
    for count in range(1, max(map(len, pieces)) + 1):
        rows = [model.sequence(row[:count], [False] * count) for row in pieces]
        model.sequence_logits(states, mask, torch.tensor(rows, device=states.device))
