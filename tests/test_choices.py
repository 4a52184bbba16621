"""Direction and choice, by hand: what is kept, when it stops, which step is drawn, how the learning rate runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from irpipe.models.tuning.config import EvaluationSettings
from irpipe.models.tuning.denoiser import load_denoiser
from irpipe.models.tuning.evaluation import (
    DENOISING,
    HELD_OUT,
    REWARD,
    SIMILARITY,
    Evaluation,
    StopRule,
    standard_error,
    value,
)
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Inputs, Model
from irpipe.stages.compare_generators import CompareGeneratorsConfig, drawing
from irpipe.stages.compare_generators import run as comparing
from irpipe.stages.compare_generators.table import BASE
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective, Rollouts


def part_of(kind, **attributes):
    """An object of a class with no more than what its tested method reads."""
    made = object.__new__(kind)
    for name, attribute in attributes.items():
        setattr(made, name, attribute)
    return made


def evaluation(step=0, reward=0.0, held_out=0.0, similarity=0.0, brightness=0.5):
    """An evaluation of four prompts whose scores differ by 1 from prompt to prompt: standard deviation 1."""
    spread = np.array([-1.0, 1.0, -1.0, 1.0])
    measures = {
        REWARD: reward + spread,
        HELD_OUT: held_out + spread,
        SIMILARITY: similarity + spread,
        DENOISING: np.ones(4),
        "brightness": np.full(4, brightness),
    }
    return Evaluation(step, measures, np.zeros((4, 2, 4, 4, 3), dtype=np.uint8))


def test_the_value_is_the_mean_gain_in_standard_deviations():
    """It decides which evaluation's weights are kept: higher is better."""
    first = evaluation()
    first.measures[SIMILARITY] *= 2
    assert value(first, first) == 0
    assert value(evaluation(held_out=1.0, similarity=6.0), first) == pytest.approx((1 / 1 + 6 / 2) / 2)
    assert value(evaluation(held_out=1.0), first) > value(evaluation(held_out=-1.0), first)


class TestStopRule:
    def fault(self, *evaluations, **settings):
        """What is wrong with the last of some evaluations, the ones before it being fine."""
        rule = StopRule(EvaluationSettings(**settings))
        *before, last = (evaluation(), *evaluations)
        assert [rule.fault(one) for one in before] == [""] * len(before)
        return rule.fault(last)

    def test_the_standard_error_of_a_mean(self):
        assert standard_error(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(math.sqrt(2.5 / 5))

    @pytest.mark.parametrize(("brightness", "said"), [(0.2, "from 0.5 to 0.2"), (1.2, "from 0.5 to 1.2"), (0.99, ""), (0.26, "")])
    def test_a_statistic_may_grow_or_shrink_by_its_factor(self, brightness, said):
        fault = self.fault(evaluation(1, brightness=brightness), max_statistic_change=2.0)
        assert said in fault if said else not fault

    @pytest.mark.parametrize("judge", [HELD_OUT, SIMILARITY])
    @pytest.mark.parametrize(("errors", "stops"), [(2.9, False), (3.1, True)])
    def test_a_judge_may_fall_by_its_standard_errors(self, judge, errors, stops):
        """The differences are a fall and plus or minus 1, so that their standard error is sqrt(4 / 3) / 2."""
        last = evaluation(1, reward=1.0)
        last.measures[judge] = evaluation().measures[judge] - errors * math.sqrt(1 / 3) + np.array([1.0, 1.0, -1.0, -1.0])
        fault = self.fault(last, max_held_out_fall=3.0)
        assert bool(fault) == stops and (not stops or f"while {judge} fell" in fault)

    def test_the_fall_is_counted_from_the_best_evaluation(self):
        assert "fell from 1.000 to 0.500" in self.fault(evaluation(1, 1.0, 1.0), evaluation(2, 2.0, 0.5))
        assert not self.fault(evaluation(1, 1.0, -0.0), evaluation(2, 2.0, 0.5))


class TestReFL:
    @pytest.mark.parametrize("settings", [{}, {"refresh_every": 2}])
    def test_every_late_step_is_drawn_and_no_other(self, settings):
        config = ReflConfig(num_steps=10, first_late_step=6, last_late_step=8, batch_size=6, **settings)
        rows = list(range(6))
        objective = part_of(ReflObjective, config=config, _rollouts=Rollouts(torch.empty(0), rows, {row: row for row in rows}))
        drawn = [objective._drawn(step, place) for step in range(40) for place in range(6)]
        assert {late for _, late in drawn} == {0, 1, 2}
        assert {row for row, _ in drawn} == set(rows)


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
            comparing, "score_pictures", lambda judge, texts, pictures: np.array([one.mean() for one in pictures])
        )
        monkeypatch.setattr(drawing, "load", lambda *_: Noisy())

    def greys(self, made):
        return made.pictures[:, 0, 0, 0].tolist()

    def test_it_is_the_best_of_n_draws_of_its_own_noise(self, context):
        surroundings = replace(context, models={"model": (Model("noisy", "r", None),)})
        config = CompareGeneratorsConfig(best_of=(2, 3), images_per_prompt=2)
        made = comparing.make_all(
            config, self.PROMPTS, drawing.sources_of({}, {}, config), Inputs({}), surroundings, {"reward-model": object()}
        )
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
