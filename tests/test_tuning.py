"""What tunings share, and ReFL's objective: denoiser, gradients, stop rule, statistics."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from irpipe.models.imagereward import ImageReward
from irpipe.models.tuning.config import EvaluationSettings
from irpipe.models.tuning.denoiser import load_denoiser, rows_of, sample
from irpipe.models.tuning.evaluation import (
    DENOISING,
    HELD_OUT,
    REWARD,
    SIMILARITY,
    Evaluation,
    StopRule,
    diversity,
    image_statistics,
)
from irpipe.models.tuning.reward_gradient import RewardGradients, reward_loss
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.recipe_file import load_recipe
from irpipe.pipeline.stage import Context, Model
from irpipe.stages.refl.objective import ReflObjective
from tests.pipelines import stable_diffusion, stable_diffusion_xl

MICRO = Model("micro-generator", "r", Path(__file__).parents[1] / "microworld" / "weights" / "generator")
PROMPTS = ["a red circle", "a large blue square on the left", "a small green cross above a yellow circle"]


def reward_model(world) -> ImageReward:
    return ImageReward.from_pretrained(world.store.open(world.store.newest("micro", "train-rm").content_id).path)


def denoiser_of(model=MICRO, **more):
    return load_denoiser(model, "cpu", "float32", **more)


def objective_of(world, tmp_path, denoiser=None, **settings) -> ReflObjective:
    """ReFL's objective on three prompts; settings of groups are given as `optimizer__learning_rate`."""
    laid = [f"refl.{name.replace('__', '.')}={value}" for name, value in settings.items()]
    config = load_recipe(world.root, laid).config("refl")
    denoiser = denoiser or denoiser_of(guidance_scale=config.guidance_scale)
    denoiser.unet.requires_grad_(True)
    session = SimpleNamespace(
        stage="refl",
        accelerator=Accelerator(cpu=True),
        context=Context(tmp_path, Watcher().progress, print, {}),
        denoiser=denoiser,
        reward=reward_model(world).requires_grad_(False),
        prompts=dict(enumerate(PROMPTS)),
    )
    return ReflObjective(config, session)


class TestDenoiser:
    @pytest.mark.parametrize("guidance", [1.0, 4.0])
    @pytest.mark.parametrize("kind", [stable_diffusion, stable_diffusion_xl])
    def test_sampling_to_the_end_is_what_plain_diffusers_samples(self, kind, guidance, tmp_path):
        from diffusers import DDPMScheduler, DiffusionPipeline

        folder = kind(tmp_path / "sd")
        denoiser = denoiser_of(Model("x", "r", folder), guidance_scale=guidance)
        schedule = denoiser.noise_schedule(6, "ddpm")
        conditions = rows_of(denoiser.encode(PROMPTS), range(3), torch.device("cpu"))
        latents = sample(denoiser, schedule, conditions, [1, 2, 3], stop=6, keep_from=4, guidance=guidance)
        assert latents.shape == (3, 3, 4, 8, 8)
        with torch.no_grad():
            ours = denoiser.decode(latents[:, -1])
        plain = DiffusionPipeline.from_pretrained(folder)
        plain.set_progress_bar_config(disable=True)
        plain.scheduler = DDPMScheduler.from_config(plain.scheduler.config, clip_sample=False)
        theirs = plain(
            PROMPTS,
            num_inference_steps=6,
            guidance_scale=guidance,
            output_type="pt",
            generator=[torch.Generator().manual_seed(seed) for seed in (1, 2, 3)],
        ).images
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
    def test_predicted_x0_is_the_schedulers(self, kind, tmp_path):
        folder = stable_diffusion(tmp_path / "sd")
        told = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told | {"prediction_type": kind}))
        denoiser = denoiser_of(Model("x", "r", folder))
        schedule = denoiser.noise_schedule(8, "ddim")
        latents, answer = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        for timestep in schedule.timesteps:
            expected = schedule.scheduler.step(answer, timestep, latents).pred_original_sample
            torch.testing.assert_close(denoiser.predicted_x0(latents, timestep.expand(2), answer, schedule), expected)

    def test_noise_and_target_undo_each_other(self, tmp_path):
        denoiser = denoiser_of()
        schedule = denoiser.noise_schedule(1000, "ddpm")
        clean, noise, times = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 999])
        noised = denoiser.noised(clean, noise, times, schedule)
        torch.testing.assert_close(noised, schedule.scheduler.add_noise(clean, noise, times))
        for denoiser.kind in ("epsilon", "v_prediction", "sample"):
            back = denoiser.predicted_x0(noised, times, denoiser.target(clean, noise, times, schedule), schedule)
            torch.testing.assert_close(back, clean, rtol=1e-2, atol=2e-3)

    def test_an_unknown_scheduler_is_named(self, tmp_path):
        folder = stable_diffusion(tmp_path / "sd")
        (folder / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}')
        index = json.loads((folder / "model_index.json").read_text())
        index["scheduler"] = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
        (folder / "model_index.json").write_text(json.dumps(index))
        with pytest.raises(Exception, match="FlowMatchEulerDiscreteScheduler, whose noise levels are not known"):
            denoiser_of(Model("x", "r", folder))

    def test_a_generator_without_an_autoencoder_is_named(self, tmp_path):
        folder = stable_diffusion(tmp_path / "sd")
        shutil.rmtree(folder / "vae")
        with pytest.raises(Exception, match="the generator x cannot be loaded"):
            denoiser_of(Model("x", "r", folder))

    def test_sizes_must_fit_the_latents(self):
        with pytest.raises(Exception, match="no multiples of 4"):
            denoiser_of(width=38, height=32)


