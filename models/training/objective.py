"""What a training needs to know of a task: what gets smaller (`Objective`), what is kept and when to stop (`Evaluator`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from irpipe.pipeline.errors import TrainingError
from irpipe.pipeline.hashing import row_id


@dataclass(frozen=True)
class Samples:
    """A figure of some samples, whose mean goes into the curves.

    Attributes:
        values: (n,); weights: (n,), None for all alike.
        tails: report the median and the largest value too.
    """

    values: Tensor
    weights: Tensor | None = None
    tails: bool = False


Figures = Mapping[str, Samples]
"""What is reported of a micro-batch, by name."""
Save = Callable[[], None]


class Objective(Protocol):
    """A loss that a training makes smaller. Subclass it; what does nothing here need not be written.

    What it draws depends on the step and the sample, never on micro-batches or processes: so one large batch, the same in pieces,
    over several processes, and a resumed run agree to rounding.

    Attributes:
        name: in curves and errors.
        weight: of its loss.
        carried: numbers that it takes from step to step, the same in all processes; checkpoints keep them.
    """

    name: str
    weight: float
    carried: list[list[float]]

    def prepare(self, step: int, save: Save) -> None:  # noqa: ARG002 # a default for subclasses
        """Make what a step needs (rollouts, a pool). An interrupt within comes back to its beginning.

        `save` writes a checkpoint of the training as it stands before this step.
        """
        return

    def parts(self, step: int) -> Sequence[Any]:
        """This process's micro-batches of a step. A function of the step alone: a thread reads the next step's ahead."""
        ...

    def loss(self, step: int, part: Any) -> tuple[Tensor, Figures]:
        """A micro-batch's share of the step's mean loss, () with a graph, and its figures.

        The shares of all micro-batches of all processes add up to the mean over the step.
        """
        ...

    def around(self, step: int, part: Any) -> AbstractContextManager[None]:  # noqa: ARG002 # a default for subclasses
        """Surrounds the forward and the backward pass of a micro-batch, for noise that is drawn again."""
        return nullcontext()

    def finish(self, step: int) -> None:  # noqa: ARG002 # a default for subclasses
        """The step's update is done."""
        return


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says.

    Attributes:
        value: higher is better; the weights of the best evaluation are kept.
        measures: what goes into the curves under the split `validation`.
        stop: why the training must stop, the best weights before this being kept; empty: it may go on.
        note: shown beside the progress bar.
    """

    value: float
    measures: Mapping[str, float]
    stop: str = ""
    note: str = ""


class Evaluator(Protocol):
    """Evaluates the weights that would be saved (the EMA, where there is one)."""

    def due(self, step: int) -> bool:
        """Whether to evaluate after so many steps; 0 is before the first one."""
        ...

    def evaluate(self, step: int) -> Verdict:
        """Evaluate, in every process: they share the work, and must come to the same verdict."""
        ...

    def resume(self, steps: Sequence[int]) -> None:  # noqa: ARG002 # a default for subclasses
        """A training goes on that was evaluated after these steps."""
        return


def not_finite(what: str, where: str, stage: str) -> TrainingError:
    """The error of a number that is not finite, with what helps."""
    return TrainingError(
        f"{what} is not finite {where}",
        fix=f"the last good state is kept; lower {stage}.optimizer.learning_rate, or set {stage}.optimizer.max_grad_norm=1 or"
        f" {stage}.training.dtype=float32",
    )


def noise_seed(seed: int, what: str, step: int, index: int) -> int:
    """The seed of one sample's noise, below 2^63 as generators take it."""
    return row_id("tuning noise", seed, what, step, index) >> 1


def shuffled(count: int, seed: int, what: str, numbers: Iterable[int]) -> list[int]:
    """Entries of an endless shuffle of `range(count)`, by their numbers: every index once, in a new order each time round."""
    orders: dict[int, NDArray[np.int64]] = {}
    entries = []
    for turn, position in (divmod(number, count) for number in numbers):
        if turn not in orders:
            orders[turn] = np.random.default_rng([seed, turn, row_id("shuffle", what)]).permutation(count)
        entries.append(int(orders[turn][position]))
    return entries


def own_share(count: int, accelerator: Accelerator) -> range:
    """The samples of `range(count)` that this process computes."""
    return range(count)[accelerator.process_index :: accelerator.num_processes]


def micro_batches(samples: Sequence[int], size: int) -> list[Sequence[int]]:
    """Samples cut to micro-batches of at most `size`."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]
