"""Shards of generated images: each made whole by one process, and kept through a kill."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.generators import ImageGenerator, Sampling, load
from irpipe.models.loading import pick_device
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.hashing import file_digest, row_id, show_row_id
from irpipe.pipeline.processes import end_with
from irpipe.pipeline.stage import Context, Model
from irpipe.pipeline.store import write_durably
from irpipe.schemas.annotations import image_id
from irpipe.schemas.images import IMAGES, ROWS_PER_GROUP, image_row
from irpipe.stages.generate_images import GenerateImagesConfig

_ENCODERS = 4  # threads that compress images while the next batch is made


@dataclass(frozen=True)
class Job:
    """One image to make: its place among all, its prompt, its number among the prompt's, its model and its seed."""

    place: int
    prompt_id: int
    prompt: str
    index: int
    model: int
    seed: int


@dataclass(frozen=True)
class Shard:
    """Images of one model that are made together and kept together."""

    number: int
    model: int
    jobs: tuple[Job, ...]

    @property
    def name(self) -> str:
        """Its file."""
        return f"{self.number:05}.parquet"


@dataclass(frozen=True)
class Workshop:
    """What a process needs to make shards; sent to every one."""

    sampling: Sampling
    models: tuple[Model, ...]
    image_format: str
    batch_size: int
    device: str
    work: Path


def make_shards(config: GenerateImagesConfig, shards: Sequence[Shard], context: Context) -> list[dict[str, Any]]:
    """Make the shards that are not there yet.

    Returns:
        rows of `overlong_prompts`, of all shards.
    """
    sampling = Sampling(
        config.num_steps,
        config.guidance_scale,
        config.scheduler,
        config.width,
        config.height,
        config.negative_prompt,
        config.dtype,
        config.safety_checker,
    )
    workshop = Workshop(sampling, context.models["models"], config.image_format, config.batch_size, config.device, context.work)
    for draft in context.work.glob("*.draft-*"):
        draft.unlink()  # of an attempt that was killed
    missing = [shard for shard in shards if not is_finished(shard, context.work)]
    with context.progress("generating", sum(len(shard.jobs) for shard in shards), "images") as bar:
        bar.advance(sum(len(shard.jobs) for shard in shards) - sum(len(shard.jobs) for shard in missing))
        if config.num_processes == 1 or len(missing) < 2:
            here = Process(workshop, config.device)
            for shard in missing:
                here.make(shard, bar.advance)
        else:
            make_in_processes(workshop, missing, config.num_processes, bar.advance)
    told = [json.loads(_card(shard, context.work).read_text(encoding="utf-8"))["overlong"] for shard in shards]
    return list({row["prompt_id"]: row for row in chain.from_iterable(told)}.values())


def is_finished(shard: Shard, work: Path) -> bool:
    """Whether a shard was made by an earlier attempt and is what it was then."""
    try:
        told = json.loads(_card(shard, work).read_text(encoding="utf-8"))
        return bool(told["sha256"] == file_digest(work / shard.name))
    except (FileNotFoundError, ValueError, KeyError):
        return False  # never begun, or cut off by a kill or a power loss


def _card(shard: Shard, work: Path) -> Path:
    """What is known of a finished shard: its digest, and the prompts it had to cut. Written last."""
    return work / f"{shard.number:05}.json"


