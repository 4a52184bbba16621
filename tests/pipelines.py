"""Tiny diffusers pipelines of the real classes with random weights, saved by the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from irpipe.microworld.build.tokenizer import clip_tokenizer

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def _text(tokenizer: Any, kind: Any = CLIPTextModel) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=32,
            projection_dim=16,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _vae() -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        mid_block_add_attention=False,
    )


def _unet(width: int, **more: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=width,
        **more,
    )


def stable_diffusion(folder: Path, seed: int = 0, *, blackens: bool = False, vae_bias: float | None = None) -> Path:
    """Save a Stable Diffusion 1 pipeline of 16 x 16 pixels.

    Args:
        blackens: whether its safety checker finds fault with everything; it has none otherwise.
        vae_bias: replaces the decoder's last bias, its last weights being zero: every image is of that one value.
    """
    torch.manual_seed(seed)
    tokenizer, vae = clip_tokenizer(), _vae()
    if vae_bias is not None:
        vae.decoder.conv_out.weight.data.zero_()
        vae.decoder.conv_out.bias.data.fill_(vae_bias)
    checker, extractor = None, None
    if blackens:
        vision = {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        }
        checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16))
        checker.concept_embeds_weights.data.fill_(-2.0)
        extractor = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=_text(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(16),
        scheduler=PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=checker,
        feature_extractor=extractor,
        requires_safety_checker=blackens,
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path) -> Path:
    """Save an SDXL pipeline of 16 x 16 pixels: two text encoders, pooled embeddings, size conditioning."""
    torch.manual_seed(1)
    tokenizer = clip_tokenizer()
    unet = _unet(32, addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16)
    pipeline = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_text(tokenizer),
        text_encoder_2=_text(tokenizer, CLIPTextModelWithProjection),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_BETAS),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_inpainting(folder: Path) -> Path:
    """Save a Stable Diffusion 1 pipeline for inpainting, whose network also sees the mask and the masked picture."""
    torch.manual_seed(2)
    tokenizer = clip_tokenizer()
    pipeline = StableDiffusionInpaintPipeline(
        vae=_vae(),
        text_encoder=_text(tokenizer),
        tokenizer=tokenizer,
        unet=_unet(16, in_channels=9),
        scheduler=PNDMScheduler(**_BETAS, skip_prk_steps=True, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder
