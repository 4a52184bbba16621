"""train-rm against the published training step, score-images against bare forward passes, and the memory of 210,000 pairs.

The published step encodes both images of every pair on their own, each with its own copy of the padded text; train-rm encodes
each image once. Both run on one network with random weights. With an NVIDIA GPU the steps are also run at the published size,
ours in bfloat16.
"""

from __future__ import annotations

import io
import os
import resource
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import peak_in_child, quiet_context, show, timed
from irpipe.microworld.grammar import describe, sample_scene
from irpipe.models.noise import SeededDropout
from irpipe.models.pictures import decode_all
from irpipe.models.reward.blip_weights import PUBLISHED_TEXT, PUBLISHED_VISION, configs
from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.reward.start import init_reward_model, initialise_head
from irpipe.models.scorers.reward import RewardModelScorer, squares
from irpipe.models.training.accelerator import make_accelerator
from irpipe.models.training.loop import Trainer
from irpipe.models.weights import load_tokenizer
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.schemas.images import ImageReader, ImageShards, image_row
from irpipe.schemas.pairs import PAIRS
from irpipe.stages.score_images import ScoreImagesConfig
from irpipe.stages.score_images.shards import score_all
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.batches import pixels_of, scores_of
from irpipe.stages.train_rm.data import PairRows, group, read_pairs, steps_of_epoch
from irpipe.stages.train_rm.objective import PairwiseObjective
from irpipe.stages.train_rm.run import make_task

