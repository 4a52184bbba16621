"""What RAHF's predictions cost: one vision pass for all outputs against one per output, and words at once against one by one.

At the micro world's size, on the shipped BLIP's towers, untrained heads: the work is the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common import show, timed
from irpipe.models.reward.rahf import VARIANTS, Rahf
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import start_from_blip
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
    pixels, prompts = torch.zeros(size.images, 3, 32, 32), [PROMPT] * size.images
    for variant in VARIANTS:
        heads = HeadSizes((48,), (24, 12), 1, 8, (32, 16), (64,))
        model = start_from_blip(Model("micro-blip", "", shipped_folder("micro-blip")), variant, heads, T5, 0)
        with torch.no_grad():
            apart, shared = (least(size, outputs, model, pixels, prompts, looks) for looks in (True, False))
            one_by_one, at_once = (least(size, words, model, pixels, prompts, by_word) for by_word in (True, False))
        show(f"{variant}: scores and maps", ms_per_image=f"{1e3 * shared:.1f}", ratio=f"{apart / shared:.2f}")
        show(f"{variant}: words", ms_per_image=f"{1e3 * at_once:.1f}", ratio=f"{one_by_one / at_once:.2f}")


def least(size: Size, work: Any, *arguments: Any) -> float:
    """The shortest time of some work, seconds per image."""
    return min(timed(lambda: work(*arguments))[0] for _ in range(size.rounds)) / size.images


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
        model.sequence_logits(states, mask, torch.tensor(rows))
