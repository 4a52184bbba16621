"""The baselines of Rich Human Feedback (section 4.4): a ResNet with heads, and a CLIP tuned to the four scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from irpipe.models.loading import files_of, load_errors
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.preprocessing import Preprocessing, read_image_size, read_preprocessing
from irpipe.models.reward.rahf_heads import HeadSizes, HeatmapHead, ScoreHead, dense_score
from irpipe.models.reward.rich import Output, RichRewardModel
from irpipe.models.weights import config_table, fill, load_tokenizer, read_config, save_model
from irpipe.models.whole import check_vocabulary
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.schemas.reward_model import CARD, CONFIG, WEIGHTS, ScoreCard
from irpipe.schemas.rich_feedback import ASPECTS, KINDS


class Baseline(RichRewardModel):
    """A network of transformers and heads, saved as a RAHF is.

    Attributes:
        base: its parts that come pre-trained; heads: sizes of those that are new.
    """

    tokenizer: Any = None
    preprocess: Preprocessing
    heads: HeadSizes

    @classmethod
    @abstractmethod
    def _made(cls, preprocessing: Preprocessing, document: Mapping[str, Any], folder: Path) -> Self:
        """Without its weights, of what its `config.json` says."""

    @abstractmethod
    def _base_config(self) -> dict[str, Any]:
        """The config of `base`, as a table."""

    @classmethod
    def from_pretrained(cls, location: str | Path) -> Self:
        """The model in a folder that `save_pretrained` wrote.

        Raises:
            ModelError: it is damaged, or of another format.
        """
        from safetensors.torch import load_file

        folder = Path(location)
        known = Model(str(folder), "", folder)
        with load_errors(known, "the reward model", f"{CONFIG}, {WEIGHTS} and {CARD}"):
            document = read_config(known)
            if document.get("format") != cls.format:
                raise ModelError(f"{folder} is of another format", expected=f"{CONFIG} with the format {cls.format!r}")
            model = cls._made(Preprocessing.from_json(document["preprocessing"]), document, folder)
            model.cards = {aspect: ScoreCard(**card) for aspect, card in document["cards"].items()}
            fill(model, load_file(folder / WEIGHTS), str(folder / WEIGHTS))
            return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, weights, the score cards, and the tokenizer if there is one; `from_pretrained` reads them."""
        document = {"format": self.format, "base": self._base_config(), "heads": asdict(self.heads), "outputs": self.outputs}
        document |= {"preprocessing": asdict(self.preprocess), "cards": {one: asdict(self.card_of(one)) for one in ASPECTS}}
        save_model(Path(folder), document, self.card, self.state_dict(), self.tokenizer)


