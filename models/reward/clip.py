"""The preference classifier of Human Preference Score (arXiv 2303.14420, section 5): a CLIP whose cosine is the score.

HPS(image, text) = 100 * cos(image, text). Its training makes the logits logit_scale * cos of a prompt's images say which of them
people chose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import CLIPConfig, CLIPModel

from irpipe.models.loading import load_errors
from irpipe.models.noise import Noise
from irpipe.models.pictures import Fit
from irpipe.models.reward.clip_weights import HEAD_WIDTHS, config_of, from_openai_names, half_to_float, is_openai
from irpipe.models.reward.preprocessing import Preprocessing, read_preprocessing
from irpipe.models.weights import config_table, encode_prompts, fill, load_tokenizer, read_checkpoint, read_config, save_model
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CARD, CONFIG, WEIGHTS, ScoreCard

FORMAT = "hps"
PER_COSINE = 100.0  # HPS, section 5; the released evaluation reports the cosine itself
MOST_SCALE = math.log(100)  # of the logit scale, as CLIP bounds it
_MEANING = "HPS, 100 times the cosine of image and prompt: higher is better; compare within one prompt only"
Activation = Literal["quick_gelu", "gelu"]


class ClipReward(nn.Module):
    """Scores how well people would like an image for a prompt, by a CLIP; see `irpipe.models.reward.base.RewardModel`.

    Make one with `from_pretrained`, `from_clip` or `from_published`.
    """

    format = FORMAT

    def __init__(
        self, clip: CLIPModel, *, preprocessing: Preprocessing, card: ScoreCard | None = None, tokenizer: Any = None
    ) -> None:
        super().__init__()
        self.clip = clip
        self.preprocess = preprocessing
        self.card = card or ScoreCard(0.0, 1.0, "nothing: normalised scores are HPS itself", meaning=_MEANING, log_odds=False)
        self.tokenizer = tokenizer
        self.noise = Noise()  # a CLIP draws nothing in training
        self.eval()

    @classmethod
    def from_clip(cls, clip: CLIPModel, *, preprocessing: Fit, tokenizer: Any = None) -> Self:
        """A CLIP as it is.

        Args:
            preprocessing: `crop`: the shorter side resized and the centre cropped, as the released scoring does. `pad`: the
                longer side resized and the rest black, as the paper trains.
        """
        return cls(
            clip, preprocessing=Preprocessing(clip.config.vision_config.image_size, fit=preprocessing), tokenizer=tokenizer
        )

    @classmethod
    def from_published(
        cls,
        state_dict: Mapping[str, Tensor],
        *,
        preprocessing: Fit = "crop",
        activation: Activation = "quick_gelu",
        tokenizer: Any = None,
        head_widths: tuple[int, int] = HEAD_WIDTHS,
    ) -> Self:
        """A model from weights under OpenAI's names: CLIP, `hpc.pth`, HPS v2, open_clip.

        Args:
            activation: which the weights do not tell. OpenAI's are QuickGELU's; the wrong one moves scores by .01 to .5.
            head_widths: of the attention of the image and the text tower, which they do not tell either.

        Raises:
            ModelError: a weight is missing, of another shape, or unknown.
        """
        weights = half_to_float(from_openai_names(state_dict))
        clip = CLIPModel(config_of(weights, activation, head_widths))
        fill(clip, weights, "a published CLIP checkpoint")
        return cls.from_clip(clip, preprocessing=preprocessing, tokenizer=tokenizer)

    @classmethod
    def from_pretrained(cls, location: str | Path, tokenizer: Any = None) -> Self:
        """A model from a folder that `save_pretrained` wrote, a CLIP of transformers, or a checkpoint with OpenAI's names.

        Args:
            tokenizer: for a checkpoint, whose own is the one that lies beside it.

        Raises:
            ModelError: there is none, it is of another kind, or it is damaged.
        """
        path = Path(location)
        known = Model(str(path), "", path)
        config = read_config(known)
        if config.get("format") == FORMAT:
            with load_errors(known, "the reward model", f"{CONFIG}, {WEIGHTS}, {CARD} and a tokenizer"):
                return cls._from_folder(path)
        if config.get("model_type") == "clip":
            with load_errors(known, "the CLIP", "a CLIP of transformers with its tokenizer and preprocessing"):
                clip = CLIPModel.from_pretrained(path, dtype=torch.float32, use_safetensors=True, local_files_only=True)
                preprocessing = read_preprocessing(path, clip.config.vision_config.image_size)
                model = cls(clip, preprocessing=preprocessing, tokenizer=load_tokenizer(path))
                check_vocabulary(model.tokenizer, clip.text_model, str(path))
                return model
        state = read_checkpoint(path)
        if state is None or not is_openai(state):
            raise ModelError(
                f"{path} {'holds no CLIP' if path.exists() else 'does not exist'}",
                expected=f"a folder of the format {FORMAT!r}, a CLIP of transformers, or a checkpoint with OpenAI's names",
            )
        folder = path if path.is_dir() else path.parent
        with load_errors(known, "the checkpoint", "a CLIP tokenizer beside it (tokenizer.json)"):
            model = cls.from_published(state, tokenizer=tokenizer or load_tokenizer(folder))
            check_vocabulary(model.tokenizer, model.clip.text_model, str(folder))
            return model

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        from safetensors.torch import load_file

        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = cls(
            CLIPModel(CLIPConfig(**config["clip"])),
            preprocessing=Preprocessing.from_json(config["preprocessing"]),
            card=ScoreCard(**json.loads((folder / CARD).read_text(encoding="utf-8"))),
            tokenizer=load_tokenizer(folder),
        )
        fill(model.clip, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
        check_vocabulary(model.tokenizer, model.clip.text_model, str(folder))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, tokenizer and score card; `from_pretrained` reads them."""
        config = {"format": FORMAT, "clip": config_table(self.clip.config), "preprocessing": asdict(self.preprocess)}
        save_model(Path(folder), config, self.card, self.clip.state_dict(), self.tokenizer)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.clip.device
        return device

    @property
    def max_length(self) -> int:
        """Tokens of a prompt that are read."""
        return int(self.clip.config.text_config.max_position_embeddings)

    def encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask, (n, l) each: cut at the model's length, and padded to the longest.

        Raises:
            ModelError: the model came without a tokenizer.
        """
        if self.tokenizer is None:
            raise ModelError("this reward model came without a tokenizer", fix="from_clip(..., tokenizer=...)")
        return encode_prompts(self.tokenizer, prompts, self.max_length, self.device)

    def cosine(self, pixels: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """Cosine (n,) of preprocessed images (n, 3, size, size), each with its text."""
        return (self.image_embeddings(pixels) * self.text_embeddings(texts)).sum(dim=-1)

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """(n, d), of length 1, of preprocessed images (n, 3, size, size)."""
        return F.normalize(self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output), dim=-1)

    def text_embeddings(self, texts: Mapping[str, Tensor]) -> Tensor:
        """(n, d), of length 1, of encoded texts. Equal ones go through the tower once."""
        rows = torch.cat([texts["input_ids"], texts["attention_mask"]], dim=1)
        distinct, which = torch.unique(rows, dim=0, return_inverse=True)
        ids, mask = distinct.chunk(2, dim=1)
        encoded = self.clip.text_projection(self.clip.text_model(input_ids=ids, attention_mask=mask).pooler_output)
        return F.normalize(encoded, dim=-1)[which]

    def forward(self, pixels: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """HPS (n,), 100 times the cosine of images (n, 3, size, size) and their texts."""
        return PER_COSINE * self.cosine(pixels, texts)

    def logits(self, scores: Tensor) -> Tensor:
        """What a training compares, of scores (n,): the cosine times the learnt scale, which is bounded as in CLIP."""
        return scores / PER_COSINE * self.clip.logit_scale.clamp(0, MOST_SCALE).exp()

    def freeze(self, rate: float = 0.0, *, image_groups: int | None = None, text_layers: int | None = None) -> None:
        """Fix the lower layers of both towers; the logit scale always trains.

        Args:
            rate: share of each tower's blocks that are fixed, rounded down, and the embeddings with them. 0: nothing.
            image_groups: instead, as the released code counts from the end: 1 is the projection, 2 the last block with its norm,
                each further one a block, the last the embeddings. The paper says 10 layers.
            text_layers: the last blocks that train, with final norm and projection; embeddings never do. The paper says 6.
                Both locks are of HPSv2's released code.
        """
        vision, text = self.clip.vision_model, self.clip.text_model
        self.clip.requires_grad_(True)
        if image_groups is None and text_layers is None and rate == 0:
            return
        image_blocks, text_blocks = list(vision.encoder.layers), list(text.encoder.layers)
        if image_groups is None:
            image_groups = 1 + len(image_blocks) - int(rate * len(image_blocks))
        if text_layers is None:
            text_layers = len(text_blocks) - int(rate * len(text_blocks))
        last = image_blocks[-1:]
        groups: list[list[Any]] = [
            [self.clip.visual_projection],
            [*last, vision.post_layernorm],
            *([block] for block in reversed(image_blocks[:-1])),
            [vision.embeddings, vision.pre_layrnorm],
        ]
        fixed = [part for group in groups[image_groups:] for part in group]
        fixed += [text.embeddings, *text_blocks[: max(0, len(text_blocks) - text_layers)]]
        fixed += [] if text_layers else [text.final_layer_norm, self.clip.text_projection]
        for part in fixed:
            part.requires_grad_(False)

    def checkpoint_activations(self) -> None:
        """Keep only what enters each layer, and compute the rest again on the way back."""
        for layer in (*self.clip.vision_model.encoder.layers, *self.clip.text_model.encoder.layers):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
