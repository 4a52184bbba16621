"""The training itself: steps, validations, checkpoints. One process or many give the same result but for rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from scipy.optimize import minimize_scalar
from torch import Tensor

from irpipe.models.loading import memory_errors
from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.training import Checkpoints, Weights, used_gigabytes
from irpipe.pipeline.errors import TrainingError
from irpipe.pipeline.interrupt import undisturbed
from irpipe.pipeline.stage import Context
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.data import Groups, mirrored, noise_seed, pack, share, steps_of_epoch

_LN2 = math.log(2)
_FLAT_LOSS, _FLAT_SPREAD = 2e-3, 1e-2  # so near ln 2, and so little between a prompt's images, that nothing was learnt
_TRAIN_ROWS = 20  # rows of the training curve an epoch
_EVALUATION_GROUPS = 64
_SCALE_GROUPS = 200  # training prompts that a head's scale is fitted on
_SCALES = (0.02, 2.0)


@dataclass(frozen=True)
class Texts:
    """Token ids of every prompt, as they are and for mirrored images; (n, l) each."""

    row_of: dict[int, int]
    ids: tuple[Tensor, Tensor]
    mask: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, model: ImageReward, prompts: dict[int, str], mirror: bool) -> Texts:
        """Tokenise prompts once."""
        plain = list(prompts.values())
        versions = [model.encode_texts(texts) for texts in (plain, [mirrored(text) for text in plain] if mirror else plain)]
        (ids, mask), (other_ids, other_mask) = [(one["input_ids"].cpu(), one["attention_mask"].cpu()) for one in versions]
        return cls({identity: row for row, identity in enumerate(prompts)}, (ids, other_ids), (mask, other_mask))

    def length(self, prompts: Sequence[int]) -> int:
        """Tokens of the longest of some prompts."""
        rows = [self.row_of[int(prompt)] for prompt in prompts]
        return int(max(mask[rows].sum(dim=1).max() for mask in self.mask))


@dataclass(frozen=True)
class Batch:
    """Groups in one forward pass.

    Attributes:
        images: (n, size, size, 3) uint8, or (n, 1 + patches, width): what the frozen blocks made of them.
        counts: images of each group; prompts: (g,) their ids.
        better, worse: (p,) places in `images`; weights: (p,).
    """

    images: Tensor
    counts: list[int]
    prompts: list[int]
    better: Tensor
    worse: Tensor
    weights: Tensor


@dataclass
class Sums:
    """Sums over pairs and prompts, added up over batches and processes."""

    loss: float = 0.0
    right: float = 0.0
    weight: float = 0.0
    spread: float = 0.0
    prompts: float = 0.0
    score: float = 0.0
    square: float = 0.0
    images: float = 0.0

    def add(self, other: Sums) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def over(self, accelerator: Accelerator) -> Sums:
        """The sum over all processes."""
        values = torch.tensor([getattr(self, name) for name in self.__dataclass_fields__], dtype=torch.float64)
        if accelerator.num_processes > 1:
            device = accelerator.device if accelerator.device.type != "mps" else torch.device("cpu")
            values = accelerator.reduce(values.to(device), "sum").cpu()
        return Sums(*values.tolist())

    @property
    def mean_loss(self) -> float:
        return self.loss / max(self.weight, 1e-12)

    @property
    def accuracy(self) -> float:
        return self.right / max(self.weight, 1e-12)

    @property
    def mean_spread(self) -> float:
        return self.spread / max(self.prompts, 1.0)


@dataclass
class State:
    """Where a training stands: all that a checkpoint holds besides weights and optimiser."""

    step: int = 0
    best_step: int = 0
    best: float = math.inf
    since_best: int = 0
    stopped: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    micro_batches: list[int] = field(default_factory=list)
    recent: Sums = field(default_factory=Sums)


@dataclass
class Trainer:
    """Trains one model. `read` gives images by row; `features` tells whether they are what the frozen blocks made."""

    config: TrainRmConfig
    model: ImageReward
    frozen_blocks: int
    train: Groups
    validation: Groups
    texts: Texts
    read: Callable[[Any], Tensor]
    features: bool
    accelerator: Accelerator
    context: Context

    def __post_init__(self) -> None:
        config = self.config
        self.epochs = [steps_of_epoch(self.train, config.batch_pairs, config.seed, epoch) for epoch in range(config.epochs)]
        self.steps = [groups for epoch in self.epochs for groups in epoch]
        self.total = len(self.steps)
        self.model.to(self.accelerator.device)
        self.weights = Weights(dict(self.model.named_parameters()), config.average)
        self.checkpoints = Checkpoints(self.context.work)
        if config.checkpoint_activations:
            self.model.checkpoint_activations()
        adam = torch.optim.AdamW if config.weight_decay else torch.optim.Adam
        self.optimizer = self.accelerator.prepare(
            adam(list(self.weights.trained.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
        )
        self.state = State()
        self._whole = True  # weights, optimiser and state are those between two steps

    # -- the course ---------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            TrainingError: it collapsed, or something was not finite.
        """
        config, state, main = self.config, self._resume(), self.accelerator.is_main_process
        if config.micro_batch not in state.micro_batches:
            state.micro_batches.append(config.micro_batch)
        pairs = int(self.train.pair_counts.sum()) * config.epochs
        with self.context.progress("training", pairs, "pairs") as bar, ThreadPoolExecutor(1) as reader:
            bar.advance(sum(int(self.train.pair_counts[groups].sum()) for groups in self.steps[: state.step]))
            if state.step == 0:
                self._validate(0)
            due = set(self._validations())
            try:
                for number, batches in self._ahead(reader, state.step):
                    if state.stopped:
                        break
                    with undisturbed():
                        self._learn(number, batches, due)
                    if main and (state.step in due or self.checkpoints.minutes >= config.checkpoint_minutes):
                        self._save()
                    bar.advance(int(self.train.pair_counts[self.steps[number]].sum()), note=self._note())
            except KeyboardInterrupt:
                with undisturbed():
                    if main and state.step and self._whole:
                        self._save()
                raise
        return state

    def _learn(self, number: int, batches: list[Batch], due: Container[int]) -> None:
        """A step, and what follows from it."""
        state, self._whole = self.state, False
        state.recent.add(self._step(number, batches))
        state.step = number + 1
        self._guard(number)
        if state.step % max(1, self.total // (self.config.epochs * _TRAIN_ROWS)) == 0 or state.step in due:
            self._tell("train", state.recent, self.learning_rate(number))
            state.recent = Sums()
        if state.step in due:
            self._validate(number)
        self._whole = True

    def fit_scale(self) -> float:
        """Multiply the head by the positive number that makes the loss on training pairs least. Returns the number."""
        numbers = list(range(min(len(self.train), _SCALE_GROUPS)))
        length = self.texts.length(self.train.prompts[numbers].tolist())
        sizes = {number: int(self.train.image_counts[number]) for number in numbers}
        self.model.eval()
        gaps, weights = [], []
        for part in pack(numbers, sizes, self.config.micro_batch):
            batch = self._batch(self.train, part)
            with torch.no_grad(), self._enough_memory(batch), self.accelerator.autocast():
                scores = self._scores(batch, None, length).double().cpu()
            gaps.append((scores[batch.better] - scores[batch.worse]).numpy())
            weights.append(batch.weights.double().numpy())
        gap, weight = np.concatenate(gaps), np.concatenate(weights)

        def loss(scale: float) -> float:
            return float((np.logaddexp(0, -scale * gap) * weight).sum())

        found = torch.tensor(minimize_scalar(loss, bounds=_SCALES, method="bounded").x, dtype=torch.float32)
        if self.accelerator.num_processes > 1:  # devices may differ in the last bits, and weights must not
            found = self.accelerator.reduce(found.to(self.accelerator.device), "mean").cpu()
        scale = float(found)
        self.model.scale_scores(scale)
        self.weights.restart_average()
        return round(scale, 6)

    def learning_rate(self, step: int) -> float:
        """Of a step, counted from 0: a linear rise over the warm-up, then half a cosine to 0 at the end."""
        warmup = round(self.config.warmup * self.total)
        if step < warmup:
            return self.config.learning_rate * (step + 1) / warmup
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.total - warmup)))

    def _validations(self) -> Iterator[int]:
        """After which steps the model is validated: so many an epoch, evenly, and at its end."""
        done = 0
        for epoch in self.epochs:
            times = min(self.config.validations, len(epoch))
            yield from (done + round(len(epoch) * (part + 1) / times) for part in range(times))
            done += len(epoch)

    def _ahead(self, reader: ThreadPoolExecutor, start: int) -> Iterator[tuple[int, list[Batch]]]:
        """Steps with their batches, those of the next one being read while this one is worked on."""
        waiting = None
        for number in range(start, self.total):
            coming = number, reader.submit(self._batches, self.train, self.steps[number].tolist())
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = coming
        if waiting is not None:
            yield waiting[0], waiting[1].result()

    def _batches(self, groups: Groups, numbers: Sequence[int]) -> list[Batch]:
        """This process's part of some groups, cut to the micro-batch."""
        sizes = {number: int(groups.image_counts[number]) for number in numbers}
        mine = share(numbers, sizes, self.accelerator.num_processes)[self.accelerator.process_index]
        return [self._batch(groups, part) for part in pack(mine, sizes, self.config.micro_batch)]

    def _batch(self, groups: Groups, numbers: Sequence[int]) -> Batch:
        counts = [int(groups.image_counts[number]) for number in numbers]
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.concatenate([groups.image_rows[groups.image_starts[n] : groups.image_starts[n + 1]] for n in numbers])
        pairs = [slice(groups.pair_starts[n], groups.pair_starts[n + 1]) for n in numbers]
        better, worse = (
            np.concatenate([ends[pair] + start for pair, start in zip(pairs, starts[:-1], strict=True)])
            for ends in (groups.better, groups.worse)
        )
        weights = np.concatenate([groups.weights[pair] for pair in pairs])
        return Batch(
            self.read(rows),
            counts,
            [int(groups.prompts[n]) for n in numbers],
            torch.from_numpy(better),
            torch.from_numpy(worse),
            torch.from_numpy(weights),
        )

    # -- one step -----------------------------------------------------------------------------------------------------

    def _step(self, number: int, batches: list[Batch]) -> Sums:
        config, device = self.config, self.accelerator.device
        groups = self.steps[number]
        prompts = self.train.prompts[groups].tolist()
        length = self.texts.length(prompts)  # of the whole step, so that noise is the same however the step is cut
        total = float(sum(self.train.weights[self.train.pair_starts[n] : self.train.pair_starts[n + 1]].sum() for n in groups))
        self.model.train()
        for one in self.optimizer.param_groups:
            one["lr"] = self.learning_rate(number)
        self.weights.fill_gradients()
        sums = Sums()
        if not batches:  # more processes than prompts in this step: half precision's scale wants a loss all the same
            self.accelerator.backward(sum(value.sum() for value in self.weights.trained.values()) * 0.0)
        for batch in batches:
            seeds = [noise_seed(config.seed, number, prompt) for prompt in batch.prompts]
            with self._enough_memory(batch), self.model.noise.of(list(zip(batch.counts, seeds, strict=True))):
                with self.accelerator.autocast():
                    scores = self._scores(batch, seeds, length)
                scores, weights = scores.float(), batch.weights.to(device)
                losses = -F.logsigmoid(scores[batch.better.to(device)] - scores[batch.worse.to(device)])
                loss = (losses * weights).sum() / total
                if not math.isfinite(loss.item()):
                    self._refuse_not_finite(number, batch, scores)
                self.accelerator.backward(loss)
            sums.add(sums_of(scores.detach(), losses.detach(), batch))
        self.weights.add_up(self.accelerator)
        if self.accelerator.scaler is None and not self.weights.gradients_finite():
            raise TrainingError(f"a gradient is not finite in step {number + 1:,}", fix=f"the last good state is kept; {_LOWER}")
        if config.max_grad_norm:
            self.accelerator.clip_grad_norm_(list(self.weights.trained.values()), config.max_grad_norm)
        self.optimizer.step()
        self.weights.take_average(number + 1)
        return sums.over(self.accelerator)

    def _scores(self, batch: Batch, seeds: Sequence[int] | None, length: int) -> Tensor:
        """Raw scores (n,); with seeds, of augmented images."""
        device = self.accelerator.device
        flipped = [False] * len(batch.counts)
        if self.features:
            states = batch.images.to(device)
        else:
            pixels = batch.images.to(device).permute(0, 3, 1, 2).float() / 255
            if seeds is not None and self.config.augmented:
                pixels, flipped = augment(pixels, batch.counts, seeds, self.config)
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen_blocks):
                states = self.model.lower(self.model.preprocess.normalised(pixels), self.frozen_blocks)
        tokens = self.model.upper(states.float() if states.dtype != torch.float32 else states, self.frozen_blocks)
        rows = [self.texts.row_of[prompt] for prompt in batch.prompts]
        ids, mask = (
            torch.stack([kind[flip][row, :length] for row, flip in zip(rows, flipped, strict=True)])
            .repeat_interleave(torch.tensor(batch.counts), dim=0)
            .to(device)
            for kind in (self.texts.ids, self.texts.mask)
        )
        return self.model.head_scores(tokens, {"input_ids": ids, "attention_mask": mask})

    def _enough_memory(self, batch: Batch) -> Any:
        images = len(batch.images)
        return memory_errors(
            f"{images} images a forward pass",
            f"--set train-rm.micro_batch={max(1, images // 2)} or checkpoint_activations=true (both go on from the last"
            " checkpoint), dtype=bfloat16, or a higher freeze_rate",
        )

    # -- validation, guards -------------------------------------------------------------------------------------------

    def evaluate(self, groups: Groups) -> Sums:
        """Sums over a split, over all processes."""
        self.model.eval()
        sums = Sums()
        with torch.no_grad():
            for start in range(0, len(groups), _EVALUATION_GROUPS):
                numbers = list(range(start, min(start + _EVALUATION_GROUPS, len(groups))))
                length = self.texts.length(groups.prompts[numbers].tolist())
                for batch in self._batches(groups, numbers):
                    with self._enough_memory(batch), self.accelerator.autocast():
                        scores = self._scores(batch, None, length).float()
                    gaps = scores[batch.better.to(scores.device)] - scores[batch.worse.to(scores.device)]
                    sums.add(sums_of(scores, -F.logsigmoid(gaps), batch))
        return sums.over(self.accelerator)

    def _validate(self, number: int) -> None:
        state, trained = self.state, self.weights.copy() if self.weights.average else {}
        self.weights.load(self.weights.average)
        sums = self.evaluate(self.validation)
        if not math.isfinite(sums.mean_loss):
            raise TrainingError(
                f"the validation loss is not finite after step {state.step:,}", fix=f"the last good state is kept; {_LOWER}"
            )
        self._tell("validation", sums, self.learning_rate(number))
        figure = sums.mean_loss if self.config.keep_by == "loss" else -sums.accuracy
        if figure < state.best:
            state.best, state.best_step, state.since_best = figure, state.step, 0
            if self.accelerator.is_main_process:
                self.checkpoints.write(f"best-{state.step}.pt", self.weights.on_cpu())
        else:
            state.since_best += 1
            state.stopped = bool(self.config.patience) and state.since_best >= self.config.patience
        self.weights.load(trained)

    def _tell(self, split: str, sums: Sums, learning_rate: float) -> None:
        row = {
            "step": self.state.step,
            "epoch": self.state.step / max(1, self.total) * self.config.epochs,
            "split": split,
            "loss": sums.mean_loss,
            "accuracy": sums.accuracy,
            "spread": sums.mean_spread,
            "learning_rate": learning_rate,
        }
        self.state.rows.append(row)
        if self.config.trackers:
            figures = {f"{split}/{name}": row[name] for name in ("loss", "accuracy", "spread")}
            self.accelerator.log({**figures, "learning_rate": learning_rate}, step=self.state.step)

    def _note(self) -> str:
        """What the bar shows besides: the last figures, and the memory in use."""
        last = {row["split"]: row for row in self.state.rows}
        told = [f"{split} {row['loss']:.3f} {row['accuracy']:.1%}" for split, row in last.items()]
        memory = used_gigabytes(self.accelerator.device)
        return f"{', '.join(told)}, lr {self.learning_rate(self.state.step):.1e}, peak {memory:.1f} GB"

    def _guard(self, number: int) -> None:
        """Stop a run that has learnt nothing while it is cheap.

        Raises:
            TrainingError: it has collapsed.
        """
        after, recent = self.config.collapse_after, self.state.recent
        if not after or number + 1 != min(after, self.total):
            return
        if abs(recent.mean_loss - _LN2) < _FLAT_LOSS and recent.mean_spread < _FLAT_SPREAD:
            raise TrainingError(
                f"the reward model collapsed: after {number + 1:,} steps the loss is {recent.mean_loss:.5f} (ln 2 is {_LN2:.5f})"
                f" and a prompt's images differ by {recent.mean_spread:.1e} in score",
                fix="--set train-rm.head=itm and a BLIP with a matching head, a higher learning_rate, or, to let it go on,"
                " --set train-rm.collapse_after=0",
            )

    def _refuse_not_finite(self, number: int, batch: Batch, scores: Tensor) -> None:
        bad = ~torch.isfinite(scores)
        groups = np.repeat(np.arange(len(batch.counts)), batch.counts)[bad.cpu().numpy()]
        prompts = ", ".join(f"{batch.prompts[group]:016x}" for group in sorted(set(groups.tolist()))[:3])
        where = f"of the prompts {prompts}" if prompts else "though all scores are finite"
        inputs = " (the images themselves are not finite)" if not torch.isfinite(batch.images.float()).all() else ""
        raise TrainingError(
            f"the loss is not finite in step {number + 1:,}: scores {where}{inputs}",
            fix=f"the last good state is kept; {_LOWER}",
        )

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        names = ("step", "best_step", "best", "since_best", "stopped", "rows", "micro_batches")
        told = {name: getattr(self.state, name) for name in names}
        told["recent"] = [getattr(self.state.recent, name) for name in Sums.__dataclass_fields__]
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        weights = {"weights": self.weights.on_cpu(), "average": self.weights.average}
        self.checkpoints.write(
            "checkpoint.pt", {"state": told, **weights, "optimizer": self.optimizer.state_dict(), "scaler": scaler}
        )
        self.checkpoints.keep_only("best-*.pt", [f"best-{self.state.best_step}.pt"])

    def _resume(self) -> State:
        saved = self.checkpoints.read("checkpoint.pt")
        if saved is not None:
            self.weights.load(saved["weights"])
            self.weights.load_average(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            told = saved["state"]
            self.state = State(**{**told, "recent": Sums(*told["recent"])})
            self.context.say(f"goes on after step {self.state.step:,} of {self.total:,}")
        self.accelerator.wait_for_everyone()
        return self.state

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the best validation so far."""
        weights: dict[str, Tensor] = self.checkpoints.read(f"best-{self.state.best_step}.pt")
        return weights


_LOWER = "lower learning_rate, set max_grad_norm=1, or use dtype=float32"


def sums_of(scores: Tensor, losses: Tensor, batch: Batch) -> Sums:
    """Sums over a batch."""
    weights = batch.weights.to(scores.device).double()
    right = (scores[batch.better.to(scores.device)] > scores[batch.worse.to(scores.device)]).double()
    spreads = [part.double().std(correction=0) for part in scores.split(batch.counts)]
    wide = scores.double()
    return Sums(
        float((losses.double() * weights).sum()),
        float((right * weights).sum()),
        float(weights.sum()),
        float(torch.stack(spreads).sum()),
        float(len(spreads)),
        float(wide.sum()),
        float(wide.square().sum()),
        float(len(wide)),
    )


def augment(pixels: Tensor, counts: Sequence[int], seeds: Sequence[int], config: TrainRmConfig) -> tuple[Tensor, list[bool]]:
    """Move, mirror and grain images (n, 3, size, size), all of a prompt alike but for the grain.

    Returns:
        the images, and for each prompt whether it was mirrored.
    """
    parts, flipped = [], []
    for images, seed in zip(pixels.split(list(counts)), seeds, strict=True):
        draw = torch.Generator().manual_seed(seed >> 1)
        right, down = torch.randint(-config.shift, config.shift + 1, (2,), generator=draw).tolist()
        edge, size = config.shift, images.shape[-1]
        part = F.pad(images, (edge,) * 4, mode="replicate")[..., edge - down :, edge - right :][..., :size, :size]
        flipped.append(config.mirror and bool(torch.rand((), generator=draw) < 0.5))
        depth = config.grain * torch.rand((), generator=draw)
        grain = (depth * torch.randn(part.shape, generator=draw)).to(part.device) if config.grain else 0.0
        parts.append((part.flip(-1) if flipped[-1] else part) + grain)
    return torch.cat(parts), flipped
