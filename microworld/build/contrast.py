"""The micro world's CLIP, and a linear aesthetic head on its image features: baselines and monitors, made apart from the rest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from irpipe.microworld.build.data import augmented
from irpipe.microworld.build.tokenizer import MAX_TOKENS, clip_tokenizer, token_ids
from irpipe.microworld.build.training import Recipe
from irpipe.microworld.build.training import train as train_modules
from irpipe.microworld.captions import corrupted_captions, pictures
from irpipe.microworld.grammar import sample_scene
from irpipe.microworld.render import damage, render, to_pixels

PICTURES, STEPS, BATCH = 24_000, 2500, 96
IMAGE_MEAN, IMAGE_STD = 0.5, 0.27
RATED_PICTURES = 4000
_WIDTH = 64


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train and save the model and, in `folder/aesthetic.safetensors`, the head.

    Returns:
        figures for the manifest.
    """
    tokenizer = clip_tokenizer()
    model, accuracy = train(tokenizer, math.ceil(STEPS * scale), math.ceil(PICTURES * scale))
    weight, bias, correlation = fit_aesthetic(model)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    CLIPImageProcessor(size=square, crop_size=square, image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3).save_pretrained(
        folder
    )
    save_file({"weight": weight, "bias": bias}, folder / "aesthetic.safetensors")
    return {"caption_among_batch": round(accuracy, 3), "aesthetic_correlation": round(correlation, 3)}


def train(tokenizer: Any, count: int, shown: int) -> tuple[Any, float]:
    """The symmetric contrastive loss of CLIP (Radford et al. 2021, figure 3), each image also against a caption one word off."""
    torch.manual_seed(5)
    data = pictures(shown, seed=11, wrong_captions=0, damaged=0.15)
    images = torch.from_numpy(data.pixels).permute(0, 3, 1, 2).float() / 255
    ids, _ = token_ids(tokenizer, data.captions)
    wrong, _ = token_ids(tokenizer, corrupted_captions(data.scenes, seed=12))
    shared = {
        "hidden_size": _WIDTH,
        "intermediate_size": 2 * _WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "projection_dim": _WIDTH,
    }
    text = CLIPTextConfig(
        **shared,
        vocab_size=len(tokenizer),
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(**shared, image_size=32, patch_size=4)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=_WIDTH))
    own = torch.arange(BATCH)

    def compute(_step: int) -> tuple[torch.Tensor, float]:
        batch = torch.randint(0, len(images), (BATCH,))
        pixels = (augmented(images[batch]) - IMAGE_MEAN) / IMAGE_STD
        outputs = model(input_ids=torch.cat([ids[batch], wrong[batch]]), pixel_values=pixels)
        similarity = outputs.logits_per_image  # (BATCH, 2 BATCH)
        loss = 0.5 * (F.cross_entropy(similarity, own) + F.cross_entropy(similarity[:, :BATCH].T, own))
        return loss, (similarity.argmax(dim=1) == own).float().mean().item()

    def clamp() -> None:
        model.logit_scale.data.clamp_(max=math.log(100))

    recipe = Recipe(count, peak=1.5e-3, warmup_steps=100, final=1e-5, weight_decay=1e-2)
    accuracy = train_modules({"clip": model}, recipe, compute, clamp)
    return model.eval(), accuracy


def image_features(model: Any, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """(n, 64) image features of length 1."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixel_values=(images - IMAGE_MEAN) / IMAGE_STD).pooler_output)
    return F.normalize(features, dim=-1)


def fit_aesthetic(model: Any) -> tuple[torch.Tensor, torch.Tensor, float]:
    """A linear map from image features to a rating from 1 to 10, as LAION's aesthetic predictor has it.

    The ratings are of how much of a picture was spoilt when it was made; the oracle is not asked.

    Returns:
        weight (1, 64), bias (1), and the correlation with ratings of pictures not fitted on.
    """
    rng = np.random.default_rng(13)
    pixels, ratings = np.empty((RATED_PICTURES, 32, 32, 3), dtype=np.uint8), np.empty(RATED_PICTURES)
    for index in range(RATED_PICTURES):
        image, placed, background = render(sample_scene(rng, "train"), rng)
        spoilt = 0.0
        if rng.random() < 0.6:
            image, where = damage(image, placed, background, rng)
            spoilt = float(where.sum())
        pixels[index], ratings[index] = to_pixels(image), np.clip(10 - 9 * spoilt / 80 + rng.normal(0, 0.5), 1, 10)
    features = torch.cat([image_features(model, pixels[start : start + 500]) for start in range(0, RATED_PICTURES, 500)])
    design = torch.cat([features, torch.ones(RATED_PICTURES, 1)], dim=1).double()
    half = RATED_PICTURES // 2
    ridge = 1e-2 * torch.eye(design.shape[1], dtype=torch.float64)
    target = torch.from_numpy(ratings)
    solution = torch.linalg.solve(design[:half].T @ design[:half] + ridge, design[:half].T @ target[:half])
    correlation = float(np.corrcoef((design[half:] @ solution).numpy(), ratings[half:])[0, 1])
    return solution[None, :-1].float().contiguous(), solution[-1:].float(), correlation
