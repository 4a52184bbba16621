"""The ImageReward reward model (arXiv 2304.05977, section 3.1): BLIP with cross attention and a linear head on its first token.

Vision: a ViT (24 blocks of width 1024 at 224 px as published); text: BERT (12 layers of width 768), each layer looking at the
image's tokens; head: five linear layers without activations on the state of `[CLS]`. Sizes are arguments; the networks are
transformers' own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

from irpipe.models.loading import load_errors
from irpipe.models.noise import Noise, drop_branches, seed_dropouts
from irpipe.models.pictures import crop_offset, resize_and_crop, resized_size
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CARD, CONFIG, WEIGHTS, ScoreCard

FORMAT = "irpipe-imagereward"

# The published sizes (released code, ImageReward/ImageReward.py and med_config.json).
PUBLISHED_VISION = {"image_size": 224, "patch_size": 16, "width": 1024, "depth": 24, "heads": 16}
PUBLISHED_TEXT = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30524,
    "max_position_embeddings": 512,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
HEAD_SIZES, HEAD_DROPOUTS = (1024, 128, 64, 16), (0.2, 0.2, 0.1, 0.0)
MAX_LENGTH = 35
BERT_TOKENIZER = Model("google-bert/bert-base-uncased", "86b5e0934494bd15c9632b12f734a8a67f723594", None)
_TEXT_DROPOUT, _DROP_PATH = 0.1, 0.1  # released code: med_config.json; vit.py, 0 at the first block to 0.1 at the last


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the vision tower's input; the defaults are the published values."""

    image_size: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    def __call__(self, image: Pillow.Image | Tensor) -> Tensor:
        """Resize the shorter side, crop the centre, convert to RGB (after the crop, as published) and normalise.

        Args:
            image: a picture, or a tensor (..., 3, H, W) from 0 to 1, through which gradients flow.

        Returns:
            (3, size, size), or (..., 3, size, size).
        """
        return self._of_tensor(image) if isinstance(image, Tensor) else self.normalised(self._of_picture(image))

    def _of_picture(self, image: Pillow.Image) -> Tensor:
        return torch.from_numpy(resize_and_crop(image, self.image_size).copy()).permute(2, 0, 1).float().div(255)

    def _of_tensor(self, image: Tensor) -> Tensor:
        size, (height, width) = self.image_size, image.shape[-2:]
        if min(height, width) != size:
            width, height = resized_size(width, height, size)
            image = F.interpolate(
                image.reshape(-1, *image.shape[-3:]), (height, width), mode="bicubic", antialias=True, align_corners=False
            ).reshape(*image.shape[:-2], height, width)
        left, top = crop_offset(width, height, size)
        return self.normalised(image[..., top : top + size, left : left + size])

    def normalised(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std, for pixels (..., 3, H, W) from 0 to 1."""
        mean, std = (
            torch.tensor(values, dtype=pixels.dtype, device=pixels.device).view(3, 1, 1) for values in (self.mean, self.std)
        )
        return (pixels - mean) / std


# Released code, ImageReward/ImageReward.py: the normaliser; its authors say it is of their test set.
PUBLISHED_CARD = ScoreCard(0.16717362830052426, 1.0333394966054072, "the published test set")


class ImageReward(nn.Module):
    """Scores how well people would like an image for a prompt.

    Make one with `from_pretrained` or `from_published`; `irpipe.models.starts` makes untrained ones.
    """

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
        return cls.from_published(state, *sizes, tokenizer or published_tokenizer(folder))

    @classmethod
    def _from_folder(cls, folder: Path) -> Self:
        from safetensors.torch import load_file

        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        model = cls(
            BlipVisionConfig(**told["vision"]),
            BlipTextConfig(**told["text"], **_NO_ENDS),
            preprocessing=Preprocessing(**told["preprocessing"]),
            head_sizes=told["head_sizes"],
            max_length=told["max_length"],
            card=ScoreCard(**json.loads((folder / CARD).read_text(encoding="utf-8"))),
            tokenizer=load_tokenizer(folder),
        )
        fill(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, tokenizer and score card; `from_pretrained` reads them."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        told = {
            "format": FORMAT,
            "vision": {name: getattr(self.vision.config, name) for name in _VISION_FIELDS},
            "text": {name: getattr(self.text.config, name) for name in _TEXT_FIELDS},
            "head_sizes": [layer.out_features for layer in self.head_layers[:-1]],
            "preprocessing": asdict(self.preprocess),
            "max_length": self.max_length,
        }
        (folder / CONFIG).write_text(json.dumps(told, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        (folder / CARD).write_text(json.dumps(asdict(self.card), indent=1, sort_keys=True) + "\n", encoding="utf-8")
        save_file({name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

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

    def tokenise(self, prompts: Sequence[str], length: int | None = None) -> tuple[Tensor, Tensor]:
        """(n, l) ids with `[CLS]` first, as published, and attention mask; cut at `max_length` tokens.

        Args:
            length: l; by default the longest text's. Longer padding changes nothing.
        """
        if self.tokenizer is None:
            raise ModelError("this reward model came without a tokenizer", fix="from_published(..., tokenizer=...)")
        batch = self.tokenizer(
            list(prompts),
            padding="max_length" if length else "longest",
            max_length=length or self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        return batch.input_ids.to(self.device), batch.attention_mask.to(self.device)

    def lower(self, pixel_values: Tensor, blocks: int) -> Tensor:
        """The vision tower's state after its first blocks, (n, 1 + patches, width)."""
        states: Tensor = self.vision.embeddings(pixel_values)
        for block in self.vision.encoder.layers[:blocks]:
            states = block(states)
        return states

    def upper(self, states: Tensor, blocks: int) -> Tensor:
        """The image's tokens, (n, 1 + patches, width), from the state after the first blocks."""
        for block in self.vision.encoder.layers[blocks:]:
            states = block(states)
        tokens: Tensor = self.vision.post_layernorm(states)
        return tokens

    def judge(self, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw scores (n,) of image tokens (n, 1 + patches, width), each for its prompt."""
        states = self.text(input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=tokens).last_hidden_state
        scores: Tensor = self.head(states[:, 0])[:, 0]
        return scores

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, normalize: bool = False) -> Tensor:
        """Scores (n,) of preprocessed images (n, 3, size, size), each for its prompt; raw as trained, or normalised."""
        raw = self.judge(self.upper(self.lower(pixel_values, 0), 0), input_ids, attention_mask)
        return self.normalise(raw) if normalize else raw

    def normalise(self, raw: Tensor) -> Tensor:
        """(raw - mean) / std by the score card."""
        return (raw - self.card.mean) / self.card.std

    def score(self, prompt: str, images: Sequence[Pillow.Image], batch_size: int = 32) -> list[float]:
        """Normalised scores of images for one prompt: higher is better; scores of different prompts do not compare."""
        ids, mask = self.tokenise([prompt])
        scores: list[float] = []
        training = self.training
        self.eval()
        with torch.no_grad():
            for start in range(0, len(images), batch_size):
                pixels = torch.stack([self.preprocess(image) for image in images[start : start + batch_size]]).to(self.device)
                count = len(pixels)
                scores += self(pixels, ids.expand(count, -1), mask.expand(count, -1), normalize=True).tolist()
        self.train(training)
        return scores


_VISION_FIELDS = (
    "image_size",
    "patch_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
)
_TEXT_FIELDS = (
    "hidden_size",
    "encoder_hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "is_decoder",
)
_NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "sep_token_id": None}  # of no use to an encoder


def read_config(model: Model) -> dict[str, Any]:
    """What `config.json` in a model's folder says; nothing where there is none.

    Raises:
        ModelError: it is no JSON object.
    """
    path = (model.folder or Path()) / CONFIG
    if not path.is_file():
        return {}
    with load_errors(model, "the model", "config.json"):
        return dict(json.loads(path.read_text(encoding="utf-8")))


def configs(vision: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[BlipVisionConfig, BlipTextConfig]:
    """transformers' configurations of a model of the published kind, with what the released code fixes."""
    width = vision["width"]
    return (
        BlipVisionConfig(
            image_size=vision["image_size"],
            patch_size=vision["patch_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=vision["depth"],
            num_attention_heads=vision["heads"],
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            initializer_range=0.02,  # transformers' own is 1e-10: all images would score alike until weights are loaded
        ),
        BlipTextConfig(
            **{
                **{name: value for name, value in {**PUBLISHED_TEXT, **text}.items() if name in _TEXT_FIELDS},
                "encoder_hidden_size": width,
                "hidden_dropout_prob": _TEXT_DROPOUT,
                "attention_probs_dropout_prob": _TEXT_DROPOUT,
                "is_decoder": True,  # it has cross attention; it attends both ways
                **_NO_ENDS,
            }
        ),
    )


# Names of the released code and of transformers; every other part of a name is the same (docs/reward_model.md).
_RENAMED = (
    ("blip.visual_encoder.cls_token", "vision.embeddings.class_embedding"),
    ("blip.visual_encoder.pos_embed", "vision.embeddings.position_embedding"),
    ("blip.visual_encoder.patch_embed.proj.", "vision.embeddings.patch_embedding."),
    ("blip.visual_encoder.blocks.", "vision.encoder.layers."),
    ("blip.visual_encoder.norm.", "vision.post_layernorm."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
    ("blip.text_encoder.", "text."),
    ("mlp.layers.", "head."),
)
# In the checkpoint, and no part of the reward: a buffer, and the projections of the contrastive loss.
_UNUSED = ("blip.text_encoder.embeddings.position_ids", "blip.vision_proj.", "blip.text_proj.")


def from_published_names(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under our names, from those of the released code."""
    renamed = {}
    for given, value in state_dict.items():
        name = given.removeprefix("module.")  # as saved from within distributed training
        if name.startswith(_UNUSED):
            continue
        for theirs, ours in _RENAMED:
            if theirs.startswith(".") and not name.startswith("vision."):
                continue  # the text tower has the same names on both sides
            name = name.replace(theirs, ours, 1) if theirs.startswith(".") or name.startswith(theirs) else name
        renamed[name] = value
    return renamed


def sizes_of(weights: Mapping[str, Tensor], image_size: int | None = None) -> tuple[dict[str, int], dict[str, Any]]:
    """The sizes that weights under our names tell; attention heads are 64 wide, as in all published BLIPs.

    Args:
        image_size: None for the one that the table of positions fits.
    """
    patches = weights["vision.embeddings.patch_embedding.weight"]
    positions = weights["vision.embeddings.position_embedding"]
    words = weights["text.embeddings.word_embeddings.weight"]

    def count(prefix: str) -> int:
        return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in weights if name.startswith(prefix))

    vision = {
        "image_size": image_size or round((positions.shape[1] - 1) ** 0.5) * patches.shape[-1],
        "patch_size": patches.shape[-1],
        "width": patches.shape[0],
        "depth": count("vision.encoder.layers."),
        "heads": max(1, patches.shape[0] // 64),
    }
    text = {
        "hidden_size": words.shape[1],
        "vocab_size": words.shape[0],
        "num_hidden_layers": count("text.encoder.layer."),
        "num_attention_heads": max(1, words.shape[1] // 64),
        "intermediate_size": weights["text.encoder.layer.0.intermediate.dense.weight"].shape[0],
        "max_position_embeddings": weights["text.embeddings.position_embeddings.weight"].shape[0],
    }
    return vision, text


def fill(model: nn.Module, weights: Mapping[str, Tensor], what: str) -> None:
    """Load weights that must be exactly the model's.

    Raises:
        ModelError: names the missing, the unexpected, and those of another shape.
    """
    own = model.state_dict()
    missing, surplus = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    misshapen = [name for name in sorted(own.keys() & weights.keys()) if own[name].shape != weights[name].shape]
    told = []
    for names, kind in ((missing, "lacks"), (surplus, "has the unknown"), (misshapen, "has another shape for")):
        if names:
            told.append(f"{kind} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else ""))
    if told:
        raise ModelError(f"{what} {'; it '.join(told)}", expected="the weights of exactly this architecture")
    model.load_state_dict(dict(weights))


def read_checkpoint(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a checkpoint file, or of the only one in a folder; None where there is none. No code in it is run.

    Raises:
        ModelError: it is damaged, or a pickle of more than tensors.
    """
    if path.is_dir():
        found = sorted(file for pattern in ("*.pt", "*.pth") for file in path.glob(pattern))
        return read_checkpoint(found[0]) if len(found) == 1 else None
    if not path.is_file():
        return None
    with load_errors(Model(path.name, "", path), "the checkpoint", "a file that torch.save or safetensors wrote"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = saved.get("model", saved) if isinstance(saved, dict) else saved
        if not isinstance(saved, dict) or not all(isinstance(value, Tensor) for value in saved.values()):
            raise ValueError("it is no state dict")
        return saved


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in a folder, without any code that may lie beside it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)


def published_tokenizer(folder: Path) -> Any:
    """BERT's tokenizer as the released code extends it: `[DEC]` begins texts elsewhere, `[ENC]` is a special token.

    Raises:
        ModelError: the folder has none, and it cannot be had from the hub.
    """
    from transformers import BertTokenizerFast

    here = any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt"))
    source = Model(str(folder), "", folder) if here else BERT_TOKENIZER
    with load_errors(source, "the tokenizer", "tokenizer.json or vocab.txt of bert-base-uncased"):
        tokenizer = BertTokenizerFast.from_pretrained(**source.location)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


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
