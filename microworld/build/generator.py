"""The micro world's generator: a Stable Diffusion pipeline of the real classes, mediocre by what it is trained on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from irpipe.microworld.build.tokenizer import MAX_TOKENS, clip_tokenizer, token_ids
from irpipe.microworld.build.training import Recipe, train
from irpipe.microworld.captions import Pictures, pictures

PICTURES, WRONG_CAPTIONS, DAMAGED = 32_000, 0.15, 0.2
VAE_STEPS, VAE_BATCH = 3000, 8  # a small batch and many steps: with a large one colours collapse to a few
UNET_STEPS, UNET_BATCH = 5000, 64
NO_CAPTION = 0.1  # share of captions left out, for classifier-free guidance (Ho and Salimans 2022)
_WIDTH = 64


def build(folder: Path, scale: float) -> dict[str, float]:
    """Train and save the generator. `scale` is the share of steps and of pictures, for tests.

    Returns:
        figures for the manifest.
    """
    data = pictures(math.ceil(PICTURES * scale), seed=5, wrong_captions=WRONG_CAPTIONS, damaged=DAMAGED)
    vae = train_vae(math.ceil(VAE_STEPS * scale), math.ceil(PICTURES // 2 * scale))
    mean, spread = encode(vae, data)
    vae.register_to_config(scaling_factor=float(1 / mean.std()))
    tokenizer = clip_tokenizer()
    text, unet, loss = train_denoiser(
        tokenizer, data, mean * vae.config.scaling_factor, spread * vae.config.scaling_factor, math.ceil(UNET_STEPS * scale)
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
    return {"unet_loss": round(loss, 4)}


def scheduler() -> Any:
    """The noise schedule of Stable Diffusion 1."""
    return DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    )


def to_tensor(pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    """(n, 3, 32, 32) from -1 to 1, of (n, 32, 32, 3) from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(count: int, shown: int) -> Any:
    """An autoencoder of 32 x 32 pixels to 8 x 8 x 4.

    Things are a tenth of the pixels and hold nearly all that a prompt says, so they weigh nine times as much as the
    background, and differences of colour more than those of brightness. Without it a thousand steps end at a utility of .24,
    with it at .79.
    """
    torch.manual_seed(1)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
    vae.quant_conv.bias.data[4:] = -5.0  # begin with little noise in the latent
    images = to_tensor(pictures(shown, seed=6, wrong_captions=0, damaged=0.1).pixels)

    def compute(_step: int) -> tuple[torch.Tensor, float]:
        """The loss of images (batch, 3, 32, 32), encoded and decoded again, and a figure of it."""
        batch = images[torch.randint(0, len(images), (VAE_BATCH,))].contiguous(memory_format=torch.channels_last)
        latent = vae.encode(batch).latent_dist
        weight = 1 + 8 * (_away_from_background(batch) > 0.2).float()
        error = (vae.decode(latent.sample()).sample - batch) * (weight / weight.mean()).sqrt()
        colour = error - error.mean(dim=1, keepdim=True)
        reconstruction = error.abs().mean() + 2 * error.square().mean() + 2 * colour.abs().mean() + 4 * colour.square().mean()
        return reconstruction + 1e-5 * latent.kl().mean() / 256, reconstruction.item()

    train({"autoencoder": vae}, Recipe(count, 3e-3, 30, 3e-5, weight_decay=0.0, adam_beta2=0.98), compute)
    standardise(vae, images[:2000])
    return vae.eval()


def _away_from_background(images: torch.Tensor) -> torch.Tensor:
    """(n, 1, 32, 32) how far each pixel is from its image's median colour, which is the background's."""
    median = images.flatten(2).median(dim=2).values[:, :, None, None]
    return (images - median).abs().amax(dim=1, keepdim=True)


def standardise(vae: Any, images: torch.Tensor) -> None:
    """Give every latent channel mean 0 and variance 1, by folding scale and shift into the 1 x 1 convolutions around it.

    Images (n, 3, h, w) decode as before; diffusion then spends no less care on one channel than on another.
    """
    with torch.no_grad():
        latents = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(250)])
        shift, scale = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
        into, out_of = vae.quant_conv, vae.post_quant_conv
        into.weight[:4] /= scale[:, None, None, None]
        into.bias[:4] = (into.bias[:4] - shift) / scale
        into.bias[4:] -= 2 * scale.log()  # log variances
        out_of.bias += (out_of.weight[:, :, 0, 0] * shift).sum(dim=1)
        out_of.weight *= scale[None, :, None, None]


def encode(vae: Any, data: Pictures) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 4, 8, 8) mean and standard deviation of every picture's latent."""
    with torch.no_grad():
        latents = [
            vae.encode(to_tensor(data.pixels[start : start + 256])).latent_dist for start in range(0, len(data.pixels), 256)
        ]
    return torch.cat([latent.mean for latent in latents]), torch.cat([latent.std for latent in latents])


def new_text_encoder(tokenizer: Any) -> Any:
    """A small CLIP text encoder."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=_WIDTH,
            intermediate_size=2 * _WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            projection_dim=_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_unet() -> Any:
    """A small UNet with cross attention."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 96),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    ).to(memory_format=torch.channels_last)


def train_denoiser(
    tokenizer: Any, data: Pictures, mean: torch.Tensor, spread: torch.Tensor, count: int
) -> tuple[Any, Any, float]:
    """Text encoder and UNet, together, on the noise-prediction loss of latents (n, c, h, w); the EMA of the weights is kept."""
    torch.manual_seed(2)
    text, unet = new_text_encoder(tokenizer), new_unet()
    noise_schedule = scheduler()
    ids, _ = token_ids(tokenizer, data.captions)
    nothing = token_ids(tokenizer, [""])[0]

    def compute(_step: int) -> tuple[torch.Tensor, float]:
        """The loss of latents (batch, c, h, w) with noise, and a figure of it."""
        batch = torch.randint(0, len(ids), (UNET_BATCH,))
        latents = mean[batch] + spread[batch] * torch.randn_like(mean[batch])
        captions = torch.where(torch.rand(UNET_BATCH, 1) < NO_CAPTION, nothing, ids[batch])
        # Words are decided where there is nearly only noise, so those times are drawn more often.
        times = (1000 * torch.rand(UNET_BATCH) ** 0.6).long().clamp(max=999)
        noise = torch.randn_like(latents)
        noisy = noise_schedule.add_noise(latents, noise, times).contiguous(memory_format=torch.channels_last)
        loss = F.mse_loss(unet(noisy, times, text(captions)[0]).sample, noise)
        return loss, loss.item()

    recipe = Recipe(count, 1.2e-3, 100, 2e-5, weight_decay=1e-3, ema_decay=0.998)
    loss = train({"text": text, "unet": unet}, recipe, compute)
    return text.eval(), unet.eval(), loss
