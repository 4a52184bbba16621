"""Human Preference Score's classifier and rankings, against what the published code gave (recorded), and by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel

from irpipe.models.metrics.rankings import imagereward_accuracy, inversion_score
from irpipe.models.pictures import squared
from irpipe.models.reward.base import load_reward_model
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.clip_weights import from_openai_names
from irpipe.models.reward.losses import choice_loss
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.scorers.base import score_pictures
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.training.optimizer import Schedule, make_optimizer
from irpipe.models.weights import fill
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.stages.train_rm import RmOptimizer
from tests.conftest import SHARED

GOLDEN = SHARED / "golden" / "hps_classifier_a.safetensors"
PUBLISHED_SIZE = SHARED / "golden" / "hps_classifier_published_size.json"
RANKINGS = SHARED / "golden" / "hpdv2_eval_a.json"


class Recorded:
    """A recorded file: tensors by name, and its metadata as JSON."""

    def __init__(self, path) -> None:
        with safe_open(path, "pt") as file:
            self.meta = file.metadata()
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def told(self, name: str):
        return json.loads(self.meta[name])

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    @property
    def counts(self) -> list[int]:
        return self.tensors["num_images"].tolist()

    @property
    def places(self) -> list[str]:
        return [f"{group}.{image}" for group, count in enumerate(self.counts) for image in range(count)]

    def model(self, preprocessing: str) -> ClipReward:
        vision, text, more = self.told("vision"), self.told("text"), self.told("hf_config")
        width = int(self.meta["embed_dim"])
        common = {name: more[name] for name in ("hidden_act", "layer_norm_eps")} | {"projection_dim": width}
        config = CLIPConfig(
            vision_config=common
            | {
                "hidden_size": vision["width"],
                "intermediate_size": 4 * vision["width"],
                "num_hidden_layers": vision["layers"],
                "num_attention_heads": vision["width"] // vision["head_width"],
                "image_size": vision["image_size"],
                "patch_size": vision["patch_size"],
            },
            text_config=common
            | {
                "hidden_size": text["width"],
                "intermediate_size": 4 * text["width"],
                "num_hidden_layers": text["layers"],
                "num_attention_heads": text["heads"],
                "vocab_size": text["vocab_size"],
                "max_position_embeddings": text["context_length"],
                **{name: more[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
            },
            projection_dim=width,
        )
        clip = CLIPModel(config)
        fill(clip, self.part("hf."), "the recorded CLIP")
        return ClipReward.from_clip(clip, preprocessing=preprocessing)

    def texts(self) -> dict[str, torch.Tensor]:
        ids = self.tensors["input_ids"].repeat_interleave(self.tensors["num_images"], dim=0)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    if not GOLDEN.is_file():
        pytest.skip(f"NEEDS {GOLDEN.name}: recorded outputs of the published implementation")
    return Recorded(GOLDEN)


@pytest.mark.parametrize("preprocessing", ["crop", "pad"])
class TestPublished:
    def test_pixels(self, recorded, preprocessing):
        preprocess = Preprocessing(32, fit=preprocessing)
        for place in recorded.places:
            image = Image.fromarray(recorded.tensors[f"image.{place}"].numpy())
            torch.testing.assert_close(preprocess(image), recorded.tensors[f"pixels_{preprocessing}.{place}"], rtol=0, atol=1e-6)

    def test_cosines_and_scores(self, recorded, preprocessing):
        model = recorded.model(preprocessing)
        pixels = torch.stack([recorded.tensors[f"pixels_{preprocessing}.{place}"] for place in recorded.places])
        with torch.no_grad():
            cosines, scores = model.cosine(pixels, recorded.texts()), model(pixels, recorded.texts())
        torch.testing.assert_close(cosines, recorded.tensors[f"cosine.{preprocessing}"], rtol=0, atol=1e-5)
        torch.testing.assert_close(scores, recorded.tensors[f"score.{preprocessing}"], rtol=0, atol=1e-3)


class TestTraining:
    def losses(self, recorded, model):
        pixels = torch.stack([recorded.tensors[f"pixels_pad.{place}"] for place in recorded.places])
        logits = model.logits(model(pixels, recorded.texts()))
        return choice_loss(logits, recorded.tensors["num_images"], recorded.tensors["labels"])

    def test_the_loss_of_each_choice(self, recorded):
        losses = self.losses(recorded, recorded.model("pad"))
        torch.testing.assert_close(losses, recorded.tensors["loss_per_prompt"], rtol=0, atol=1e-5)
        torch.testing.assert_close(losses.mean(), recorded.tensors["loss"], rtol=0, atol=1e-5)

    def test_every_gradient_under_the_published_locks(self, recorded):
        model, lock = recorded.model("pad"), recorded.told("lock")
        model.freeze(image_groups=lock["image_unlocked_groups"], text_layers=lock["text_unlocked_layers"])
        self.losses(recorded, model).mean().backward()
        wanted = from_openai_names(recorded.part("grad."))
        found = {name: value.grad for name, value in model.clip.named_parameters() if value.grad is not None}
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value.reshape(found[name].shape), rtol=0, atol=1e-5, msg=name)

    def test_the_learning_rate_course(self, recorded):
        told = recorded.told("lr_schedule")
        schedule = Schedule(told["base"], told["steps"], told["warmup"], cosine=True)
        found = [schedule.learning_rate(step) for step in range(told["steps"])]
        assert found == pytest.approx(told["values"], rel=1e-12, abs=1e-18)

    def test_what_weight_decay_spares(self, recorded):
        """Vectors and numbers, as recorded: biases, norms, the logit scale."""
        model, lock = recorded.model("pad"), recorded.told("lock")
        model.freeze(image_groups=lock["image_unlocked_groups"], text_layers=lock["text_unlocked_layers"])
        names = {id(value): name for name, value in model.clip.named_parameters()}
        trained = [value for value in model.clip.parameters() if value.requires_grad]
        settings = RmOptimizer(weight_decay=3.1e-3, decay_vectors=False)
        decayed, spared = make_optimizer(settings, trained).param_groups
        assert (decayed["weight_decay"], spared["weight_decay"]) == (3.1e-3, 0.0)
        for part, recorded_names in ((decayed, "weight_decay"), (spared, "no_weight_decay")):
            weights = {name: recorded.tensors[f"model.{name}"] for name in recorded.told(recorded_names)}
            wanted = from_openai_names({name: value for name, value in weights.items() if name != "logit_scale"}).keys()
            assert {names[id(value)] for value in part["params"]} - {"logit_scale"} == wanted
        assert len(make_optimizer(RmOptimizer(weight_decay=0.1), trained).param_groups) == 1

    @pytest.mark.parametrize("tower", ["image", "text"])
    def test_what_every_lock_leaves(self, recorded, tower):
        for number, names in recorded.told(f"{tower}_lock_table").items():
            model = recorded.model("pad")
            model.freeze(image_groups=int(number) if tower == "image" else 0, text_layers=int(number) if tower == "text" else 0)
            trained = {name for name, value in model.clip.named_parameters() if value.requires_grad} - {"logit_scale"}
            wanted = from_openai_names({name: recorded.tensors[f"model.{name}"] for name in names if name != "logit_scale"})
            assert trained == wanted.keys(), number

    def test_openai_names_make_the_same_model(self, recorded):
        vision, text = recorded.told("vision"), recorded.told("text")
        widths = (vision["head_width"], text["width"] // text["heads"])
        wrapped = {f"module.{name}": value for name, value in recorded.part("model.").items()}
        model = ClipReward.from_published(wrapped, preprocessing="crop", head_widths=widths)
        same = recorded.model("crop").clip.state_dict()
        assert model.clip.state_dict().keys() == same.keys()
        assert all(torch.equal(value, same[name]) for name, value in model.clip.state_dict().items())
        assert model.clip.config.vision_config.hidden_act == "quick_gelu"

    def test_another_activation_is_another_model(self, recorded):
        """And moves scores by more than their differences within a prompt."""
        vision, text = recorded.told("vision"), recorded.told("text")
        widths = (vision["head_width"], text["width"] // text["heads"])
        model = ClipReward.from_published(recorded.part("model."), activation="gelu", head_widths=widths)
        pixels = torch.stack([recorded.tensors[f"pixels_crop.{place}"] for place in recorded.places])
        with torch.no_grad():
            scores = model(pixels, recorded.texts())
        torch.testing.assert_close(scores, recorded.tensors["gelu_instead.score.crop"], rtol=0, atol=1e-3)
        assert (scores - recorded.tensors["score.crop"]).abs().max() > 0.01


def test_the_locks_of_the_published_size():
    """Names only: on the meta device a ViT-L/14 costs nothing."""
    if not PUBLISHED_SIZE.is_file():
        pytest.skip(f"NEEDS {PUBLISHED_SIZE.name}: recorded outputs of the published implementation")
    told = json.loads(PUBLISHED_SIZE.read_text(encoding="utf-8"))["settings"]["image_groups_10_text_layers_6"]
    vision = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 14,
    }
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=768))
        model = ClipReward.from_clip(clip, preprocessing="pad")
    model.freeze(image_groups=10, text_layers=6)
    assert (
        sum(value.numel() for value in model.parameters() if value.requires_grad) == told["trainable_parameters"] == 157_273_089
    )


class TestPadding:
    def test_the_whole_picture_lies_in_the_middle_of_black(self):
        white = Image.fromarray(np.full((10, 40, 3), 255, np.uint8))
        pixels = Preprocessing(20, mean=(0.0,) * 3, std=(1.0,) * 3, fit="pad")(white)
        assert pixels.shape == (3, 20, 20)
        rows = pixels[0].mean(dim=1)
        assert rows[:7].abs().max() < 1e-6 and rows[13:].abs().max() < 1e-6 and rows[8:12].min() > 0.99

    def test_a_picture_of_the_right_longer_side_is_padded_as_well(self):
        """The released code leaves it as it is, and then fails in the batch."""
        image = Image.fromarray(np.full((20, 8, 3), 255, np.uint8))
        pixels = Preprocessing(20, mean=(0.0,) * 3, std=(1.0,) * 3, fit="pad")(image)
        assert pixels.shape == (3, 20, 20) and pixels[0].sum() == 20 * 8

    def test_gradients_reach_the_picture(self):
        image = torch.rand(3, 10, 40, requires_grad=True)
        Preprocessing(20, fit="pad")(image).sum().backward()
        assert image.grad is not None and (image.grad != 0).all()

    @pytest.mark.parametrize(("size", "fit"), [((60, 40), "pad"), ((32, 20), "pad"), ((60, 40), "crop")])
    def test_pictures_are_squared_as_the_model_says_wherever_they_are_scored(self, size, fit):
        """Padded models were once scored on crops. Eight bits per value are the difference that may be."""
        model = ClipReward.from_pretrained(shipped_folder("micro-clip"))
        model.preprocess = replace(model.preprocess, fit=fit)
        noise = np.random.default_rng(0).integers(0, 255, (6, 4, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)
        exact = model.preprocess(picture)
        seen = torch.from_numpy(squared(picture, 32, fit).copy()).permute(2, 0, 1) / 255
        assert (model.preprocess.normalised(seen) - exact).abs().max() < 1.5 / 255 / min(model.preprocess.std)
        with torch.no_grad():
            wanted = model(exact[None], model.encode_texts(["a red circle"])).item()
        scorer = RewardModelScorer(model, "cpu", torch.float32)
        found = score_pictures(scorer, ["a red circle"], [np.asarray(picture)]).item()
        assert found == pytest.approx(wanted, abs=0.5) and scorer.image_fit == fit

    def test_training_pads_and_the_model_remembers(self, rm):
        """The last blocks alone train, on padded pictures; what was trained is scored so as well."""
        start = ("train-rm.model=micro-clip", "train-rm.loss=choice", "train-rm.freeze_rate=default", "train-rm.epochs=1")
        layers = ("train-rm.fit=pad", "train-rm.freeze=layers", "train-rm.image_layers=1", "train-rm.text_layers=0")
        done = rm.last("train-rm", *start, *layers)
        model = load_reward_model(done["path"])
        assert model.preprocess.fit == "pad"
        own = ClipReward.from_pretrained(shipped_folder("micro-clip"))
        own.freeze(image_groups=2, text_layers=0)
        assert done["metrics"]["trainable_parameters"] == sum(one.numel() for one in own.parameters() if one.requires_grad)
        before, after = own.clip.state_dict(), model.clip.state_dict()
        changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert changed and not any(name.startswith("text") for name in changed)
        error = rm.run("train-rm", *start, *layers[:2], "train-rm.image_layers=99", status=2).err
        assert "the image tower has 3 layers, of which 99 cannot train" in error
        error = rm.run("train-rm", "train-rm.image_layers=1", status=2).err
        assert "image_layers and text_layers are a CLIP's" in error


class TestChoiceLoss:
    def test_it_is_the_cross_entropy_of_each_group(self):
        logits = torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        counts, chosen = torch.tensor([2, 5, 4]), torch.tensor([1, 3, 0])
        losses = choice_loss(logits, counts, chosen)
        groups = zip(logits.split([2, 5, 4]), chosen, strict=True)
        plain = torch.stack([torch.nn.functional.cross_entropy(part[None], place[None]) for part, place in groups])
        torch.testing.assert_close(losses, plain, rtol=0, atol=1e-12)
        (mine,) = torch.autograd.grad(losses.sum(), logits, retain_graph=True)
        (theirs,) = torch.autograd.grad(plain.sum(), logits)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)

    def test_large_logits(self):
        losses = choice_loss(torch.tensor([1e4, 0.0, -1e4, 5e3]), torch.tensor([2, 2]), torch.tensor([0, 0]))
        assert losses.tolist() == [0.0, 15000.0]

    def test_two_images_are_a_pair(self):
        loss = choice_loss(torch.tensor([0.3, 1.1]), torch.tensor([2]), torch.tensor([1]))
        assert loss.item() == pytest.approx(math.log1p(math.exp(0.3 - 1.1)), abs=1e-6)


class TestRankings:
    def test_as_recorded(self):
        if not RANKINGS.is_file():
            pytest.skip(f"NEEDS {RANKINGS.name}: recorded outputs of the published implementation")
        entries = json.loads(RANKINGS.read_text(encoding="utf-8"))["entries"]
        assert len(entries) > 15
        for entry in entries:
            ranks, scores = entry["entry"]["rank"], entry["scores"]
            if not entry["fragile"]:
                assert inversion_score(ranks, scores) == pytest.approx(entry["inversion_score"], abs=1e-12), entry["note"]
            wanted = math.nan if entry["imagereward_score"] is None else entry["imagereward_score"]
            assert imagereward_accuracy(ranks, scores) == pytest.approx(wanted, abs=1e-12, nan_ok=True), entry["note"]

    def test_the_rules_of_ties_differ(self):
        """People tie the last two; the scores tie the first two."""
        ranks, scores = [0, 1, 1], [2.0, 2.0, 1.0]
        assert inversion_score(ranks, scores) == 1.0
        assert imagereward_accuracy(ranks, scores) == 0.5


class TestFolders:
    def test_it_is_saved_and_loaded_by_its_format(self, tmp_path):
        model = ClipReward.from_pretrained(shipped_folder("micro-clip"))
        model.save_pretrained(tmp_path / "saved")
        again = load_reward_model(tmp_path / "saved")
        assert type(again) is ClipReward and again.preprocess == model.preprocess and again.card == model.card
        pixels = torch.stack([model.preprocess(Image.new("RGB", (40, 32), colour)) for colour in ("red", "blue")])
        with torch.no_grad():
            scores = model(pixels, model.encode_texts(["a red circle"] * 2))
            assert torch.equal(again(pixels, again.encode_texts(["a red circle"] * 2)), scores)
        assert scores[0] != scores[1]

    def test_equal_texts_are_encoded_once(self):
        model, seen = ClipReward.from_pretrained(shipped_folder("micro-clip")), []
        model.clip.text_model.register_forward_pre_hook(
            lambda _, __, given: seen.append(len(given["input_ids"])), with_kwargs=True
        )
        pixels = torch.zeros(6, 3, 32, 32)
        model.cosine(pixels, model.encode_texts(["a", "b", "a", "a", "b", "a"]))
        assert seen == [2]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda state: state.pop("ln_final.bias"), "final_layer_norm.bias"),
            (lambda state: state.pop("text_projection"), "lacks the weight text_projection.weight"),
            (lambda state: state.update({"visual.head": torch.zeros(1)}), "visual.head"),
            (lambda state: state.update({"visual.proj": torch.zeros(3, 3)}), "visual_projection.weight"),
        ],
    )
    def test_a_checkpoint_that_is_not_whole(self, recorded, change, message):
        vision, text, state = recorded.told("vision"), recorded.told("text"), recorded.part("model.")
        change(state)
        with pytest.raises(ModelError, match=message):
            ClipReward.from_published(state, head_widths=(vision["head_width"], text["width"] // text["heads"]))

    def openai(self, words: int) -> dict[str, torch.Tensor]:
        """A CLIP of one block of one head per tower, for images of 16 px, under OpenAI's names."""
        state = {"logit_scale": torch.tensor(1.0), "visual.proj": torch.randn(64, 8), "text_projection": torch.randn(64, 8)}
        state |= {"visual.class_embedding": torch.randn(64), "visual.conv1.weight": torch.randn(64, 3, 8, 8)}
        state |= {"visual.positional_embedding": torch.randn(5, 64), "positional_embedding": torch.randn(32, 64)}
        state["token_embedding.weight"] = torch.randn(words, 64)
        norms = ["visual.ln_pre", "visual.ln_post", "ln_final"]
        for tower in ("visual.", ""):
            block = f"{tower}transformer.resblocks.0."
            norms += [f"{block}ln_1", f"{block}ln_2"]
            state |= {f"{block}attn.in_proj_weight": torch.randn(192, 64), f"{block}attn.in_proj_bias": torch.randn(192)}
            for name, (rows, columns) in {"attn.out_proj": (64, 64), "mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}.items():
                state |= {f"{block}{name}.weight": torch.randn(rows, columns), f"{block}{name}.bias": torch.randn(rows)}
        return state | {f"{norm}.{part}": torch.ones(64) for norm in norms for part in ("weight", "bias")}

    def test_a_checkpoint_needs_the_tokenizer_of_its_words(self, tmp_path):
        """Beside it: with one of other words every prompt would be read wrongly, and in silence."""
        words = ClipReward.from_pretrained(shipped_folder("micro-clip"))
        words.tokenizer.save_pretrained(tmp_path)
        torch.save({"state_dict": self.openai(len(words.tokenizer))}, tmp_path / "hpc.pth")
        assert type(load_reward_model(tmp_path)) is ClipReward
        torch.save({"state_dict": self.openai(4 * len(words.tokenizer))}, tmp_path / "hpc.pth")
        with pytest.raises(ModelError, match="tokens, and its text encoder embeddings for"):
            load_reward_model(tmp_path)

    def test_a_share_of_the_blocks_is_fixed(self):
        model = ClipReward.from_pretrained(shipped_folder("micro-clip"))
        blocks = len(model.clip.vision_model.encoder.layers)
        model.freeze(1.0)
        trained = {name.partition(".")[0] for name, value in model.clip.named_parameters() if value.requires_grad}
        assert blocks >= 1 and trained == {"visual_projection", "logit_scale"}
        model.freeze(0.0)
        assert all(value.requires_grad for value in model.parameters())

    def test_a_file_that_is_none(self, recorded, tmp_path):
        state = recorded.part("model.")
        with pytest.raises(ModelError, match="32, is no multiple of the attention's head width, 64"):
            ClipReward.from_published(state)
        del state["visual.proj"]
        torch.save({"state_dict": state}, tmp_path / "hpc.pth")
        with pytest.raises(ModelError, match="holds no CLIP"):
            ClipReward.from_pretrained(tmp_path / "hpc.pth")
        with pytest.raises(ModelError, match="does not exist"):
            ClipReward.from_pretrained(tmp_path / "none.pth")
