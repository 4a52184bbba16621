"""The loop of every training: steps, evaluations, what is kept, checkpoints, interrupts. Any number of processes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from irpipe.models.training.accelerator import used_gigabytes
from irpipe.models.training.checkpoints import Checkpoints
from irpipe.models.training.config import TrainingConfig
from irpipe.models.training.curves import Row, Tally
from irpipe.models.training.objective import Evaluator, Objective, Samples, Verdict, not_finite
from irpipe.models.training.optimizer import Schedule, make_optimizer
from irpipe.models.training.weights import Weights
from irpipe.pipeline.interrupt import undisturbed
from irpipe.pipeline.progress import Progress
from irpipe.pipeline.stage import Context

Parts = list[Sequence[Any]]
"""This process's micro-batches of a step, by objective."""


@dataclass
class State:
    """Where a training stands: all that a checkpoint holds besides weights, optimiser and figures not yet reported.

    Attributes:
        step: optimiser steps done.
        evaluated: steps after which the weights were evaluated.
        best_step, best: the evaluation whose weights are kept, and its value.
        since_best: evaluations after it.
        stopped_for: why it stopped early; empty: it did not.
        micro_batch_sizes: those it ran with, in order; results of several agree to rounding, not bit by bit.
    """

    step: int = 0
    evaluated: list[int] = field(default_factory=list)
    best_step: int = 0
    best: float = -math.inf
    since_best: int = 0
    stopped_for: str = ""
    note: str = ""
    micro_batch_sizes: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class Trainer:
    """Trains parameters by the weighted sum of some objectives.

    Args:
        parameters: by name, on the accelerator's device; those that require a gradient are trained.
        objectives: in the order in which a step takes them.
        context: its work folder holds the checkpoints.
    """

    def __init__(
        self,
        config: TrainingConfig,
        parameters: Mapping[str, Tensor],
        objectives: Sequence[Objective],
        evaluator: Evaluator,
        accelerator: Accelerator,
        context: Context,
    ) -> None:
        self.config, self.objectives, self.evaluator = config, objectives, evaluator
        self.accelerator, self.context = accelerator, context
        self.weights = Weights(parameters, config.optimizer.ema_decay)
        self.schedule = Schedule.of(config)
        trained = list(self.weights.trained.values())
        self.optimizer = accelerator.prepare(make_optimizer(config.optimizer, trained))
        self.checkpoints = Checkpoints(context.work)
        self.state = State()
        self._tally = Tally()
        self._whole = True  # weights, optimiser and state are those between two steps

    # -- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> State:
        """Train to the end, or until it must stop; from the last checkpoint, if there is one.

        Raises:
            TrainingError: a loss or a gradient is not finite.
        """
        self._resume()
        config, state = self.config, self.state
        with self.context.progress("training", config.steps, "steps") as bar, ThreadPoolExecutor(1) as reader:
            bar.resume(state.step)
            try:
                ahead = self._read(reader, state.step)
                while self._goes_on(bar):
                    parts, ahead = ahead.result(), self._read(reader, state.step + 1)
                    with bar.aside():
                        self._prepare()
                    self._step(parts)
                    if self.checkpoints.minutes >= config.training.checkpoint_minutes:
                        self._save()
                    bar.advance(1, note=self._note())
            except KeyboardInterrupt:
                with undisturbed():
                    if self._whole and state.evaluated:
                        self._save()
                raise
        return state

    def _read(self, reader: ThreadPoolExecutor, step: int) -> Future[Parts]:
        """The micro-batches of a step, while the one before it is worked on."""
        if step >= self.config.steps:
            return reader.submit(list)
        return reader.submit(lambda: [objective.parts(step) for objective in self.objectives])

    def _goes_on(self, bar: Progress) -> bool:
        """Whether there is another step, once the weights are evaluated where that is due."""
        state = self.state
        if state.step not in state.evaluated and self.evaluator.due(state.step):
            with bar.aside():
                self._evaluate()
            self._save()
        return state.step < self.config.steps and not state.stopped_for

    def _prepare(self) -> None:
        """Make what the step needs. An interrupt comes back to its beginning."""
        for objective in self.objectives:
            objective.prepare(self.state.step, self._save)

    def _step(self, parts: Parts) -> None:
        """One step; an interrupt waits for its end."""
        with undisturbed():
            self._whole = False
            self._learn(self.state.step, parts)
            self.state.step += 1
            self._whole = True

    # -- one step -----------------------------------------------------------------------------------------------------

    def _learn(self, step: int, parts: Parts) -> None:
        """An update for each objective, or one for all."""
        together = self.config.updates == "together" or len(self.objectives) == 1
        tally = Tally()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step)
        self.weights.zero_gradients()
        for number, (objective, mine) in enumerate(zip(self.objectives, parts, strict=True)):
            if not mine:  # more processes than samples: half precision's loss scaling wants a loss all the same
                self.accelerator.backward(sum(value.sum() for value in self.weights.trained.values()) * 0.0)
            for part in mine:
                self._backward(objective, step, part, tally)
            if not together or number == len(self.objectives) - 1:
                norm = self._update(step)
                tally.add(
                    "gradient_norm" if together else f"{objective.name}_gradient_norm",
                    Samples(torch.tensor([norm], dtype=torch.float64)),
                )
            objective.finish(step)
        self.weights.update_ema(step + 1)
        self._tally.merge(tally, self.accelerator)
        if (step + 1) % self.config.report_every == 0 or self.evaluator.due(step + 1):
            self._report(step)

    def _backward(self, objective: Objective, step: int, part: Any, tally: Tally) -> None:
        """Gradients of a micro-batch, added to those that are there."""
        with objective.around(step, part):
            with self.accelerator.autocast():
                loss, figures = objective.loss(step, part)
            if not math.isfinite(loss.item()):
                raise not_finite(objective.name, f"in step {step + 1:,}", self.config.stage)
            self.accelerator.backward(loss * objective.weight)
        for name, samples in figures.items():
            tally.add(name, samples)

    def _update(self, step: int) -> float:
        """The optimiser's step. Returns the norm of the gradient before clipping."""
        self.weights.sum_gradients(self.accelerator)
        longest = self.config.optimizer.max_grad_norm or math.inf
        norm = float(self.accelerator.clip_grad_norm_(list(self.weights.trained.values()), longest))
        if self.accelerator.scaler is None and not math.isfinite(norm):  # loss scaling skips such a step by itself
            raise not_finite("a gradient", f"in step {step + 1:,}", self.config.stage)
        self.optimizer.step()
        self.weights.zero_gradients()
        return norm

    # -- curves -------------------------------------------------------------------------------------------------------

    def _report(self, step: int) -> None:
        """Rows of the training curves: means since the last ones."""
        rows = self._tally.rows() | {"learning_rate": self.schedule.learning_rate(step)}
        self._tally = Tally()
        self._add_rows(step + 1, "train", rows)

    def _add_rows(self, step: int, split: str, rows: Mapping[str, float]) -> None:
        self.state.rows += [(step, split, name, value) for name, value in rows.items()]
        if self.config.training.trackers:
            self.accelerator.log({f"{split}/{name}": value for name, value in rows.items()}, step=step)

    def _note(self) -> str:
        """What the bar shows besides: the last losses, what the last evaluation said, and the memory in use."""
        last = {name: value for _, split, name, value in self.state.rows[-30:] if split == "train"}
        losses = [f"{objective.name} {last[objective.name]:.3f}" for objective in self.objectives if objective.name in last]
        rate = f"learning rate {self.schedule.learning_rate(self.state.step):.1e}"
        notes = [*losses, self.state.note, rate, f"peak {used_gigabytes(self.accelerator.device):.1f} GB"]
        return ", ".join(note for note in notes if note)

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Evaluate; keep the weights if they are the best so far, and stop if the verdict or patience says so."""
        verdict = self._verdict()
        with undisturbed():
            self._mind(verdict)

    def _verdict(self) -> Verdict:
        """The evaluator's verdict on the EMA weights. An interrupt puts the trained ones back; the evaluation is made again."""
        trained = self.weights.copy() if self.weights.ema else {}
        self._whole = False
        try:
            self.weights.load(self.weights.ema)
            return self.evaluator.evaluate(self.state.step)
        finally:
            with undisturbed():
                self.weights.load(trained)
                self._whole = True

    def _mind(self, verdict: Verdict) -> None:
        config, state = self.config, self.state
        state.evaluated.append(state.step)
        state.note = verdict.note
        self._add_rows(state.step, "validation", verdict.measures)
        if verdict.stop:
            state.stopped_for = verdict.stop
        elif config.keep == "last" or verdict.value > state.best:
            state.best, state.best_step, state.since_best = verdict.value, state.step, 0
            if self.accelerator.is_main_process:
                self.checkpoints.write(f"best-{state.step}.pt", self.weights.evaluated())
        else:
            state.since_best += 1
            if config.patience and state.since_best >= config.patience:
                state.stopped_for = f"no better evaluation in {config.patience}"
        if state.stopped_for:
            self.context.say(f"  stopped at step {state.step:,}: {state.stopped_for}")

    def best_weights(self) -> dict[str, Tensor]:
        """The weights of the evaluation that is kept, on the CPU."""
        self.accelerator.wait_for_everyone()  # the first process may still be writing them
        weights: dict[str, Tensor] = self.checkpoints.read(f"best-{self.state.best_step}.pt")
        return weights

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {}
        self.checkpoints.write(
            "checkpoint.pt",
            {
                "state": asdict(self.state),
                "tally": self._tally.state(),
                "weights": self.weights.on_cpu(),
                "ema": self.weights.ema,
                "optimizer": self.optimizer.state_dict(),
                "scaler": scaler,
                "carried": {objective.name: objective.carried for objective in self.objectives},
            },
        )
        self.checkpoints.keep_only("best-*.pt", [f"best-{self.state.best_step}.pt"])

    def _resume(self) -> None:
        """Go back to the last checkpoint, if there is one."""
        saved = self.checkpoints.read("checkpoint.pt")
        if saved is not None:
            self.state = State(**saved["state"])
            self._tally.load(saved["tally"])
            self.weights.load(saved["weights"])
            self.weights.load_ema(saved["ema"])
            self.optimizer.load_state_dict(saved["optimizer"])
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
            for objective in self.objectives:
                objective.carried = saved["carried"][objective.name]
            self.evaluator.resume(self.state.evaluated)
            self.context.say(f"goes on after step {self.state.step:,} of {self.config.steps:,}")
        self.accelerator.wait_for_everyone()
        size = self.config.training.micro_batch_size
        if size not in self.state.micro_batch_sizes:
            self.state.micro_batch_sizes.append(size)
