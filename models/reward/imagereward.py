"""The ImageReward reward model (arXiv 2304.05977, section 3.1): BLIP with cross attention and a linear head on its first token.

Vision: a ViT (24 blocks of width 1024 at 224 px as published); text: BERT (12 layers of width 768), each layer looking at the
image's tokens; head: five linear layers without activations on the state of `[CLS]`. Sizes are arguments; the networks are
transformers' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import torch
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from irpipe.models.loading import load_errors
from irpipe.models.noise import Noise, SeededDropout, drop_branches, seed_dropouts
from irpipe.models.reward.blip_weights import (
    NO_ENDS,
    PUBLISHED_CARD,
    PUBLISHED_TEXT,
    PUBLISHED_VISION,
    TEXT_FIELDS,
    VISION_FIELDS,
    configs,
    from_published_names,
    published_tokenizer,
    sizes_of,
)
from irpipe.models.reward.preprocessing import Preprocessing
from irpipe.models.weights import encode_prompts, fill, load_tokenizer, read_checkpoint, read_config, save_model
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CARD, CONFIG, WEIGHTS, ScoreCard

FORMAT = "irpipe-imagereward"
HEAD_SIZES, HEAD_DROPOUTS = (1024, 128, 64, 16), (0.2, 0.2, 0.1, 0.0)
MAX_LENGTH = 35
_DROP_PATH = 0.1  # released code, vit.py: 0 at the first block to 0.1 at the last


class ImageReward(nn.Module):
    """Scores how well people would like an image for a prompt; see `irpipe.models.reward.base.RewardModel`.

    Make one with `from_pretrained` or `from_published`; `irpipe.models.reward.start` makes untrained ones.
    """

    format = FORMAT

    def __init__(
        self,
        vision: BlipVisionConfig,
        text: BlipTextConfig,
        *,
        preprocessing: Preprocessing,
        head_sizes: Sequence[int] = HEAD_SIZES,
        max_length: int = MAX_LENGTH,
        card: ScoreCard = PUBLISHED_CARD,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        sizes = [text.hidden_size, *head_sizes, 1]
        layers: list[nn.Module] = []
        for (before, after), dropout in zip(pairwise(sizes), (*HEAD_DROPOUTS, 0.0), strict=True):
            layers += [nn.Linear(before, after)] + ([nn.Dropout(dropout)] if dropout else [])
        self.head = nn.Sequential(*layers)
        self.preprocess = preprocessing
        self.max_length = min(max_length, text.max_position_embeddings)
        self.card = card
        self.tokenizer = tokenizer
        self.noise = Noise()
        seed_dropouts(self, self.noise)
        depth = vision.num_hidden_layers
        for number, block in enumerate(self.vision.encoder.layers):
            for branch in (block.self_attn, block.mlp):
                drop_branches(branch, _DROP_PATH * number / max(1, depth - 1), self.noise)
        self._frozen_blocks = 0
        self.eval()

    @classmethod
    def from_published(
        cls,
        state_dict: Mapping[str, Tensor],
        vision: Mapping[str, Any] = PUBLISHED_VISION,
        text: Mapping[str, Any] = PUBLISHED_TEXT,
        tokenizer: Any = None,
    ) -> Self:
        """A model from weights under the published names (`ImageReward.pt`, also as saved by distributed training).

        Args:
            vision: image_size, patch_size, width, depth, heads.
            text: fields of `BlipTextConfig`.

        Raises:
            ModelError: a weight is missing, of another shape, or unknown.
        """
        model = cls(*configs(vision, text), preprocessing=Preprocessing(vision["image_size"]), tokenizer=tokenizer)
        fill(model, from_published_names(state_dict), "a published ImageReward checkpoint")
        return model

    @classmethod
    def from_pretrained(cls, location: str | Path, tokenizer: Any = None) -> Self:
        """A model from a folder that `train-rm` wrote, or from a published checkpoint (a file, or the folder that holds it).

        Args:
            tokenizer: for a published checkpoint; by default the one in its folder, or else BERT's from the hub.

        Raises:
            ModelError: there is none, it is of another kind, or it is damaged.
        """
        path = Path(location)
        known = Model(str(path), "", path)
        if read_config(known).get("format") == FORMAT:
            with load_errors(known, "the reward model", f"{CONFIG}, {WEIGHTS}, {CARD} and a tokenizer"):
                return cls._from_folder(path)
        state = read_checkpoint(path)
        if state is None or not {"mlp.layers.0.weight", "module.mlp.layers.0.weight"} & state.keys():
            what = "holds no reward model" if path.exists() else "does not exist"
            raise ModelError(
                f"{path} {what}",
                expected="a folder that train-rm wrote, or a published ImageReward.pt",
                fix="a BLIP has no reward head yet: irpipe run train-rm --set train-rm.model=FOLDER starts from it",
            )
        folder = path if path.is_dir() else path.parent
        with load_errors(known, "the checkpoint", "the weights of an ImageReward model"):
            sizes = sizes_of(from_published_names(state))
        model = cls.from_published(state, *sizes, tokenizer or published_tokenizer(folder))
        check_vocabulary(model.tokenizer, model.text, str(folder))
        return model

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        from safetensors.torch import load_file

        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = cls(
            BlipVisionConfig(**told["vision"]),
            BlipTextConfig(**told["text"], **NO_ENDS),
            preprocessing=Preprocessing.from_json(told["preprocessing"]),
            head_sizes=told["head_sizes"],
            max_length=told["max_length"],
            card=ScoreCard(**json.loads((folder / CARD).read_text(encoding="utf-8"))),
            tokenizer=load_tokenizer(folder),
        )
        fill(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
        check_vocabulary(model.tokenizer, model.text, str(folder))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, tokenizer and score card; `from_pretrained` reads them."""
        config = {
            "format": FORMAT,
            "vision": {name: getattr(self.vision.config, name) for name in VISION_FIELDS},
            "text": {name: getattr(self.text.config, name) for name in TEXT_FIELDS},
            "head_sizes": [layer.out_features for layer in self.head_layers[:-1]],
            "preprocessing": asdict(self.preprocess),
            "max_length": self.max_length,
        }
        save_model(Path(folder), config, self.card, self.state_dict(), self.tokenizer)

    @property
    def head_layers(self) -> list[Any]:
        """The head's linear layers, in order."""
        return [layer for layer in self.head if isinstance(layer, nn.Linear)]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.vision.device
        return device

    def checkpoint_activations(self) -> None:
        """Keep only what enters each layer, and compute the rest again on the way back: its noise is the same again."""
        for layer in (*self.vision.encoder.layers, *self.text.encoder.layer):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    def freeze(self, rate: float, how: Literal["published", "layers"] = "published") -> None:
        """Fix the lower layers of both towers. Fixed blocks of the vision tower add no noise in training.

        Args:
            rate: share of each tower's layers that are fixed, rounded down, and the embeddings with them. 0: nothing.
            how: `layers`: embeddings and whole layers. `published`: and one parameter of the next layer each, where the
                released code stops a parameter late (src/utils.py).
        """
        self.requires_grad_(True)
        vision, text = self.vision, self.text
        blocks, layers = (int(rate * len(stack)) for stack in (vision.encoder.layers, text.encoder.layer))
        self._frozen_blocks = blocks
        if rate == 0:
            return
        for part in (vision.embeddings, text.embeddings, *vision.encoder.layers[:blocks], *text.encoder.layer[:layers]):
            part.requires_grad_(False)
        if blocks == len(vision.encoder.layers):
            vision.post_layernorm.requires_grad_(False)
        elif how == "published":
            vision.encoder.layers[blocks].layer_norm1.weight.requires_grad_(False)
        if how == "published" and layers < len(text.encoder.layer):
            text.encoder.layer[layers].attention.self.query.weight.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Training mode but for the fixed blocks of the vision tower."""
        super().train(mode)
        for block in self.vision.encoder.layers[: self._frozen_blocks]:
            block.eval()
        return self

    def set_text_dropout(self, p: float) -> None:
        """The probability of every dropout in the text tower: a Hugging Face BLIP comes with 0."""
        for module in self.text.modules():
            if isinstance(module, SeededDropout):
                module.p = p

    def scale_scores(self, factor: float) -> None:
        """Multiply every raw score by a number, in the last layer of the head."""
        last = self.head_layers[-1]
        with torch.no_grad():
            last.weight.mul_(factor)
            last.bias.mul_(factor)

    def encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids, `[CLS]` first as published, and attention mask, (n, l) each: cut at `max_length` tokens, and padded to the
        longest.

        Raises:
            ModelError: the model came without a tokenizer.
        """
        if self.tokenizer is None:
            raise ModelError("this reward model came without a tokenizer", fix="from_published(..., tokenizer=...)")
        return encode_prompts(self.tokenizer, prompts, self.max_length, self.device)

    def forward(self, pixels: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """Raw scores (n,) of preprocessed images (n, 3, size, size), each for its text, as `encode_texts` made it."""
        tokens = self.vision.embeddings(pixels)  # (n, 1 + patches, width)
        for block in self.vision.encoder.layers:
            tokens = block(tokens)
        states = self.text(**texts, encoder_hidden_states=self.vision.post_layernorm(tokens)).last_hidden_state
        scores: Tensor = self.head(states[:, 0])[:, 0]
        return scores

    def score(self, prompt: str, images: Sequence[Pillow.Image], batch_size: int = 32) -> list[float]:
        """Normalised scores of images for one prompt: higher is better; scores of different prompts do not compare."""
        scores: list[float] = []
        training = self.training
        self.eval()
        with torch.no_grad():
            for start in range(0, len(images), batch_size):
                pixels = torch.stack([self.preprocess(image) for image in images[start : start + batch_size]]).to(self.device)
                raw = self(pixels, self.encode_texts([prompt] * len(pixels)))
                scores += self.card.normalised(raw).tolist()
        self.train(training)
        return scores
