"""embed-prompts on a CPU, against plain float32 sentence-transformers on the same real prompts.

Needs the weights of all-mpnet-base-v2 in the folder that IRPIPE_MPNET names.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.common import DATA, show, timed
from irpipe.pipeline.stage import Model
from irpipe.schemas.embeddings import unit_rows
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.vectors import sentence_encoder

PROMPTS = 768


def main(_folder: Path) -> None:
    model = os.environ.get("IRPIPE_MPNET")
    if not model:
        sys.exit("set IRPIPE_MPNET to a folder with all-mpnet-base-v2")
    lines = (DATA / "diffusiondb_prompts_10k.jsonl").read_text(encoding="utf-8").splitlines()[:PROMPTS]
    texts = [json.loads(line)["prompt"] for line in lines]
    from sentence_transformers import SentenceTransformer

    plain_model = SentenceTransformer(model, device="cpu")
    encode = sentence_encoder(EmbedPromptsConfig(), Model("all-mpnet-base-v2", "", Path(model)))
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
        f"{PROMPTS} prompts",
        irpipe=f"{PROMPTS / min(ours):.1f}/s",
        plain=f"{PROMPTS / min(plain):.1f}/s",
        ratio=f"{min(plain) / min(ours):.1f}x",
        mean_cosine=f"{cosine.mean():.5f}",
        least=f"{cosine.min():.5f}",
    )
