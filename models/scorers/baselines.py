"""The baselines of ImageReward's table 3: CLIP, aesthetic, BLIP and chance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from irpipe.models.loading import files_of, load_errors
from irpipe.models.reward.preprocessing import read_preprocessing
from irpipe.models.scorers.base import Pictures
from irpipe.models.scorers.reward import squares
from irpipe.models.weights import fill, load_tokenizer, read_checkpoint
from irpipe.models.whole import check_vocabulary, refuse_differences
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import ScoreCard


class ClipScorer:
    """Cosine of CLIP's embeddings of prompt and image; with an aesthetic head, its opinion of the image's embedding alone.

    Source: released code, models/CLIPScore.py and AestheticScore.py.
    """

    card: ScoreCard | None = None
    clip: Any

    def __init__(self, model: Model, device: str, dtype: torch.dtype, aesthetic: nn.Sequential | None = None) -> None:
        from transformers import CLIPModel, CLIPTokenizerFast

        folder = files_of(model)
        with load_errors(
            model, "the CLIP", "a Hugging Face CLIP: config.json, safetensors, tokenizer and preprocessor_config.json"
        ):
            self.clip = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=dtype)
            self.clip.to(device).eval()
            self._tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            check_vocabulary(self._tokenizer, self.clip.text_model, model.shown)
            self._preprocessing = read_preprocessing(folder, self.clip.config.vision_config.image_size)
        self.image_size = self._preprocessing.image_size
        if aesthetic is not None:
            _check_width(aesthetic, self.clip.config.projection_dim, model.shown)
        self._head = aesthetic.to(device=device, dtype=dtype).eval() if aesthetic is not None else None

    def to(self, device: torch.device) -> None:
        """Move the models to a device."""
        self.clip.to(device)
        if self._head is not None:
            self._head.to(device)

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        """(n,) scores of pictures (size, size, 3), each for its prompt."""
        model, device = self.clip, self.clip.device
        pixels = squares(pictures, self._preprocessing, device, model.dtype)
        with torch.no_grad():
            image = F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)
            if self._head is not None:
                return np.asarray(self._head(image)[:, 0].float().cpu().numpy())
            longest = model.config.text_config.max_position_embeddings
            texts = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
            text = F.normalize(model.text_projection(model.text_model(**texts.to(device)).pooler_output), dim=-1)
            return np.asarray((image * text).sum(dim=-1).float().cpu().numpy())


def _check_width(head: nn.Sequential, width: int, clip: str) -> None:
    """Whether an aesthetic head takes the embeddings of a CLIP.

    Raises:
        ModelError: it takes others.
    """
    if head[0].in_features != width:
        raise ModelError(
            f"the aesthetic head takes embeddings {head[0].in_features} wide, and those of {clip} are {width} wide",
            expected="the head that was trained on this CLIP",
        )


class BlipScorer:
    """Cosine of BLIP's projections of prompt and image, each encoded on its own.

    Source: released code, models/BLIPScore.py.
    """

    card: ScoreCard | None = None

    def __init__(self, model: Model, device: str, dtype: torch.dtype) -> None:
        from transformers import BlipForImageTextRetrieval

        folder = files_of(model)
        with load_errors(model, "the BLIP", "a Hugging Face BlipForImageTextRetrieval: config.json, safetensors, tokenizer"):
            self._model = BlipForImageTextRetrieval.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=dtype
            )
            self._model.to(device).eval()
            self._tokenizer = load_tokenizer(folder)
            check_vocabulary(self._tokenizer, self._model.text_encoder, model.shown)
            self._preprocessing = read_preprocessing(folder, self._model.config.vision_config.image_size)
        self.image_size = self._preprocessing.image_size

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        """(n,) scores of pictures (size, size, 3), each for its prompt."""
        model = self._model
        longest = min(35, model.config.text_config.max_position_embeddings)
        texts = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        texts = {name: texts[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            tokens = model.vision_model(pixel_values=squares(pictures, self._preprocessing, model.device, model.dtype))
            image = F.normalize(model.vision_proj(tokens.last_hidden_state[:, 0]), dim=-1)
            text = F.normalize(model.text_proj(model.text_encoder(**texts).last_hidden_state[:, 0]), dim=-1)
        return np.asarray((image * text).sum(dim=-1).float().cpu().numpy())


class RandomScorer:
    """Chance: a number made of seed, prompt and picture."""

    image_size = 8
    card: ScoreCard | None = None

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        """(n,) scores of pictures (size, size, 3), each for its prompt."""
        drawn = zip(prompts, pictures, strict=True)
        draws = [row_id("random scorer", self._seed, prompt, picture.tobytes()) for prompt, picture in drawn]
        return np.array(draws, dtype=np.float64) / 2**64


def aesthetic_head(model: Model) -> nn.Sequential:
    """The head on CLIP's image embedding: LAION's linear layers, or ImageReward's of the same kind, without activations.

    Raises:
        ModelError: there are no such layers.
    """
    folder = files_of(model)
    named = folder / "aesthetic.safetensors"
    state = (read_checkpoint(named) if named.is_file() else read_checkpoint(folder)) or {}
    weights = {name: value for name, value in state.items() if name.endswith("weight") and value.dim() == 2}
    biases = {f"{name.removesuffix('weight')}bias" for name in weights} if len(state) > len(weights) else set()
    refuse_differences(model.shown, (weights.keys() | biases) - state.keys(), state.keys() - weights.keys() - biases, ())
    layers = []
    for name, weight in weights.items():
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bool(biases))
        its = {part: state[name.removesuffix("weight") + part] for part in layer.state_dict()}
        fill(layer, its, f"the layer {name} of {model.shown}")
        layers.append(layer)
    fits = all(one.out_features == other.in_features for one, other in pairwise(layers))
    if not layers or not fits or layers[-1].out_features != 1:
        raise ModelError(
            f"{model.shown} holds no aesthetic head",
            where=str(folder),
            expected="aesthetic.safetensors, or one .pth with linear layers that end in one number",
        )
    return nn.Sequential(*layers)
