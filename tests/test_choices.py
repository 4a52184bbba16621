"""Direction and choice, by hand: what is kept, when it stops, which step is drawn, how the learning rate runs."""

from __future__ import annotations

import math
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from irpipe.models.training import Checkpoints, Weights
from irpipe.models.tuning import loop as tuning
from irpipe.models.tuning.denoiser import load_denoiser
from irpipe.models.tuning.monitors import DENOISING, HELD_OUT, REWARD, SIMILARITY, Look, StopRule, standard_error, standing
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.stages.compare_generators import CompareGeneratorsConfig
from irpipe.stages.compare_generators import run as comparing
from irpipe.stages.compare_generators.table import BASE
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective, Rollouts
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm import loop as training

HALF_COSINE = [0.5 * (1 + math.cos(math.pi * eighth / 8)) for eighth in range(8)]


def part_of(kind, **attributes):
    """An object of a class with no more than what its tested method reads."""
    made = object.__new__(kind)
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


class TestAverage:
    @pytest.mark.parametrize("decay", [0.9, 0.999])
    def test_it_is_the_recursion_with_a_quick_start(self, decay):
        """After step t the average takes 1 - min(decay, t / (9 + t)) of the weights."""
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        weights, expected = Weights({"w": weight}, decay), 0.0
        for step in (1, 2, 3, 10_000):
            with torch.no_grad():
                weight += step
            weights.take_average(step)
            kept = {1: 1 / 10, 2: 2 / 11, 3: 3 / 12}.get(step, decay)
            expected = kept * expected + (1 - kept) * weight.item()
            assert float(weights.kept()["w"]) == pytest.approx(expected)

    def test_without_one_the_weights_are_kept(self):
        weights = Weights({"w": torch.nn.Parameter(torch.ones(1))}, 0.0)
        weights.take_average(1)
        assert not weights.average and weights.kept()["w"].tolist() == [1.0]


class TestLearningRate:
    @pytest.mark.parametrize(("warmup", "expected"), [(0.2, [0.5, 1.0, *HALF_COSINE]), (0.0, None)])
    def test_of_a_reward_model_it_rises_and_falls_as_half_a_cosine(self, warmup, expected):
        config = TrainRmConfig(warmup=warmup, learning_rate=0.01)
        trainer = part_of(training.Trainer, config=config, total=10 if warmup else 8)
        found = [trainer.learning_rate(step) for step in range(trainer.total)]
        assert found == pytest.approx([0.01 * share for share in expected or HALF_COSINE])
        assert trainer.learning_rate(trainer.total) == pytest.approx(0.0)

    @pytest.mark.parametrize(("warmup", "shares"), [(4, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]), (0, [1.0] * 6)])
    def test_of_a_tuning_it_rises_and_stays(self, warmup, shares):
        groups = [{"lr": 0.0}]
        config = ReflConfig(warmup_steps=warmup, learning_rate=0.01)
        tuner = part_of(tuning.Tuner, config=config, optimizer=SimpleNamespace(param_groups=groups))
        found = []
        for step in range(6):
            tuner._set_learning_rate(step)
            found.append(groups[0]["lr"])
        assert found == pytest.approx([0.01 * share for share in shares])


class TestWhichModelIsKept:
    """A training whose validations say what the test gives them."""

    LOSSES, ACCURACIES = (0.70, 0.60, 0.65, 0.62, 0.50), (0.5, 0.7, 0.6, 0.8, 0.75)

    def course(self, folder, **settings):
        """The step that is kept, and the steps done when it stops."""
        figures = iter(zip(self.LOSSES, self.ACCURACIES, strict=True))
        trainer = part_of(
            training.Trainer,
            config=TrainRmConfig(**settings),
            weights=Weights({}, 0.0),
            state=training.State(),
            checkpoints=Checkpoints(folder),
            accelerator=SimpleNamespace(is_main_process=True),
            validation=None,
            total=len(self.LOSSES),
        )
        trainer.evaluate = lambda groups: training.Sums(**dict(zip(("loss", "right"), next(figures), strict=True)), weight=1.0)
        for step in range(len(self.LOSSES)):
            trainer.state.step = step
            trainer._validate(step)
            if trainer.state.stopped:
                break
        assert (folder / f"best-{trainer.state.best_step}.pt").is_file()
        return trainer.state.best_step, trainer.state.step

    @pytest.mark.parametrize(
        ("keep_by", "patience", "expected"),
        [("loss", 0, (4, 4)), ("accuracy", 0, (3, 4)), ("loss", 2, (1, 3)), ("accuracy", 1, (1, 2)), ("loss", 3, (4, 4))],
    )
    def test_it_is_the_best_and_patience_is_counted_from_it(self, tmp_path, keep_by, patience, expected):
        assert self.course(tmp_path, keep_by=keep_by, patience=patience) == expected


def look(step=0, reward=0.0, held_out=0.0, similarity=0.0, brightness=0.5):
    """A look at four prompts whose judges differ by 1 from prompt to prompt: standard deviation 1."""
    spread = np.array([-1.0, 1.0, -1.0, 1.0])
    measures = {
        REWARD: reward + spread,
        HELD_OUT: held_out + spread,
        SIMILARITY: similarity + spread,
        DENOISING: np.ones(4),
        "brightness": np.full(4, brightness),
    }
    return Look(step, measures, np.zeros((4, 2, 4, 4, 3), dtype=np.uint8))


class TestWhichLookIsKept:
    def test_the_standing_is_the_mean_gain_in_deviations(self):
        first = look()
        first.measures[SIMILARITY] *= 2
        assert standing(first, first) == 0
        assert standing(look(held_out=1.0, similarity=6.0), first) == pytest.approx((1 / 1 + 6 / 2) / 2)
        assert standing(look(held_out=1.0), first) > standing(look(held_out=-1.0), first)

    @pytest.mark.parametrize(("on_trip", "kept"), [("stop", 1), ("note", 3)])
    def test_the_best_look_is_kept_or_the_last_where_nothing_stops(self, tmp_path, on_trip, kept):
        tuner = part_of(
            tuning.Tuner,
            config=ReflConfig(on_trip=on_trip),
            state=tuning.State(),
            looks=[],
            rule=SimpleNamespace(fault=lambda _: None),
            weights=Weights({}, 0.0),
            checkpoints=Checkpoints(tmp_path),
            accelerator=SimpleNamespace(num_processes=1),
        )
        for step, held_out in enumerate((0.0, 1.0, -1.0, 0.5)):
            tuner.state.step = step
            tuner._judge(look(step, held_out=held_out))
        assert tuner.state.best_step == kept and (tmp_path / f"best-{kept}.pt").is_file()


