"""What a reward model starts from: a BLIP, or an earlier reward model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipTextConfig

from irpipe.models.loading import files_of, load_errors
from irpipe.models.plugins import format_of
from irpipe.models.reward.base import aspects_of, is_clip, load_reward_model, refuse_uncounted
from irpipe.models.reward.blip_weights import PUBLISHED_VISION, configs, from_published_names, published_tokenizer, sizes_of
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.imagereward import ImageReward
from irpipe.models.reward.preprocessing import Preprocessing, read_preprocessing
from irpipe.models.weights import fill, load_tokenizer, read_checkpoint, read_config
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CONFIG

Head = Literal["auto", "itm", "published", "random", "kept"]


def prepare_for_training(
    reward: Any,
    *,
    freeze_rate: float,
    freeze: Literal["published", "layers"],
    text_dropout: float,
    image_layers: int | None = None,
    text_layers: int | None = None,
) -> None:
    """Freeze the lower layers of a reward model. What is frozen exactly, and dropout, are the matter of its kind.

    Args:
        image_layers, text_layers: of a CLIP, the last layers of each tower that train, instead of a share; `freeze` says what
            one of the image tower is: a group of the released code, whose first is the projection, or a block.

    Raises:
        ModelError: layers are given, and it is no CLIP, or has fewer.
    """
    if isinstance(reward, ClipReward):
        _freeze_clip(reward, freeze_rate, freeze, image_layers, text_layers)
        return
    if image_layers is not None or text_layers is not None:
        raise ModelError("image_layers and text_layers are a CLIP's", expected="freeze_rate for a reward model of this kind")
    if isinstance(reward, ImageReward):
        reward.set_text_dropout(text_dropout)
        reward.freeze(freeze_rate, freeze)
    else:
        reward.freeze(freeze_rate)


def _freeze_clip(
    reward: ClipReward, rate: float, freeze: Literal["published", "layers"], image_layers: int | None, text_layers: int | None
) -> None:
    """Freeze a CLIP's lower layers, by counts or by a share."""
    config = reward.clip.config
    for given, blocks, tower in (
        (image_layers, config.vision_config.num_hidden_layers, "image"),
        (text_layers, config.text_config.num_hidden_layers, "text"),
    ):
        if given is not None and given > blocks:
            raise ModelError(f"the {tower} tower has {blocks} layers, of which {given} cannot train")
    groups = image_layers if image_layers is None or freeze == "published" else image_layers + 1
    reward.freeze(rate, image_groups=groups, text_layers=text_layers)


@dataclass(frozen=True)
class _Towers:
    """A BLIP's towers under our names, a blank model for them, and its matching head, (2, width) and (2,), if any."""

    weights: Mapping[str, Tensor]
    model: ImageReward
    matching: tuple[Tensor, Tensor] | None


def init_reward_model(model: Model, head: Head, seed: int) -> tuple[Any, str]:
    """A reward model to train.

    Args:
        model: a folder with a reward model of any installed format, a published ImageReward.pt or BLIP checkpoint, or a
            Hugging Face BLIP.
        head: `itm`: its product is the logit of image-text matching, all that pre-training knows of prompt and image;
            `published`; `random` with even gain; `kept` as it comes; `auto`: kept, else itm, else random.
        seed: of the head's weights.

    Returns:
        the model, and which head it got.

    Raises:
        ModelError: the model is of another kind, or has no such head.
    """
    folder = files_of(model)
    refuse_uncounted(model, folder)
    reward = _reward_model(folder)
    if reward is not None and head in ("auto", "kept"):
        return reward, "kept"
    if reward is not None and not isinstance(reward, ImageReward):
        raise ModelError(f"{model.shown} is a reward model with a head of its own", expected="head auto or kept")
    towers = _Towers({}, reward, None) if reward is not None else _blip(model, folder)
    chosen: Head = ("itm" if towers.matching else "random") if head == "auto" else head
    _fill_head(towers, chosen, model.shown, torch.Generator().manual_seed(seed))
    if towers.weights:
        head_weights = {f"head.{name}": value for name, value in towers.model.head.state_dict().items()}
        fill(towers.model, {**towers.weights, **head_weights}, model.shown)
    return towers.model, chosen


def _fill_head(towers: _Towers, head: Head, name: str, generator: torch.Generator) -> None:
    """Initialise the head of a blank model.

    Raises:
        ModelError: what the head is made of is missing.
    """
    layers = towers.model.head_layers
    if head == "kept":
        raise ModelError(f"{name} has no reward head to keep", expected="head auto, itm or random")
    if head == "published":
        initialise_head_as_published(layers, generator)
    elif head == "random":
        initialise_head(layers, None, 0.0, generator)
    elif towers.matching is None:
        raise ModelError(f"{name} has no head for image-text matching", expected="head auto or random")
    else:
        weight, bias = towers.matching
        initialise_head(layers, weight[1] - weight[0], float(bias[1] - bias[0]), generator)


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


