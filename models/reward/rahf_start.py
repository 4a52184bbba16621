"""What a RAHF starts from: a vision tower and a T5 by name or folder, or a BLIP's towers with a T5 of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

from irpipe.models.loading import files_of, load_errors
from irpipe.models.plugins import format_of
from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.reward.preprocessing import read_preprocessing
from irpipe.models.reward.rahf import FORMAT, TASKS, Rahf, RahfConfig, Variant
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.start import init_reward_model
from irpipe.models.weights import config_table, load_tokenizer
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model

# Of a ViT that classifies, or of a model of two towers: what stands beside the vision tower.
_NOT_VISION = r"classifier|(vit\.)?pooler|text_model|text_projection|visual_projection|logit_scale|logit_bias"
_T5_FLAG = "<extra_id_0>"  # a token that T5 has and no prompt


def start_from_vit(vision: Model, t5: Model, variant: Variant, heads: HeadSizes, seed: int) -> Rahf:
    """A RAHF of a vision tower and a pre-trained T5, as the paper has it; join and heads are new.

    Raises:
        ModelError: a model is not at hand, of another class, or comes without tokenizer or preprocessing.
    """
    text_folder = files_of(t5)
    with load_errors(t5, "the T5", "a T5 of transformers with its tokenizer"):
        language = transformers.T5ForConditionalGeneration.from_pretrained(
            text_folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
        tokenizer = load_tokenizer(text_folder)
        check_vocabulary(tokenizer, language, t5.shown)
    flag = tokenizer.convert_tokens_to_ids(_T5_FLAG)
    if flag is None or flag == tokenizer.unk_token_id:
        raise ModelError(f"the tokenizer of {t5.shown} has no {_T5_FLAG}", expected="a T5's")
    folder = files_of(vision)
    tower_config, tower = _vision_of(vision, folder)
    preprocessing = replace(read_preprocessing(folder, int(tower_config["image_size"]), colours_only=True), fit="pad")
    config = RahfConfig(
        variant=variant,
        vision=tower_config,
        t5=_without_dropout(config_table(language.config)),
        flag=int(flag),
        end=int(tokenizer.eos_token_id),
        tasks={output: tokenizer(text, add_special_tokens=False)["input_ids"] for output, text in TASKS.items()},
        heads=heads,
        max_length=256,
    )
    torch.manual_seed(seed)
    model = Rahf(config, preprocessing, tokenizer)
    model.vision.load_state_dict(tower)
    model.t5.load_state_dict(language.state_dict())
    return model


def _vision_of(vision: Model, folder: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Config and weights of the vision tower in a folder, which may be one of two towers, or stand under a classifier.

    Raises:
        ModelError: it is of another class, or its weights are not whole.
    """
    classes = {"siglip": "SiglipVisionModel", "clip": "CLIPVisionModel", "blip": "BlipVisionModel", "vit": "ViTModel"}
    expected = "a ViT, SigLIP, CLIP or BLIP of transformers with its preprocessing"
    with load_errors(vision, "the vision tower", expected, unused=_NOT_VISION):
        known = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        name = classes.get(known.model_type.removesuffix("_vision_model"))
        if name is None:
            raise ModelError(f"the vision tower is a {known.model_type}", expected=", ".join(classes))
        more = {"add_pooling_layer": False} if name == "ViTModel" else {}
        tower = getattr(transformers, name).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, **more
        )
    return _without_dropout(config_table(tower.config)), tower.state_dict()


def start_from_blip(blip: Model, variant: Variant, heads: HeadSizes, t5: Mapping[str, int], seed: int) -> Rahf:
    """A RAHF of a BLIP's two towers and a new, small T5 over the BLIP's vocabulary.

    The text tower's states, which have looked at the image, are added to the prompt's embeddings: what BLIP's pre-training has
    learnt is not learnt again. Not in the paper.

    Args:
        t5: d_model, d_ff, num_heads, num_layers and num_decoder_layers.
    """
    reward, _ = init_reward_model(blip, "auto", seed)
    if not isinstance(reward, ImageReward):
        raise ModelError(f"{blip.setting or 'model'}: {blip.shown} is neither a RAHF nor a BLIP")
    config = _config_on_blip(reward, variant, heads, t5)
    torch.manual_seed(seed)
    model = Rahf(config, replace(reward.preprocess, fit="pad"), reward.tokenizer)
    model.vision.load_state_dict(reward.vision.state_dict())
    model.text_tower.load_state_dict(reward.text.state_dict())
    return model


def _config_on_blip(reward: ImageReward, variant: Variant, heads: HeadSizes, t5: Mapping[str, int]) -> RahfConfig:
    """Of a BLIP's towers and a T5 whose vocabulary is the BLIP's, the flag and a token for each output."""
    tokenizer = reward.tokenizer
    size = len(tokenizer)
    tasks = {output: [size + 1 + number] for number, output in enumerate(TASKS)}
    language = transformers.T5Config(
        vocab_size=size + 1 + len(TASKS),
        d_kv=t5["d_model"] // t5["num_heads"],
        dropout_rate=0.0,
        feed_forward_proj="relu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        **t5,
    )
    text = config_table(reward.text.config)
    return RahfConfig(
        variant=variant,
        vision=_without_dropout({**config_table(reward.vision.config), "model_type": "blip_vision_model"}),
        t5=language.to_dict(),
        flag=size,
        end=int(tokenizer.sep_token_id),
        start=int(tokenizer.cls_token_id),
        tasks=tasks,
        text_tower=_without_dropout(text),
        heads=heads,
        max_length=min(128, int(text["max_position_embeddings"]) - 1),
    )


def _without_dropout(config: dict[str, Any]) -> dict[str, Any]:
    """A config whose layers draw nothing, so that a training does not depend on how it is batched."""
    return {
        name: 0.0 if "dropout" in name and isinstance(value, int | float) and not isinstance(value, bool) else value
        for name, value in config.items()
    }


def is_rahf(model: Model) -> bool:
    """Whether a model is a RAHF already."""
    return format_of(files_of(model)) == FORMAT
