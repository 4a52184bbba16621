"""Small decisions by hand, each of which a mutant of a fourth draw has survived (tests/test_decisions.py)."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import torch
from PIL import Image

from irpipe.models.training.loop import Trainer
from irpipe.models.tuning import evaluation
from irpipe.models.tuning.captions import CaptionedImages, denoising_losses, encode_captioned
from irpipe.models.tuning.denoiser import as_pixels
from irpipe.models.tuning.evaluation import DIVERSITY, REWARD, STATISTICS, GeneratorEvaluator, diversity, image_statistics
from irpipe.pipeline.commit import begin
from irpipe.pipeline.errors import RecipeError
from irpipe.pipeline.recipe_file import load_recipe
from irpipe.pipeline.store import Store
from irpipe.pipeline.wiring import Wiring
from irpipe.stages.build_pairs.run import Candidates, pair_columns
from irpipe.stages.compare_generators.table import compare
from irpipe.stages.evaluate_rm.ranking import _correlation
from irpipe.stages.train_rm.data import steps_of_epoch
from tests.test_decisions import Plain


class TestPlan:
    def test_unfinished_runs_of_other_settings_are_left(self, project, monkeypatch):
        from irpipe.stages.simulate_prompts import run as simulating

        def killed(*arguments):
            (arguments[-1].work / "shard").write_text("made")
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(simulating, "run", killed)
            project.run("simulate-prompts", "simulate-prompts.count=20", status=130)
        same = project("plan", "simulate-prompts", "--set", "simulate-prompts.count=20").out
        assert "continues where it was interrupted" in same and "leaves" not in same
        other = project("plan", "simulate-prompts", "--set", "simulate-prompts.count=21").out
        assert "leaves 1 unfinished run of other settings" in other and "continues" not in other


class TestEvaluation:
    def test_only_the_reward_is_normalised_and_pictures_are_from_0_to_1(self, monkeypatch):
        asked = {}

        def scored(scorer, texts, pictures, *, normalised):
            asked[scorer] = normalised
            return np.zeros(len(pictures))

        monkeypatch.setattr(evaluation, "sample_images", lambda *_: torch.zeros(2, 4, 2, 2))
        monkeypatch.setattr(evaluation, "score_pictures", scored)
        accelerator = SimpleNamespace(autocast=torch.no_grad, num_processes=1, process_index=0)
        told = SimpleNamespace(
            _images=[(0, 1), (1, 2)],
            accelerator=accelerator,
            config=SimpleNamespace(evaluation=SimpleNamespace(guidance_scale=1.0), training=SimpleNamespace(sample_batch_size=2)),
            denoiser=SimpleNamespace(decode=lambda latents: torch.full((2, 3, 4, 4), 1.0)),
            prompts=["a", "b"],
            scorers={REWARD: "reward", "a judge": "lower", "zoo": "higher"},
            _on_device=lambda name: nullcontext(told.scorers[name]),
            _schedule=None,
            _conditions=None,
        )
        pixels, *figures = GeneratorEvaluator._sampled(told, [0, 1])
        for name in told.scorers:
            GeneratorEvaluator._scores(told, name, pixels.numpy())
        assert asked == {"reward": True, "lower": False, "higher": False}
        assert pixels.dtype == torch.uint8 and int(pixels.min()) == 255
        brightness = figures[list(STATISTICS).index("brightness")]
        assert brightness.tolist() == pytest.approx([1.0, 1.0])

    def test_diversity_is_that_of_a_prompts_pictures(self, monkeypatch):
        pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 4, 4, 3), dtype=np.uint8))
        pixels = torch.cat([pixels, pixels[:2]])  # three of each prompt, of which two are kept
        rows = iter([[pixels, *[torch.zeros(6)] * len(STATISTICS)], [torch.zeros(3)]])
        monkeypatch.setattr(evaluation, "shared_rows", lambda *_: next(rows))
        chosen = SimpleNamespace(images=3, kept_images=1)
        config = SimpleNamespace(evaluation=chosen, training=SimpleNamespace(sample_batch_size=2))
        told = SimpleNamespace(
            config=config,
            accelerator=None,
            _images=range(6),
            _sampled=None,
            _scores=lambda *_: torch.zeros(6),
            _denoising=None,
            captioned=[],
            prompts=["a", "b"],
            scorers=[REWARD],
        )
        found = GeneratorEvaluator.measure(told, 3)
        expected = diversity(pixels.numpy().reshape(2, 3, 4, 4, 3).astype(np.float64) / 255)
        assert found.pictures.shape == (2, 2, 4, 4, 3)
        assert found.step == 3 and found.measures[DIVERSITY].tolist() == expected.tolist() and (expected > 0).all()

    def test_power_is_squared(self):
        """One slow wave of amplitude .1 and a fast one of .05: the fast one has a fifth of the power."""
        place = np.arange(32)
        wave = 0.5 + 0.1 * np.cos(2 * np.pi * 2 * place / 32) + 0.05 * np.cos(2 * np.pi * 12 * place / 32)
        picture = np.broadcast_to(wave[None, :, None], (32, 32, 3))[None]
        assert image_statistics(picture)["high_frequency_share"][0] == pytest.approx(0.2)

    def test_pixels_of_a_wide_picture(self):
        pictures = torch.zeros(1, 3, 2, 4)
        pictures[0, 1, 1, 3] = 0.99
        (made,) = as_pixels(pictures)
        assert made.shape == (2, 4, 3) and made[1, 3].tolist() == [0, 252, 0] and made.sum() == 252


@pytest.mark.parametrize(("setting", "longest"), [(0.5, 0.5), (None, float("inf"))])
def test_gradients_are_clipped_to_the_settings_norm(setting, longest):
    seen = []

    def clipped(values, most):
        seen.append(most)
        return 1.0

    told = SimpleNamespace(
        weights=SimpleNamespace(sum_gradients=lambda accelerator: None, zero_gradients=lambda: None, trained={}),
        config=SimpleNamespace(optimizer=SimpleNamespace(max_grad_norm=setting)),
        accelerator=SimpleNamespace(scaler=None, clip_grad_norm_=clipped),
        optimizer=SimpleNamespace(step=lambda: None),
    )
    assert Trainer._update(told, 0) == 1.0 and seen == [longest]


class TestFigures:
    def test_wins_are_over_all_other_generators(self):
        worths = {"judge": {name: np.array([[value]]) for name, value in {"a": 2.0, "base": 1.0, "z": 0.0}.items()}}
        rows = compare(worths, dict.fromkeys(("a", "base", "z"), 1), 100, 0)
        assert {row["generator"]: row["wins"] for row in rows} == {"a": 2.0, "base": 1.0, "z": 0.0}

    def test_two_scores_have_no_correlation_and_three_have(self):
        pair, three = np.array([1.0, 2.0]), np.array([1.0, 2.0, 4.0])
        assert _correlation(scipy.stats.pearsonr, pair, pair) is None
        assert _correlation(scipy.stats.pearsonr, three, -three) == pytest.approx(-1.0)

    def test_a_rank_of_0_is_a_rank(self):
        block = SimpleNamespace(
            rankings=np.array([7, 7], dtype=np.uint64),
            images=np.array([1, 2], dtype=np.uint64),
            prompts=np.array([5, 5], dtype=np.uint64),
            ranks=np.array([1, 0], dtype=np.int32),
            annotators=pa.array(["ann", "ann"]),
        )
        batch = Candidates(block, np.array([0]), np.array([1]), np.array([-1]), np.array([-1]), np.array([0]))
        facts = SimpleNamespace(categories=np.array([0]), category_names=["x"], splits=np.array([0]))
        columns = pair_columns(batch, np.array([True]), facts, np.array([1.0]))
        assert (columns["rank_better"].to_pylist(), columns["rank_worse"].to_pylist()) == ([0], [1])

    def test_no_step_is_empty_where_groups_are_larger_than_a_step(self):
        class Large:
            pair_counts = np.array([21, 21, 21])

            def __len__(self):
                return 3

        assert [len(step) for step in steps_of_epoch(Large(), 3, 0, 0)] == [1, 1, 1]

    def test_every_step_is_filled_alike(self):
        class Small:
            pair_counts = np.ones(6, dtype=np.int64)

            def __len__(self):
                return 6

        assert [len(step) for step in steps_of_epoch(Small(), 2, 0, 0)] == [2, 2, 2]


class TestCaptioned:
    class Told(Plain):
        """Notes what it is given."""

        def noised(self, latents, noise, timesteps, schedule):
            self.latents, self.noise, self.timesteps = latents, noise, timesteps
            return latents

    def test_latents_noise_and_level_are_drawn_apart(self):
        moments = np.zeros((1, 2, *Plain.shape), np.float32)
        moments[:, 1] = 1.0
        captioned = CaptionedImages(moments, {"prompt_embeds": np.zeros((1, 1), np.float32)})
        denoiser, seeds = self.Told(), list(range(40))
        denoising_losses(denoiser, SimpleNamespace(alphas=torch.ones(1000)), captioned, [0] * 40, seeds)
        assert not (denoiser.latents == denoiser.noise).any()
        with_noises_seed = [int(torch.randint(1000, (), generator=torch.Generator().manual_seed(seed))) for seed in seeds]
        assert sum(a == b for a, b in zip(denoiser.timesteps.tolist(), with_noises_seed, strict=True)) < 3

    def test_other_pictures_are_encoded_anew(self, tmp_path):
        opened: list[str] = []
        for what in ("x", "y", "y"):

            def pictures(what=what):
                opened.append(what)
                return iter([Image.new("RGB", (4, 2))])

            encode_captioned(Plain(), ["a"], pictures, what, tmp_path, 2, lambda count: None)
        assert opened == ["x", "y"]


def test_all_faults_of_independent_nodes_are_told(project, monkeypatch):
    def broken(wiring, name, *arguments):
        raise RecipeError(f"{name} is wrong")

    project.recipe('recipe = "x"\n[one]\nstage = "simulate-prompts"\n[two]\nstage = "simulate-prompts"\n')
    monkeypatch.setattr(Wiring, "_node", broken)
    wired = Wiring(load_recipe(project.root))
    for name in ("one", "two"):
        wired.visit(name)
    assert [str(error) for _, error in wired.faults] == ["one is wrong", "two is wrong"]


def test_what_other_code_left_is_deleted(tmp_path):
    store = Store(tmp_path)
    _, scratch = begin(store, "a" * 64, "one")
    (scratch / "shard").write_text("of one")
    _, scratch = begin(store, "a" * 64, "one")
    assert (scratch / "shard").exists(), "the same code goes on"
    _, scratch = begin(store, "a" * 64, "other")
    assert not (scratch / "shard").exists()
