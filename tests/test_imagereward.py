"""The reward model: the published numbers, every kind of checkpoint, the head's start, and noise that minds no batch."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from irpipe.models.imagereward import ImageReward
from irpipe.models.noise import Noise, SeededDropout
from irpipe.models.reward.blip_weights import PUBLISHED_CARD, published_tokenizer
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.reward.start import (
    fitted_positions,
    init_reward_model,
    initialise_head,
    initialise_head_as_published,
    of_size,
)
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from tests.blips import TEXT, VISION, golden, published, published_state
from tests.conftest import SHARED

MICRO = Model("micro-blip", "0" * 40, shipped_folder("micro-blip"))


@pytest.fixture(scope="module")
def micro():
    return init_reward_model(MICRO, "auto", 0)[0]


@pytest.fixture(scope="module")
def recorded():
    if not SHARED.is_dir():
        pytest.skip(f"NEEDS RECORDED DATA: {SHARED.name}/ is not beside the repository")
    return golden(SHARED)


@pytest.fixture(scope="module")
def model(recorded):
    tensors, told = recorded
    return ImageReward.from_published(published(tensors), vision=told["vision"], text=told["text"])


class TestAgainstThePublishedImplementation:
    """Its outputs on small random weights, recorded; float32, 1e-5 relative."""

    def images(self, tensors):
        return [Image.fromarray(tensors[f"image.{i}.{j}"].numpy()) for i in range(3) for j in range(4)]

    def inputs(self, tensors):
        pixels = torch.stack([tensors[f"pixels.{i}.{j}"] for i in range(3) for j in range(4)])
        ids, mask = (tensors[name].repeat_interleave(4, dim=0) for name in ("input_ids", "attention_mask"))
        return pixels, {"input_ids": ids, "attention_mask": mask}

    def test_preprocessing(self, recorded, model):
        tensors, _ = recorded
        ours = torch.stack([model.preprocess(image) for image in self.images(tensors)])
        assert torch.equal(ours, self.inputs(tensors)[0])

    def test_raw_and_normalised_rewards(self, recorded, model):
        tensors, told = recorded
        with torch.no_grad():
            raw = model(*self.inputs(tensors)).view(3, 4)
            normalised = model.card.normalised(raw)
        torch.testing.assert_close(raw, tensors["reward_raw"], rtol=1e-5, atol=0)
        torch.testing.assert_close(normalised, tensors["reward"], rtol=1e-5, atol=1e-7)
        assert (told["normaliser_mean"], told["normaliser_std"]) == (PUBLISHED_CARD.mean, PUBLISHED_CARD.std)

    def test_loss_and_gradients(self, recorded, model):
        tensors, _ = recorded
        model.zero_grad()
        raw = model(*self.inputs(tensors)).view(3, 4)
        better, worse = zip(*[(i, j) for i in range(4) for j in range(i + 1, 4)], strict=True)
        loss = -F.logsigmoid(raw[:, list(better)] - raw[:, list(worse)]).mean()
        torch.testing.assert_close(loss.detach(), tensors["pair_loss_mean"], rtol=1e-5, atol=0)
        loss.backward()
        key = "encoder.layer.0.crossattention.self.key.weight"
        ours = {
            f"blip.text_encoder.{key}": f"text.{key}",
            "blip.visual_encoder.blocks.0.attn.qkv.weight": "vision.encoder.layers.0.self_attn.qkv.weight",
            "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
            "mlp.layers.0.bias": "head.0.bias",
            "mlp.layers.7.weight": "head.7.weight",
        }
        gradients = {name: value.grad for name, value in model.named_parameters()}
        # A bias of the head moves both images' scores alike: its gradient is 0 but for rounding.
        largest = max(tensors[f"grad.{theirs}"].abs().max().item() for theirs in ours)
        for theirs, name in ours.items():
            torch.testing.assert_close(gradients[name], tensors[f"grad.{theirs}"], rtol=1e-5, atol=1e-5 * largest)

    def test_the_order_of_the_published_transforms_matters_and_is_kept(self, recorded, model):
        """Converting to RGB before the resize would give other pixels where there is transparency."""
        rng = np.random.default_rng(0)
        image = Image.fromarray(rng.integers(0, 256, (50, 70, 4), dtype=np.uint8), "RGBA")
        assert not torch.equal(model.preprocess(image), model.preprocess(image.convert("RGB")))

    def test_the_tokenizer(self, recorded, tmp_path):
        """`[CLS]` first, 35 tokens, as BERT's own vocabulary gives them."""
        tensors, told = recorded
        found = subprocess.run([SHARED / "tools" / "get-mpnet", tmp_path / "mpnet"], capture_output=True, text=True, check=False)
        source = next((tmp_path / "mpnet").rglob("vocab.txt"), None) if found.returncode == 0 else None
        if source is None:
            pytest.skip("NEEDS BERT'S VOCABULARY, which all-mpnet-base-v2's holds; it could not be had")
        words = source.read_text(encoding="utf-8").split("\n")
        first = words.index("[PAD]") if "[PAD]" in words else 4
        (tmp_path / "vocab.txt").write_text("\n".join(words[first : first + 30522]), encoding="utf-8")
        tokenizer = published_tokenizer(tmp_path)
        batch = tokenizer(told["prompts"], padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        assert torch.equal(batch.input_ids, tensors["input_ids_bert_base_uncased"])
        assert torch.equal(batch.attention_mask, tensors["attention_mask"])
        assert (tokenizer.convert_tokens_to_ids("[DEC]"), tokenizer.convert_tokens_to_ids("[ENC]")) == (30522, 30523)


class TestPreprocessing:
    def test_tensors_come_out_as_pictures_do(self):
        """But for the rounding of resized pictures to bytes, and their clipping where bicubic overshoots."""
        rng = np.random.default_rng(1)
        pixels = np.kron(rng.integers(60, 196, (6, 9, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        preprocessing = Preprocessing(32)
        of_picture = preprocessing(Image.fromarray(pixels))
        of_tensor = preprocessing(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        assert (of_picture - of_tensor).abs().max() < 3 / 255 / min(preprocessing.std)

    def test_gradients_flow_to_every_pixel_of_the_square(self):
        image = torch.rand(2, 3, 40, 64, requires_grad=True)
        Preprocessing(16)(image).sum().backward()
        assert (image.grad[..., 12:52].abs().sum(dim=1) > 0).all()

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
    def test_every_kind_of_picture(self, mode):
        assert Preprocessing(16)(Image.new(mode, (30, 20))).shape == (3, 16, 16)


class TestCheckpoints:
    def make(self, folder, state, name="ImageReward.pt"):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / name)
        shutil.copy(MICRO.folder / "tokenizer.json", folder)
        return folder / name

    def load(self, state):
        return ImageReward.from_published(state, vision=VISION, text=TEXT)

    def test_names_of_distributed_training(self):
        state = published_state()
        plain, wrapped = self.load(state), self.load({f"module.{name}": value for name, value in state.items()})
        assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), wrapped.parameters(), strict=True))

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            (lambda state: state.pop("mlp.layers.7.bias"), "lacks head.7.bias"),
            (lambda state: state.update(extra=torch.zeros(1)), "has the unknown extra"),
            (lambda state: state.update({"mlp.layers.7.bias": torch.zeros(2)}), "has another shape for head.7.bias"),
        ],
    )
    def test_a_wrong_weight_is_an_error(self, change, told):
        state = published_state()
        change(state)
        with pytest.raises(ModelError, match=told):
            self.load(state)

    def test_our_own_folder_comes_back_the_same(self, micro, tmp_path):
        micro.save_pretrained(tmp_path)
        again = ImageReward.from_pretrained(tmp_path)
        image = Image.new("RGB", (40, 32), "red")
        assert again.score("a red circle", [image]) == micro.score("a red circle", [image])
        assert again.card == micro.card and again.max_length == 32

    def test_scores_have_no_dropout_while_it_trains(self, micro):
        image = Image.new("RGB", (40, 32), "red")
        still = micro.eval().score("a red circle", [image])
        noise = [module for module in micro.modules() if isinstance(module, SeededDropout | torch.nn.Dropout)]
        before = [module.p for module in noise]
        for module in noise:
            module.p = 0.5
        try:
            micro.train()
            assert micro.score("a red circle", [image]) == micro.score("a red circle", [image]) == still
            assert noise and micro.training, "the training goes on as it was"
        finally:
            micro.eval()
            for module, p in zip(noise, before, strict=True):
                module.p = p

    def test_a_pickle_with_code_in_it_is_refused_and_not_run(self, tmp_path):
        class Code:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "ran"),)

        (tmp_path / "x.pt").write_bytes(pickle.dumps({"mlp.layers.0.weight": Code()}, protocol=2))
        torch.save({"mlp.layers.0.weight": Code()}, tmp_path / "y.pt")
        for name in ("x.pt", "y.pt"):
            with pytest.raises(ModelError, match="cannot be loaded"):
                ImageReward.from_pretrained(tmp_path / name)
        assert not (tmp_path / "ran").exists()

    def test_truncated_files(self, micro, tmp_path):
        micro.save_pretrained(tmp_path / "own")
        whole = (tmp_path / "own" / "model.safetensors").read_bytes()
        (tmp_path / "own" / "model.safetensors").chmod(0o600)
        (tmp_path / "own" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        checkpoint = self.make(tmp_path / "published", published_state())
        checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
        for path in (tmp_path / "own", checkpoint):
            with pytest.raises(ModelError, match="cannot be loaded"):
                ImageReward.from_pretrained(path)

    def test_other_kinds_say_what_they_lack(self, tmp_path):
        with pytest.raises(ModelError, match="holds no reward model") as error:
            ImageReward.from_pretrained(MICRO.folder)
        assert "train-rm" in str(error.value)
        with pytest.raises(ModelError, match="does not exist"):
            ImageReward.from_pretrained(tmp_path / "nothing")


class TestStarts:
    def test_the_matching_head_is_the_matching_logit(self, micro):
        from transformers import BlipForImageTextRetrieval

        blip = BlipForImageTextRetrieval.from_pretrained(MICRO.folder, dtype=torch.float32).eval()
        texts = micro.encode_texts(["a red circle", "a large blue square above a small red cross"])
        pixels = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            logits = blip(pixel_values=pixels, **texts, use_itm_head=True).itm_score
            torch.testing.assert_close(micro(pixels, texts), logits[:, 1] - logits[:, 0], rtol=1e-4, atol=1e-5)

    def test_dropout_hardly_disturbs_the_matching_head(self, micro):
        texts = micro.encode_texts(["a red circle"])
        states = micro.text(**texts, encoder_hidden_states=torch.randn(1, 65, 64)).last_hidden_state
        with torch.no_grad():
            plain = micro.head(states[:, 0])
            micro.head.train()
            noisy = torch.stack([micro.head(states[:, 0]) for _ in range(200)])
        micro.head.eval()
        assert (noisy / plain).std() < 0.15  # through one channel alone it would be 0.9

    def test_published_heads_are_as_small_as_published(self, micro):
        layers = init_reward_model(MICRO, "published", 0)[0].head_layers
        for layer in layers:
            assert not layer.bias.any()
            if layer.weight.numel() > 1000:
                assert layer.weight.std().item() == pytest.approx(1 / 65, rel=0.1)

    def test_heads_depend_on_the_seed_alone(self):
        one, same, other = (init_reward_model(MICRO, "random", seed)[0].head[0].weight for seed in (1, 1, 2))
        assert torch.equal(one, same) and not torch.equal(one, other)

    @pytest.mark.parametrize(
        "initialise", [initialise_head_as_published, lambda layers, g: initialise_head(layers, None, 0.0, g)]
    )
    def test_the_first_scores_of_heads_without_matching(self, initialise):
        layers = [torch.nn.Linear(a, b) for a, b in ((768, 1024), (1024, 128), (128, 64), (64, 16), (16, 1))]
        initialise(layers, torch.Generator().manual_seed(0))
        with torch.no_grad():
            scores = torch.nn.Sequential(*layers)(torch.randn(100, 768))
        small = scores.std().item()
        assert (small < 1e-6) == (initialise is initialise_head_as_published)

    def test_a_published_checkpoint_keeps_its_head_unless_asked(self, tmp_path):
        state = published_state()
        checkpoint = TestCheckpoints().make(tmp_path, state)
        model, head = init_reward_model(Model("x", "", checkpoint.parent), "auto", 0)
        assert head == "kept" and torch.equal(model.head[7].weight, state["mlp.layers.7.weight"])
        again, head = init_reward_model(Model("x", "", checkpoint.parent), "published", 0)
        assert head == "published" and not torch.equal(again.head[7].weight, state["mlp.layers.7.weight"])
        with pytest.raises(ModelError, match="no head for image-text matching"):
            init_reward_model(Model("x", "", checkpoint.parent), "itm", 0)

    def test_blips_own_checkpoint(self, tmp_path):
        """`model_large.pth`: under 'model', with momentum copies, a decoder, queues and the matching head."""
        state = {name.removeprefix("blip."): value for name, value in published_state().items() if name.startswith("blip.")}
        wide = dict(state)
        wide |= {"visual_encoder_m.cls_token": torch.zeros(1), "text_decoder.x": torch.zeros(1), "image_queue": torch.zeros(1)}
        wide |= {"itm_head.weight": torch.randn(2, 16), "itm_head.bias": torch.randn(2)}
        wide["visual_encoder.pos_embed"] = torch.randn(1, 1 + 14 * 14, 16)
        TestCheckpoints().make(tmp_path, {"model": wide}, "model_large.pth")
        model, head = init_reward_model(Model("blip", "", tmp_path), "auto", 0)
        assert head == "itm" and model.preprocess.image_size == 14 * 8
        assert torch.equal(model.vision.embeddings.class_embedding, state["visual_encoder.cls_token"])
        logit = wide["itm_head.weight"][1] - wide["itm_head.weight"][0]
        states = torch.randn(5, 16)
        shift = wide["itm_head.bias"][1] - wide["itm_head.bias"][0]
        torch.testing.assert_close(model.head(states)[:, 0], states @ logit + shift, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("what", ["sentences", "generator"])
    def test_wrong_kinds(self, what):
        folder = shipped_folder(f"micro-{what}")
        with pytest.raises(ModelError, match=r"is a |holds no BLIP"):
            init_reward_model(Model(what, "", folder), "auto", 0)

    def test_another_image_size_fits_the_positions(self):
        model = of_size(init_reward_model(MICRO, "auto", 0)[0], 48)
        assert model.score("a red circle", [Image.new("RGB", (64, 64))]) and model.vision.config.image_size == 48
        table = torch.randn(1, 1 + 16, 4)
        assert torch.equal(fitted_positions(table, 17), table) and fitted_positions(table, 26).shape == (1, 26, 4)
        with pytest.raises(ModelError, match="no multiple"):
            of_size(model, 50)


class TestNoise:
    def test_a_sample_sees_the_same_noise_in_any_batch(self):
        noise = Noise()
        drop = SeededDropout(0.5, noise)
        values = torch.ones(7, 5, 3)
        groups = [(2, 11), (1, 12), (4, 13)]
        with noise.of(groups):
            whole = drop(values)
        parts = []
        for group in groups:
            with noise.of([group]):
                parts.append(drop(values[: group[0]]))
        assert torch.equal(whole, torch.cat(parts))
        with noise.of([(7, 14)]):
            assert not torch.equal(whole, drop(values))

    def test_places_draw_apart_and_a_place_draws_the_same_again(self):
        noise = Noise()
        one, other = SeededDropout(0.5, noise), SeededDropout(0.5, noise)
        values = torch.ones(3, 1000)
        with noise.of([(3, 5)]):
            assert torch.equal(one(values), one(values)) and not torch.equal(one(values), other(values))

    def test_the_mean_is_kept(self):
        noise = Noise()
        drop = SeededDropout(0.2, noise)
        with noise.of([(1, 5)]):
            assert drop(torch.ones(1, 100_000)).mean().item() == pytest.approx(1, abs=0.01)

    def test_other_counts_than_said_are_our_mistake(self):
        noise = Noise()
        with noise.of([(2, 1)]), pytest.raises(ValueError, match="3 samples"):
            SeededDropout(0.5, noise)(torch.ones(3, 2))

    def test_branches_are_dropped_whole_and_deeper_ones_more_often(self, micro):
        """0 at the first block, 0.1 at the last (released code, vit.py)."""
        blocks = micro.vision.encoder.layers
        states, dropped = torch.randn(4000, 2, 64), []
        micro.vision.train()
        for block in blocks:
            with torch.no_grad(), micro.noise.of([(4000, 3)]):
                dropped.append((block.mlp(states).abs().sum(dim=(1, 2)) == 0).float().mean().item())
        micro.vision.eval()
        assert dropped[0] == 0 and dropped[1] == pytest.approx(0.05, abs=0.01) and dropped[2] == pytest.approx(0.1, abs=0.015)


def test_the_card_says_what_scores_mean(micro, tmp_path):
    micro.save_pretrained(tmp_path)
    card = json.loads((tmp_path / "score_card.json").read_text(encoding="utf-8"))
    assert "one prompt only" in card["meaning"] and {"mean", "std", "normalised_on", "trained_on", "metrics"} <= card.keys()
