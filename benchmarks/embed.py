"""embed-prompts on a CPU, against plain float32 sentence-transformers on the same real prompts.

Needs the weights of all-mpnet-base-v2 in the folder that IRPIPE_MPNET names; the tiny size takes encoder and prompts of the micro
world.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import DATA, show, timed
from irpipe.microworld.grammar import describe, sample_scene
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.schemas.embeddings import unit_rows
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.vectors import sentence_encoder

FULL, TINY = 768, 32  # prompts


def main(_folder: Path, count: int) -> None:
    model, texts = _of_the_micro_world(count) if count == TINY else _real(count)
    from sentence_transformers import SentenceTransformer

    plain_model = SentenceTransformer(str(model), device="cpu")
    encode = sentence_encoder(EmbedPromptsConfig(), Model("bench", "", model))
    plain_model.encode(texts[:32])
    encode(texts[:32])
    plain, ours = [], []
    for _ in range(2):
        seconds, expected = timed(lambda: plain_model.encode(texts, batch_size=32, show_progress_bar=False))
        plain.append(seconds)
        seconds, vectors = timed(lambda: encode(texts))
        ours.append(seconds)
    cosine = (unit_rows(vectors.astype(np.float16)) * unit_rows(expected)).sum(axis=1)
    show(
        f"{count} prompts",
        irpipe=f"{count / min(ours):.1f}/s",
        plain=f"{count / min(plain):.1f}/s",
        ratio=f"{min(plain) / min(ours):.1f}x",
        mean_cosine=f"{cosine.mean():.5f}",
        least=f"{cosine.min():.5f}",
    )


def _real(count: int) -> tuple[Path, list[str]]:
    """The published encoder's folder and prompts of DiffusionDB."""
    model = os.environ.get("IRPIPE_MPNET")
    if not model:
        sys.exit("set IRPIPE_MPNET to a folder with all-mpnet-base-v2")
    lines = (DATA / "diffusiondb_prompts_10k.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return Path(model), [json.loads(line)["prompt"] for line in lines]


def _of_the_micro_world(count: int) -> tuple[Path, list[str]]:
    """The shipped encoder's folder and prompts of its world."""
    rng = np.random.default_rng(0)
    return shipped_folder("micro-sentences"), [describe(sample_scene(rng)) for _ in range(count)]
