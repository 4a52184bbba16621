"""The gradient of CLIP's cosine as a misalignment heatmap: a baseline that was never trained on any (RichHF, table 3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from irpipe.models.loading import files_of, load_errors, pick_device
from irpipe.models.maps import encoded
from irpipe.models.pictures import decode
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Context, Model


def gradient_maps(
    model: Model,
    prompts: Sequence[str],
    images: Sequence[bytes],
    shapes: Sequence[tuple[int, int]],
    device: str,
    context: Context,
) -> list[bytes]:
    """Encoded maps of images: how much each pixel moves the cosine with the prompt, the most of an image being 1.

    Args:
        images: encoded; shapes: (height, width) of their maps.

    Raises:
        ModelError: the model is no CLIP, or torch is not installed.
    """
    try:
        import torch
        import torch.nn.functional as F

        from irpipe.models.reward.clip import ClipReward
    except ImportError:
        raise ModelError("a CLIP's gradient needs the extra 'train'", fix="pip install 'irpipe[train]'") from None
    with load_errors(model, "the CLIP", "a CLIP of transformers with its tokenizer and preprocessing"):
        clip = ClipReward.from_pretrained(files_of(model)).to(pick_device(device)).eval().requires_grad_(False)
    maps = []
    with context.progress("taking CLIP's gradient", len(images), "images") as bar:
        for prompt, data, shape in zip(prompts, images, shapes, strict=True):
            picture = torch.from_numpy(np.array(decode(data).convert("RGB"))).permute(2, 0, 1).float() / 255
            pixels = picture[None].to(clip.device).requires_grad_(True)
            cosine = clip.cosine(clip.preprocess(pixels), clip.encode_texts([prompt]))
            (gradient,) = torch.autograd.grad(cosine.sum(), pixels)
            moved = F.interpolate(gradient.abs().sum(dim=1, keepdim=True), shape, mode="area")[0, 0]
            maps.append(encoded(of_most(moved.double().cpu().numpy())))
            bar.advance(1)
    return maps


def of_most(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values (h, w) of 0 and more as shares of the greatest."""
    most = values.max()
    return values / most if most > 0 else values