class ResNetBaseline(Baseline):
    """A ResNet whose last states heads read: scores and heatmaps of the image alone.

    The statistics of its batch norms stay those of pre-training: an answer does not depend on its batch, nor a training on how
    it is batched.
    """

    format: ClassVar[str] = "resnet-baseline"
    outputs: tuple[Output, ...] = ("scores", "heatmaps")

    def __init__(
        self, config: transformers.ResNetConfig, preprocessing: Preprocessing, heads: HeadSizes, outputs: Sequence[Output]
    ) -> None:
        super().__init__(preprocessing)
        self.heads, self.outputs = heads, tuple(outputs)
        self.base = transformers.ResNetModel(config)
        self.side = preprocessing.image_size // _stride(config)
        width = config.hidden_sizes[-1]
        self.heatmaps = nn.ModuleDict({kind: HeatmapHead(width, heads) for kind in KINDS if "heatmaps" in outputs})
        self.scores = nn.ModuleDict({aspect: ScoreHead(width, self.side, heads) for aspect in ASPECTS})
        self.eval()

    @classmethod
    def start(cls, model: Model, heads: HeadSizes, seed: int, *, heatmaps: bool = True) -> Self:
        """With new heads on a pre-trained ResNet; pictures have the size that its preprocessing names.

        Args:
            heatmaps: whether it has them; what is not trained must not be there.

        Raises:
            ModelError: it is of another class, not whole, or comes without preprocessing.
        """
        folder = files_of(model)
        with load_errors(model, "the ResNet", "a ResNet of transformers with its preprocessing", unused=r"classifier"):
            config = read_config(Model(model.name, "", folder))
            if config.get("model_type") != "resnet":
                kind = config.get("format") or config.get("model_type") or "model of another library"
                raise ModelError(f"{model.shown} is a {kind}", expected="a ResNet of transformers, or a resnet-baseline")
            base = transformers.ResNetModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
            size = read_image_size(folder)
            preprocessing = replace(read_preprocessing(folder, size, colours_only=True), fit="pad")
            if size % _stride(base.config):
                raise ModelError(
                    f"{model.shown} halves pictures to 1/{_stride(base.config)}, which does not divide {size} pixels"
                )
        torch.manual_seed(seed)
        made = cls(base.config, preprocessing, heads, cls.outputs if heatmaps else ("scores",))
        made.base.load_state_dict(base.state_dict())
        return made

    @classmethod
    def _made(cls, preprocessing: Preprocessing, document: Mapping[str, Any], folder: Path) -> Self:  # noqa: ARG003
        return cls(
            transformers.ResNetConfig(**document["base"]),
            preprocessing,
            HeadSizes.from_json(document["heads"]),
            document["outputs"],
        )

    def _base_config(self) -> dict[str, Any]:
        return config_table(self.base.config)

    def train(self, mode: bool = True) -> Self:
        """Training mode, but for the batch norms."""
        super().train(mode)
        for module in self.base.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def freeze(self, rate: float) -> None:
        """Fix a share of its stages, the lowest first, and the stem with them; 0: nothing is fixed."""
        stages = list(self.base.encoder.stages)
        self.base.requires_grad_(rate == 0)
        for stage in stages[int(rate * len(stages)) :]:
            stage.requires_grad_(True)

    def checkpoint_activations(self) -> None:
        """Keep only what enters each stage, and compute the rest again on the way back."""
        for stage in self.base.encoder.stages:
            stage.forward = partial(checkpoint, stage.forward, use_reentrant=False, preserve_rng_state=False)

    def encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Nothing of the prompts but their number: (n, 0)."""
        return {"input_ids": torch.zeros(len(prompts), 0, dtype=torch.long, device=self.device)}

    def look(self, pixels: Tensor) -> Tensor:
        """The last states (n, c, s, s) of preprocessed images (n, 3, size, size)."""
        states: Tensor = self.base(pixel_values=pixels).last_hidden_state
        return states

    def shared(self, image: Tensor, texts: Mapping[str, Tensor]) -> None:
        """Nothing: heads read the states themselves."""

    def score(self, image: Tensor, texts: Mapping[str, Tensor], aspect: str, shared: None = None) -> Tensor:  # noqa: ARG002
        """One score (n,) of states (n, c, s, s)."""
        score: Tensor = self.scores[aspect](image)
        return score

    def heatmap(self, pixels: Tensor, image: Tensor, texts: Mapping[str, Tensor], kind: str, shared: None = None) -> Tensor:  # noqa: ARG002
        """One map (n, size, size) of preprocessed pixels and their states."""
        heatmap: Tensor = self.heatmaps[kind](image, pixels)
        return heatmap

    def cut_prompts(self, prompts: Sequence[str]) -> int:  # noqa: ARG002
        """None: no prompt is read."""
        return 0


class ClipBaseline(Baseline):
    """A CLIP whose embeddings of image and text, and their product, dense layers read: the four scores."""

    format: ClassVar[str] = "clip-baseline"
    outputs: tuple[Output, ...] = ("scores",)

    def __init__(self, base: ClipReward, heads: HeadSizes) -> None:
        super().__init__(base.preprocess)
        self.heads, self.base, self.tokenizer = heads, base, base.tokenizer
        base.clip.logit_scale.requires_grad_(False)  # no cosine is taken
        width = 3 * base.clip.config.projection_dim
        self.scores = nn.ModuleDict({aspect: dense_score(width, heads.score_denses) for aspect in ASPECTS})
        self.eval()

    @classmethod
    def start(cls, model: Model, heads: HeadSizes, seed: int) -> Self:
        """With new heads on what `ClipReward` reads.

        Raises:
            ModelError: that is no CLIP, not whole, or comes without tokenizer or preprocessing.
        """
        try:
            base = ClipReward.from_pretrained(files_of(model))
        except ModelError as error:
            raise ModelError(f"{model.shown} cannot be tuned: {error.what}", expected="a CLIP, or a clip-baseline") from error
        base.preprocess = replace(base.preprocess, fit="pad")
        torch.manual_seed(seed)
        return cls(base, heads)

    @classmethod
    def _made(cls, preprocessing: Preprocessing, document: Mapping[str, Any], folder: Path) -> Self:
        clip = transformers.CLIPModel(transformers.CLIPConfig(**document["base"]))
        base = ClipReward(clip, preprocessing=preprocessing, tokenizer=load_tokenizer(folder))
        check_vocabulary(base.tokenizer, clip.text_model, str(folder))
        return cls(base, HeadSizes.from_json(document["heads"]))

    def _base_config(self) -> dict[str, Any]:
        return config_table(self.base.clip.config)

    def freeze(self, rate: float) -> None:
        """Fix the lower layers of both towers, as `ClipReward` does."""
        self.base.freeze(rate)
        self.base.clip.logit_scale.requires_grad_(False)

    def checkpoint_activations(self) -> None:
        """Keep only what enters each layer, and compute the rest again on the way back."""
        self.base.checkpoint_activations()

    def encode_texts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Token ids and attention mask (n, l)."""
        return self.base.encode_texts(prompts)

    def look(self, pixels: Tensor) -> Tensor:
        """The embeddings (n, d) of preprocessed images (n, 3, size, size), of length 1."""
        return self.base.image_embeddings(pixels)

    def shared(self, image: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """(n, 3 d) the embeddings of image and text, and their product; each scaled so that its entries are about 1."""
        text, width = self.base.text_embeddings(texts), image.shape[1]
        return torch.cat([image * width**0.5, text * width**0.5, image * text * width], dim=1)

    def score(self, image: Tensor, texts: Mapping[str, Tensor], aspect: str, shared: Tensor | None = None) -> Tensor:
        """One score (n,) of image embeddings (n, d) and their texts."""
        both = self.shared(image, texts) if shared is None else shared
        return torch.sigmoid(self.scores[aspect](both)[:, 0])

    def cut_prompts(self, prompts: Sequence[str]) -> int:
        """How many prompts have more tokens than the text tower has places."""
        lengths = [len(ids) for ids in self.tokenizer(list(prompts))["input_ids"]] if prompts else []
        return sum(length > self.base.max_length for length in lengths)


def _stride(config: transformers.ResNetConfig) -> int:
    """How many pixels of a side become one state: the stem makes 4, each stage but the first 2."""
    return int(4 * 2 ** (len(config.depths) - (not config.downsample_in_first_stage)))
