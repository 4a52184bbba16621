"""ReFL's step against a plain transcription of the released one, at the micro world's size, without the pre-training loss.

The transcription encodes the texts in every step, draws one late step for the whole batch, rolls out every sample, and takes the
gradient through network, decoder, preprocessing and reward in one graph; T, window, batch and optimiser are the same. Each way
runs in a process of its own, whose memory is measured, and in turns with the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from benchmarks.common import peak_in_child, show
from irpipe import microworld
from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.tuning.denoiser import Denoiser, load_denoiser
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.stage import Context, Model
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective

WEIGHTS = Path(microworld.__path__[0]) / "weights"
PROMPTS = [
    f"a {size} {colour} {shape}" for size in ("large", "small") for colour in ("red", "blue") for shape in ("circle", "cross")
]
LAST = 39


class Size(NamedTuple):
    """Samples of a step, steps that are timed, and how often."""

    batch: int
    steps: int
    rounds: int


FULL, TINY = Size(32, 2, 3), Size(4, 1, 1)


def main(folder: Path, size: Size) -> None:
    """Print images a second, their ratio, and peak memory."""
    ways: dict[str, Callable[[Path, Size], tuple[float, dict[str, float]]]] = {
        "transcription": _plain,
        "ours": _ours,
        "ours, rollouts used again": _again,
    }
    best: dict[str, float] = {}
    for _ in range(size.rounds):
        for name, way in ways.items():
            (seconds, parts), peak = peak_in_child(way, folder, size)
            if seconds < best.get(name, float("inf")):
                best[name] = seconds
                show(name, images_per_second=size.batch * size.steps / seconds, peak_gb=peak, **parts)
    for name in list(ways)[1:]:
        show(f"{name} / transcription", ratio=best["transcription"] / best[name])


def _loaded() -> tuple[Denoiser, ImageReward]:
    torch.set_num_threads(1)
    denoiser = load_denoiser(Model("micro-generator", "shipped", WEIGHTS / "generator"), "cpu", "float32")
    denoiser.unet.requires_grad_(True)
    return denoiser, ImageReward.from_pretrained(WEIGHTS / "judge").requires_grad_(False)


def _plain(_: Path, size: Size) -> tuple[float, dict[str, float]]:
    denoiser, reward = _loaded()
    denoiser.unet.to(memory_format=torch.contiguous_format)
    denoiser.vae.to(memory_format=torch.contiguous_format)
    unet, vae, pipeline = denoiser.unet, denoiser.vae, denoiser.pipeline
    adam = torch.optim.AdamW(unet.parameters(), 1e-5, weight_decay=1e-2)
    scheduler = denoiser.noise_schedule(LAST + 1, "ddpm").scheduler
    texts = [PROMPTS[number % len(PROMPTS)] for number in range(size.batch)]

    def step(late: int) -> None:
        ids = pipeline.tokenizer(
            texts, padding="max_length", max_length=pipeline.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids
        states = pipeline.text_encoder(ids)[0]
        latents = torch.randn(size.batch, *denoiser.shape)
        with torch.no_grad():
            for timestep in scheduler.timesteps[:late]:
                latents = scheduler.step(unet(latents, timestep, states).sample, timestep, latents).prev_sample
        timestep = scheduler.timesteps[late]
        clean = scheduler.step(unet(latents, timestep, states).sample, timestep, latents).pred_original_sample
        images = (vae.decode(clean / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        scores = reward.card.normalised(reward(reward.preprocess(images), reward.encode_texts(texts)))
        (torch.relu(2 - scores).mean() * 1e-3).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return _seconds(step, size.steps), {}


def _ours(folder: Path, size: Size, **settings: Any) -> tuple[float, dict[str, float]]:
    denoiser, reward = _loaded()
    config = ReflConfig(
        model="micro-generator",
        trainable="unet",
        batch_size=size.batch,
        training={"dtype": "float32", "sample_batch_size": 64},
        **settings,
    )
    folder.mkdir(exist_ok=True)
    session: Any = SimpleNamespace(
        stage="refl",
        accelerator=Accelerator(cpu=True),
        context=Context(folder, Watcher().progress, print, {}),
        denoiser=denoiser,
        reward=reward,
        prompts=dict(enumerate(PROMPTS)),
    )
    objective = ReflObjective(config, session)
    adam = torch.optim.AdamW(denoiser.unet.parameters(), 1e-5, weight_decay=1e-2)
    spent = dict.fromkeys(("rollouts", "losses", "backward", "optimiser"), 0.0)
    number = 0

    def step(_: int) -> None:
        nonlocal number
        marks = [time.perf_counter()]
        objective.prepare(number, lambda: None)
        marks.append(time.perf_counter())
        losses, _samples = objective.losses(number, range(size.batch))
        marks.append(time.perf_counter())
        (losses.mean() * 1e-3).backward()
        marks.append(time.perf_counter())
        torch.nn.utils.clip_grad_norm_(denoiser.unet.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        objective.finish(number)
        marks.append(time.perf_counter())
        number += 1
        for name, before, after in zip(spent, marks, marks[1:], strict=False):
            spent[name] += after - before

    seconds = _seconds(step, size.steps)
    whole = sum(spent.values())
    return seconds, {f"{name}_share": value / whole for name, value in spent.items()}


def _again(folder: Path, size: Size) -> tuple[float, dict[str, float]]:
    return _ours(folder, size, refresh_every=size.steps + 2, rollouts=size.batch)


def _seconds(step: Callable[[int], None], steps: int) -> float:
    """Seconds of some steps, after one that warms up. Late steps are even over the window, as they are on average."""
    step(LAST)
    started = time.perf_counter()
    for number in range(steps):
        step((32, 37)[number % 2])
    return time.perf_counter() - started