class Process:
    """Makes shards one after the other, with one model loaded at a time."""

    def __init__(self, workshop: Workshop, device: str) -> None:
        self._workshop = workshop
        self._device = device
        self._loaded: tuple[int, ImageGenerator] | None = None

    def make(self, shard: Shard, advance: Callable[[int], None]) -> None:
        """Make one shard and put it in its place, whole."""
        generator = self._generator(shard.model)
        prompts = list(dict.fromkeys(job.prompt for job in shard.jobs))
        ids = {job.prompt: job.prompt_id for job in shard.jobs}
        overlong = [{"prompt_id": ids[cut.prompt], "tokens": cut.tokens, "lost": cut.lost} for cut in generator.overlong(prompts)]
        draft = self._workshop.work / f"{shard.name}.draft-{os.getpid()}"
        with IMAGES.writer(draft, ROWS_PER_GROUP) as writer:
            for rows in self._batches(generator, shard, prompts):
                writer.append({column.name: [row[column.name] for row in rows] for column in IMAGES.columns})
                advance(len(rows))
        digest = file_digest(draft)
        draft.replace(self._workshop.work / shard.name)
        write_durably(_card(shard, self._workshop.work), json.dumps({"sha256": digest, "overlong": overlong}))

    def _generator(self, model: int) -> ImageGenerator:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None  # the last one's memory goes before the next one comes
            self._loaded = model, load(self._workshop.models[model], self._workshop.sampling, self._device)
        return self._loaded[1]

    def _batches(self, generator: ImageGenerator, shard: Shard, prompts: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Rows of `images`, a batch at a time. Images are compressed while the next batch is made."""
        place_of = {prompt: place for place, prompt in enumerate(prompts)}
        encodings = generator.encode(prompts, self._workshop.batch_size)
        to_row = partial(make_row, self._workshop, generator)
        with ThreadPoolExecutor(_ENCODERS) as threads:
            waiting: Iterator[dict[str, Any]] = iter(())
            for start in range(0, len(shard.jobs), self._workshop.batch_size):
                batch = shard.jobs[start : start + self._workshop.batch_size]
                images, blackened = generator.sample(
                    encodings, [place_of[job.prompt] for job in batch], [job.seed for job in batch]
                )
                yield list(waiting)
                waiting = threads.map(to_row, batch, images, blackened)
            yield list(waiting)


def make_row(
    workshop: Workshop, generator: ImageGenerator, job: Job, image: NDArray[np.float32], blackened: bool
) -> dict[str, Any]:
    """A row of `images`: the encoded image, who made it and how, and what is wrong with it.

    The path names all that makes an image what it is but the batch it was in.
    """
    model, settings = workshop.models[job.model], generator.settings
    fault = fault_of(image, blackened)
    pixels = np.rint(np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).astype(np.uint8)
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.save(buffer, workshop.image_format.upper(), **({"lossless": True} if workshop.image_format == "webp" else {}))
    data = buffer.getvalue()
    name = show_row_id(row_id("generated", model.name, model.revision, job.seed, settings))
    path = f"{show_row_id(job.prompt_id)}/{name}.{workshop.image_format}"
    return image_row(
        image_id(job.prompt_id, path),
        job.prompt_id,
        data,
        path,
        hashlib.sha256(data).hexdigest(),
        picture.size,
        workshop.image_format.upper(),
        generator=model.name,
        revision=model.revision,
        seed=job.seed,
        settings=settings,
        fault=fault,
    )


def fault_of(image: NDArray[np.float32], blackened: bool) -> str | None:
    """Why nobody should judge an image (height, width, 3), or None."""
    if blackened:
        return "blackened"
    if not np.isfinite(image).all():
        return "not finite"
    if (image.max(axis=(0, 1)) - image.min(axis=(0, 1)) < 1 / 255).all():
        return "constant"
    return None


def make_in_processes(workshop: Workshop, shards: Sequence[Shard], count: int, advance: Callable[[int], None]) -> None:
    """Make shards in several processes, each with its GPU, if there are any. The first error ends them all.

    Raises:
        StageError: a process ended without a word.
    """
    spawn = multiprocessing.get_context("spawn")
    number = spawn.Value("i", 0)
    pool = ProcessPoolExecutor(count, mp_context=spawn, initializer=_begin, initargs=(workshop, count, number, os.getpid()))
    running = {pool.submit(_make, shard): shard for shard in shards}
    try:
        for done in as_completed(running):
            done.result()
            advance(len(running[done].jobs))
    except BaseException as error:
        for process in multiprocessing.active_children():
            process.terminate()  # a shard in hand may take minutes, and its result is not wanted
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise StageError(
                "one of the processes that make shards ended without a word; perhaps there was not enough memory",
                fix="--set generate-images.num_processes=1, or a smaller batch_size; finished shards are kept",
            ) from None
        raise
    pool.shutdown()


_process: Process | None = None


def _begin(workshop: Workshop, count: int, number: Any, parent: int) -> None:
    """Set one of several processes up: its share of the cores, its GPU, and its end when its parent is gone."""
    global _process  # noqa: PLW0603 # a pool's process has no other place to keep what it loaded
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    with number.get_lock():
        mine, number.value = number.value, number.value + 1
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // count))
    device = pick_device(workshop.device)
    if device == "cuda" and torch.cuda.is_available():
        device = f"cuda:{mine % torch.cuda.device_count()}"
    end_with(parent)
    _process = Process(workshop, device)


def _make(shard: Shard) -> None:
    assert _process is not None
    _process.make(shard, lambda _: None)
