"""The training loop: every objective in pieces and interrupted, the schedule, the EMA, what is kept, patience, interrupts."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.reward.start import init_reward_model
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.training.config import OptimizerSettings, TrainingConfig, TrainingSettings
from irpipe.models.training.loop import Trainer
from irpipe.models.training.objective import Evaluator, Objective, Samples, Verdict
from irpipe.models.training.optimizer import Schedule
from irpipe.models.training.sharing import shared_rows
from irpipe.models.training.weights import Weights
from irpipe.models.tuning.captions import CaptionedImages
from irpipe.models.tuning.denoiser import load_denoiser
from irpipe.models.tuning.evaluation import REWARD
from irpipe.models.tuning.pretraining import Pretraining
from irpipe.pipeline.errors import TrainingError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.stage import Context, Model
from irpipe.stages.finetune import FinetuneConfig
from irpipe.stages.finetune.pool import PoolObjective
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.data import PairRows
from irpipe.stages.train_rm.run import make_task
from tests import rahfs

PROMPTS = ["a red circle", "a large blue square on the left", "a small green cross above a yellow circle", "a yellow cross"]


class Every(Evaluator):
    """Stands in for an evaluation: it is due every so many steps, and says what it was given."""

    def __init__(self, every: int, values: list[float] | None = None, stop_at: int = -1) -> None:
        self.every, self.values, self.stop_at = every, values, stop_at
        self.resumed: list[int] = []

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def evaluate(self, step: int) -> Verdict:
        value = self.values[step // self.every] if self.values else float(step)
        return Verdict(value, {"value": value}, "enough" if step == self.stop_at else "")

    def resume(self, steps) -> None:
        self.resumed = list(steps)


Made = tuple[Objective, dict[str, Any]]


def pairwise(folder: Path, size: int, **settings: Any) -> Made:
    """train-rm's objective on random images, with dropout, stochastic depth and augmentation."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(1, 7), 12).astype(np.uint64)
    better, worse = (prompts * 100 + rng.integers(low, low + 5, 72, dtype=np.uint64) for low in (0, 5))
    columns = (np.arange(72, dtype=np.uint64), prompts, prompts + 100, better, worse, np.ones(72, np.float32))
    pairs = PairRows(*columns, np.where(prompts < 6, "train", "validation"))
    pictures = torch.from_numpy(rng.integers(0, 256, (len(pairs.images), 32, 32, 3), dtype=np.uint8))
    config = TrainRmConfig(
        model="x",
        batch_pairs=30,
        epochs=3,
        freeze_rate=0.0,
        random_shift=1,
        horizontal_flip=True,
        noise_std=0.1,
        training={"micro_batch_size": size, **settings},
    )
    model, _ = init_reward_model(Model("micro-blip", "r", shipped_folder("micro-blip")), "random", 0)
    if config.training.checkpoint_activations:
        model.checkpoint_activations()
    texts = {number: PROMPTS[number % 4] for number in range(1, 7)}
    objective, _ = make_task(config, model, pairs, pairs.images, texts, lambda rows: pictures[rows], Accelerator(cpu=True))
    return objective, dict(model.named_parameters())


def session_of(folder: Path) -> SimpleNamespace:
    """What an objective of a tuning sees of its session: the micro world's generator and judge, four prompts."""
    denoiser = load_denoiser(Model("micro-generator", "r", shipped_folder("micro-generator")), "cpu", "float32")
    denoiser.unet.requires_grad_(True)
    reward = ImageReward.from_pretrained(shipped_folder("micro-judge")).requires_grad_(False)
    return SimpleNamespace(
        stage="refl",
        accelerator=Accelerator(cpu=True),
        context=Context(folder, Watcher().progress, lambda _: None, {}),
        denoiser=denoiser,
        schedule=denoiser.noise_schedule(1000, "ddpm"),
        reward=reward,
        prompts=dict(enumerate(PROMPTS)),
        evaluator=SimpleNamespace(scorers={REWARD: RewardModelScorer(reward, "cpu", torch.float32)}),
    )


def tuning(kind: type, make: Callable[[Any, Any], Objective], **more: Any) -> Callable[..., Made]:
    """An objective of a tuning, in micro-batches of a size."""

    def made(folder: Path, size: int, **settings: Any) -> Made:
        session = session_of(folder)
        training = {"dtype": "float32", "micro_batch_size": size, "sample_batch_size": 4, **settings}
        config = kind(batch_size=6, training=training, pretraining={"batch_size": 6}, **more)
        return make(config, session), dict(session.denoiser.unet.named_parameters())

    return made


