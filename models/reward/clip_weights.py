"""CLIP's weights under OpenAI's names, which open_clip and the published classifiers use too, to transformers' names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig

from irpipe.pipeline.errors import ModelError

_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)")
_IN_A_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OTHERS = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_TRANSPOSED = ("visual.proj", "text_projection")
# Sizes of OpenAI's jit archives, which checkpoints may hold as tensors, and the causal mask.
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
HEAD_WIDTHS = (64, 64)  # of the image and the text tower of every published CLIP


def is_openai(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have OpenAI's names."""
    return "visual.proj" in {name.removeprefix("module.") for name in state}


def from_openai_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under transformers' names, the attention's input projections cut into queries, keys and values.

    Raises:
        ModelError: names what is no weight of a CLIP with a vision transformer.
    """
    named: dict[str, Tensor] = {}
    unknown = []
    for given, value in state.items():
        name = given.removeprefix("module.")
        block = _BLOCK.fullmatch(name)
        if name in _OTHERS:
            named[_OTHERS[name]] = value.T.contiguous() if name in _TRANSPOSED else value
        elif block is not None and (renamed := _in_block(block.group(3), value)) is not None:
            tower = "vision_model" if block.group(1) else "text_model"
            named |= {f"{tower}.encoder.layers.{block.group(2)}.{part}": tensor for part, tensor in renamed.items()}
        elif name not in _NO_WEIGHTS:
            unknown.append(given)
    if unknown:
        listed = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
        raise ModelError(f"the checkpoint has {len(unknown)} weights that no CLIP has: {listed}")
    return named


def _in_block(name: str, value: Tensor) -> dict[str, Tensor] | None:
    """A weight of one block by its new name, or three of them; None where it is none."""
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.rpartition("_")[2]
        parts = zip(("q_proj", "k_proj", "v_proj"), value.chunk(3), strict=True)
        return {f"self_attn.{part}.{kind}": tensor.contiguous() for part, tensor in parts}
    stem, _, kind = name.rpartition(".")
    return {f"{_IN_A_BLOCK[stem]}.{kind}": value} if stem in _IN_A_BLOCK and kind in ("weight", "bias") else None


def config_of(weights: Mapping[str, Tensor], activation: str, head_widths: tuple[int, int] = HEAD_WIDTHS) -> CLIPConfig:
    """The sizes of a CLIP, by its weights under transformers' names; weights do not tell their activation.

    Raises:
        ModelError: a weight that tells a size is missing.
    """
    try:
        patches = weights["vision_model.embeddings.patch_embedding.weight"]
        width, side = len(patches), patches.shape[-1]
        positions = len(weights["vision_model.embeddings.position_embedding.weight"]) - 1
        vocabulary, text_width = weights["text_model.embeddings.token_embedding.weight"].shape
        context = len(weights["text_model.embeddings.position_embedding.weight"])
        projection = len(weights["text_projection.weight"])
    except KeyError as error:
        raise ModelError(f"the checkpoint lacks the weight {error.args[0]}", expected="the weights of a CLIP") from None
    for tower, size, head in (("image", width, head_widths[0]), ("text", text_width, head_widths[1])):
        if size % head:
            raise ModelError(f"the {tower} tower's width, {size}, is no multiple of the attention's head width, {head}")
    common = {"hidden_act": activation, "projection_dim": projection}
    vision: dict[str, Any] = common | {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": _depth(weights, "vision_model"),
        "num_attention_heads": width // head_widths[0],
        "image_size": side * round(positions**0.5),
        "patch_size": side,
    }
    text: dict[str, Any] = common | {
        "hidden_size": text_width,
        "intermediate_size": 4 * text_width,
        "num_hidden_layers": _depth(weights, "text_model"),
        "num_attention_heads": text_width // head_widths[1],
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)


def _depth(weights: Mapping[str, Tensor], tower: str) -> int:
    pattern = re.compile(rf"{tower}\.encoder\.layers\.(\d+)\.")
    return 1 + max((int(found.group(1)) for name in weights if (found := pattern.match(name))), default=-1)


def half_to_float(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in single precision: OpenAI publishes its own in half."""
    return {name: value.float() if value.dtype in (torch.float16, torch.bfloat16) else value for name, value in weights.items()}
