"""What a RAHF starts from: a ViT and a T5 of transformers, whose weights come in whole."""

from __future__ import annotations

import pytest
import torch

from irpipe.models.reward.base import load_reward_model
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import start_from_vit
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from tests.rahfs import HEADS
from tests.test_rahf import PIXELS, PROMPTS


class TestStarts:
    @pytest.fixture
    def vit(self, tmp_path):
        from transformers import ViTConfig, ViTImageProcessor, ViTModel

        torch.manual_seed(1)
        config = ViTConfig(
            hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8
        )
        ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
        ViTImageProcessor(size={"height": 32, "width": 32}, resample=2).save_pretrained(tmp_path / "vit")
        return tmp_path / "vit"

    @pytest.fixture
    def t5(self, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

        words = ["<pad>", "</s>", "<unk>", *(f"<extra_id_{n}>" for n in range(3)), *" ".join(PROMPTS).replace(",", "").split()]
        vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
        fast.save_pretrained(tmp_path / "t5")
        torch.manual_seed(2)
        config = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
        return tmp_path / "t5"

    def start(self, vit, t5):
        heads = HeadSizes((8,), (8, 8, 4), 1, 0, (8,), (8,))
        return start_from_vit(Model("vit", "r", vit), Model("t5", "r", t5), "multi-head", heads, 0)

    def test_a_vit_and_a_t5(self, vit, t5, tmp_path):
        """Their weights come in whole, and the model that is saved gives the same."""
        from transformers import T5ForConditionalGeneration, ViTModel

        model = self.start(vit, t5)
        tower = ViTModel.from_pretrained(vit, add_pooling_layer=False)
        language = T5ForConditionalGeneration.from_pretrained(t5)
        for name, value in tower.state_dict().items():
            assert torch.equal(model.vision.state_dict()[name], value), name
        for name, value in language.state_dict().items():
            assert torch.equal(model.t5.state_dict()[name], value), name
        assert model.preprocess.fit == "pad" and model.side == 4
        model.save_pretrained(tmp_path / "rahf")
        assert str(tmp_path) not in (tmp_path / "rahf" / "config.json").read_text(), "where it lay is no part of it"
        again = load_reward_model(tmp_path / "rahf")
        with torch.no_grad():
            first, second = (one(PIXELS, one.encode_texts(PROMPTS)) for one in (model, again))
        assert torch.equal(first, second)
        assert model.words_of(["a red circle"]).pieces[0][1] == [model.tokenizer.convert_tokens_to_ids("red")]

    def test_a_vit_under_a_classifier_and_the_tower_of_a_clip(self, vit, t5):
        """As the default is saved: what stands beside the vision tower is left out, and all of the tower comes in."""
        from transformers import CLIPModel, ViTConfig, ViTForImageClassification

        whole = ViTForImageClassification(ViTConfig.from_pretrained(vit, num_labels=3))
        whole.save_pretrained(vit)
        model = self.start(vit, t5)
        for name, value in whole.vit.state_dict().items():
            assert torch.equal(model.vision.state_dict()[name], value), name
        clip = shipped_folder("micro-clip")
        heads = HeadSizes((8,), (8, 8), 1, 0, (8,), (8,))
        of_clip = start_from_vit(Model("clip", "r", clip), Model("t5", "r", t5), "multi-head", heads, 0)
        theirs = {
            key.removeprefix("vision_model."): value
            for key, value in CLIPModel.from_pretrained(clip).vision_model.state_dict().items()
        }
        ours = {key.removeprefix("vision_model."): value for key, value in of_clip.vision.state_dict().items()}
        assert theirs.keys() == ours.keys() and all(torch.equal(ours[key], value) for key, value in theirs.items())

    def test_a_t5_without_its_tokenizer(self, vit, t5):
        for file in t5.glob("*token*"):
            file.unlink()
        with pytest.raises(ModelError, match="the tokenizer of t5 has 4 tokens, and its text encoder embeddings for 32"):
            self.start(vit, t5)

    def test_a_vision_tower_of_another_kind(self, t5):
        with pytest.raises(ModelError):
            start_from_vit(Model("t5", "r", t5), Model("t5", "r", t5), "multi-head", HEADS, 0)
