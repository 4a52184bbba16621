"""generate-images against diffusers called a prompt at a time, and against the bare pipeline at the same batch size.

On a CPU with the micro world's generator; with an NVIDIA GPU also with a pipeline of Stable Diffusion 1.4's size, random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.common import show, timed
from irpipe.microworld.grammar import describe, sample_scene
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Inputs, Model
from irpipe.schemas.prompts import prompt_id
from irpipe.stages.generate_images import GenerateImagesConfig
from irpipe.stages.generate_images.run import cut_shards, plan_jobs
from irpipe.stages.generate_images.shards import ShardMaker


class Size(NamedTuple):
    """Images, the bare pipeline's batch sizes, denoising steps, and how often each is timed."""

    images: int
    batches: tuple[int, ...]
    steps: int
    rounds: int


FULL, TINY = Size(192, (32, 64, 128), 20, 2), Size(8, (4,), 1, 1)


def main(folder: Path, size: Size) -> None:
    model = shipped_folder("micro-generator")
    rng = np.random.default_rng(0)
    prompts = [describe(sample_scene(rng)) for _ in range(size.images)]
    compare("micro generator, CPU, float32", model, prompts, folder, "float32", "cpu", size, {"guidance_scale": 1.0})
    if size == FULL and torch.cuda.is_available():
        from benchmarks.large_pipeline import save

        large = save(folder / "large")
        few = [f"a photo of thing number {number}" for number in range(32)]
        compare(
            "SD 1.4 size, bfloat16", large, few, folder, "bfloat16", "cuda", Size(32, (8, 16), 50, 1), {"guidance_scale": 7.5}
        )


def compare(
    name: str,
    model: Path,
    prompts: list[str],
    folder: Path,
    dtype: str,
    device: str,
    size: Size,
    sampling: dict[str, Any],
) -> None:
    """Images per second: one prompt at a time, the bare pipeline at its best batch size, and the stage at that size."""
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(model, dtype=getattr(torch, dtype), safety_checker=None).to(device)
    pipeline.set_progress_bar_config(disable=True)

    def bare(batch: int, texts: list[str]) -> None:
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            generators = [torch.Generator("cpu").manual_seed(start + place) for place in range(len(part))]
            pipeline(part, num_inference_steps=size.steps, generator=generators, output_type="pil", **sampling)

    few = prompts[: max(8, len(prompts) // 6)]
    bare(1, few[:2])
    one = len(few) / min(timed(lambda: bare(1, few))[0] for _ in range(size.rounds))
    rates = {}
    for batch in size.batches:
        bare(batch, prompts[:batch])
        rates[batch] = len(prompts) / min(timed(lambda batch=batch: bare(batch, prompts))[0] for _ in range(size.rounds))
    best = max(rates, key=rates.__getitem__)
    config = GenerateImagesConfig(
        models=("model",),
        min_images=1,
        max_images=1,
        num_steps=size.steps,
        guidance_scale=sampling["guidance_scale"],
        dtype=dtype,
        safety_checker=False,
        batch_size=best,
        device=device,
    )
    rows = [{"prompt_id": prompt_id(text), "prompt": text} for text in prompts]
    (shard,) = cut_shards(plan_jobs(config, rows, 1), len(prompts))
    models = {"models": (Model("model", "0" * 64, model),)}
    make, work = ShardMaker(config, Inputs({}), models, None), folder / f"work {device}"
    make(shard, work / "first")  # loads the model
    ours = len(prompts) / min(timed(lambda number=number: make(shard, work / str(number)))[0] for number in range(size.rounds))
    show(
        name,
        one_at_a_time=f"{one:.2f}/s",
        bare=f"{rates[best]:.2f}/s at {best}",
        irpipe=f"{ours:.2f}/s",
        against_one=f"{ours / one:.1f}x",
        against_bare=f"{ours / rates[best]:.0%}",
    )
