"""What a reward model starts from: a BLIP, or an earlier reward model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers import BlipConfig, BlipTextConfig

from irpipe.models.imagereward import (
    FORMAT,
    PUBLISHED_VISION,
    ImageReward,
    Preprocessing,
    configs,
    fill,
    from_published_names,
    initialise_head,
    initialise_head_as_published,
    load_tokenizer,
    published_tokenizer,
    read_checkpoint,
    read_config,
    sizes_of,
)
from irpipe.models.loading import files_of, load_errors
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CONFIG

Head = Literal["auto", "matching", "published", "random", "kept"]


@dataclass(frozen=True)
class _Towers:
    """A BLIP's towers under our names, a blank model for them, and its matching head, (2, width) and (2,), if any."""

    weights: Mapping[str, Tensor]
    model: ImageReward
    matching: tuple[Tensor, Tensor] | None


def start(model: Model, head: Head, seed: int, image_size: int | None = None) -> tuple[ImageReward, str]:
    """A reward model to train.

    Args:
        model: a folder that train-rm wrote, a published ImageReward.pt or BLIP checkpoint, or a Hugging Face BLIP.
        head: `matching`: its product is the logit of image-text matching, all that pre-training knows of prompt and image;
            `published`; `random` with even gain; `kept` as it comes; `auto`: kept, else matching, else random.
        seed: of the head's weights.
        image_size: pixels; None for the start's own. Another one fits the table of positions (bicubic, as BLIP does it).

    Returns:
        the model, and which head it got.

    Raises:
        ModelError: the model is of another kind, or has no such head.
    """
    folder = files_of(model)
    reward = _reward_model(folder)
    if reward is not None and head in ("auto", "kept"):
        return of_size(reward, image_size), "kept"
    towers = _Towers({}, reward, None) if reward is not None else _blip(model, folder)
    chosen: Head = ("matching" if towers.matching else "random") if head == "auto" else head
    generator = torch.Generator().manual_seed(seed)
    layers = towers.model.head_layers
    if chosen == "kept":
        raise ModelError(f"{model.name} has no reward head to keep", fix="--set train-rm.head=auto")
    if chosen == "matching":
        if towers.matching is None:
            raise ModelError(f"{model.name} has no head for image-text matching", fix="--set train-rm.head=random")
        weight, bias = towers.matching
        initialise_head(layers, weight[1] - weight[0], float(bias[1] - bias[0]), generator)
    elif chosen == "published":
        initialise_head_as_published(layers, generator)
    else:
        initialise_head(layers, None, 0.0, generator)
    if towers.weights:
        head_weights = {f"head.{name}": value for name, value in towers.model.head.state_dict().items()}
        fill(towers.model, {**towers.weights, **head_weights}, model.name)
    return of_size(towers.model, image_size), chosen


def of_size(model: ImageReward, image_size: int | None) -> ImageReward:
    """The model for images of another size.

    Raises:
        ModelError: the size is no multiple of the patch size.
    """
    config = model.vision.config
    if image_size is None or image_size == config.image_size:
        return model
    if image_size % config.patch_size:
        raise ModelError(f"image_size = {image_size} is no multiple of the patch size {config.patch_size}")
    embeddings = model.vision.embeddings
    count = 1 + (image_size // config.patch_size) ** 2
    embeddings.position_embedding = torch.nn.Parameter(fitted_positions(embeddings.position_embedding.data, count))
    embeddings.image_size = config.image_size = image_size
    embeddings.num_patches, embeddings.num_positions = count - 1, count
    model.preprocess = replace(model.preprocess, image_size=image_size)
    return model


def _reward_model(folder: Path) -> ImageReward | None:
    """The reward model in a folder, if it holds one."""
    told = read_config(Model(folder.name, "", folder))
    if told.get("format") == FORMAT:
        return ImageReward.from_pretrained(folder)
    if not told:
        state = read_checkpoint(folder)
        if state is not None and any("mlp.layers." in name for name in state):
            return ImageReward.from_pretrained(folder)
    return None


def _blip(model: Model, folder: Path) -> _Towers:
    """A BLIP of either kind."""
    expected = "a Hugging Face BLIP with a matching head (BlipForImageTextRetrieval), BLIP's model_large.pth, or a reward model"
    if not (folder / CONFIG).is_file():
        state = read_checkpoint(folder)
        if state is None or not any(name.startswith("visual_encoder.") for name in state):
            raise ModelError(f"{model.name} holds no BLIP", where=str(folder), expected=expected)
        return _of_released_blip(state, folder)
    told = read_config(Model(model.name, "", folder))
    if told.get("model_type") != "blip" or "BlipForImageTextRetrieval" not in (told.get("architectures") or ()):
        kind = (told.get("architectures") or [told.get("model_type")])[0]
        raise ModelError(f"{model.name} is a {kind}", where=str(folder), expected=expected)
    with load_errors(model, "the start", expected):
        return _of_hugging_face(folder)


def _of_released_blip(state: Mapping[str, Tensor], folder: Path) -> _Towers:
    """From `model_large.pth`: momentum copies, decoder and queues are left, the position table is fitted to 224 px."""
    kept = {f"blip.{name}": value for name, value in state.items() if name.startswith(("visual_encoder.", "text_encoder."))}
    blip = from_published_names(kept)
    patch = blip["vision.embeddings.patch_embedding.weight"].shape[-1]
    vision, text = sizes_of(blip, PUBLISHED_VISION["image_size"] // PUBLISHED_VISION["patch_size"] * patch)
    blank = ImageReward(
        *configs(vision, text), preprocessing=Preprocessing(vision["image_size"]), tokenizer=published_tokenizer(folder)
    )
    own = blank.state_dict()
    table = "vision.embeddings.position_embedding"
    weights = {name: value for name, value in blip.items() if name in own}
    weights[table] = fitted_positions(weights[table], own[table].shape[1])
    matching = (state["itm_head.weight"], state["itm_head.bias"]) if "itm_head.weight" in state else None
    return _Towers(weights, blank, matching)


def fitted_positions(table: Tensor, count: int) -> Tensor:
    """A table of positions (1, 1 + n, width) for another number of patches, bicubic, as BLIP does it."""
    if table.shape[1] == count:
        return table
    side, wanted = round((table.shape[1] - 1) ** 0.5), round((count - 1) ** 0.5)
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = torch.nn.functional.interpolate(grid, (wanted, wanted), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _of_hugging_face(folder: Path) -> _Towers:
    from transformers import BlipForImageTextRetrieval

    blip = BlipForImageTextRetrieval.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    config: BlipConfig = blip.config
    image = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    text = BlipTextConfig(
        **{
            **config.text_config.to_dict(),
            "encoder_hidden_size": config.vision_config.hidden_size,
            "is_decoder": True,
        }
    )
    blank = ImageReward(
        config.vision_config,
        text,
        preprocessing=Preprocessing(config.vision_config.image_size, tuple(image["image_mean"]), tuple(image["image_std"])),
        tokenizer=load_tokenizer(folder),
    )
    parts = {"vision": blip.vision_model, "text": blip.text_encoder}
    weights = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    return _Towers(
        {name: value for name, value in weights.items() if not name.startswith("text.pooler.")},
        blank,
        (blip.itm_head.weight.detach(), blip.itm_head.bias.detach()),
    )
