"""ImageReward as it was published: sizes, names of weights, score card and tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BlipTextConfig, BlipVisionConfig

from irpipe.models.loading import load_errors
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import ScoreCard

# The published sizes (released code, ImageReward/ImageReward.py and med_config.json).
PUBLISHED_VISION = {"image_size": 224, "patch_size": 16, "width": 1024, "depth": 24, "heads": 16}
PUBLISHED_TEXT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
BERT_TOKENIZER = Model("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", None)
_TEXT_DROPOUT = 0.1  # released code, med_config.json

# Released code, ImageReward/ImageReward.py: the normaliser; its authors say it is of their test set.
PUBLISHED_CARD = ScoreCard(0.16717362830052426, 1.0333394966054072, "the published test set")

VISION_FIELDS = (
    "image_size",
    "patch_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
TEXT_FIELDS = (
    "hidden_size",
    "encoder_hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "is_decoder",
)
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "sep_token_id": None}  # of no use to an encoder


def configs(vision: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[BlipVisionConfig, BlipTextConfig]:
    """transformers' configurations of a model of the published kind, with what the released code fixes."""
    width = vision["width"]
    return (
        BlipVisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=vision["depth"],
            num_attention_heads=vision["heads"],
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            initializer_range=0.02,  # transformers' own is 1e-10: all images would score alike until weights are loaded
        ),
        BlipTextConfig(
            **{
                **{name: value for name, value in {**PUBLISHED_TEXT, **text}.items() if name in TEXT_FIELDS},
                "encoder_hidden_size": width,
                "hidden_dropout_prob": _TEXT_DROPOUT,
                "attention_probs_dropout_prob": _TEXT_DROPOUT,
                "is_decoder": True,  # it has cross attention; it attends both ways
                **NO_ENDS,
            }
        ),
    )


# Names of the released code and of transformers; every other part of a name is the same (docs/reward_model.md).
_RENAMED = (
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head."),
)
# In the checkpoint, and no part of the reward: a buffer, and the projections of the contrastive loss.
_UNUSED = ("blip.text_encoder.embeddings.position_ids", "blip.vision_proj.", "blip.text_proj.")


def from_published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, from those of the released code."""
    renamed = {}
    for given, value in state_dict.items():
        name = given.removeprefix("module.")  # as saved from within distributed training
        if name.startswith(_UNUSED):
            continue
        for theirs, ours in _RENAMED:
            if theirs.startswith(".") and not name.startswith("vision."):
                continue  # the text tower has the same names on both sides
            name = name.replace(theirs, ours, 1) if theirs.startswith(".") or name.startswith(theirs) else name
        renamed[name] = value
    return renamed


def sizes_of(weights: Mapping[str, Tensor], image_size: int | None = None) -> tuple[dict[str, int], dict[str, Any]]:
    """The sizes that weights under our names tell; attention heads are 64 wide, as in all published BLIPs.

    Args:
        image_size: None for the one that the table of positions fits.
    """
    patches = weights["vision.embeddings.patch_embedding.weight"]
    positions = weights["vision.embeddings.position_embedding"]
    words = weights["text.embeddings.word_embeddings.weight"]

    def count(prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))

    vision = {
        "image_size": image_size or round((positions.shape[1] - 1) ** 0.5) * patches.shape[-1],
        "patch_size": patches.shape[-1],
        "width": patches.shape[0],
        "depth": count("vision.encoder.layers."),
        "heads": max(1, patches.shape[0] // 64),
    }
    text = {
        "hidden_size": words.shape[1],
        "vocab_size": words.shape[0],
        "num_hidden_layers": count("text.encoder.layer."),
        "num_attention_heads": max(1, words.shape[1] // 64),
        "intermediate_size": weights["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": weights["text.embeddings.position_embeddings.weight"].shape[0],
    }
    return vision, text


def published_tokenizer(folder: Path) -> Any:
    """BERT's tokenizer as the released code extends it: `[DEC]` begins texts elsewhere, `[ENC]` is a special token.

    Raises:
        ModelError: the folder has none, and it cannot be had from the hub.
    """
    from transformers import BertTokenizerFast

    here = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    source = Model(str(folder), "", folder) if here else BERT_TOKENIZER
    with load_errors(source, "the tokenizer", "tokenizer.json or vocab.txt of bert-base-uncased"):
        tokenizer = BertTokenizerFast.from_pretrained(**source.location)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer
