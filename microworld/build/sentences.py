"""The micro world's sentence encoder: an MPNet whose cosines say how much two scenes have in common."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

from irpipe.microworld.build.tokenizer import MAX_TOKENS, token_ids, word_pieces
from irpipe.microworld.build.training import Recipe
from irpipe.microworld.build.training import train as train_modules
from irpipe.microworld.captions import corrupt_within_training
from irpipe.microworld.grammar import Scene, canonical, describe, sample_scene, split_of, turned

STEPS, BATCH = 4000, 128
_WIDTH = 64


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train the encoder and save it as a sentence-transformers folder.

    Returns:
        figures for the manifest.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    tokenizer = MPNetTokenizer(vocab=word_pieces(("<s>", "<pad>", "</s>", "[UNK]", "<mask>")), model_max_length=MAX_TOKENS)
    model, error = train(tokenizer, math.ceil(STEPS * scale))
    with TemporaryDirectory() as plain:
        model.half().save_pretrained(plain)
        tokenizer.save_pretrained(plain)
        transformer = Transformer(plain, model_kwargs={"dtype": torch.float16})
    SentenceTransformer(modules=[transformer, Pooling(_WIDTH), Normalize()]).save(str(folder), create_model_card=False)
    return {"similarity_error": round(error, 4)}


def new_model(tokenizer: Any) -> Any:
    """A small MPNet without dropout."""
    return MPNetModel(
        MPNetConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS + 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def train(tokenizer: Any, count: int) -> tuple[Any, float]:
    """Fit cosines of mean-pooled vectors to the likeness of scenes.

    Each scene is held against itself in other words, or against a close relative, and against a stranger. Relatives decide
    what a near-duplicate is: with strangers alone, two things that swap their colours come out as one scene.
    """
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    model = new_model(tokenizer)
    model.pooler.requires_grad_(False)  # sentences are means of states; AdamW would only decay it

    def compute(_step: int) -> tuple[torch.Tensor, float]:
        """The loss of likenesses (batch, 2) of sentences, and a figure of it."""
        scenes = [sample_scene(rng, "train") for _ in range(BATCH)]
        others = [_relative(scene, rng) for scene in scenes]
        strangers = others[1:] + others[:1]
        wanted = torch.tensor(
            [[likeness(scene, other) for other in pair] for scene, *pair in zip(scenes, others, strangers, strict=True)]
        )
        ids, mask = token_ids(tokenizer, [describe(scene, rng) for scene in (*scenes, *others)])
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors = F.normalize((states * mask[..., None]).sum(dim=1), dim=-1)
        ours, theirs = vectors.split(BATCH)
        cosines = torch.stack([(ours * theirs).sum(dim=1), (ours * theirs.roll(-1, dims=0)).sum(dim=1)], dim=1)
        error = cosines - wanted
        return error.square().mean(), error.detach().abs().mean().item()

    recipe = Recipe(count, peak=2e-3, warmup_steps=50, final=1e-5, weight_decay=1e-2)
    error = train_modules({"sentences": model}, recipe, compute)
    return model.eval(), error


def _relative(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene itself, to be worded anew, or one that differs in a word or two, or whose things swap what they are."""
    kind = int(rng.integers(4))
    if kind == 3 and scene.relation:
        first, second = scene.things
        name = str(rng.choice(["size", "colour", "shape"]))
        swapped = (replace(first, **{name: getattr(second, name)}), replace(second, **{name: getattr(first, name)}))
        return replace(scene, things=swapped) if split_of(replace(scene, things=swapped)) == "train" else scene
    for _ in range(kind % 3):
        scene = corrupt_within_training(scene, rng)
    return scene


def likeness(first: Scene, second: Scene) -> float:
    """Share of what two scenes ask for that they have in common, from 0 to 1; 1 for two wordings of one scene."""
    if canonical(first) == canonical(second):
        return 1.0
    told = [second, turned(second)] if second.relation else [second]
    ours = _facts(first)
    return max(len(ours & _facts(scene)) / len(ours | _facts(scene)) for scene in told)


def _facts(scene: Scene) -> set[tuple[object, ...]]:
    facts: set[tuple[object, ...]] = {("relation", scene.relation), ("place", scene.place), ("background", scene.background)}
    for place, thing in enumerate(scene.things):
        facts |= {(place, "thing"), (place, "size", thing.size), (place, "colour", thing.colour), (place, "shape", thing.shape)}
    return {fact for fact in facts if None not in fact}