def norms_of(figures) -> list[float]:
    """The norms of reward gradients."""
    assert figures["reward_gradient"].tails, "the largest one tells of what clipping is for"
    return figures["reward_gradient"].values.tolist()


class TestObjective:
    def test_network_and_scheduler_get_the_schedules_own_timesteps(self, world, tmp_path):
        sizes = {"batch_size": 24, "training__sample_batch_size": 24}
        objective = objective_of(world, tmp_path, num_steps=10, first_late_step=7, last_late_step=9, **sizes)
        asked = []
        unet = objective.denoiser.unet
        unet.register_forward_pre_hook(lambda module, given: asked.append(given[1].clone()))
        objective.prepare(0, lambda: None)
        schedule = objective.schedule.timesteps
        assert [int(one) for one in asked] == schedule[:9].tolist()
        asked.clear()
        objective.losses(0, range(24))
        assert set(asked[0].tolist()) == set(schedule[7:].tolist())
        for index, timestep in enumerate(asked[0].tolist()):
            _, late = objective._drawn(0, index)
            assert timestep == schedule[7 + late]

    def test_gradients_are_autograds_through_the_whole_graph(self, world, tmp_path):
        objective = objective_of(world, tmp_path, clip_reward_gradient="none", batch_size=4)
        objective.prepare(0, lambda: None)
        losses, _ = objective.losses(0, range(4))
        losses.mean().backward()
        ours = {name: value.grad.clone() for name, value in objective.denoiser.unet.named_parameters() if value.grad is not None}
        denoiser, reward = objective.denoiser, objective.gradients.model
        denoiser.unet.zero_grad()
        rows, late = zip(*(objective._drawn(0, index) for index in range(4)), strict=True)
        latents = objective._rollouts.latents[list(rows), list(late)]
        prompts = [objective._rollouts.prompts[row] for row in rows]
        times = objective.schedule.timesteps[[3 + one for one in late]]
        alpha = objective.schedule.scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
        noise = denoiser.unet(latents, times, objective.conditions["prompt_embeds"][prompts]).sample
        clean = (latents - (1 - alpha).sqrt() * noise) / alpha.sqrt()
        images = (denoiser.vae.decode(clean / denoiser.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
        texts = {name: values[prompts] for name, values in objective.texts.items()}
        rewards = reward.card.normalised(reward(reward.preprocess(images), texts))
        torch.relu(2 - rewards).mean().backward()
        for name, value in denoiser.unet.named_parameters():
            if value.grad is not None:
                torch.testing.assert_close(ours[name], value.grad, rtol=1e-3, atol=1e-5)

    def test_reward_gradients_are_clipped_to_the_median_norm_of_earlier_ones(self, world, tmp_path):
        objective = objective_of(world, tmp_path)
        objective.prepare(0, lambda: None)
        _, figures = objective.losses(0, range(6))
        objective.finish(0)
        assert objective.carried == [sorted(norms_of(figures))]
        objective.prepare(1, lambda: None)
        limit = float(np.sort(norms_of(figures))[2])  # torch's median of an even number is the lower one
        assert objective._limit == pytest.approx(limit)
        _, figures = objective.losses(1, range(6))
        objective.carried = [[0.0] * 10 + [1.0, 2.0]]  # where phi is flat there is no gradient to count
        objective.prepare(1, lambda: None)
        assert objective._limit == 1.0
        assert figures["clipped_share"].values.tolist() == [float(norm > limit) for norm in norms_of(figures)]

    def test_each_phi(self):
        rewards = torch.tensor([-1.0, 1.0, 3.0])
        assert reward_loss(rewards, "margin", 2.0).tolist() == [3.0, 1.0, 0.0]
        assert reward_loss(rewards, "linear", 2.0).tolist() == [1.0, -1.0, -3.0]

    def test_a_reward_model_that_blocks_gradients_is_named_before_anything_is_spent(self, world, tmp_path):
        objective = objective_of(world, tmp_path)
        parameters = list(objective.denoiser.unet.parameters())
        objective.check_gradient(parameters)
        with torch.no_grad():
            objective.gradients.model.head_layers[-1].weight.zero_()
        with pytest.raises(Exception, match="zero behind the decoder: the reward does not depend on the image"):
            objective.check_gradient(parameters)
        with torch.no_grad():
            objective.gradients.model.head_layers[-1].weight.fill_(float("inf"))
        with pytest.raises(Exception, match="not finite behind the decoder"):
            objective.check_gradient(parameters)
        detached = objective_of(world, tmp_path)
        detached.gradients.model.forward = lambda pixels, texts: torch.zeros(len(pixels))
        with pytest.raises(Exception, match="the reward model or the decoder blocks it"):
            detached.check_gradient(list(detached.denoiser.unet.parameters()))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"first_late_step": 6, "last_late_step": 6}, "the late steps 6 to 6 are none of the steps 0 to 5"),
            ({"first_late_step": 5, "last_late_step": 4}, "the late steps 5 to 4"),
            ({"rollouts": 8}, "rollouts has no effect: refresh_every is 1"),
            ({"noise_std": 0.2}, "noise_std has no effect: noise_samples is 0"),
            ({"evaluation.kept_images": 5}, "evaluation.kept_images is above evaluation.prompts"),
            ({"evaluation.kept_imges": 5}, "refl.evaluation has no setting 'kept_imges'; did you mean 'kept_images'?"),
        ],
    )
    def test_settings_that_do_not_go_together(self, world, settings, message):
        laid = [f"refl.{name}={value}" for name, value in settings.items()]
        assert message in world.run("refl", *laid, status=2).err


