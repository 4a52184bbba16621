"""The baselines of ImageReward's table 3: CLIP, aesthetic, BLIP and chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from irpipe.models.loading import files_of, load_errors
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.scorers.base import Pictures
from irpipe.models.scorers.reward import squares
from irpipe.models.weights import read_checkpoint
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import ScoreCard


class ClipScorer:
    """Cosine of CLIP's embeddings of prompt and image; with an aesthetic head, its opinion of the image's embedding alone.

    Source: released code, models/CLIPScore.py and AestheticScore.py.
    """

    card: ScoreCard | None = None

    def __init__(self, model: Model, device: str, dtype: torch.dtype, aesthetic: nn.Module | None = None) -> None:
        from transformers import CLIPModel, CLIPTokenizerFast

        folder = files_of(model)
        with load_errors(
            model, "the CLIP", "a Hugging Face CLIP: config.json, safetensors, tokenizer and preprocessor_config.json"
        ):
            self._model = CLIPModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=dtype)
            self._model.to(device).eval()
            self._tokenizer = CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
            self._preprocessing = preprocessing_in(folder, self._model.config.vision_config.image_size)
        self.image_size = self._preprocessing.image_size
        self._head = aesthetic.to(device=device, dtype=dtype).eval() if aesthetic is not None else None

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        """(n,) scores of pictures (size, size, 3), each for its prompt."""
        model, device = self._model, self._model.device
        pixels = squares(pictures, self._preprocessing, device, model.dtype)
        with torch.no_grad():
            image = F.normalize(model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output), dim=-1)
            if self._head is not None:
                return np.asarray(self._head(image)[:, 0].float().cpu().numpy())
            longest = model.config.text_config.max_position_embeddings
            texts = self._tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
            text = F.normalize(model.text_projection(model.text_model(**texts.to(device)).pooler_output), dim=-1)
            return np.asarray((image * text).sum(dim=-1).float().cpu().numpy())


class BlipScorer:
    """Cosine of BLIP's projections of prompt and image, each encoded on its own.

    Source: released code, models/BLIPScore.py.
    """

    card: ScoreCard | None = None

    def __init__(self, model: Model, device: str, dtype: torch.dtype) -> None:
        from transformers import AutoTokenizer, BlipForImageTextRetrieval

        folder = files_of(model)
        with load_errors(model, "the BLIP", "a Hugging Face BlipForImageTextRetrieval: config.json, safetensors, tokenizer"):
            self._model = BlipForImageTextRetrieval.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=dtype
            )
            self._model.to(device).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            self._preprocessing = preprocessing_in(folder, self._model.config.vision_config.image_size)
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


def preprocessing_in(folder: Path, image_size: int) -> Preprocessing:
    """Mean and standard deviation from a preprocessor's file."""
    told = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    return Preprocessing(image_size, tuple(told["image_mean"]), tuple(told["image_std"]))


def aesthetic_head(model: Model) -> nn.Module:
    """The head on CLIP's image embedding: LAION's linear layers, or ImageReward's of the same kind, without activations.

    Raises:
        ModelError: there are no such layers.
    """
    folder = files_of(model)
    named = folder / "aesthetic.safetensors"
    state = read_checkpoint(named) if named.is_file() else read_checkpoint(folder)
    weights = {name: value for name, value in (state or {}).items() if name.endswith("weight") and value.dim() == 2}
    layers = []
    for name, weight in weights.items():
        bias = (state or {}).get(name.removesuffix("weight") + "bias")
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        layer.load_state_dict({"weight": weight, **({"bias": bias} if bias is not None else {})})
        layers.append(layer)
    fits = all(one.out_features == other.in_features for one, other in pairwise(layers))
    if not layers or not fits or layers[-1].out_features != 1:
        raise ModelError(
            f"{model.name} holds no aesthetic head",
            where=str(folder),
            expected="aesthetic.safetensors, or one .pth with linear layers that end in one number",
        )
    return nn.Sequential(*layers)
