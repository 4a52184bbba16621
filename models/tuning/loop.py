"""The loop that every tuning of a generator runs: steps, looks, the stop rule, checkpoints. Any number of processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from irpipe.models.loading import memory_errors
from irpipe.models.training import Checkpoints, Weights, used_gigabytes
from irpipe.models.tuning.config import TuneConfig
from irpipe.models.tuning.denoiser import Course, Denoiser
from irpipe.models.tuning.monitors import DENOISING, HELD_OUT, REWARD, SIMILARITY, Look, Monitor, StopRule, standing
from irpipe.models.tuning.pairs import RealPairs, denoising_losses
from irpipe.pipeline.errors import TrainingError
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.interrupt import undisturbed
from irpipe.pipeline.stage import Context

_LOWER = "a lower learning_rate, max_grad_norm=1, or dtype=float32"
Figures = dict[str, Tensor]
"""What is told of samples: (n,) each, by name."""
Save = Callable[[], None]


class Objective(Protocol):
    """What a tuning makes smaller. Its noise is drawn by step and sample, never by batch.

    Attributes:
        name: as curves and errors call it.
        weight: of its mean loss.
        batch_size: samples a step, over all processes.
        carried: what it takes from step to step, of plain numbers; checkpoints keep it.
    """

    name: str
    weight: float
    batch_size: int
    carried: list[list[float]]

    def prepare(self, step: int, places: Sequence[int], save: Save) -> None:
        """Make what a step needs: this process's samples are `places` of `range(batch_size)`.

        `save` writes a checkpoint of the training as it stands before this step.
        """

    def losses(self, step: int, places: Sequence[int]) -> tuple[Tensor, Figures]:
        """Losses (n,) of some samples, with a graph, and what to tell of them."""

    def finish(self) -> None:
        """A step is done."""


@dataclass
class Denoising:
    """The pre-training loss on real pairs: each step takes the next ones of an endless shuffle.

    Source: ImageReward, algorithm 1, L_pre.

    Attributes:
        rows: which of the pairs.
    """

    denoiser: Denoiser
    course: Course
    pairs: RealPairs
    rows: Sequence[int]
    batch_size: int
    weight: float
    seed: int
    name: str = "pretraining_loss"
    carried: list[list[float]] = field(default_factory=list)

    def prepare(self, step: int, places: Sequence[int], save: Save) -> None:
        """Nothing: pairs are encoded."""

    def finish(self) -> None:
        """Nothing."""

    def losses(self, step: int, places: Sequence[int]) -> tuple[Tensor, Figures]:
        """See `Objective`."""
        chosen = [shuffled(len(self.rows), self.seed, self.name, step * self.batch_size + place) for place in places]
        seeds = [noise_seed(self.seed, self.name, step, place) for place in places]
        found = denoising_losses(self.denoiser, self.course, self.pairs, [self.rows[one] for one in chosen], seeds)
        return found, {self.name: found.detach()}


def noise_seed(seed: int, what: str, step: int, place: int) -> int:
    """The seed of one sample's noise, below 2^63 as generators take it."""
    return row_id("tuning noise", seed, what, step, place) >> 1


def shuffled(count: int, seed: int, what: str, number: int) -> int:
    """Entry of an endless shuffle of `range(count)`: every number once, in a new order each time round."""
    turn, place = divmod(number, count)
    return int(np.random.default_rng([seed, turn, row_id("shuffle", what)]).permutation(count)[place])


@dataclass
class State:
    """Where a tuning stands: all that a checkpoint holds besides weights and optimiser."""

    step: int = 0
    looked: int = -1
    best_step: int = 0
    best: float = -math.inf
    stopped_for: str = ""
    noted: list[str] = field(default_factory=list)
    micro_batches: list[int] = field(default_factory=list)
    rows: list[tuple[int, str, float]] = field(default_factory=list)


