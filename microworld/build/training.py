"""Training the micro world's own models: the loop that every training has, without evaluations and checkpoints in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from irpipe.models.training.accelerator import make_accelerator
from irpipe.models.training.config import OptimizerSettings, TrainingConfig, TrainingSettings
from irpipe.models.training.loop import Trainer
from irpipe.models.training.objective import Evaluator, Figures, Objective, Samples, Verdict
from irpipe.pipeline.progress import watcher_for
from irpipe.pipeline.stage import Context

_SETTINGS = TrainingSettings(device="cpu", checkpoint_minutes=1e9)  # a part that is interrupted is built anew


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW, a linear warm-up, then half a cosine to `final`.

    Attributes:
        peak: learning rate; final: where it ends.
        ema_decay: of the averaged weights that are kept. 0: the last weights are.
    """

    steps: int
    peak: float
    warmup_steps: int
    final: float
    weight_decay: float
    adam_beta2: float = 0.999
    ema_decay: float = 0.0

    def config(self) -> TrainingConfig:
        """The training."""
        optimizer = OptimizerSettings(
            learning_rate=self.peak,
            warmup_steps=self.warmup_steps,
            schedule="cosine",
            weight_decay=self.weight_decay,
            adam_beta2=self.adam_beta2,
            max_grad_norm=1.0,
            ema_decay=self.ema_decay,
        )
        rows = max(1, self.steps // 100)
        return TrainingConfig(
            "build", self.steps, optimizer, _SETTINGS, report_every=rows, keep="last", final_learning_rate=self.final
        )


Compute = Callable[[int], tuple[Tensor, float]]
"""A step's loss, and the figure that is reported of it."""


class BatchLoss(Objective):
    """A loss of one batch per step, which it draws from the global stream.

    Attributes:
        recent: the exponential mean of the figure over about a hundred steps.
    """

    name, weight = "loss", 1.0

    def __init__(self, compute: Compute, after: Callable[[], None]) -> None:
        self.carried: list[list[float]] = []
        self.recent = 0.0
        self._compute, self._after = compute, after

    def parts(self, step: int) -> list[int]:
        """See `Objective`."""
        return [step]

    def loss(self, step: int, part: int) -> tuple[Tensor, Figures]:  # noqa: ARG002 # one batch per step
        """See `Objective`."""
        loss, figure = self._compute(step)
        self.recent += (figure - self.recent) / 100
        return loss, {"loss": Samples(loss.detach()[None])}

    def finish(self, step: int) -> None:  # noqa: ARG002 # the same after every step
        """See `Objective`."""
        self._after()


@dataclass
class AtTheEnd(Evaluator):
    """Keeps the last weights."""

    steps: int

    def due(self, step: int) -> bool:
        """After the last step."""
        return step == self.steps

    def evaluate(self, step: int) -> Verdict:
        """Nothing is measured."""
        return Verdict(float(step), {})


def train(modules: Mapping[str, nn.Module], recipe: Recipe, compute: Compute, after: Callable[[], None] = lambda: None) -> float:
    """Train modules, which then have the kept weights. Returns the recent mean of the figure.

    Args:
        modules: by name.
        after: what follows every step.
    """
    parameters = {f"{name}.{key}": value for name, module in modules.items() for key, value in module.named_parameters()}
    objective = BatchLoss(compute, after)
    with TemporaryDirectory() as work:
        context = Context(Path(work), watcher_for(json_lines=False, quiet=False).progress, print, {})
        accelerator = make_accelerator("build", _SETTINGS, ", ".join(modules), {})
        trainer = Trainer(recipe.config(), parameters, [objective], AtTheEnd(recipe.steps), accelerator, context)
        trainer.run()
        trainer.weights.load(trainer.best_weights())
    return objective.recent