class TestWeightMap:
    def test_pixels_count_by_the_heatmap(self):
        """Of a wide picture: the map is of the padded square, and has mean 1 over the picture."""

        class Mean:
            card = SimpleNamespace(normalised=lambda raw: raw)

            def preprocess(self, pictures):
                return pictures

            def look(self, pixels):
                return pixels

            def heatmap(self, pixels, image, texts, kind):
                assert kind == "implausibility"
                rows = torch.tensor([9.0, 0.25, 0.75, 9.0])  # the outer rows are padding
                return rows[:, None].expand(len(pixels), 4, 4)

            def __call__(self, pixels, texts):
                return pixels.mean(dim=(1, 2, 3))

        denoiser = SimpleNamespace(decode=lambda latents: latents)
        x0 = torch.rand(2, 3, 2, 4)
        plain = RewardGradients(Mean(), denoiser).at(x0, {}, [])
        weighed = RewardGradients(Mean(), denoiser, weight_map="implausibility").at(x0, {}, [])
        assert weighed.rewards.tolist() == pytest.approx(plain.rewards.tolist())
        assert torch.allclose(weighed.gradients[:, :, 0], 0.5 * plain.gradients[:, :, 0])
        assert torch.allclose(weighed.gradients[:, :, 1], 1.5 * plain.gradients[:, :, 1])