def sized(reward: Any, image_size: int | None, model: Model) -> Any:
    """A reward model for images of another size, in pixels; None for its own.

    An ImageReward's table of positions is fitted (bicubic, as BLIP does it).

    Raises:
        ModelError: it is of a kind whose size is fixed.
    """
    if aspects_of(reward):
        raise ModelError(
            f"{model.shown} gives several scores, and preferences are of one", fix="irpipe run train-rahf goes on with it"
        )
    if isinstance(reward, ImageReward):
        return of_size(reward, image_size)
    if image_size not in (None, reward.preprocess.image_size):
        size = reward.preprocess.image_size
        raise ModelError(f"{model.shown} looks at images of {size} px, not of {image_size}", expected="image_size unset")
    return reward


def _reward_model(folder: Path) -> Any:
    """The reward model in a folder, if it holds one, else None. A CLIP is one as it is."""
    if format_of(folder) is not None or is_clip(folder):
        return load_reward_model(folder)
    if folder.is_file() or not (folder / CONFIG).is_file():
        state = read_checkpoint(folder)
        if state is not None and any("mlp.layers." in name for name in state):
            return load_reward_model(folder)
    return None


def _blip(model: Model, folder: Path) -> _Towers:
    """A BLIP of either kind."""
    expected = "a Hugging Face BLIP with a matching head (BlipForImageTextRetrieval), BLIP's model_large.pth, or a reward model"
    if not (folder / CONFIG).is_file():
        state = read_checkpoint(folder)
        if state is None or not any(name.startswith("visual_encoder.") for name in state):
            raise ModelError(f"{model.shown} holds no BLIP", where=str(folder), expected=expected)
        return _of_released_blip(state, folder)
    told = read_config(Model(model.name, "", folder))
    named = told.get("architectures")
    architectures: list[Any] = named if isinstance(named, list) else []
    if told.get("model_type") != "blip" or "BlipForImageTextRetrieval" not in architectures:
        kind = (architectures or [told.get("model_type")])[0]
        raise ModelError(f"{model.shown} is a {kind}", where=str(folder), expected=expected)
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
    check_vocabulary(blank.tokenizer, blank.text, str(folder))
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
    tokenizer = load_tokenizer(folder)
    check_vocabulary(tokenizer, blip.text_encoder, str(folder))
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
        preprocessing=read_preprocessing(folder, config.vision_config.image_size),
        tokenizer=tokenizer,
    )
    parts = {"vision": blip.vision_model, "text": blip.text_encoder}
    weights = {f"{part}.{name}": value for part, module in parts.items() for name, value in module.state_dict().items()}
    return _Towers(
        {name: value for name, value in weights.items() if not name.startswith("text.pooler.")},
        blank,
        (blip.itm_head.weight.detach(), blip.itm_head.bias.detach()),
    )


def initialise_head_as_published(layers: Sequence[nn.Linear], generator: torch.Generator) -> None:
    """Weights from N(0, 1/(d + 1)), taken as the standard deviation, d the text tower's width; biases 0.

    Source: released code, ImageReward/ImageReward.py, class MLP. Scores begin near 1e-9, and training sits at ln 2 for thousands
    of steps (docs/LOG.md).
    """
    spread = 1 / (layers[0].in_features + 1)
    for layer in layers:
        nn.init.normal_(layer.weight, std=spread, generator=generator)
        nn.init.zeros_(layer.bias)


def initialise_head(layers: Sequence[nn.Linear], direction: Tensor | None, bias: float, generator: torch.Generator) -> None:
    """Random layers of even gain, corrected so that their product is a given linear map of the text tower's state.

    The correction is of least norm and lies in the first layer, spread over all its outputs: dropout of any of them disturbs
    the score little. Without a direction the product stays random.

    Args:
        direction: (d,) weights of the linear map, such as the logit of image-text matching.
        bias: its constant.
    """
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.5 / math.sqrt(layer.in_features), generator=generator)
        nn.init.zeros_(layer.bias)
    if direction is None:
        return
    with torch.no_grad():
        first, *rest = (layer.weight.double() for layer in layers)
        after = torch.linalg.multi_dot([*reversed(rest)])[0] if len(rest) > 1 else rest[0][0]
        wanted = direction.double() - after @ first
        layers[0].weight += torch.outer(after / after.square().sum(), wanted).to(layers[0].weight.dtype)
        layers[-1].bias.fill_(bias)