def pretraining_of(config: Any, session: Any) -> Objective:
    """The pre-training loss on ten random latents."""
    rng = np.random.default_rng(1)
    moments = rng.normal(size=(10, 2, *session.denoiser.shape)).astype(np.float32)
    texts = {name: value.numpy() for name, value in session.denoiser.encode([PROMPTS[n % 4] for n in range(10)]).items()}
    captioned = CaptionedImages(np.abs(moments), texts)
    return Pretraining(config, session.denoiser, session.schedule, captioned, range(2, 10), session.accelerator)


LATE = {"num_steps": 6, "first_late_step": 3, "last_late_step": 5}
OBJECTIVES: dict[str, Callable[..., Made]] = {
    "pairwise": pairwise,
    "pretraining": tuning(ReflConfig, pretraining_of),
    "refl": tuning(ReflConfig, ReflObjective, reward_weight=1.0, **LATE),
    "refl, rollouts used again": tuning(ReflConfig, ReflObjective, reward_weight=1.0, refresh_every=3, rollouts=5, **LATE),
    "refl, noisy copies": tuning(ReflConfig, ReflObjective, reward_weight=1.0, noise_samples=2, phi="linear", **LATE),
    "pool": tuning(
        FinetuneConfig, PoolObjective, pool_prompts=3, images_per_prompt=3, num_steps=4, guidance_scale=1.0, pool_every=3
    ),
    **rahfs.OBJECTIVES,
}


def trainer_of(folder: Path, made: Made, evaluator: Evaluator | None = None, **more: Any) -> Trainer:
    """A training of six steps by one objective."""
    objective, parameters = made
    optimizer = OptimizerSettings(learning_rate=1e-3, ema_decay=0.9)
    training = TrainingSettings(checkpoint_minutes=0.0)
    config = TrainingConfig("train-rm", more.pop("steps", 6), optimizer, training, **more)
    context = Context(folder, Watcher().progress, lambda _: None, {})
    return Trainer(config, parameters, [objective], evaluator or Every(3), Accelerator(cpu=True), context)


def gradients(folder: Path, made: Made) -> dict[str, torch.Tensor]:
    """The gradients of the first step."""
    trainer = trainer_of(folder, made)
    found: dict[str, torch.Tensor] = {}

    def keep(_step: int) -> float:
        found.update({name: value.grad.clone() for name, value in trainer.weights.trained.items()})
        return 0.0

    trainer._update = keep  # type: ignore[method-assign]
    trainer._prepare()
    trainer._learn(0, [objective.parts(0) for objective in trainer.objectives])
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_of_any_size_give_the_same_gradients(name, tmp_path):
    """1 x 6 = 6 x 1, and a remainder: they agree to rounding, whatever noise there is."""
    folders = [tmp_path / str(size) for size in (6, 1, 4)]
    for folder in folders:
        folder.mkdir()
    sizes = (10_000, 1, 20) if name == "pairwise" else (6, 1, 4)
    whole, *others = (gradients(folder, OBJECTIVES[name](folder, size)) for folder, size in zip(folders, sizes, strict=True))
    largest = max(float(value.abs().max()) for value in whole.values())
    assert largest > 0
    for other in others:
        for key, value in whole.items():
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=2e-5 * largest)


def test_activations_computed_again_see_the_same_noise(tmp_path):
    whole, again = (
        gradients(tmp_path, pairwise(tmp_path, 20, checkpoint_activations=recomputed)) for recomputed in (False, True)
    )
    largest = max(float(value.abs().max()) for value in whole.values())
    for key, value in whole.items():
        torch.testing.assert_close(again[key], value, rtol=1e-3, atol=1e-5 * largest)


