"""The baselines of Rich Human Feedback: a ResNet with heads and a CLIP tuned to the scores, from start to tables."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import CLIPModel, ResNetModel

from irpipe.models.reward.base import load_reward_model, of_aspect
from irpipe.models.reward.baselines import ClipBaseline, ResNetBaseline
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import start_from_blip
from irpipe.models.reward.start import init_reward_model
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.schemas.rich_feedback import ASPECTS, KINDS
from irpipe.stages.train_rahf import TrainRahfConfig
from tests.rahfs import RICH_RECIPE

RESNET, CLIP = (Model(name, "r", shipped_folder(name)) for name in ("micro-resnet", "micro-clip"))
HEADS = HeadSizes((8,), (8, 8, 4), 1, 2, (8,), (8,))
PROMPTS = ["a large red circle on the left", "a cross", "a blue square above a green cross"]
PIXELS = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 3, 32, 32)))


@pytest.fixture(params=["resnet", "clip"])
def model(request):
    made = ResNetBaseline.start(RESNET, HEADS, 0) if request.param == "resnet" else ClipBaseline.start(CLIP, HEADS, 0)
    return made.double()


def answers(model, pixels, prompts):
    """All scores (n, 4) and maps (n, kinds, 32, 32) that a baseline gives."""
    image, texts = model.look(pixels), model.encode_texts(prompts)
    shared = model.shared(image, texts)
    scores = torch.stack([model.score(image, texts, aspect, shared) for aspect in ASPECTS], dim=1)
    maps = [model.heatmap(pixels, image, texts, kind) for kind in KINDS] if "heatmaps" in model.outputs else []
    return scores, torch.stack(maps, dim=1) if maps else torch.empty(len(prompts), 0)


def test_an_answer_does_not_depend_on_its_batch_nor_on_the_mode(model):
    """A batch norm would make it depend on both; a training would depend on how it is batched."""
    with torch.no_grad():
        scores, maps = answers(model, PIXELS, PROMPTS)
        model.train()
        for number, prompt in enumerate(PROMPTS):
            alone = answers(model, PIXELS[number : number + 1], [prompt])
            torch.testing.assert_close(alone[0][0], scores[number])
            torch.testing.assert_close(alone[1][0], maps[number])
    assert scores.min() > 0 and scores.max() < 1
    assert len({round(value, 6) for value in scores.flatten().tolist()}) == scores.numel(), "heads of their own"


def test_what_is_pre_trained_comes_in_whole():
    resnet, clip = ResNetBaseline.start(RESNET, HEADS, 0), ClipBaseline.start(CLIP, HEADS, 0)
    for ours, theirs in (
        (resnet.base, ResNetModel.from_pretrained(RESNET.folder, dtype=torch.float32)),
        (clip.base.clip, CLIPModel.from_pretrained(CLIP.folder, dtype=torch.float32)),
    ):
        known = theirs.state_dict()
        assert ours.state_dict().keys() == known.keys()
        assert all(torch.equal(value, known[name]) for name, value in ours.state_dict().items())
    assert resnet.preprocess.fit == clip.preprocess.fit == "pad" and resnet.side == 4
    other = ResNetBaseline.start(RESNET, HEADS, 1)
    assert not torch.equal(other.scores["overall"].body[0][0].weight, resnet.scores["overall"].body[0][0].weight), "by the seed"


def test_only_the_clip_reads_the_prompt(model):
    with torch.no_grad():
        same, _ = answers(model, PIXELS[:1].expand(2, -1, -1, -1), PROMPTS[:2])
    assert torch.equal(same[0], same[1]) == (model.format == "resnet-baseline")
    assert model.cut_prompts(["a cross", "a cross " * 60]) == (model.format == "clip-baseline")


def test_saved_and_loaded(model, tmp_path):
    model.float().save_pretrained(tmp_path / "saved")
    again = load_reward_model(tmp_path / "saved")
    assert type(again) is type(model) and again.heads == HEADS and again.preprocess == model.preprocess
    with torch.no_grad():
        for one, other in zip(answers(model, PIXELS.float(), PROMPTS), answers(again, PIXELS.float(), PROMPTS), strict=True):
            assert torch.equal(one, other)
    document = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(document | {"format": "rahf"}))
    with pytest.raises(ModelError):
        load_reward_model(tmp_path / "saved")


def test_the_same_model_elsewhere_is_the_same_file(tmp_path):
    """Where a model lay is no part of what is made of it: a content id and a published file would tell it."""
    blip, sizes = HeadSizes((8,), (8, 4), 1, 2, (8,), (8,)), {"d_model": 32, "d_ff": 32, "num_heads": 2, "num_layers": 1}
    starts = {
        "micro-resnet": [lambda model: ResNetBaseline.start(model, HEADS, 0)],
        "micro-clip": [
            lambda model: ClipBaseline.start(model, HEADS, 0),
            lambda model: init_reward_model(model, "auto", 0)[0],
        ],
        "micro-blip": [
            lambda model: init_reward_model(model, "auto", 0)[0],
            lambda model: start_from_blip(model, "multi-head", blip, sizes | {"num_decoder_layers": 1}, 0),
        ],
    }
    for name, ways in starts.items():
        for number, start in enumerate(ways):
            saved = []
            for place in ("here", "there"):
                folder = shutil.copytree(shipped_folder(name), tmp_path / f"{place} {name} {number}")
                start(Model("m", "r", folder)).save_pretrained(folder / "saved")
                saved.append((folder / "saved" / "config.json").read_text())
            assert saved[0] == saved[1] and str(tmp_path) not in saved[0], (name, number)


def test_maps_that_are_not_trained_are_not_there(tmp_path):
    alone = ResNetBaseline.start(RESNET, HEADS, 0, heatmaps=False)
    alone.save_pretrained(tmp_path)
    again = load_reward_model(tmp_path)
    assert again.outputs == ("scores",) and not any(name.startswith("heatmaps") for name in again.state_dict())
    assert load_reward_model(tmp_path).aspects == ASPECTS


def test_each_score_is_a_reward(model):
    """A plain call gives the aspect's score, and its gradient reaches the pixels."""
    pixels = PIXELS.clone().requires_grad_(True)
    texts = model.encode_texts(PROMPTS)
    for place, aspect in enumerate(ASPECTS):
        found = of_aspect(model, aspect)(pixels, texts)
        assert torch.equal(found, answers(model, PIXELS, PROMPTS)[0][:, place])
        (gradient,) = torch.autograd.grad(found.sum(), pixels)
        assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


