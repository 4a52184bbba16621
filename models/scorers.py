"""Judges of images behind one interface: the reward model, the paper's baselines, and those of other packages.

A scorer takes prompts and pictures, one prompt a picture, and returns one number each: higher is better. Another package
declares one under the entry-point group `irpipe.scorers`: a function without arguments that returns an object like `Scorer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from irpipe.models.imagereward import ImageReward, Preprocessing, read_checkpoint
from irpipe.models.loading import device_errors, files_of, load_errors, pick_device
from irpipe.models.pictures import resize_and_crop
from irpipe.pipeline.errors import ModelError, RecipeError, did_you_mean
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.registry import SCORERS, declared
from irpipe.pipeline.stage import Model

OWN = ("reward-model", "clip", "aesthetic", "blip", "random")

Pictures = Sequence[NDArray[np.uint8]]


class Scorer(Protocol):
    """A judge.

    Attributes:
        image_size: it takes squares of so many pixels, resized and cropped as ImageReward does it; None: pictures as they are.
    """

    @property
    def image_size(self) -> int | None: ...

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> Sequence[float] | NDArray[Any]:
        """One number a picture; pictures are (height, width, 3) uint8."""


def squares(pictures: Pictures, preprocessing: Preprocessing, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Pictures (size, size, 3) as a normalised batch (n, 3, size, size)."""
    batch = torch.from_numpy(np.stack(pictures)).to(device)
    return preprocessing.normalised(batch.permute(0, 3, 1, 2).to(dtype) / 255)


def make_scorers(
    names: Sequence[str], models: Mapping[str, Sequence[Model]], reward: ImageReward | None, *, device: str, dtype: str, seed: int
) -> dict[str, Scorer]:
    """Load scorers by name.

    Args:
        device: where they run: auto, cpu, cuda, ...; dtype: their precision; seed: of the scorer random.
        models: `clip_model`, `aesthetic_model` and `blip_model`, those that are needed.
        reward: the scorer reward-model.

    Raises:
        RecipeError: there is none of a name.
        ModelError: a model is not at hand, or of another kind.
    """
    place = pick_device(device)
    with device_errors(place):
        torch.empty(1, device=place)
    return {name: _make_scorer(name, seed, models, reward, place, getattr(torch, dtype)) for name in dict.fromkeys(names)}


def _make_scorer(
    name: str, seed: int, models: Mapping[str, Sequence[Model]], reward: ImageReward | None, device: str, dtype: torch.dtype
) -> Scorer:
    if name == "reward-model":
        assert reward is not None
        return RewardModelScorer(reward, device, dtype)
    if name == "clip":
        return ClipScorer(models["clip_model"][0], device, dtype)
    if name == "aesthetic":
        if "aesthetic_model" not in models:
            raise ModelError("the scorer aesthetic needs its head", fix="set aesthetic_model to the folder that holds it")
        return ClipScorer(models["clip_model"][0], device, dtype, aesthetic_head(models["aesthetic_model"][0]))
    if name == "blip":
        return BlipScorer(models["blip_model"][0], device, dtype)
    if name == "random":
        return RandomScorer(seed)
    others = declared(SCORERS)
    if name not in others:
        known = (*OWN, *others)
        raise RecipeError(f"there is no scorer {name!r}{did_you_mean(name, known)}", expected=", ".join(known))
    scorer: Scorer = others[name].load()()
    return scorer


def judge_pictures(judge: Scorer, prompts: Sequence[str], pictures: Pictures, batch_size: int = 64) -> NDArray[np.float64]:
    """A judge's numbers, (n,), of pictures (height, width, 3) of any size."""
    found = [np.empty(0)]
    for start in range(0, len(pictures), batch_size):
        part = list(pictures[start : start + batch_size])
        if judge.image_size is not None:
            part = [resize_and_crop(Image.fromarray(picture), judge.image_size) for picture in part]
        found.append(np.asarray(judge(prompts[start : start + batch_size], part), dtype=np.float64))
    return np.concatenate(found)


class RewardModelScorer:
    """Raw scores of an ImageReward model."""

    def __init__(self, model: ImageReward, device: str, dtype: torch.dtype) -> None:
        self.model = model
        self.model.to(device=device, dtype=dtype).eval()
        self._dtype = dtype
        self.image_size = model.preprocess.image_size

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        pixels = squares(pictures, self.model.preprocess, self.model.device, self._dtype)
        texts = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        ids, mask = self.model.tokenise(list(texts))
        rows = [texts[prompt] for prompt in prompts]
        with torch.no_grad():
            return np.asarray(self.model(pixels, ids[rows], mask[rows]).float().cpu().numpy())


class NormalisedScorer(RewardModelScorer):
    """Scores of an ImageReward model in its own deviations from its own mean, as ReFL takes them."""

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        return (super().__call__(prompts, pictures) - self.model.card.mean) / self.model.card.std


class ClipScorer:
    """Cosine of CLIP's embeddings of prompt and image; with an aesthetic head, its opinion of the image's embedding alone.

    Source: released code, models/CLIPScore.py and AestheticScore.py.
    """

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

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, prompts: Sequence[str], pictures: Pictures) -> NDArray[Any]:
        drawn = zip(prompts, pictures, strict=True)
        draws = [row_id("random scorer", self._seed, prompt, picture.tobytes()) for prompt, picture in drawn]
        return np.array(draws, dtype=np.float64) / 2**64


def preprocessing_in(folder: Path, image_size: int) -> Preprocessing:
    """Mean and deviation from a preprocessor's file."""
    import json

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