class TestStopRule:
    def evaluation(self, step, reward=0.0, held_out=0.0, similarity=0.0, loss=1.0, **statistics):
        spread = np.linspace(-0.1, 0.1, 20)
        measures = {
            REWARD: reward + spread,
            HELD_OUT: held_out + spread,
            SIMILARITY: similarity + spread,
            DENOISING: loss + spread,
        }
        measures |= {"brightness": np.full(20, statistics.get("brightness", 0.5))}
        return Evaluation(step, measures, np.zeros((20, 2, 4, 4, 3), dtype=np.uint8))

    def rule(self, **settings):
        rule = StopRule(EvaluationSettings(**settings))
        assert not rule.fault(self.evaluation(0))
        return rule

    def test_a_better_generator_goes_on(self):
        rule = self.rule()
        assert all(
            not rule.fault(self.evaluation(step, 0.1 * step, 0.1 * step, 0.05 * step, 1 + 0.01 * step)) for step in (1, 2, 3)
        )

    def test_reward_up_while_a_held_out_scorer_falls_is_hacking(self):
        rule = self.rule()
        assert not rule.fault(self.evaluation(1, 0.5, 0.3))
        assert "while held_out fell from 0.300 to 0.200" in rule.fault(self.evaluation(2, 1.0, 0.2))
        assert not self.rule().fault(self.evaluation(1, -0.5, -0.2))  # both fell: that is noise or forgetting, not hacking

    def test_forgetting_statistics_and_numbers_that_are_none(self):
        assert "rose by 20%" in self.rule(max_denoising_rise=0.15).fault(self.evaluation(1, loss=1.2))
        assert not self.rule().fault(self.evaluation(1, loss=1.2))
        assert "brightness of the images went from 0.5 to 0.2" in self.rule().fault(self.evaluation(1, brightness=0.2))
        assert "reward is not finite" in self.rule().fault(self.evaluation(1, reward=float("nan")))

    @pytest.mark.slow
    def test_a_reward_that_likes_dark_images_is_stopped(self, world, monkeypatch):
        from irpipe.models.reward import base

        class Dark(ImageReward):
            def forward(self, pixels, texts):
                return -4 * pixels.mean(dim=(1, 2, 3)) * self.card.std + self.card.mean

        def dark(path):
            model = ImageReward.from_pretrained(path)
            model.__class__ = Dark
            return model

        monkeypatch.setattr(base, "load_reward_model", dark)
        laid = (
            "refl.steps=40",
            "refl.phi=linear",
            "refl.optimizer.learning_rate=3e-3",
            "refl.evaluation.max_denoising_rise=10.0",
        )
        done = world.last("refl", *laid)
        metrics = done["metrics"]
        assert metrics["stopped_for"] and metrics["steps"] < 40 and metrics["kept_step"] < metrics["steps"]
        rows = world.rows("SELECT step, value FROM refl.curves WHERE figure = 'brightness' ORDER BY step")
        assert rows[-1]["value"] < 0.8 * rows[0]["value"]
        logged = world.last("refl", *laid, "refl.evaluation.early_stopping=log")["metrics"]
        assert logged["steps"] == logged["kept_step"] == 40 and logged["stop_rule"] and not logged["stopped_for"]


class TestStatistics:
    def test_known_pictures(self):
        flat, stripes = np.full((32, 32, 3), 0.5), np.zeros((32, 32, 3))
        stripes[:, ::2] = 1.0
        red = np.zeros((32, 32, 3))
        red[..., 0] = 1.0
        found = image_statistics(np.stack([flat, stripes, red]))
        assert found["brightness"].tolist() == pytest.approx([0.5, 0.5, 0.299])
        assert found["contrast"].tolist() == pytest.approx([0.0, 0.5, 0.0])
        assert found["saturation"].tolist() == pytest.approx([0.0, 0.0, 1.0])
        assert found["edge_energy"].tolist() == pytest.approx([0.0, 1.0, 0.0])
        assert found["high_frequency_share"].tolist() == pytest.approx([0.0, 1.0, 0.0])
        assert found["colour_entropy"].tolist() == pytest.approx([0.0, 1.0, 0.0])
        assert found["dark_share"].tolist() == pytest.approx([0.0, 0.5, 0.0])
        assert diversity(np.stack([np.stack([flat, flat]), np.stack([flat, flat + 0.5])])).tolist() == pytest.approx([0.0, 0.5])
        three = np.stack([flat, flat + 0.5, flat + 1.0])[None]  # squared differences of .25, .25 and 1
        assert diversity(three).tolist() == pytest.approx([0.5**0.5])
