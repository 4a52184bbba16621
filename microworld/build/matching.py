"""The micro world's BLIP, pre-trained on matching, contrast and masked words: where reward models start from.

From scratch a reward model learns nothing from a few thousand pairs; what it must bring along is to tell a caption from one
with a single wrong word. Matching alone gives one bit a caption and stays near chance for thousands of steps; asked for
masked words as well (as ALBEF, arXiv 2107.07651, section 3.2), the text encoder learns to look.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    BlipImageProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from irpipe.microworld.build.data import augmented
from irpipe.microworld.build.tokenizer import MAX_TOKENS, token_ids, word_pieces
from irpipe.microworld.build.training import Recipe
from irpipe.microworld.build.training import train as train_modules
from irpipe.microworld.captions import corrupted_captions, pictures
from irpipe.microworld.grammar import Scene, corrupt, describe, sample_scene
from irpipe.microworld.render import render, to_pixels

PICTURES, STEPS, BATCH = 60_000, 13_000, 48
HELD_OUT = 2000
IMAGE_MEAN, IMAGE_STD = 0.5, 0.27
_WIDTH = 64


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train and save the model, its tokenizer and its preprocessor.

    Returns:
        figures for the manifest.
    """
    tokenizer = BertTokenizer(vocab=word_pieces(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), model_max_length=MAX_TOKENS)
    model, accuracy = train(tokenizer, math.ceil(STEPS * scale), math.ceil(PICTURES * scale))
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessor(size={"height": 32, "width": 32}, image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3).save_pretrained(
        folder
    )
    return {"one_wrong_word_accuracy": round(accuracy, 3)}


def new_model(tokenizer: Any) -> Any:
    """A small BLIP with a cross-attending text encoder."""
    shared = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": 4, "projection_dim": _WIDTH}
    vision = BlipVisionConfig(**shared, num_hidden_layers=3, image_size=32, patch_size=4)
    text = BlipTextConfig(
        **shared,
        num_hidden_layers=3,
        encoder_hidden_size=_WIDTH,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        sep_token_id=tokenizer.sep_token_id,
    )
    return BlipForImageTextRetrieval(
        BlipConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=_WIDTH, image_text_hidden_size=_WIDTH
        )
    )


def train(tokenizer: Any, count: int, shown: int) -> tuple[Any, float]:
    """Tell a picture's caption from one with a wrong word, or another picture's, and say which words are masked.

    Picture and caption are also encoded each on its own and brought together (the projections of BLIP's contrastive loss), and
    the image tokens alone are asked which phrases hold.

    Returns:
        the model, and how often it prefers the right caption on scenes it never saw.
    """
    torch.manual_seed(4)
    data = pictures(shown, seed=8, wrong_captions=0, damaged=0.25)
    images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2)
    ids, mask = token_ids(tokenizer, data.captions)
    wrong = [token_ids(tokenizer, corrupted_captions(data.scenes, seed)) for seed in (1, 2, 3)]
    labels = phrase_labels(data.scenes)
    model, phrases = new_model(tokenizer), torch.nn.Linear(_WIDTH, labels.shape[1])
    words = torch.nn.Linear(_WIDTH, len(tokenizer))

    def compute(step: int) -> tuple[torch.Tensor, float]:
        batch = torch.randint(0, len(images), (BATCH,))
        wrong_ids, wrong_mask = wrong_captions(batch, (ids, mask), wrong[step % len(wrong)])
        hidden = (torch.rand(BATCH, MAX_TOKENS) < 0.3) & (ids[batch] > tokenizer.mask_token_id)
        tokens = image_tokens(model, augmented(images[batch].float() / 255))
        states = text_states(
            model,
            tokens.repeat(3, 1, 1),
            torch.cat([ids[batch], wrong_ids, ids[batch].masked_fill(hidden, tokenizer.mask_token_id)]),
            torch.cat([mask[batch], wrong_mask, mask[batch]]),
        )
        right, contradicted = matching_logit(model, states[: 2 * BATCH]).split(BATCH)
        matching = F.softplus(-right).mean() + 0.5 * F.softplus(contradicted).mean() + F.softplus(contradicted - right).mean()
        seen = hidden[:, : states.shape[1]]
        guessed = F.cross_entropy(words(states[2 * BATCH :][seen]), ids[batch][hidden])
        told = F.binary_cross_entropy_with_logits(phrases(tokens.mean(dim=1)), labels[batch])
        apart = contrast(model, tokens, ids[batch], mask[batch], wrong_ids, wrong_mask)
        return matching + guessed + 0.3 * apart + 10 * told, matching.item()

    modules = {"blip": model, "phrases": phrases, "words": words}
    train_modules(modules, Recipe(count, peak=1.5e-3, warmup_steps=100, final=1e-5, weight_decay=1e-2), compute)
    return model.eval(), one_wrong_word_accuracy(model, tokenizer)


