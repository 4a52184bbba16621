"""The images of every generator that is compared, in shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.generators import PROMPT, ImageGenerator, load, sampling_of
from irpipe.models.guidance.sampler import guided
from irpipe.models.loading import worker_device
from irpipe.models.tuning.tuned import load_tuned
from irpipe.pipeline.errors import RecipeError
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Context, Inputs, Model
from irpipe.schemas.generator import GeneratorCard
from irpipe.stages.compare_generators import CompareGeneratorsConfig
from irpipe.stages.compare_generators.table import BASE

_IMAGES_PER_SHARD = 64

Images = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""Pictures (n, height, width, 3), and (n,) whether a safety checker blackened them."""


@dataclass(frozen=True)
class Source:
    """A generator as it is compared.

    Attributes:
        tuned: the folder and the card of a tuned one; None for the base.
        negative_prompt: that it draws with; prefix: what its prompts begin with.
        scale: of its score guidance; 0: none.
    """

    tuned: tuple[Path, GeneratorCard] | None = None
    negative_prompt: str = ""
    prefix: str = ""
    scale: float = 0.0


@dataclass(frozen=True)
class Shard:
    """Images that one generator makes: their prompts and the seeds of their noise."""

    generator: str
    prompts: Sequence[str]
    seeds: Sequence[int]


@dataclass
class Drawer:
    """Writes the images of a shard, with one generator loaded at a time."""

    config: CompareGeneratorsConfig
    inputs: Inputs
    models: Mapping[str, tuple[Model, ...]]
    sources: Mapping[str, Source]
    _loaded: tuple[str, ImageGenerator] | None = field(default=None, init=False)

    def __call__(self, shard: Shard, draft: Path) -> None:
        generator, size = self._generator(shard.generator), self.config.batch_size
        row_of = {prompt: row for row, prompt in enumerate(dict.fromkeys(shard.prompts))}
        encodings = generator.encode(list(row_of), size)
        pictures: list[NDArray[np.uint8]] = []
        blackened: list[bool] = []
        for start in range(0, len(shard.seeds), size):
            rows = [row_of[prompt] for prompt in shard.prompts[start : start + size]]
            images, flags = generator.sample(encodings, rows, shard.seeds[start : start + size])
            pictures += list(np.rint(np.nan_to_num(images).clip(0, 1) * 255).astype(np.uint8))
            blackened += flags
        with draft.open("wb") as file:
            np.savez(file, pictures=np.stack(pictures), blackened=np.array(blackened))

    def _generator(self, name: str) -> ImageGenerator:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = None  # the last one's memory goes before the next one comes
            self._loaded = name, self.load(name)
        return self._loaded[1]

    def load(self, name: str) -> Any:
        """A generator of the comparison."""
        source, device, base = self.sources[name], worker_device(self.config.device), self.models["model"][0]
        sampling = sampling_of(self.config, source.negative_prompt)
        if source.tuned is not None:
            return load_tuned(base, *source.tuned, sampling, device)
        generator = load(base, sampling, device)
        if source.scale:
            return guided(generator, source.scale, self.config.score_guidance, self.models, self.inputs, base.shown)
        return generator


def sources_of(
    cards: Mapping[str, GeneratorCard], folders: Mapping[str, Path], config: CompareGeneratorsConfig
) -> dict[str, Source]:
    """What is compared, by name: the base, with score guidance too, the tuned generators, and with `negative_prompts` both with
    and without these.

    Raises:
        RecipeError: a node has the name of another row of the comparison.
    """
    tuned = {name: Source((folders[name], card), card.negative_prompt) for name, card in cards.items()}
    others = {BASE: Source()} | {guided_name(scale): Source(scale=scale) for scale in config.score_guidance.scales}
    for name, source in tuned.items() if config.negative_prompts else ():
        if source.negative_prompt:
            plain = replace(source, negative_prompt="")
            others |= {
                f"{BASE}-as-{name}": replace(source, tuned=None),
                f"{name}-plain": plain,
                f"{name}-marked": replace(plain, prefix=source.negative_prompt.removesuffix(PROMPT)),
            }
    taken = sorted({*others, *(f"best-of-{n}" for n in config.best_of)} & tuned.keys())
    if taken:
        raise RecipeError(f"{taken[0]!r} is a row of the comparison, and the name of a node", fix="give the node another name")
    return others | tuned


def guided_name(scale: float) -> str:
    """The row of the base with score guidance of a scale."""
    return f"guided-{int(scale) if scale == int(scale) else scale}"


def tell_cost(config: CompareGeneratorsConfig, sources: Mapping[str, Source], inputs: Inputs, context: Context) -> None:
    """Say what score guidance costs, if any; its generator is loaded for it: what cannot be guided ends the run here."""
    guided_ones = [name for name, source in sources.items() if source.scale]
    if guided_ones:
        context.say(f"  {Drawer(config, inputs, context.models, sources).load(guided_ones[0]).cost}")


def draw(
    config: CompareGeneratorsConfig,
    prompts: Sequence[tuple[int, str]],
    pools: int,
    sources: Mapping[str, Source],
    inputs: Inputs,
    context: Context,
) -> tuple[list[Images], dict[str, Images]]:
    """Images of all prompts, `images_per_prompt` of each together, by every generator.

    Noise is made of seed, prompt, turn and pool, whoever draws.

    Args:
        prompts: ids and texts.
        pools: how many times the base draws all.

    Returns:
        the base's images by pool, and those of the other generators by name.
    """
    shards: dict[str, Shard] = {}
    names: dict[tuple[str, int], list[str]] = {}
    others = [name for name in sources if name != BASE]
    for generator, pool in [*((BASE, pool) for pool in range(pools)), *((name, 0) for name in others)]:
        for shard in shards_of(config, prompts, generator, pool, sources[generator].prefix):
            name = f"{len(shards):05}.npz"
            shards[name] = shard
            names.setdefault((generator, pool), []).append(name)
    made = context.map(
        Drawer(config, inputs, context.models, sources),
        shards,
        "generating",
        "images",
        size=lambda shard: len(shard.seeds),
        processes=config.num_processes,
        executor=config.executor,
    )
    path_of = dict(zip(shards, made, strict=True))
    images = {which: read_images([path_of[name] for name in parts]) for which, parts in names.items()}
    return [images[BASE, pool] for pool in range(pools)], {name: images[name, 0] for name in others}


def shards_of(
    config: CompareGeneratorsConfig, prompts: Sequence[tuple[int, str]], generator: str, pool: int, prefix: str
) -> Iterator[Shard]:
    """The shards of one generator's images, in whole batches."""
    turns = range(config.images_per_prompt)
    seeds = [row_id("comparison", config.seed, identity, turn, pool) for identity, _ in prompts for turn in turns]
    texts = [prefix + text for _, text in prompts for _ in turns]
    step = config.batch_size * max(1, _IMAGES_PER_SHARD // config.batch_size)
    for start in range(0, len(seeds), step):
        yield Shard(generator, texts[start : start + step], seeds[start : start + step])


def read_images(shards: Sequence[Path]) -> Images:
    """The images of finished shards."""
    parts: list[Images] = []
    for shard in shards:
        with np.load(shard, allow_pickle=False) as file:
            parts.append((file["pictures"], file["blackened"]))
    return np.concatenate([pictures for pictures, _ in parts]), np.concatenate([blackened for _, blackened in parts])