def test_freezing(model):
    base = {name for name, _ in model.named_parameters() if name.startswith("base.")} - {"base.clip.logit_scale"}

    def trained():
        return {name for name, value in model.named_parameters() if value.requires_grad}

    model.freeze(0.0)
    assert trained() >= base and "base.clip.logit_scale" not in trained()
    model.freeze(0.5)
    kept = trained() & base
    assert kept < base and all(not name.startswith("base.embedder") and "embeddings" not in name for name in kept)
    assert kept, "the upper layers train"
    if model.format == "resnet-baseline":
        model.freeze(1.0)
        assert {name.partition(".")[0] for name in trained()} == {"heatmaps", "scores"}


def test_less_memory_the_same_gradient(model):
    """Layers that are computed again on the way back."""

    def gradients():
        model.zero_grad()
        model(PIXELS, model.encode_texts(PROMPTS)).sum().backward()
        return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}

    model.train()
    plain = gradients()
    model.checkpoint_activations()
    again = gradients()
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value)


def test_what_is_no_resnet(tmp_path):
    with pytest.raises(ModelError, match="micro-clip is a clip"):
        ResNetBaseline.start(CLIP, HEADS, 0)
    with pytest.raises(ModelError, match="holds no CLIP"):
        ClipBaseline.start(RESNET, HEADS, 0)
    folder = shutil.copytree(RESNET.folder, tmp_path / "resnet")
    told = json.loads((folder / "preprocessor_config.json").read_text())
    for size, why in (
        ({"height": 32, "width": 48}, "names no one side"),
        ({"shortest_edge": 0}, "names no one side"),
        (30, "halves pictures to 1/8"),
    ):
        (folder / "preprocessor_config.json").write_text(json.dumps(told | {"size": size}))
        with pytest.raises(ModelError, match=why):
            ResNetBaseline.start(Model("r", "r", folder), HEADS, 0)
    for crops, side in ((False, 32), (True, 16)):
        (folder / "preprocessor_config.json").write_text(json.dumps(told | {"do_center_crop": crops, "crop_size": 16}))
        assert ResNetBaseline.start(Model("r", "r", folder), HEADS, 0).preprocess.image_size == side
    (folder / "preprocessor_config.json").write_text(json.dumps(told | {"do_flip_channel_order": True}))
    with pytest.raises(ModelError, match="do_flip_channel_order is True"):
        ResNetBaseline.start(Model("r", "r", folder), HEADS, 0)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="no image preprocessing"):
        ResNetBaseline.start(Model("r", "r", folder), HEADS, 0)


