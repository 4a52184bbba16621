"""The memory of ReFL on Stable Diffusion 1.4 and BLIP large, counted without computing anything: tensors that live at one time.

Torch's fake tensors have shapes and no values, so the published sizes run in minutes on any machine. On a GPU workspaces and
fragmentation come on top: what is counted is what the allocator is asked for.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.common import show
from benchmarks.large_pipeline import UNET, VAE
from benchmarks.reward_model import TINY_TEXT, TINY_VISION, random_model
from irpipe.models.reward.blip_weights import PUBLISHED_TEXT, PUBLISHED_VISION
from irpipe.models.tuning.denoiser import Denoiser
from irpipe.models.tuning.reward_gradient import RewardGradients
from irpipe.models.tuning.session import checkpoint_activations, make_trainable
from irpipe.stages.refl import ReflConfig

BESIDE = 123e6 * 2 / 1e9  # GB: the text encoder, in bfloat16
TOKENS = 77
Trainable = Literal["lora", "unet"]
TRAINABLE: tuple[Trainable, ...] = ("lora", "unet")


class Size(NamedTuple):
    """Widths of the UNet and the autoencoder, the latents' side, and what scores."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    side: int
    reward: tuple[dict[str, Any], dict[str, Any]]
    beside: float


FULL = Size(UNET, VAE, 64, (PUBLISHED_VISION, PUBLISHED_TEXT), BESIDE)
TINY = Size(
    {**UNET, "block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 32},
    {**VAE, "block_out_channels": (32, 32, 32, 32)},
    16,
    (TINY_VISION, TINY_TEXT),
    0.0,
)


class Living(TorchDispatchMode):
    """Counts the bytes of all tensors made under it, until nobody holds them: `now`, and the most since `peak` was set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor)
        return out

    def count(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size


def main(folder: Path, size: Size) -> None:  # noqa: ARG001 # nothing is written
    for trainable in TRAINABLE:
        for samples, recomputed in ((1, True), (2, True), (4, True), (1, False), (2, False)):
            held, peak = of_update(size, trainable, samples, recomputed)
            name = f"{trainable}, samples at a time: {samples}{', recomputed' if recomputed else ''}"
            show(name, weights_and_optimiser=f"{held:.2f} GB", peak=f"{peak:.2f} GB")
    for images in (2, 4, 8):
        show(f"lora, images drawn at a time: {images}", peak=f"{of_drawing(size, images):.2f} GB")


def of_update(size: Size, trainable: Trainable, samples: int, recomputed: bool) -> tuple[float, float]:
    """GB between two backward passes of ReFL, and the most in one for so many samples."""
    mode, living = FakeTensorMode(), Living()
    denoiser, reward = held_models(size, trainable, recomputed, mode, living)
    with mode, living:
        trained = [value for value in denoiser.unet.parameters() if value.requires_grad]
        for value in trained:
            value.grad = torch.empty_like(value)
        kept = [torch.empty_like(value) for value in trained for _ in range(3)]  # Adam's two moments, and the average
        held, living.peak = living.now, living.now
        one_update(size, denoiser, reward, samples)
        del kept
    return held / 1e9 + size.beside, living.peak / 1e9 + size.beside


def of_drawing(size: Size, images: int) -> float:
    """The most GB while so many images are drawn and decoded, with adapters (LoRA) being trained."""
    mode, living = FakeTensorMode(), Living()
    denoiser, _reward = held_models(size, "lora", True, mode, living)
    with mode, living, torch.no_grad():
        texts = {"prompt_embeds": torch.randn(images, TOKENS, size.unet["cross_attention_dim"])}
        latents = torch.randn(images, 4, size.side, size.side)
        with torch.autocast("cpu", torch.bfloat16):
            denoiser.predict(latents, torch.tensor(200), texts)
        denoiser.decode(latents)
    return living.peak / 1e9 + size.beside


def held_models(size: Size, trainable: Trainable, recomputed: bool, mode: FakeTensorMode, living: Living) -> tuple[Denoiser, Any]:
    """The models of a training, without values, and counted."""
    denoiser, reward = models(size, ReflConfig(model="none", trainable=trainable))
    if recomputed:
        checkpoint_activations(denoiser, reward)
    for part in (denoiser.unet, denoiser.vae, reward):
        without_values(part, mode, living)
    return denoiser, reward


def models(size: Size, config: ReflConfig) -> tuple[Denoiser, Any]:
    """The generator as it is tuned, and the reward model."""
    denoiser = Denoiser.__new__(Denoiser)
    precision = torch.float32 if config.trainable == "unet" else torch.bfloat16
    denoiser.unet = UNet2DConditionModel(**size.unet).to(precision).requires_grad_(False).eval()
    denoiser.vae = AutoencoderKL(**size.vae).requires_grad_(False).eval()
    denoiser._conditioning = lambda given, frame: {}
    denoiser.kind = "epsilon"
    denoiser.height = denoiser.width = 8 * size.side
    make_trainable(denoiser, config)
    return denoiser, random_model(*size.reward).eval().requires_grad_(False)


def without_values(model: nn.Module, mode: FakeTensorMode, living: Living) -> None:
    """Take away the values of a model's weights, and count them."""
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    fake = mode.from_tensor(value.detach())
                    living.count(fake)
                    held[name] = nn.Parameter(fake, value.requires_grad) if isinstance(value, nn.Parameter) else fake


def one_update(size: Size, denoiser: Denoiser, reward: Any, samples: int) -> None:
    """What `ReflObjective.losses` does with one late step, and its backward pass."""
    texts = {"prompt_embeds": torch.randn(samples, TOKENS, size.unet["cross_attention_dim"])}
    latents = torch.randn(samples, 4, size.side, size.side)
    with torch.autocast("cpu", torch.bfloat16):
        predicted = denoiser.predict(latents, torch.tensor(200), texts)
        x0 = denoiser.x0_at(latents, torch.tensor(0.5), predicted)
        ids = torch.ones(samples, 20, dtype=torch.long)
        gradient = RewardGradients(reward, denoiser).at(x0, {"input_ids": ids, "attention_mask": ids}, [])
        surrogate = (x0 * gradient.gradients).flatten(1).sum(dim=1)
    surrogate.sum().backward()