VISION = {"image_size": 224, "patch_size": 16, "width": 384, "depth": 12, "heads": 6}
TEXT = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "vocab_size": 200,  # the tokenizer of the micro world has 128 tokens
    "max_position_embeddings": 64,
}
TINY_VISION = {**VISION, "image_size": 32, "width": 32, "depth": 3, "heads": 2}
TINY_TEXT = {**TEXT, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
LARGE = PUBLISHED_VISION, PUBLISHED_TEXT | {"vocab_size": TEXT["vocab_size"]}  # the published sizes, but for the words
PROMPTS, K, FREEZE_RATE = 6, 7, 0.7
PAIRS_A_STEP = 3 * K * (K - 1) // 2  # 63: three prompts, nearest to the paper's 64
MICRO_BATCHES = (4, 16)  # pairs: of the released script, of the paper on a GPU
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # bfloat16, dense


class Size(NamedTuple):
    """The network; prompts whose pairs are read; rounds, and our steps in each; how many images are scored, and their sides."""

    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    read_prompts: int
    rounds: int
    steps: int
    scored_micro: int
    scored: int
    sides: tuple[int, ...]


FULL = Size(VISION, TEXT, 10_000, 3, 3, 2048, 128, (224, 512))
TINY = Size(TINY_VISION, TINY_TEXT, 20, 1, 1, 32, 8, (32, 64))


def main(folder: Path, size: Size) -> None:
    memory(folder / "memory", size.read_prompts)
    wide = f"{size.vision['width']} wide"
    steps(wide, size.vision, size.text, folder / "steps", "cpu", "float32", size.rounds, size.steps)
    if size == FULL and torch.cuda.is_available():
        os.environ.pop("ACCELERATE_USE_CPU", None)  # the steps above asked for a CPU
        large(folder / "large", 5 * size.rounds, size.steps)
    else:
        print("no NVIDIA GPU here, or the tiny size: the steps at the published size are left out")
    scoring("micro world", micro_model(), size.scored_micro, (32,), folder / "micro")
    scoring(wide, random_model(size.vision, size.text), size.scored, size.sides, folder / "wide")


def large(folder: Path, rounds: int, ours: int) -> None:
    """Steps and scoring at the published size, on a GPU, in bfloat16."""
    steps("BLIP large", *LARGE, folder, "cuda", "bfloat16", rounds, ours)
    scoring("BLIP large", random_model(*LARGE), 2048, (512,), folder / "scoring", "cuda", "bfloat16")


# -- one network, some prompts, some images ---------------------------------------------------------------------------


def micro_model() -> ImageReward:
    return init_reward_model(Model("micro-blip", "0" * 40, shipped_folder("micro-blip")), "auto", 0)[0]


def random_model(vision: Mapping[str, Any], text: Mapping[str, Any]) -> ImageReward:
    """Random weights, the same every time, and the micro world's tokenizer."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(shipped_folder("micro-blip"))
    model = ImageReward(*configs(vision, text), preprocessing=Preprocessing(vision["image_size"]), tokenizer=tokenizer)
    for value in model.parameters():
        if value.dim() > 1:  # transformers leaves a blank BLIP's vision tower at 1e-10
            nn.init.normal_(value, std=0.05)
    initialise_head(model.head_layers, None, 0.0, torch.Generator().manual_seed(0))
    return model


def long_prompts(count: int) -> list[str]:
    """Texts of 15 to 25 tokens, those at both ends included."""
    rng = np.random.default_rng(0)
    words = sorted({word for _ in range(100) for word in describe(sample_scene(rng)).split()})
    return [" ".join(rng.choice(words, rng.integers(13, 24))) for _ in range(count)]


def ranked(prompts: int) -> PairRows:
    """All pairs of `K` images a prompt, none tied."""
    better, worse = np.array(list(combinations(range(K), 2)), dtype=np.uint64).T
    prompt = np.repeat(np.arange(1, prompts + 1, dtype=np.uint64), len(better))
    count = len(prompt)
    better, worse = (prompt * K + np.tile(ends, prompts) for ends in (better, worse))
    return PairRows(
        pair_id=np.arange(count, dtype=np.uint64),
        prompt_id=prompt,
        ranking_id=prompt,
        better=better,
        worse=worse,
        weight=np.ones(count, np.float32),
        split=np.full(count, "train"),
    )


def clouds(count: int, side: int) -> Iterator[NDArray[np.uint8]]:
    """Pictures of coloured clouds with a little grain: as PNGs about as large as photographs are."""
    rng = np.random.default_rng(side)
    for _ in range(count):
        cloud = Pillow.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Pillow.Resampling.BICUBIC)
        yield (np.asarray(cloud).astype(int) + rng.integers(-4, 5, (side, side, 3))).clip(0, 255).astype(np.uint8)


def encoded(count: int, side: int) -> list[bytes]:
    """Clouds as PNGs."""
    files = []
    for cloud in clouds(count, side):
        file = io.BytesIO()
        Pillow.fromarray(cloud).save(file, "PNG")
        files.append(file.getvalue())
    return files


def write_images(
    folder: Path, files: Sequence[bytes], ids: NDArray[np.uint64], prompts: NDArray[np.uint64], side: int
) -> list[Path]:
    """Shards of so many images, from encoded ones over and over."""
    with ImageShards(folder) as shards:
        for place, (image, prompt) in enumerate(zip(ids.tolist(), prompts.tolist(), strict=True)):
            data = files[place % len(files)]
            shards.append(image_row(image, prompt, data, f"{place}.png", "0" * 64, (side, side), "PNG"))
    return sorted((folder / "images").iterdir())


# -- the published step -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EncodedPairs:
    """What the released code prepares: preprocessed images (n, 3, size, size), and for each pair their places and its text."""

    pixels: Tensor
    better: Tensor
    worse: Tensor
    ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, model: ImageReward, pairs: PairRows, pictures: Tensor, texts: Mapping[int, str]) -> EncodedPairs:
        row = {int(image): place for place, image in enumerate(pairs.images)}
        better, worse = (torch.tensor([row[int(image)] for image in ends]) for ends in (pairs.better, pairs.worse))
        ids, mask = tokens(model, [texts[int(prompt)] for prompt in pairs.prompt_id])
        pixels = model.preprocess.normalised(pictures.to(model.device).permute(0, 3, 1, 2).float() / 255)
        return cls(pixels, better, worse, ids, mask)


def published_step(model: ImageReward, adam: torch.optim.Optimizer, pairs: EncodedPairs, count: int, micro_batch: int) -> None:
    """One step on the first `count` pairs, `micro_batch` at a time. Source: ImageReward, train/src (encode_pair, loss_func)."""
    model.train()
    for first in range(0, count, micro_batch):
        part = slice(first, min(first + micro_batch, count))
        ids, mask = pairs.ids[part], pairs.mask[part]
        encoded = {"input_ids": ids, "attention_mask": mask}
        rewards = torch.stack([model(pairs.pixels[ends[part]], encoded) for ends in (pairs.better, pairs.worse)], dim=1)
        target = torch.zeros(len(rewards), dtype=torch.long, device=rewards.device)
        (F.cross_entropy(rewards, target) * len(rewards) / count).backward()
    adam.step()
    adam.zero_grad()


def tokens(model: ImageReward, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids and attention mask padded to 35 tokens, as published; (n, 35) each."""
    batch = model.tokenizer(list(texts), padding="max_length", max_length=35, truncation=True, return_tensors="pt")
    return batch.input_ids.to(model.device), batch.attention_mask.to(model.device)


def plain_dropouts(model: nn.Module) -> None:
    """Torch's own dropout, which draws from one stream."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, SeededDropout):
                setattr(module, name, nn.Dropout(child.p))


# -- steps against steps ----------------------------------------------------------------------------------------------


@dataclass
class Contestant:
    """One way to train: work on `pairs` pairs, operations a pair, memory in GB on a GPU, and the work's best seconds."""

    name: str
    work: Callable[[], Any]
    pairs: int
    flops: float
    peak: float
    seconds: float = float("inf")

    @property
    def rate(self) -> float:
        return self.pairs / self.seconds


def steps(
    name: str, vision: Mapping[str, Any], text: Mapping[str, Any], folder: Path, device: str, dtype: str, rounds: int, ours: int
) -> None:
    """Pairs per second of the published step and of ours, and their ratios. Rounds take turns: a busy machine slows all alike.

    In a round the published way makes one step, ours make `ours`.
    """
    pairs = ranked(PROMPTS)
    texts = dict(enumerate(long_prompts(PROMPTS), start=1))
    size = vision["image_size"]
    pictures = torch.from_numpy(np.stack(list(clouds(PROMPTS * K, size))))

    def ready() -> ImageReward:
        model = random_model(vision, text)
        model.freeze(FREEZE_RATE)
        return model.to(device)

    published, micro_batch = of_published(ready(), pairs, pictures, texts)
    trainer = trainer_of(ready(), pairs, texts, pictures, device, dtype, folder / "work")
    show(
        "train-rm",
        scores_differ_from_the_published_by=f"{disagreement(trainer, pictures, texts):.1e} of their standard deviation",
    )
    contestants = [published, of_ours("train-rm", trainer, ours)]
    for _ in range(rounds):
        for one in contestants:
            one.seconds = min(one.seconds, timed(lambda one=one: (one.work(), wait(device)))[0])
    for one in contestants:
        told = {"pairs": f"{one.rate:.2f}/s", "ratio": f"{one.rate / published.rate:.2f}x"}
        told |= {"by_arithmetic": f"{published.flops / one.flops:.2f}x", "gflop_a_pair": f"{one.flops / 1e9:.1f}"}
        if device == "cuda":
            told |= {"peak": f"{one.peak:.1f} GB", "of_the_device": utilisation(one)}
        show(f"{name}: {one.name}", **told)
    print(f"(published: {micro_batch} pairs a forward pass, the faster of {MICRO_BATCHES}; {torch.get_num_threads()} threads)")


def of_published(model: ImageReward, pairs: PairRows, pictures: Tensor, texts: Mapping[int, str]) -> tuple[Contestant, int]:
    """The published step at the faster of the micro-batches, and which that is."""
    before = mark_memory(model)
    plain_dropouts(model)
    adam = torch.optim.Adam([value for value in model.parameters() if value.requires_grad], lr=1e-5)
    given = EncodedPairs.of(model, pairs, pictures, texts)
    few = max(MICRO_BATCHES)
    with FlopCounterMode(display=False) as counter:
        published_step(model, adam, given, few, few)
    peak = gigabytes_since(before)

    def seconds(size: int) -> float:
        return min(timed(lambda: (published_step(model, adam, given, few, size), wait(model.device.type)))[0] for _ in range(2))

    best = min(MICRO_BATCHES, key=seconds)
    work = lambda: published_step(model, adam, given, PAIRS_A_STEP, best)  # noqa: E731
    return Contestant("the published step", work, PAIRS_A_STEP, counter.get_total_flops() / few, peak), best


def trainer_of(
    model: ImageReward, pairs: PairRows, texts: Mapping[int, str], pictures: Tensor, device: str, dtype: str, work: Path
) -> Trainer:
    """train-rm's training on all pairs; a validation split it never gets to."""
    config = TrainRmConfig(model="random", freeze_rate=FREEZE_RATE, training={"dtype": dtype, "device": device})
    accelerator = make_accelerator("train-rm", config.training, "", {})
    twice = PairRows(*(np.tile(getattr(pairs, name), 2) for name in PairRows.__dataclass_fields__))
    both = replace(twice, split=np.repeat(["train", "validation"], len(pairs)))
    objective, evaluator = make_task(config, model, both, pairs.images, texts, lambda rows: pictures[rows], accelerator)
    training = config.training_config(len(objective.steps))
    return Trainer(training, dict(model.named_parameters()), [objective], evaluator, accelerator, quiet_context(work))


def task(trainer: Trainer) -> PairwiseObjective:
    """What train-rm trains by."""
    objective = trainer.objectives[0]
    assert isinstance(objective, PairwiseObjective)
    return objective


def of_ours(name: str, trainer: Trainer, steps: int) -> Contestant:
    """Reading the batch and the step; in a run the next batch is read meanwhile."""
    before = mark_memory(task(trainer).model)
    number = 0

    def step() -> None:
        nonlocal number
        task(trainer).prepare(number, lambda: None)
        trainer._learn(number, [task(trainer).parts(number)])
        number = (number + 1) % trainer.config.steps

    with FlopCounterMode(display=False) as counter:
        step()
    flops = counter.get_total_flops() / PAIRS_A_STEP
    work = lambda: [step() for _ in range(steps)]  # noqa: E731
    return Contestant(name, work, steps * PAIRS_A_STEP, flops, gigabytes_since(before))


def disagreement(trainer: Trainer, pictures: Tensor, texts: Mapping[int, str]) -> float:
    """By how much our scores of a prompt's images differ from plain forward passes, in their standard deviations."""
    objective = task(trainer)
    model = objective.model.eval()
    (batch,) = objective.reader.batches(objective.groups, [0])
    ids, mask = tokens(model, [texts[batch.prompts[0]]] * K)
    rows = objective.groups.image_rows[:K]
    pixels = model.preprocess.normalised(pictures[rows].to(model.device).permute(0, 3, 1, 2).float() / 255)
    with torch.no_grad():
        plain = model(pixels, {"input_ids": ids, "attention_mask": mask})
        with trainer.accelerator.autocast():
            ours = scores_of(model, batch, pixels_of(batch, model.device))
    return float((plain - ours).abs().max() / plain.std())


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def mark_memory(model: ImageReward) -> int | None:
    """What a GPU holds besides this model."""
    if model.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    own = sum(value.numel() * value.element_size() for value in model.parameters())
    return torch.cuda.memory_allocated() - own


def gigabytes_since(before: int | None) -> float:
    """The largest that a model and its training took since the mark."""
    return 0.0 if before is None else (torch.cuda.max_memory_allocated() - before) / 1e9


def utilisation(one: Contestant) -> str:
    """Operations a second, and their share of what the GPU is sold as doing in bfloat16."""
    most = next((peak for name, peak in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    rate = one.rate * one.flops
    return f"{rate / 1e12:.0f} TFLOP/s" + (f" = {rate / most:.0%}" if most else "")


# -- scoring ----------------------------------------------------------------------------------------------------------


def scoring(
    name: str,
    model: ImageReward,
    count: int,
    sides: Sequence[int],
    folder: Path,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Images per second of score-images, from PNGs of some sizes, and of bare forward passes at the same batch size."""
    model.save_pretrained(folder / "model")
    config = ScoreImagesConfig(device=device, dtype=dtype)
    precision = getattr(torch, dtype)
    scorer = RewardModelScorer(ImageReward.from_pretrained(folder / "model"), device, precision)
    ids = np.arange(count, dtype=np.uint64)
    texts = dict(enumerate(long_prompts(count // 4)))
    prompts = ids // 4
    batches = []
    for first in range(0, count, config.batch_size):
        part = range(first, min(first + config.batch_size, count))
        blank = np.zeros((scorer.image_size, scorer.image_size, 3), np.uint8)
        pixels = squares([blank] * len(part), model.preprocess, scorer.model.device, precision)
        batches.append((pixels, scorer.model.encode_texts([texts[int(prompts[index])] for index in part])))

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                scorer.model(*batch)
        wait(device)

    def stage(files: Sequence[Path]) -> None:
        reader = ImageReader(files)
        prompts_of = [texts[row["prompt_id"]] for row in reader.rows(["prompt_id"])]
        raw, _ = score_all({"reward-model": scorer}, reader, prompts_of, np.ones(count, dtype=bool), config.batch_size)
        assert np.isfinite(raw["reward-model"]).all()

    pool = {side: write_images(folder / str(side), encoded(32, side), ids, prompts, side) for side in sides}
    best = dict.fromkeys((None, *sides), float("inf"))
    scorer.model(*batches[0])
    for _ in range(2):
        best[None] = min(best[None], timed(bare)[0])
        for side in sides:
            best[side] = min(best[side], timed(lambda side=side: stage(pool[side]))[0])
    for side in sides:
        show(
            f"score-images, {name}, {side} px PNGs",
            irpipe=f"{count / best[side]:.1f}/s",
            bare=f"{count / best[None]:.1f}/s",
            ratio=f"{best[None] / best[side]:.1%}",
        )


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(folder: Path, prompts: int) -> None:
    """What reading and grouping 21 pairs a prompt and decoding their 7 images take above what the libraries take."""
    pairs, side = ranked(prompts), 32
    images = pairs.images
    folder.mkdir(parents=True, exist_ok=True)
    written = {column.name: getattr(pairs, column.name, [None] * len(pairs)) for column in PAIRS.columns}
    PAIRS.write(folder, {**written, "split": pairs.split.tolist()})
    write_images(folder, encoded(64, side), images, images // K, side)
    _, bare = peak_in_child(_nothing)
    (seconds, worker), peak = peak_in_child(_prepare, folder, side, prompts)
    show(
        f"{len(pairs):,} pairs, {len(images):,} images",
        **{name: f"{value:.1f} s" for name, value in seconds.items()},
        peak=f"{peak:.2f} GB",
        above_the_libraries=f"{peak - bare:.2f} GB",
        largest_decoding_process=f"{worker:.2f} GB",
    )


def _nothing() -> None:
    pass


def _prepare(folder: Path, side: int, prompts: int) -> tuple[dict[str, float], float]:
    """Seconds of each part, and the memory of the largest decoding process in GB."""
    reading, pairs = timed(lambda: read_pairs([folder / f"{PAIRS.name}.parquet"], ("train", "validation")))
    images = pairs.images
    grouping, groups = timed(lambda: group(pairs, images))
    assert sum(len(step) for step in steps_of_epoch(groups, 64, 0, 0)) == len(groups) == prompts
    files = sorted((folder / "images").iterdir())
    decoding, (_, faults) = timed(lambda: decode_all(files, images, side, quiet_context(folder / "work"), None))
    assert not faults
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    return {"reading": reading, "grouping": grouping, "decoding": decoding}, worker
