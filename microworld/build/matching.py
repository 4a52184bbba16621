"""The micro world's BLIP, pre-trained on image-text matching: where reward models start from.

From scratch a reward model learns nothing from a few thousand pairs; what it must bring along is to tell a caption from one
with a single wrong word.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

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

from irpipe.microworld.build.data import augmented, corrupted_captions, pictures
from irpipe.microworld.build.loop import Schedule, steps
from irpipe.microworld.build.tokenizer import MAX_TOKENS, token_ids, word_pieces
from irpipe.microworld.grammar import Scene

PICTURES, STEPS, BATCH = 24_000, 3500, 48
IMAGE_MEAN, IMAGE_STD = 0.5, 0.27
_WIDTH = 64


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train and save the model, its tokenizer and its preprocessor.

    Returns:
        figures for the manifest.
    """
    tokenizer = BertTokenizer(vocab=word_pieces(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")), model_max_length=MAX_TOKENS)
    model, accuracy = train(tokenizer, math.ceil(STEPS * scale))
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
        **shared, num_hidden_layers=3, encoder_hidden_size=_WIDTH, vocab_size=len(tokenizer), max_position_embeddings=MAX_TOKENS,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id, pad_token_id=tokenizer.pad_token_id, sep_token_id=tokenizer.sep_token_id,
    )  # fmt: skip
    return BlipForImageTextRetrieval(
        BlipConfig(
            text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=_WIDTH, image_text_hidden_size=_WIDTH
        )
    )


def train(tokenizer: Any, count: int) -> tuple[Any, float]:
    """Tell a picture's caption from one with a wrong word and from another picture's.

    A second loss asks the image tokens alone which phrases hold; without it matching stays at chance for thousands of steps.
    """
    torch.manual_seed(4)
    data = pictures(PICTURES, seed=8, wrong_captions=0, damaged=0.25)
    images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2).float() / 255
    ids, mask = token_ids(tokenizer, data.captions)
    wrong = [token_ids(tokenizer, corrupted_captions(data.scenes, seed)) for seed in (1, 2, 3)]
    labels = phrase_labels(data.scenes)
    model, phrases = new_model(tokenizer), torch.nn.Linear(_WIDTH, labels.shape[1])
    weights = [*model.parameters(), *phrases.parameters()]
    optimizer, recent = torch.optim.AdamW(weights, weight_decay=1e-2), 0.5
    for step in steps("image-text matching", count, optimizer, Schedule(peak=1.5e-3, warmup=100, floor=1e-5)):
        batch = torch.randint(0, len(images), (BATCH,))
        another = batch.roll(1)
        wrong_ids, wrong_mask = wrong[step % len(wrong)]
        tokens = model.vision_model(pixel_values=(augmented(images[batch]) - IMAGE_MEAN) / IMAGE_STD).last_hidden_state
        states = model.text_encoder(
            input_ids=torch.cat([ids[batch], wrong_ids[batch], ids[another]]),
            attention_mask=torch.cat([mask[batch], wrong_mask[batch], mask[another]]),
            encoder_hidden_states=tokens.repeat(3, 1, 1),
            encoder_attention_mask=torch.ones(3 * BATCH, tokens.shape[1], dtype=torch.long),
        ).last_hidden_state[:, 0]
        logits = model.itm_head(states)
        right, one_off, other = (logits[:, 1] - logits[:, 0]).split(BATCH)
        matching = F.softplus(-right).mean() + 0.5 * F.softplus(one_off).mean() + 0.5 * F.softplus(other).mean()
        contrast = F.softplus(one_off - right).mean()
        told = F.binary_cross_entropy_with_logits(phrases(tokens.mean(dim=1)), labels[batch])
        loss = matching + contrast + 10 * told
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        recent += ((right > one_off).float().mean().item() - recent) / 100
    return model.eval(), recent


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
