"""Score guidance: as recorded from the published code, the plain sampling where its weight is next to nothing, and stopped where
it diverges."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from irpipe.models.generators import Sampling, load
from irpipe.models.guidance import sampler
from irpipe.models.guidance.config import ComparedGuidance, GuidanceSettings
from irpipe.models.guidance.sampler import Guide, GuidedGenerator, GuidedSchedule, guided, sample_guided
from irpipe.models.reward import load_reward_model
from irpipe.models.scorers.base import score_pictures
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.tuning.denoiser import Denoiser
from irpipe.models.tuning.reward_gradient import RewardGradients
from irpipe.pipeline.errors import ModelError, RecipeError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Inputs, Model
from tests.pipelines import stable_diffusion, stable_diffusion_xl

SCHEDULERS = ("own", "ddpm", "ddim", "pndm", "lms", "euler", "euler-ancestral", "dpm-solver++", "unipc")


class Toy(Denoiser):
    """The recorded network and decoder."""

    def __init__(self, recorded, kind="epsilon"):
        self.kind, self.recorded, toy = kind, recorded, recorded["toy"]
        size = len(toy["b"])
        self.weights = torch.tensor(toy["W_cond"]).view(size, size), torch.tensor(toy["b"])
        self.decoder = torch.tensor(toy["D"]).view(-1, size)
        self.pipeline = SimpleNamespace(prepare_extra_step_kwargs=lambda generators, eta: {"eta": eta})

    def predict(self, latents, timesteps, conditions, guidance=1.0):
        weights, bias = self.weights
        flat = latents.flatten(1)
        eps = torch.tanh(flat @ weights.T) + 0.8 * flat + bias * timesteps / self.recorded["settings"]["T"]
        eps = eps.view_as(latents)
        alpha = torch.tensor(self.recorded["alphas_cumprod"])[timesteps]
        x0 = (latents - (1 - alpha).sqrt() * eps) / alpha.sqrt()
        v = alpha.sqrt() * eps - (1 - alpha).sqrt() * x0
        return {"epsilon": eps, "v_prediction": v, "sample": x0}[self.kind]

    def decode(self, latents):
        return torch.tanh(latents.flatten(1) @ self.decoder.T)


class Closeness:
    """Minus the recorded loss."""

    def __init__(self, target):
        self.target, self.card = target, SimpleNamespace(normalised=lambda raw: raw)

    def preprocess(self, pictures):
        return pictures

    def __call__(self, pixels, texts):
        return -((pixels - self.target) ** 2).mean(dim=1)


@pytest.fixture
def recorded(shared):
    return json.loads((shared / "golden" / "guidance_a.json").read_text(encoding="utf-8"))


def toy_guide(recorded, kind="epsilon", **settings):
    toy = Toy(recorded, kind)
    scheduler = DDIMScheduler(
        num_train_timesteps=recorded["settings"]["T"], clip_sample=False, set_alpha_to_one=False, steps_offset=1
    )
    scheduler.alphas_cumprod = torch.tensor(recorded["alphas_cumprod"])
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    schedule = GuidedSchedule.of(scheduler, recorded["settings"]["S"], torch.device("cpu"))
    gradients = RewardGradients(Closeness(torch.tensor(recorded["toy"]["target"])), toy)
    return toy, schedule, Guide(gradients, recorded["settings"]["wt"], GuidanceSettings(**settings))


class TestAsPublished:
    def test_each_step_and_the_result(self, recorded):
        toy, schedule, guide = toy_guide(recorded)
        assert schedule.scheduler.timesteps.tolist() == recorded["ddim_timesteps"][::-1]
        for step, alpha in zip(recorded["steps"], schedule.alphas, strict=False):
            latents, timestep = torch.tensor(step["x_t"]), torch.tensor(step["t"])
            assert float(alpha) == pytest.approx(step["alpha_t"])
            eps = guide.guided(latents, timestep, alpha, {}, {}, 1.0)
            assert eps.numpy() == pytest.approx(np.array(step["eps_guided"]), abs=2e-5)
        first = torch.tensor(recorded["steps"][0]["x_t"])
        made = sample_guided(toy, schedule, {}, guide, {}, first, [])
        assert made.numpy() == pytest.approx(np.array(recorded["result"]), abs=2e-5)
        none = sample_guided(toy, schedule, {}, Guide(guide.gradients, 0.0, guide.settings), {}, first, [])
        assert none.numpy() == pytest.approx(np.array(recorded["result_without_guidance"]), abs=2e-5)

    def test_noise_is_put_back_as_recorded(self, recorded, monkeypatch):
        _, schedule, _ = toy_guide(recorded)
        for number, step in enumerate(recorded["steps"]):
            rows = iter(torch.tensor(step["renoise"]))
            monkeypatch.setattr(sampler.torch, "randn", lambda shape, generator, rows=rows: next(rows))
            again = sampler._noised_again(torch.tensor(step["x_prev"]), number, schedule, [None] * len(step["x_t"]))
            monkeypatch.undo()
            assert again.numpy() == pytest.approx(np.array(step["x_t_again"]), abs=2e-5)

    def test_a_repeat_goes_on_from_the_step_with_noise_put_back(self, recorded):
        toy, schedule, guide = toy_guide(recorded, repeats=2, end=0.25)  # the first of four steps
        first = torch.tensor(recorded["steps"][0]["x_t"])
        drawn = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
        made = sample_guided(toy, schedule, {}, guide, {}, first, drawn)
        noise = [torch.randn(first.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in (3, 4)]
        alpha, following = recorded["steps"][0]["alpha_t"], recorded["steps"][0]["alpha_prev"]
        kept = alpha / following
        again = kept**0.5 * torch.tensor(recorded["steps"][0]["x_prev"]) + (1 - kept) ** 0.5 * torch.stack(noise)
        once = Guide(guide.gradients, guide.scale, GuidanceSettings(end=0.25))
        assert made.numpy() == pytest.approx(sample_guided(toy, schedule, {}, once, {}, again, []).numpy(), abs=1e-4)

    @pytest.mark.parametrize("kind", ["v_prediction", "sample"])
    def test_whatever_the_network_predicts(self, recorded, kind):
        first, made = torch.tensor(recorded["steps"][0]["x_t"]), []
        for each in ("epsilon", kind):
            toy, schedule, guide = toy_guide(recorded, each)
            output = guide.guided(first, schedule.scheduler.timesteps[0], schedule.alphas[0], {}, {}, 1.0)
            made.append(toy.x0_at(first, schedule.alphas[0], output))
        assert made[1].numpy() == pytest.approx(made[0].numpy(), abs=1e-4)

    def test_divergence_is_an_error_that_names_the_step(self, recorded):
        toy, schedule, guide = toy_guide(recorded, start=0.5)
        wild = Guide(guide.gradients, 1e38, guide.settings)
        guide.gradients.model.card = SimpleNamespace(normalised=lambda raw: 1e4 * raw)
        with pytest.raises(RecipeError, match=r"of scale 1e\+38 diverged in step 3 of 4") as error:
            sample_guided(toy, schedule, {}, wild, {}, torch.tensor(recorded["steps"][0]["x_t"]), [])
        assert "a smaller scale" in str(error.value)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            ({}, list(range(10))),
            ({"start": 0.5, "every": 2}, [5, 7, 9]),
            ({"start": 0.2, "end": 0.5}, [2, 3, 4]),
        ],
    )
    def test_which_steps_are_guided(self, settings, steps):
        assert list(GuidanceSettings(**settings).guided_steps(10)) == steps

    def test_what_is_wrong(self):
        settings = GuidanceSettings(start=0.9, repeats=2)
        assert [fault.split()[0] for fault in settings.faults_for(3, "float32", "euler")] == [
            "score_guidance.start=0.9",
            "score_guidance.repeats",
        ]
        assert list(GuidanceSettings(repeats=2).faults_for(3, "bfloat16", "ddim")) == []
        twice = ComparedGuidance(scales=(1.0, 2.0, 1.0)).faults_for(3, "float32", "own")
        assert list(twice) == ["a scale stands twice in score_guidance.scales"]


# -- on pipelines of diffusers --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guidance")
    return {"sd": stable_diffusion(folder / "sd"), "sdxl": stable_diffusion_xl(folder / "sdxl")}


@pytest.fixture(scope="module")
def judge():
    return load_reward_model(shipped_folder("micro-judge")).eval()


def plain_and_guided(folder, judge, scale, scheduler="ddim", guidance_scale=1.0, num_steps=4, **settings):
    """Images of three prompts without guidance and with it, and whatever else is asked."""
    sampling = Sampling(num_steps, guidance_scale, scheduler, None, None, "a cross", "float32", False)
    plain = load(Model("tiny", "0" * 64, folder), sampling, "cpu")
    made = []
    for guide in (False, True):
        generator = load(Model("tiny", "0" * 64, folder), sampling, "cpu") if guide else plain
        if guide:
            generator = GuidedGenerator(generator, judge, "judge", scale, GuidanceSettings(**settings), "tiny")
        encodings = generator.encode(["a red circle", "a blue square", "a green cross"], 2)
        made.append(generator.sample(encodings, [0, 1, 2, 0], [5, 6, 7, 8])[0])
    return (*made, generator, encodings)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_next_to_no_guidance_is_the_plain_sampling(pipelines, judge, kind, scheduler):
    plain, made, *_ = plain_and_guided(pipelines[kind], judge, 1e-20, scheduler, guidance_scale=3.0, num_steps=7)
    assert made == pytest.approx(plain, abs=2e-4)


def test_an_image_does_not_depend_on_its_batch(pipelines, judge):
    _, made, generator, encodings = plain_and_guided(pipelines["sd"], judge, 100.0, "ddpm", repeats=2)
    alone, _ = generator.sample(encodings, [2], [7])
    assert alone[0] == pytest.approx(made[2], abs=2e-3)  # rounding depends on the batch, and guidance of 100 makes it larger


def test_repeats_need_a_scheduler_that_goes_back(pipelines, judge):
    with pytest.raises(ModelError, match="takes no step twice"):
        plain_and_guided(pipelines["sd"], judge, 1.0, "dpm-solver++", repeats=2)


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "euler", "euler-ancestral"])
def test_the_predicted_image_is_the_schedulers_own(pipelines, judge, scheduler):
    """At every step, also between the timesteps of training."""
    *_, generator, _ = plain_and_guided(pipelines["sdxl"], judge, 1.0, scheduler, num_steps=7)
    schedule = generator._schedule()
    whole = schedule.scheduler.timesteps == schedule.scheduler.timesteps.round()
    assert bool(whole.all()) is scheduler.startswith("dd")
    latents = torch.randn(2, 4, 8, 8) * schedule.scheduler.init_noise_sigma
    for number, timestep in enumerate(schedule.scheduler.timesteps):
        noisy, eps = schedule.scheduler.scale_model_input(latents, timestep), torch.randn(2, 4, 8, 8)
        own = schedule.scheduler.step(eps, timestep, latents)
        ours = generator.denoiser.x0_at(noisy, schedule.alphas[number], eps)
        if scheduler.startswith("dd"):
            own.pred_original_sample = own.pred_original_sample.clamp(-1, 1)
            ours = ours.clamp(-1, 1)  # as this model's file says
        assert torch.allclose(ours, own.pred_original_sample, atol=1e-3, rtol=1e-3)
        latents = own.prev_sample


def test_what_it_costs(pipelines, judge):
    """By the scheduler's own steps: PNDM has one more."""
    *_, generator, _ = plain_and_guided(pipelines["sd"], judge, 1.0, "own", num_steps=10, guidance_scale=3.0, start=0.5)
    assert generator.cost.startswith("score guidance: 5 of 11 steps, 1 time each: per image 11 passes of the network, each with")
    *_, generator, _ = plain_and_guided(pipelines["sd"], judge, 1.0, "ddim", num_steps=10, start=0.5, every=2, repeats=3)
    assert "3 of 10 steps, 3 times each: per image 16 passes of the network, of which 9 are followed" in generator.cost
    with pytest.raises(RecipeError, match="leave none of the 11 steps of PNDMScheduler to guide"):
        plain_and_guided(pipelines["sd"], judge, 1.0, "own", num_steps=10, start=0.52, end=0.56)