BASELINE_RECIPE = (
    RICH_RECIPE
    + """
[resnet]
like = "train-rahf"
variant = "resnet"
model = "micro-resnet"
freeze_rate = 0.0
heads.map_deconvs = [12, 12, 8]
[clip]
like = "train-rahf"
variant = "clip"
model = "micro-clip"
freeze_rate = 0.0
[predict-resnet]
like = "predict-rich-feedback"
reads.reward-model = "resnet"
[predict-clip]
like = "predict-rich-feedback"
reads.reward-model = "clip"
"""
).replace("[evaluate-rahf]\n", '[evaluate-rahf]\nreads.rich-predictions = ["predict-resnet", "predict-clip"]\n')


@pytest.fixture
def rich(world):
    world.recipe(BASELINE_RECIPE)
    return world


def test_from_feedback_to_tables(rich):
    """Trained, predicted and evaluated beside people: rows of what each baseline gives, and of nothing else."""
    done = rich.last("evaluate-rahf")
    for node, parts in (("resnet", {"heatmaps", "scores"}), ("clip", {"scores"})):
        metrics = rich.store.newest("micro", node).metrics
        assert metrics["validation"].keys() >= parts and "words" not in metrics["validation"]
        assert "word_cut" not in metrics and metrics["best_step"] in (0, 2, 4)
    figures = rich.rows("SELECT predictor, output, figure, value FROM rahf_figures WHERE predictor LIKE 'predict-%'")
    given = {(row["predictor"], row["output"]) for row in figures}
    assert given == {
        *(("predict-resnet", output) for output in (*ASPECTS, *KINDS)),
        *(("predict-clip", aspect) for aspect in ASPECTS),
    }
    assert done["metrics"]["predict-clip"].keys() == {f"{aspect} plcc" for aspect in ASPECTS}
    assert rich("report", "evaluate-rahf", "--out", "report.html").status == 0
    assert 'role="alert"' not in (rich.root / "report.html").read_text()


def test_what_it_does_not_give_is_asked_for_in_vain(rich):
    for settings, told in (
        (("clip.model=micro-resnet",), "holds no CLIP"),
        (("resnet.model=micro-clip",), "micro-clip is a clip"),
        (("resnet.heads.map_deconvs=[8,8]",), "2 deconvolutions make heatmaps of 16 pixels, and pictures have 32"),
        (("resnet.word_weight=2",), "variant = resnet has no such part"),
        (("resnet.captions.weight=1",), "variant = resnet has no words"),
        (("clip.heatmap_weight=2",), "variant = clip gives scores alone"),
        (("clip.score_weight=0",), "score_weight is 0, and a reward model as variant = clip gives scores"),
        (("resnet.heatmap_weight=0", "resnet.heads.map_convs=[8]"), "heatmap_weight is 0: it has no heatmaps"),
    ):
        assert told in rich.run(settings[0].partition(".")[0], *settings, status=2).err, settings
    with pytest.raises(ValueError, match="variant = clip tunes a network that model names, and it names none"):
        TrainRahfConfig(variant="clip")
    told = rich.run("refl", "refl.reads.reward-model=clip", "refl.weight_map=implausibility", status=2).err
    assert "has no heatmaps" in told
    tuned = rich.last("clip", "clip.steps=1")["path"]
    assert "gives several scores" in rich.run("train-rm", f"train-rm.model={tuned}", "train-rm.image_size=32", status=2).err
    of_clip = ("inpaint-images.reads.reward-model=clip", "inpaint-images.reads.rich-predictions=predict-clip")
    assert "has no predicted heatmap" in rich.run("inpaint-images", *of_clip, status=2).err


def test_it_goes_on_from_itself(rich):
    first = rich.last("clip", "clip.steps=2")
    again = rich.last("clip", "clip.steps=2", f"clip.model={first['path']}")
    assert again["metrics"]["validation"]["loss"] < first["metrics"]["validation"]["loss"]
    told = rich.run("clip", f"clip.model={first['path']}", "clip.heads.score_denses=[8]", status=2).err
    assert "has other sizes: heads.score_denses is (16,)" in told
