"""The work of `generate-images`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.pipeline.shards import put_in_place
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.images import IMAGES, OVERLONG_PROMPTS, ImageReader
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.rejected import Rejections
from irpipe.stages.generate_images import GenerateImagesConfig
from irpipe.stages.generate_images.shards import Job, Shard, images_of, make_shards, overlong_prompts, tell_cost
from irpipe.stages.generate_images.sheets import draw_sheets


def run(config: GenerateImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    prompts = SELECTED_PROMPTS.read(inputs["selected-prompts"].table("selected_prompts"), ["prompt_id", "prompt"]).to_pylist()
    jobs = plan_jobs(config, prompts, len(context.models["models"]))
    rejections = Rejections(config.max_rejected, "selected-prompts")
    for job in jobs:
        if not job.prompt.strip():
            rejections.refuse(job.row, "empty prompt", show_row_id(job.prompt_id))
    shards = cut_shards([job for job in jobs if job.prompt.strip()], config.shard_size)
    if config.score_guidance.scale:
        tell_cost(config, inputs, context)
    finished = make_shards(config, shards, inputs, context)
    overlong = overlong_prompts(finished)
    files = gather(finished, out)
    by_model = refuse_faults(shards, files, rejections)
    num_good = len(jobs) - len(rejections)
    rejections.check(len(jobs), num_good)
    rejected = rejections.write(out)
    OVERLONG_PROMPTS.write(out, {column.name: [row[column.name] for row in overlong] for column in OVERLONG_PROMPTS.columns})
    if overlong:
        context.say(f"{len(overlong):,} prompts were cut to what the text encoder takes: see the table overlong_prompts")
    draw_sheets(ImageReader(files), {row["prompt_id"]: row["prompt"] for row in prompts}, config.sheets, out)
    metrics = {
        "images": num_good,
        "prompts": len(prompts),
        "images_by_model": by_model,
        "overlong_prompts": len(overlong),
        "rejected_for": rejections.counts(),
    }
    return Report(Rows(len(jobs), num_good, rejected), metrics)


def plan_jobs(config: GenerateImagesConfig, prompts: Sequence[Mapping[str, Any]], num_models: int) -> list[Job]:
    """The images to make: a number per prompt, drawn from the seed, over the models in turn."""
    jobs: list[Job] = []
    for row in prompts:
        identity = row["prompt_id"]
        num_counts = config.max_images - config.min_images + 1
        count = config.min_images + row_id("number of images", config.seed, identity) % num_counts
        first = row_id("first model", config.seed, identity)
        for index in range(count):
            seed = row_id("noise", config.seed, identity, index)
            jobs.append(Job(len(jobs), identity, row["prompt"], index, (first + index) % num_models, seed))
    return jobs


def cut_shards(jobs: Sequence[Job], shard_size: int) -> list[Shard]:
    """Shards of one model each, of at least `shard_size` images, and of whole prompts: each model encodes a prompt once."""
    shards: list[Shard] = []
    for model in sorted({job.model for job in jobs}):
        part: list[Job] = []
        for job in (job for job in jobs if job.model == model):
            if len(part) >= shard_size and job.prompt_id != part[-1].prompt_id:
                shards.append(Shard(len(shards), model, tuple(part)))
                part = []
            part.append(job)
        shards.append(Shard(len(shards), model, tuple(part)))
    return shards


def gather(shards: Sequence[Path], out: Path) -> list[Path]:
    """Link the images of the finished shards into the table `images`."""
    (out / IMAGES.name).mkdir()
    files = [out / IMAGES.name / f"{shard.name}.parquet" for shard in shards]
    for shard, file in zip(shards, files, strict=True):
        put_in_place(images_of(shard), file)
    return files


def refuse_faults(shards: Sequence[Shard], files: Sequence[Path], rejections: Rejections) -> dict[str, int]:
    """Reject faulty images. Returns the number of good ones by model."""
    by_model: Counter[str] = Counter()
    for shard, file in zip(shards, files, strict=True):
        table = pq.read_table(file, columns=["fault", "generator"], partitioning=None)
        for job, fault, generator in zip(shard.jobs, table["fault"].to_pylist(), table["generator"].to_pylist(), strict=True):
            if fault is None:
                by_model[generator] += 1
            else:
                rejections.refuse(job.row, fault, f"prompt {show_row_id(job.prompt_id)}, image {job.index}")
    return dict(sorted(by_model.items()))
