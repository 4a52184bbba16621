"""Small BLIPs and reward models of the real classes with random weights, as the tests need them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import BlipConfig, BlipForQuestionAnswering, BlipTextConfig, BlipVisionConfig

from irpipe.models.imagereward import ImageReward
from irpipe.models.weights import load_tokenizer
from irpipe.pipeline.external import shipped_folder

VISION = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 3, "heads": 2}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 140,
    "max_position_embeddings": 40,
}


def golden(shared: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Inputs and outputs of the published implementation at a small size, and what it was called with."""
    with safe_open(shared / "golden" / "imagereward_reference_tiny.safetensors", "pt") as file:
        told = {name: json.loads(value) for name, value in file.metadata().items()}
        return {name: file.get_tensor(name) for name in file.keys()}, told  # noqa: SIM118 # it is no mapping


def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict in a golden file."""
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}


def published_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random weights of a small model under the published names, the unused ones included."""
    torch.manual_seed(seed)
    from irpipe.models.reward.blip_weights import configs
    from irpipe.models.reward.preprocessing import Preprocessing

    model = ImageReward(*configs(VISION, TEXT), preprocessing=Preprocessing(16))
    back = {
        "vision.embeddings.class_embedding": "blip.visual_encoder.cls_token",
        "vision.embeddings.position_embedding": "blip.visual_encoder.pos_embed",
        "vision.embeddings.patch_embedding.": "blip.visual_encoder.patch_embed.proj.",
        "vision.encoder.layers.": "blip.visual_encoder.blocks.",
        "vision.post_layernorm.": "blip.visual_encoder.norm.",
        "head.": "mlp.layers.",
        "text.": "blip.text_encoder.",
    }
    inner = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.qkv": "attn.qkv", "self_attn.projection": "attn.proj"}
    state = {}
    for ours, value in model.state_dict().items():
        prefix = next(prefix for prefix in back if ours.startswith(prefix))
        name = ours.replace(prefix, back[prefix], 1)
        if name.startswith("blip.visual_encoder."):
            for one, other in inner.items():
                name = name.replace(one, other)
        state[name] = torch.randn_like(value) * 0.1
    state["blip.text_encoder.embeddings.position_ids"] = torch.arange(40)[None]
    state["blip.vision_proj.weight"], state["blip.vision_proj.bias"] = torch.randn(8, 16), torch.randn(8)
    state["blip.text_proj.weight"], state["blip.text_proj.bias"] = torch.randn(8, 16), torch.randn(8)
    return state


def question_blip(folder: Path, seed: int = 0) -> tuple[Any, Any]:
    """A small BLIP for questions with random weights, and its tokenizer."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(shipped_folder("micro-blip"))
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
        bos_token_id=tokenizer.cls_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = BlipVisionConfig(
        image_size=16, patch_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = BlipForQuestionAnswering(BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    colours = {
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.25, 0.3],
        "size": {"height": 16, "width": 16},
        "do_resize": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(colours), encoding="utf-8")
    return model, tokenizer