class TestStopRule:
    def fault(self, *looks, **settings):
        """What is wrong with the last of some looks, the ones before it being fine."""
        rule = StopRule(ReflConfig(**settings))
        *before, last = (look(), *looks)
        assert [rule.fault(one) for one in before] == [None] * len(before)
        return rule.fault(last)

    def test_the_standard_error_of_a_mean(self):
        assert standard_error(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(math.sqrt(2.5 / 5))

    @pytest.mark.parametrize(("brightness", "said"), [(0.2, "from 0.5 to 0.2"), (1.2, "from 0.5 to 1.2"), (0.99, ""), (0.26, "")])
    def test_a_statistic_may_grow_or_shrink_by_its_factor(self, brightness, said):
        fault = self.fault(look(1, brightness=brightness), max_statistic_change=2.0)
        assert said in fault if said else fault is None

    @pytest.mark.parametrize("judge", [HELD_OUT, SIMILARITY])
    @pytest.mark.parametrize(("errors", "stops"), [(2.9, False), (3.1, True)])
    def test_a_judge_may_fall_by_its_standard_errors(self, judge, errors, stops):
        """The differences are a fall and plus or minus 1, so that their standard error is sqrt(4 / 3) / 2."""
        last = look(1, reward=1.0)
        last.measures[judge] = look().measures[judge] - errors * math.sqrt(1 / 3) + np.array([1.0, 1.0, -1.0, -1.0])
        fault = self.fault(last, max_held_out_fall=3.0)
        assert (fault is not None) == stops and (not stops or f"while {judge} fell" in fault)

    def test_the_fall_is_counted_from_the_best_look(self):
        assert "fell from 1.000 to 0.500" in self.fault(look(1, 1.0, 1.0), look(2, 2.0, 0.5))
        assert self.fault(look(1, 1.0, -0.0), look(2, 2.0, 0.5)) is None


class TestReFL:
    @pytest.mark.parametrize("settings", [{}, {"late_steps": 2}, {"late_steps": 3}, {"refresh_every": 2}])
    def test_every_late_step_is_drawn_and_no_other(self, settings):
        config = ReflConfig(num_steps=10, first_late_step=6, last_late_step=8, batch_size=6, **settings)
        rows = list(range(6))
        objective = part_of(ReflObjective, config=config, _rollouts=Rollouts(torch.empty(0), rows, {row: row for row in rows}))
        drawn = [objective._drawn(step, place) for step in range(40) for place in range(6)]
        assert {late for _, late in drawn} == {0, 1, 2}
        assert {row for row, _ in drawn} == set(rows[: 6 // config.late_steps])

    def test_the_late_steps_of_one_rollout_differ(self):
        config = ReflConfig(num_steps=10, first_late_step=6, last_late_step=8, batch_size=6, late_steps=3)
        objective = part_of(ReflObjective, config=config, _rollouts=Rollouts(torch.empty(0), [0, 1], {0: 0, 1: 1}))
        for step in range(20):
            drawn = [objective._drawn(step, place) for place in range(6)]
            assert [row for row, _ in drawn] == [0, 0, 0, 1, 1, 1] and len(set(drawn)) == 6


def test_the_autoencoder_sees_pictures_from_minus_1_to_1():
    """What `moments` encodes is what diffusers' own preprocessing would have encoded, and decodes to the picture again."""
    denoiser = load_denoiser(Model("micro-generator", "r", shipped_folder("micro-generator")), "cpu", "float32")
    picture = torch.full((1, 3, denoiser.height, denoiser.width), 0.2)
    picture[:, 0, 8:24, 8:24] = 0.9
    moments = denoiser.moments(picture)
    with torch.no_grad():
        expected = denoiser.vae.encode(2 * picture - 1).latent_dist
        back = denoiser.decode(moments[:, 0])
    scale = denoiser.vae.config.scaling_factor
    torch.testing.assert_close(moments, torch.stack([expected.mean, expected.std], dim=1) * scale)
    assert float((back - picture).abs().mean()) < 0.1


class Noisy:
    """A generator whose pictures are grey by their noise alone, and whose checker blackens nothing."""

    def encode(self, texts, batch_size):
        return texts

    def sample(self, encodings, rows, seeds):
        greys = [np.random.default_rng(seed).random() for seed in seeds]
        return np.stack([np.full((2, 2, 3), grey) for grey in greys]), [False] * len(rows)


class TestBestOfN:
    PROMPTS = ((1, "a red circle"), (2, "a blue square"))

    @pytest.fixture(autouse=True)
    def bright(self, monkeypatch):
        """The reward is brightness, and the base is `Noisy`."""
        monkeypatch.setattr(comparing, "RewardModelScorer", lambda *_: None)
        monkeypatch.setattr(
            comparing, "judge_pictures", lambda judge, texts, pictures: np.array([one.mean() for one in pictures])
        )
        monkeypatch.setattr(comparing, "load", lambda *_: Noisy())

    def greys(self, made):
        return made.pictures[:, 0, 0, 0].tolist()

    def test_it_is_the_best_of_n_draws_of_its_own_noise(self, context):
        @contextmanager
        def progress(*_):
            yield SimpleNamespace(advance=lambda count: None)

        surroundings = SimpleNamespace(work=context.work, progress=progress, models={"model": [None]})
        config = CompareGeneratorsConfig(best_of=(2, 3), images_per_prompt=2)
        made = comparing.make_all(config, self.PROMPTS, {}, {}, surroundings, object())
        base, two, three = (self.greys(made[name]) for name in (BASE, "best-of-2", "best-of-3"))
        assert len(set(base)) == 4, "every image has noise of its own"
        assert all(one <= other <= another for one, other, another in zip(base, two, three, strict=True))
        assert sum(base) < sum(two) < sum(three), "every pool has noise of its own"
        assert (made[BASE].cost, made["best-of-2"].cost, made["best-of-3"].cost) == (4, 8, 12)

    def test_a_blackened_image_is_chosen_only_where_all_are(self):
        dark, light = (np.full((4, 2, 2, 3), grey, dtype=np.uint8) for grey in (10, 200))
        pools = [(dark, np.array([False, False, True, True])), (light, np.array([False, True, False, True]))]
        made = comparing.best_of(pools, self.PROMPTS, CompareGeneratorsConfig(images_per_prompt=2), None)
        assert self.greys(made)[:3] == [200, 10, 200]
        assert made.blackened.tolist() == [False, False, False, True]