class Killed(BaseException):
    """Ends a training as SIGKILL does: nothing is saved on the way out."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_killed_and_resumed_is_bit_for_bit_the_same(name, tmp_path):
    """Killed in its fifth step; 4 is in the middle of a pool and of rollouts that are used again."""
    (tmp_path / "whole").mkdir(), (tmp_path / "killed").mkdir()
    whole = trainer_of(tmp_path / "whole", OBJECTIVES[name](tmp_path / "whole", 4))
    whole.run()
    made = OBJECTIVES[name](tmp_path / "killed", 4)
    killed = trainer_of(tmp_path / "killed", made)
    real = killed._learn

    def learn(step: int, parts: Any) -> None:
        if step == 4:
            raise Killed
        real(step, parts)

    killed._learn = learn  # type: ignore[method-assign]
    with pytest.raises(Killed):
        killed.run()
    evaluator = Every(3)
    again = trainer_of(tmp_path / "killed", OBJECTIVES[name](tmp_path / "killed", 4), evaluator)
    again.run()
    assert evaluator.resumed == [0, 3]
    for kind in ("trained", "ema"):
        ours, theirs = getattr(again.weights, kind), getattr(whole.weights, kind)
        assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    assert again.state.rows == whole.state.rows


class Line(Objective):
    """(w - step)^2 for one weight w, whose gradient is known."""

    name, weight = "line", 1.0

    def __init__(self) -> None:
        self.carried: list[list[float]] = []
        self.w = torch.nn.Parameter(torch.zeros(1))

    def parts(self, step: int) -> list[int]:
        return [step]

    def loss(self, step: int, part: int):
        loss = (self.w - part).square().sum()
        return loss, {"line": Samples(loss.detach()[None])}


def line(folder: Path, evaluator: Evaluator, **more: Any) -> tuple[Trainer, Line]:
    objective = Line()
    return trainer_of(folder, (objective, {"w": objective.w}), evaluator, **more), objective


class TestKept:
    def test_the_best_evaluation_is_kept_and_patience_ends_the_run(self, tmp_path):
        trainer, _ = line(tmp_path, Every(2, [0.0, 1.0, 3.0, 2.0, 2.5, 9.0]), steps=10, patience=2)
        state = trainer.run()
        assert (state.best_step, state.step, state.evaluated) == (4, 8, [0, 2, 4, 6, 8])
        assert state.stopped_for == "no better evaluation in 2"
        assert [path.name for path in tmp_path.glob("best-*.pt")] == ["best-4.pt"]
        rows = [(step, value) for step, split, name, value in state.rows if (split, name) == ("validation", "value")]
        assert rows == [(0, 0.0), (2, 1.0), (4, 3.0), (6, 2.0), (8, 2.5)]

    def test_the_evaluator_stops_it_and_what_it_stopped_at_is_not_kept(self, tmp_path):
        state = line(tmp_path, Every(2, stop_at=4))[0].run()
        assert (state.stopped_for, state.step, state.best_step) == ("enough", 4, 2)

    def test_the_last_one_on_request(self, tmp_path):
        trainer, objective = line(tmp_path, Every(2, [5.0, 4.0, 3.0, 2.0]), keep="last")
        assert trainer.run().best_step == 6
        ema = trainer.weights.ema["w"]
        assert torch.equal(trainer.best_weights()["w"], ema) and not torch.equal(ema, objective.w)

    def test_the_weights_that_are_trained_are_back_after_an_evaluation(self, tmp_path):
        seen = []

        class Looking(Every):
            def evaluate(self, step: int) -> Verdict:
                seen.append(objective.w.item())
                return super().evaluate(step)

        trainer, objective = line(tmp_path, Looking(3))
        trainer.run()
        assert seen[-1] == trainer.weights.ema["w"].item() != objective.w.item()

    def test_curves_are_means_since_the_last_row(self, tmp_path):
        trainer, _ = line(tmp_path, Every(6), report_every=3)
        rows = [(step, name) for step, split, name, _ in trainer.run().rows if split == "train"]
        assert rows == [(step, name) for step in (3, 6) for name in ("gradient_norm", "line", "learning_rate")]

    def test_one_objective_has_one_update_whatever_the_order_of_updates(self, tmp_path):
        trainer, _ = line(tmp_path, Every(6), updates="sequential")
        assert {name for _, split, name, _ in trainer.run().rows if split == "train"} == {
            "gradient_norm",
            "line",
            "learning_rate",
        }

    def test_the_average_knows_how_many_steps_are_done(self, tmp_path, monkeypatch):
        trainer, _ = line(tmp_path, Every(6))
        steps = []
        monkeypatch.setattr(trainer.weights, "update_ema", steps.append)
        trainer.run()
        assert steps == [1, 2, 3, 4, 5, 6]


class TestNotFinite:
    @pytest.mark.parametrize("what", ["line", "a gradient"])
    def test_it_is_named_and_the_last_good_state_is_kept(self, what, tmp_path):
        trainer, objective = line(tmp_path, Every(3))
        real = objective.loss

        def spoilt(step: int, part: int):
            loss, figures = real(step, part)
            if step == 2:
                # A square root's gradient is infinite at 0, and its value is not.
                loss = loss * math.nan if what == "line" else (objective.w - objective.w.detach()).abs().sqrt().sum()
            return loss, figures

        objective.loss = spoilt
        with pytest.raises(TrainingError, match=f"{what} is not finite in step 3"):
            trainer.run()
        saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        assert saved["state"]["step"] == 2 and torch.isfinite(saved["weights"]["w"]).all()


class TestInterrupts:
    """SIGTERM at any place of a step or an evaluation: what comes after is bit for bit as if it had not been."""

    @pytest.mark.parametrize(("name", "at", "saved"), [("_prepare", 4, 3), ("_learn", 4, 4), ("_mind", 2, 3), ("_verdict", 2, 3)])
    def test_nothing_is_lost(self, name, at, saved, tmp_path, monkeypatch):
        (tmp_path / "whole").mkdir(), (tmp_path / "disturbed").mkdir()
        signal_before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            whole, _ = line(tmp_path / "whole", Every(3))
            whole.run()
            trainer, _ = line(tmp_path / "disturbed", Every(3))
            real, calls = getattr(trainer, name), []

            def disturbed(*given: Any) -> Any:
                calls.append(1)
                if len(calls) == at:
                    os.kill(os.getpid(), signal.SIGTERM)
                return real(*given)

            monkeypatch.setattr(trainer, name, disturbed)
            with pytest.raises(KeyboardInterrupt):
                trainer.run()
            assert torch.load(tmp_path / "disturbed" / "checkpoint.pt", weights_only=True)["state"]["step"] == saved
            again, _ = line(tmp_path / "disturbed", Every(3))
            again.run()
            assert torch.equal(again.weights.trained["w"], whole.weights.trained["w"]) and again.state.rows == whole.state.rows
        finally:
            signal.signal(signal.SIGTERM, signal_before)


class TestSchedule:
    @pytest.mark.parametrize(
        ("schedule", "rates"),
        [
            (Schedule(1.0, 4), [1.0, 1.0, 1.0, 1.0]),
            (Schedule(1.0, 4, warmup_steps=2), [0.5, 1.0, 1.0, 1.0]),
            (Schedule(1.0, 4, cosine=True), [1.0, 0.8535533905932737, 0.5, 0.14644660940672627]),
            (Schedule(2.0, 6, 2, cosine=True), [1.0, 2.0, 2.0, 1.7071067811865475, 1.0, 0.29289321881345254]),
            (Schedule(1.0, 4, cosine=True, final=0.5), [1.0, 0.9267766952966369, 0.75, 0.5732233047033631]),
            (Schedule(1.0, 2, warmup_steps=4), [0.25, 0.5]),
        ],
    )
    def test_a_table_of_numbers(self, schedule, rates):
        assert [schedule.learning_rate(step) for step in range(schedule.steps)] == pytest.approx(rates, rel=1e-12)


def test_the_ema_is_the_plain_recursion():
    parameter = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    weights, expected = Weights({"w": parameter}, 0.9), 1.0
    for step in range(1, 200):
        with torch.no_grad():
            parameter.fill_(math.sin(step))
        decay = min(0.9, step / (9 + step))
        expected = decay * expected + (1 - decay) * math.sin(step)
        weights.update_ema(step)
        assert float(weights.ema["w"]) == pytest.approx(expected, abs=1e-12)
    assert float(Weights({"w": parameter}, 0.0).evaluated()["w"]) == parameter.item()
    assert isinstance(Line().around(0, 0), nullcontext)


class TestSharedRows:
    @pytest.mark.parametrize(("processes", "count", "size"), [(1, 5, 2), (2, 5, 2), (3, 7, 1), (3, 2, 4), (3, 8, 2), (4, 12, 3)])
    def test_every_process_gets_every_row_once_and_in_order(self, processes, count, size):
        together, computed = threading.Barrier(processes, timeout=20), [[] for _ in range(processes)]
        given = [None] * processes

        def process(rank):
            def gather(tensors):
                given[rank] = tensors
                together.wait()
                whole = [torch.cat(parts) for parts in zip(*given, strict=True)]
                together.wait()
                return whole

            def compute(numbers):
                computed[rank].append(list(numbers))
                rows = torch.tensor(numbers)
                return rows, torch.stack([rows * 2, rows * 3], dim=1)

            told = []
            accelerator = SimpleNamespace(num_processes=processes, process_index=rank, gather=gather, device="cpu")
            rows, more = shared_rows(accelerator, count, size, compute, told.append)
            assert rows.tolist() == list(range(count)) and more.tolist() == [[row * 2, row * 3] for row in range(count)]
            assert sum(told) == count

        with ThreadPoolExecutor(processes) as pool:
            assert list(pool.map(process, range(processes))) == [None] * processes
        assert all(0 < len(batch) <= size for batches in computed for batch in batches)
        twice = sum(map(len, (batch for batches in computed for batch in batches))) - count
        assert twice < processes, "only the last row is computed more than once"