def wrong_captions(
    batch: torch.Tensor, right: tuple[torch.Tensor, torch.Tensor], one_off: tuple[torch.Tensor, torch.Tensor]
) -> list[torch.Tensor]:
    """Ids and mask, (n, l) each, of a wrong caption per picture: one with a wrong word, or, for a fifth, another picture's."""
    another = torch.rand(len(batch), 1) < 0.2
    return [torch.where(another, own[batch.roll(1)], near[batch]) for own, near in zip(right, one_off, strict=True)]


def image_tokens(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(n, tokens, width) of (n, 3, 32, 32) from 0 to 1."""
    tokens: torch.Tensor = model.vision_model(pixel_values=(images - IMAGE_MEAN) / IMAGE_STD).last_hidden_state
    return tokens


def text_states(model: Any, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(n, longest text, width): the text encoder's states, having looked at the images."""
    longest = int(mask.sum(dim=1).max())
    states: torch.Tensor = model.text_encoder(
        input_ids=ids[:, :longest],
        attention_mask=mask[:, :longest],
        encoder_hidden_states=tokens,
        encoder_attention_mask=torch.ones(tokens.shape[:2], dtype=torch.long),
    ).last_hidden_state
    return states


def contrast(
    model: Any, tokens: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, wrong_ids: torch.Tensor, wrong_mask: torch.Tensor
) -> torch.Tensor:
    """Contrastive loss, (), of pictures and captions (n, d) encoded apart, wrong captions being further negatives."""
    both, both_mask = torch.cat([ids, wrong_ids]), torch.cat([mask, wrong_mask])
    longest = int(both_mask.sum(dim=1).max())
    texts = model.text_encoder(input_ids=both[:, :longest], attention_mask=both_mask[:, :longest]).last_hidden_state[:, 0]
    image = F.normalize(model.vision_proj(tokens[:, 0]), dim=-1)
    similarity = image @ F.normalize(model.text_proj(texts), dim=-1).T / 0.07
    own = torch.arange(len(image))
    return 0.5 * (F.cross_entropy(similarity, own) + F.cross_entropy(similarity[:, : len(own)].T, own))


def matching_logit(model: Any, states: torch.Tensor) -> torch.Tensor:
    """(n,) how much rather a text matches than not."""
    logits: torch.Tensor = model.itm_head(states[:, 0])
    return logits[:, 1] - logits[:, 0]


def one_wrong_word_accuracy(model: Any, tokenizer: Any) -> float:
    """How often the right caption of a clean picture beats one with a wrong word, on scenes kept for validation."""
    rng = np.random.default_rng(9)
    scenes = [sample_scene(rng, "validation") for _ in range(HELD_OUT)]
    pixels = np.stack([to_pixels(render(scene, rng)[0]) for scene in scenes])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    captions = [
        token_ids(tokenizer, [describe(scene, rng) for scene in told]) for told in (scenes, [corrupt(s, rng) for s in scenes])
    ]
    with torch.no_grad():
        tokens = image_tokens(model, images)
        right, contradicted = (matching_logit(model, text_states(model, tokens, *caption)) for caption in captions)
    return float((right > contradicted).float().mean())


def phrase_labels(scenes: list[Scene]) -> torch.Tensor:
    """(n, phrases) 1 where a scene's caption says a word, or two words of one thing, or where a colour stands."""
    said: list[set[str]] = []
    for scene in scenes:
        phrases = {str(scene.background), str(scene.place)}
        for place, thing in enumerate(scene.things):
            phrases |= {thing.colour, thing.shape, f"{thing.colour} {thing.shape}"}
            if thing.size:
                phrases |= {thing.size, f"{thing.size} {thing.colour}", f"{thing.size} {thing.shape}"}
            if scene.relation:
                phrases.add(f"{thing.colour} {place} {scene.relation}")
        said.append(phrases - {"None"})
    names = {name: column for column, name in enumerate(sorted(set().union(*said)))}
    labels = torch.zeros(len(scenes), len(names))
    for row, phrases in enumerate(said):
        labels[row, [names[phrase] for phrase in phrases]] = 1
    return labels
