"""Shards of generated images: each is made by one process and survives a kill."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.generators import ImageGenerator, load, sampling_of
from irpipe.models.loading import worker_device
from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.pipeline.stage import Context, Inputs, Model
from irpipe.schemas.annotations import image_id
from irpipe.schemas.images import IMAGES, OVERLONG_PROMPTS, ROWS_PER_GROUP, image_row
from irpipe.stages.generate_images import GenerateImagesConfig

_ENCODERS = 4  # threads that compress images while the next batch is made


@dataclass(frozen=True)
class Job:
    """One image to make: its row among all, its prompt, its number among the prompt's, its model and its seed."""

    row: int
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
        """Its folder among the finished shards."""
        return f"{self.number:05}"


def tell_cost(config: GenerateImagesConfig, inputs: Inputs, context: Context) -> None:
    """Say what score guidance costs with each generator, which is loaded for it: what cannot be guided ends the run here."""
    maker = ShardMaker(config, inputs, context.models, None)
    for model in context.models["models"]:
        context.say(f"  {model.name}: {maker.load(model).cost}")


def make_shards(config: GenerateImagesConfig, shards: Sequence[Shard], inputs: Inputs, context: Context) -> list[Path]:
    """Make the shards: folders with the tables `images` and `overlong_prompts`, in the order of `shards`."""
    return context.map(
        ShardMaker(config, inputs, context.models, next(iter(context.sources.get("lora", ())), None)),
        {shard.name: shard for shard in shards},
        "generating",
        "images",
        size=lambda shard: len(shard.jobs),
        processes=config.num_processes,
        executor=config.executor,
    )


@dataclass
class ShardMaker:
    """Makes shards one after the other, with one model loaded at a time."""

    config: GenerateImagesConfig
    inputs: Inputs
    models: Mapping[str, tuple[Model, ...]]
    lora: Path | None
    _loaded: tuple[int, ImageGenerator] | None = field(default=None, init=False)

    def __call__(self, shard: Shard, draft: Path) -> None:
        generator = self._generator(shard.model)
        prompts = list(dict.fromkeys(job.prompt for job in shard.jobs))
        ids = {job.prompt: job.prompt_id for job in shard.jobs}
        overlong = generator.overlong(prompts)
        columns = {"prompt_id": [ids[prompt.prompt] for prompt in overlong]}
        OVERLONG_PROMPTS.write(
            draft, columns | {name: [getattr(prompt, name) for prompt in overlong] for name in ("tokens", "lost")}
        )
        with IMAGES.writer(images_of(draft), ROWS_PER_GROUP) as writer:
            for rows in self._batches(generator, shard, prompts):
                writer.append({column.name: [row[column.name] for row in rows] for column in IMAGES.columns})

    def _generator(self, model: int) -> ImageGenerator:
        if self._loaded is None or self._loaded[0] != model:
            self._loaded = None  # free the old model before the next one is loaded
            self._loaded = model, self.load(self.models["models"][model])
        return self._loaded[1]

    def load(self, model: Model) -> Any:
        """A generator, with its LoRA and its guidance."""
        config = self.config
        generator = load(model, sampling_of(config, config.negative_prompt), worker_device(config.device))
        if self.lora is not None:
            generator.add_lora(self.lora)
        if not config.score_guidance.scale:
            return generator
        from irpipe.models.guidance.sampler import guided

        return guided(generator, config.score_guidance.scale, config.score_guidance, self.models, self.inputs, model.shown)

    def _batches(self, generator: ImageGenerator, shard: Shard, prompts: Sequence[str]) -> Iterator[list[dict[str, Any]]]:
        """Batches of rows of `images`. Images are compressed while the next batch is made."""
        index_of = {prompt: index for index, prompt in enumerate(prompts)}
        encodings = generator.encode(prompts, self.config.batch_size)
        to_row = partial(make_row, self, generator)
        with ThreadPoolExecutor(_ENCODERS) as threads:
            waiting: Iterator[dict[str, Any]] = iter(())
            for start in range(0, len(shard.jobs), self.config.batch_size):
                batch = shard.jobs[start : start + self.config.batch_size]
                images, blackened = generator.sample(
                    encodings, [index_of[job.prompt] for job in batch], [job.seed for job in batch]
                )
                yield list(waiting)
                waiting = threads.map(to_row, batch, images, blackened)
            yield list(waiting)


def make_row(
    maker: ShardMaker, generator: ImageGenerator, job: Job, image: NDArray[np.float32], blackened: bool
) -> dict[str, Any]:
    """A row of `images` from an image (height, width, 3): encoded, with its origin and its fault, if any.

    The path names everything that determines the image, except its batch.
    """
    model, settings = maker.models["models"][job.model], generator.settings
    fault = fault_of(image, blackened)
    pixels = np.rint(np.nan_to_num(image, nan=0.0, posinf=1.0, neginf=0.0).clip(0, 1) * 255).astype(np.uint8)
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    picture.save(buffer, maker.config.image_format.upper(), **({"lossless": True} if maker.config.image_format == "webp" else {}))
    data = buffer.getvalue()
    name = show_row_id(row_id("generated", model.name, model.revision, job.seed, settings))
    path = f"{show_row_id(job.prompt_id)}/{name}.{maker.config.image_format}"
    return image_row(
        image_id(job.prompt_id, path),
        job.prompt_id,
        data,
        path,
        hashlib.sha256(data).hexdigest(),
        picture.size,
        maker.config.image_format.upper(),
        generator=model.name,
        revision=model.revision,
        seed=job.seed,
        settings=settings,
        fault=fault,
    )


def fault_of(image: NDArray[np.float32], blackened: bool) -> str | None:
    """The fault of an image (height, width, 3), or None."""
    if blackened:
        return "blackened"
    if not np.isfinite(image).all():
        return "not finite"
    if (image.max(axis=(0, 1)) - image.min(axis=(0, 1)) < 1 / 255).all():
        return "constant"
    return None


def images_of(shard: Path) -> Path:
    """The file of a finished shard's images."""
    return shard / f"{IMAGES.name}.parquet"


def overlong_prompts(shards: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of `overlong_prompts`, of all finished shards."""
    tables = (OVERLONG_PROMPTS.read([shard / f"{OVERLONG_PROMPTS.name}.parquet"]) for shard in shards)
    return list({row["prompt_id"]: row for row in chain.from_iterable(table.to_pylist() for table in tables)}.values())