@dataclass
class Tuner:
    """Tunes a denoiser's network by the sum of some objectives, the one on real pairs first."""

    stage: str
    config: TuneConfig
    denoiser: Denoiser
    objectives: Sequence[Objective]
    monitor: Monitor
    accelerator: Accelerator
    context: Context

    def __post_init__(self) -> None:
        config = self.config
        self.weights = Weights(dict(self.denoiser.unet.named_parameters()), config.average)
        self.optimizer = self.accelerator.prepare(make_optimizer(config, list(self.weights.trained.values())))
        self.checkpoints = Checkpoints(self.context.work)
        self.state = State()
        self.looks: list[Look] = []
        self._whole = True  # weights, optimiser and state are those between two steps
        self.rule = StopRule(config)

    # -- the course ---------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Tune to the end or until the stop rule trips, from the last checkpoint if there is one.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        self._resume()
        config, state, main = self.config, self.state, self.accelerator.is_main_process
        if config.micro_batch not in state.micro_batches:
            state.micro_batches.append(config.micro_batch)
        with self.context.progress("tuning", config.steps, "steps") as bar:
            bar.advance(state.step)
            try:
                while self._goes_on():
                    self._step(state.step)
                    if main and self.checkpoints.minutes >= config.checkpoint_minutes:
                        self._save()
                    bar.advance(1, note=self._note())
            except KeyboardInterrupt:
                with undisturbed():
                    if self._whole and self.looks:
                        self._save()
                raise
        return state

    def _goes_on(self) -> bool:
        """Whether there is another step, once there was a look where one is due."""
        state, config = self.state, self.config
        if state.looked != state.step and (state.step % config.monitor_every == 0 or state.step == config.steps):
            self._look()
            self._save()
        return state.step < config.steps and not state.stopped_for

    def _step(self, step: int) -> None:
        """One step. An interrupt while it is prepared comes back to its beginning; any later one waits for its end."""
        shares = [
            range(objective.batch_size)[self.accelerator.process_index :: self.accelerator.num_processes]
            for objective in self.objectives
        ]
        for objective, mine in zip(self.objectives, shares, strict=True):
            objective.prepare(step, mine, self._save)
        with undisturbed():
            self._whole = False
            self._learn(step, shares)
            self.state.step += 1
            self._whole = True

    def _learn(self, step: int, shares: Sequence[Sequence[int]]) -> None:
        """An update for each objective, or one for all."""
        together = self.config.updates == "together" or len(self.objectives) == 1
        self.weights.fill_gradients()
        told: dict[str, list[float]] = {}
        self._set_learning_rate(step)
        for number, (objective, mine) in enumerate(zip(self.objectives, shares, strict=True)):
            if not mine:  # more processes than samples: half precision's scale wants a loss all the same
                self.accelerator.backward(sum(value.sum() for value in self.weights.trained.values()) * 0.0)
            for start in range(0, len(mine), self.config.micro_batch):
                self._backward(objective, step, mine[start : start + self.config.micro_batch], told)
            if not together or number == len(self.objectives) - 1:
                self._update(step, "" if together else f"{objective.name}_")
            objective.finish()
        self.weights.take_average(step + 1)
        self._tell(step, told)

    def _backward(self, objective: Objective, step: int, places: Sequence[int], told: dict[str, list[float]]) -> None:
        smaller = max(1, len(places) // 2)
        fix = (
            f"--set {self.stage}.micro_batch={smaller} (activations of half the samples), checkpoint_activations=true (of one"
            " layer at a time), trained=lora (no optimiser state of the whole network), or a smaller width and height"
        )
        with memory_errors(f"{len(places)} samples a backward pass", fix):
            with self.accelerator.autocast():
                losses, figures = objective.losses(step, places)
            loss = losses.float().sum() * (objective.weight / objective.batch_size)
            if not math.isfinite(loss.item()):
                raise TrainingError(
                    f"{objective.name} is not finite in step {step + 1:,}", fix=f"the last good state is kept; {_LOWER}"
                )
            self.accelerator.backward(loss)
        for name, values in figures.items():
            told.setdefault(name, []).extend(values.float().cpu().tolist())

    def _update(self, step: int, whose: str) -> None:
        self.weights.add_up(self.accelerator)
        if self.accelerator.scaler is None and not self.weights.gradients_finite():
            raise TrainingError(f"a gradient is not finite in step {step + 1:,}", fix=f"the last good state is kept; {_LOWER}")
        longest = self.config.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(list(self.weights.trained.values()), longest)
        self.state.rows.append((step + 1, f"{whose}gradient_norm", float(norm)))
        self.optimizer.step()
        self.weights.fill_gradients()

    def _set_learning_rate(self, step: int) -> None:
        share = min(1.0, (step + 1) / self.config.warmup_steps) if self.config.warmup_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * share

    def _tell(self, step: int, told: Mapping[str, list[float]]) -> None:
        """Means over all samples; of the heavy-tailed slopes also the median and the largest."""
        parts = gather_object([dict(told)]) if self.accelerator.num_processes > 1 else [told]
        found = {name: np.concatenate([part.get(name, []) for part in parts]) for name in sorted(set().union(*parts))}
        rows = {name: float(values.mean()) for name, values in found.items()}
        if "slope" in found:
            rows |= {"slope_median": float(np.median(found["slope"])), "slope_largest": float(found["slope"].max())}
        self.state.rows += [(step + 1, name, value) for name, value in rows.items()]
        if self.config.trackers:
            self.accelerator.log({f"train/{name}": value for name, value in rows.items()}, step=step + 1)

    # -- looks --------------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Look at held-out prompts; keep the weights if they are the best so far, and stop if the rule says so."""
        seen = self._seen() if self.accelerator.is_main_process else None
        with undisturbed():
            self._judge(seen)

    def _seen(self) -> Look:
        """A look at what the weights that are judged do."""
        trained = self.weights.copy() if self.weights.average else {}
        self._whole = False
        try:
            self.weights.load(self.weights.average)
            return self.monitor.look(self.state.step)
        finally:
            with undisturbed():
                self.weights.load(trained)
                self._whole = True

    def _judge(self, look: Look | None) -> None:
        state = self.state
        if look is not None:
            self.looks.append(look)
            self._write_look(look)
            fault = self.rule.fault(look)
            if fault and not state.step:
                raise TrainingError(f"before the first step {fault}", fix="another generator or judge, or dtype=float32")
            if fault:
                state.noted.append(f"step {state.step:,}: {fault}")
                self.context.say(f"  {'stopped' if self.config.on_trip == 'stop' else 'noted'} at step {state.step:,}: {fault}")
            if fault and self.config.on_trip == "stop":
                state.stopped_for = fault
            elif self._is_best(look):
                state.best, state.best_step = standing(look, self.looks[0]), state.step
                self.checkpoints.write(f"best-{state.step}.pt", self.weights.kept())
            if self.config.trackers:
                self.accelerator.log({f"look/{name}": look.mean(name) for name in look.measures}, step=state.step)
        if self.accelerator.num_processes > 1:
            told: list[Any] = [state.stopped_for, state.best_step]
            broadcast_object_list(told)
            state.stopped_for, state.best_step = told
        state.looked = state.step

    def _is_best(self, look: Look) -> bool:
        """Without a stop rule the last look is what is kept."""
        return self.config.on_trip == "note" or standing(look, self.looks[0]) > self.state.best

    def _note(self) -> str:
        """What the bar shows besides: the last figures, and the memory in use."""
        told = []
        if self.looks:
            first, last = self.looks[0], self.looks[-1]
            for name in (REWARD, HELD_OUT, SIMILARITY, DENOISING):
                told.append(f"{name} {last.mean(name):.3f} ({last.mean(name) - first.mean(name):+.3f})")
        return f"{', '.join(told)}, peak {used_gigabytes(self.accelerator.device):.1f} GB"

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _write_look(self, look: Look) -> None:
        told = {name: torch.from_numpy(values) for name, values in look.measures.items()}
        self.checkpoints.write(
            f"look-{look.step}.pt", {"step": look.step, "measures": told, "pictures": torch.from_numpy(look.pictures)}
        )

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        names = ("step", "looked", "best_step", "best", "stopped_for", "noted", "micro_batches", "rows")
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        self.checkpoints.write(
            "checkpoint.pt",
            {
                "state": {name: getattr(self.state, name) for name in names},
                "looks": [look.step for look in self.looks],
                "weights": self.weights.on_cpu(),
                "average": self.weights.average,
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler,
                "carried": {objective.name: objective.carried for objective in self.objectives},
            },
        )
        self.checkpoints.keep_only("best-*.pt", [f"best-{self.state.best_step}.pt"])

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one. Looks are the first process's matter."""
        saved = self.checkpoints.read("checkpoint.pt")
        if saved is not None:
            self.weights.load(saved["weights"])
            self.weights.load_average(saved["average"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            rows = [(int(step), str(name), float(value)) for step, name, value in saved["state"]["rows"]]
            self.state = State(**{**saved["state"], "rows": rows})
            for step in saved["looks"] if self.accelerator.is_main_process else ():
                look = self.checkpoints.read(f"look-{step}.pt")
                measures = {name: value.numpy() for name, value in look["measures"].items()}
                self.looks.append(Look(step, measures, look["pictures"].numpy()))
                self.rule.fault(self.looks[-1])
            for objective in self.objectives:
                objective.carried = saved["carried"][objective.name]
            self.context.say(f"goes on after step {self.state.step:,} of {self.config.steps:,}")
        self.accelerator.wait_for_everyone()

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights of the best look."""
        self.accelerator.wait_for_everyone()
        weights: dict[str, Tensor] = self.checkpoints.read(f"best-{self.state.best_step}.pt")
        return weights


def make_optimizer(config: TuneConfig, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """AdamW, with its state in 8 bits where that is asked.

    Raises:
        TrainingError: bitsandbytes is not installed.
    """
    settings: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (0.9, config.adam_beta2),
        "weight_decay": config.weight_decay,
        "eps": 1e-8,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise TrainingError("adamw8bit needs bitsandbytes, which is not installed", fix="pip install bitsandbytes") from None
    made: torch.optim.Optimizer = AdamW8bit(parameters, **settings)
    return made