def test_another_pipeline_cannot_be_guided(pipelines, judge):
    generator = load(Model("tiny", "0" * 64, pipelines["sd"]), Sampling(2, 1.0, "ddim", None, None, "", "float32", False), "cpu")
    generator.pipeline = SimpleNamespace(scheduler=generator.pipeline.scheduler)
    with pytest.raises(ModelError, match="tiny is a SimpleNamespace, whose sampling cannot be guided"):
        GuidedGenerator(generator, judge, "judge", 1.0, GuidanceSettings(), "tiny")


def test_the_score_rises_and_with_the_scale(judge):
    scorer, means = RewardModelScorer(judge, "cpu", torch.float32), []
    for scale in (1.0, 30.0):
        plain, made, *_ = plain_and_guided(shipped_folder("micro-generator"), judge, scale, num_steps=10, start=0.5)
        texts = ["a red circle", "a blue square", "a green cross", "a red circle"]
        scores = [
            score_pictures(scorer, texts, list(np.uint8(np.rint(255 * one))), normalised=True).mean() for one in (plain, made)
        ]
        means.append(scores[1] - scores[0])
    assert 0 < means[0] < means[1]
    assert means[1] > 0.1


def test_the_images_name_their_guidance(pipelines, judge):
    *_, generator, _ = plain_and_guided(pipelines["sd"], judge, 30.0, start=0.25)
    told = json.loads(generator.settings)["score_guidance"]
    assert told == {"start": 0.25, "end": 1.0, "every": 1, "repeats": 1, "aspect": None, "scale": 30.0, "reward_model": "judge"}


def test_a_score_that_there_is_not(pipelines):
    sampling = Sampling(2, 1.0, "ddim", None, None, "", "float32", False)
    generator = load(Model("tiny", "0" * 64, pipelines["sd"]), sampling, "cpu")
    models = {"reward_model": (Model("micro-judge", "1" * 64, shipped_folder("micro-judge")),)}
    with pytest.raises(ModelError, match="there is no score 'beauty'"):
        guided(generator, 1.0, GuidanceSettings(aspect="beauty"), models, Inputs({}), "tiny")


RECIPE = """recipe = "guided"
[embed-prompts]
path = "pool.txt"
embedder = "lexical"
[select-prompts]
method = "random"
count = 6
[split-prompts]
source = "selected-prompts"
near_duplicate = "off"
test_share = 0.5
[generate-images]
models = ["micro-generator"]
num_steps = 3
guidance_scale = 1.0
dtype = "float32"
[compare-generators]
tuned = false
model = "micro-generator"
num_steps = 8
guidance_scale = 1.0
dtype = "float32"
images_per_prompt = 1
scorers = ["reward-model"]
reward_model = "micro-judge"
score_guidance.scales = [1.0, 5.0]
score_guidance.start = 0.5
"""


@pytest.fixture
def small(project):
    project.recipe(RECIPE)
    prompts = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square", "cross")]
    (project.root / "pool.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return project


class TestStages:
    def test_images_are_guided_by_a_given_reward_model(self, small):
        plain = small.last("generate-images")
        guided = small.last(
            "generate-images", "generate-images.score_guidance.scale=20.0", "generate-images.reward_model=micro-judge"
        )
        assert guided["key"] != plain["key"]
        settings = {row["settings"] for row in small.rows("SELECT settings FROM images")}
        assert {json.loads(one)["score_guidance"]["scale"] for one in settings} == {20.0}
        same = small.last("generate-images", "generate-images.score_guidance.scale=0.0")
        assert same["content_id"] == plain["content_id"]

    def test_settings_without_guidance_have_no_effect(self, small):
        error = small.run(
            "generate-images", "generate-images.reward_model=micro-judge", "generate-images.score_guidance.start=0.5", status=2
        ).err
        assert "reward_model has no effect: score_guidance.scale is 0" in error
        assert "score_guidance.start has no effect" in error
        half = small.run(
            "generate-images",
            "generate-images.reward_model=micro-judge",
            "generate-images.score_guidance.scale=1.0",
            "generate-images.dtype=float16",
            "generate-images.score_guidance.start=0.9",
            status=2,
        ).err
        assert "leave none of 3 steps to guide" in half
        assert "dtype=bfloat16 or float32" in half

    def test_the_base_is_compared_at_several_scales(self, small):
        told = small.run("compare-generators").err
        assert "score guidance: 4 of 8 steps, 1 time each" in told
        rows = {row["generator"]: row["mean"] for row in small.rows("SELECT generator, mean FROM comparison")}
        assert set(rows) == {"base", "guided-1", "guided-5"}
        assert rows["base"] < rows["guided-1"] < rows["guided-5"]
        nothing = small.run("compare-generators", "compare-generators.score_guidance.scales=[]", status=2).err
        assert "nothing is compared" in nothing

    @pytest.mark.slow
    def test_the_recipes_reward_model_guides(self, world):
        """By a node of its own: the reward model was trained on other images."""
        text = (world.root / "irpipe.toml").read_text(encoding="utf-8")
        guided = '[guided]\nlike = "generate-images"\nscore_guidance.scale = 9.0\n'
        world.recipe(text + guided + "[guided.reads]\nreward-model = 'train-rm'\n")
        done = world.last("guided", "reads.images=generate-images")
        rows = world.rows("SELECT DISTINCT settings FROM guided.images")
        model = world.store.newest("micro", "train-rm")
        assert {json.loads(row["settings"])["score_guidance"]["reward_model"] for row in rows} == {model.content_id}
        assert [entry.content_id for entry in world.store.newest("micro", "guided").inputs.values()].count(model.content_id) == 1
        assert done["rows"]["kept"] > 0
