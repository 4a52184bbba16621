"""What training, scoring, tuning, comparing and exporting know of a reward model.

A package declares its own under the entry-point group `irpipe.reward_models`: the format that the `config.json` of its folders
names = "module:Class". The class has `from_pretrained(folder)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

from irpipe.models.loading import files_of
from irpipe.models.plugins import format_of
from irpipe.pipeline.errors import ModelError, RecipeError, did_you_mean
from irpipe.pipeline.registry import REWARD_MODELS, declared
from irpipe.pipeline.stage import Inputs, Model
from irpipe.schemas.reward_model import ScoreCard

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from irpipe.models.noise import Noise
    from irpipe.pipeline.store import Artifact

# The formats that read what names none: a published ImageReward.pt, and a CLIP (of transformers, or with OpenAI's names).
PUBLISHED, CLIP = "irpipe-imagereward", "hps"


class Preprocess(Protocol):
    """From images to pixels."""

    @property
    def image_size(self) -> int:
        """The side of the square that the model looks at, in pixels."""

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """(3, size, size) of a picture, or (..., 3, size, size) of a tensor (..., 3, H, W) from 0 to 1, with its gradient."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """Pixels (..., 3, size, size) from 0 to 1, resized and cropped already, as the network takes them."""


class RewardModel(Protocol):
    """A network that scores an image for a prompt: higher is better, within one prompt. A `torch.nn.Module`.

    Attributes:
        format: of its `config.json`, by which `load_reward_model` finds the class.
        preprocess: pixels for it.
        card: what a score means.
        noise: where its dropout draws (`irpipe.models.noise`), so that training does not depend on batching.
        device: where its weights are.
    """

    format: ClassVar[str]
    preprocess: Preprocess
    card: ScoreCard
    noise: Noise

    @property
    def device(self) -> Any: ...

    @classmethod
    def from_pretrained(cls, location: str | Path) -> Self:
        """The model in a folder that `save_pretrained` wrote."""

    def encode_texts(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Tensors with one row per prompt, on the model's device."""

    def __call__(self, pixels: Tensor, texts: Mapping[str, Tensor]) -> Tensor:
        """Raw scores (n,) of preprocessed images (n, 3, size, size), each for its text; gradients reach the pixels.

        Their differences are log odds of preference, unless the class has a method `logits` that makes such of scores (n,).
        """

    def freeze(self, rate: float) -> None:
        """Fix a share of the lower layers; 0: nothing is fixed."""

    def checkpoint_activations(self) -> None:
        """Keep only what enters each layer, and compute the rest again on the way back."""

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` with the format, the weights, `score_card.json`, and whatever the texts need."""


def aspects_of(model: Any) -> tuple[str, ...]:
    """The scores that a reward model gives, by name; empty for one that gives one.

    One that does has `aspects`, the `aspect` that a plain call returns, and `with_aspect`. What also gives rich feedback is a
    `RichRewardModel` (`irpipe.models.reward.rich`).
    """
    return tuple(getattr(model, "aspects", ()))


def of_aspect(model: Any, aspect: str | None) -> Any:
    """A reward model that returns one of its scores; None: its own.

    Raises:
        ModelError: it has no such score.
    """
    if aspect is None:
        return model
    if aspect not in aspects_of(model):
        has = f"the scores {', '.join(aspects_of(model))}" if aspects_of(model) else "one score, which has no name"
        raise ModelError(f"there is no score {aspect!r}: the reward model has {has}")
    return model.with_aspect(aspect)


def load_given(model: Model) -> Any:
    """The reward model that a setting names.

    Raises:
        ModelError: as `load_reward_model`; or it is on the hub and another package's, whose code would not count.
    """
    path = files_of(model)
    refuse_uncounted(model, path)
    return load_reward_model(path)


def load_chosen(models: Mapping[str, Sequence[Model]], inputs: Inputs) -> Any:
    """The reward model that the setting `reward_model` names, or the recipe's where it names none.

    Raises:
        ModelError: as `load_given`.
        RecipeError: the recipe names several.
    """
    given = models.get("reward_model")
    return load_given(given[0]) if given else load_reward_model(only_reward_model(inputs).path)


def only_reward_model(inputs: Inputs) -> Artifact:
    """The one reward model that a run reads.

    Raises:
        RecipeError: it reads several.
    """
    found = inputs.all("reward-model")
    if len(found) > 1:
        raise RecipeError(
            f"one reward model chooses or guides, and {' and '.join(found)} are read",
            fix=f'name one in the table of the stage: reads.reward-model = ["{next(iter(found))}"]',
        )
    return next(iter(found.values()))


def refuse_uncounted(model: Model, path: Path) -> None:
    """The code of another package counts towards a run's key only where the model's files are at hand when it is planned.

    Raises:
        ModelError: the model is on the hub, and another package's.
    """
    name, known = format_of(path), declared(REWARD_MODELS)
    if model.folder is None and name is not None and name in known and known[name].module.partition(".")[0] != "irpipe":
        raise ModelError(
            f"{model.name} is a reward model of the format {name!r}, which another package reads",
            fix=f"hf download {model.name} --revision {model.revision} --local-dir FOLDER, and name the folder",
        )


def is_clip(path: Path) -> bool:
    """Whether a folder without a format, or a file, holds a CLIP."""
    from irpipe.models.reward.clip_weights import is_openai
    from irpipe.models.weights import read_checkpoint, read_config

    kind = read_config(Model(path.name, "", path)).get("model_type")
    return kind == "clip" or (kind is None and is_openai(read_checkpoint(path) or {}))


def load_reward_model(location: str | Path) -> Any:
    """The reward model in a folder, of whatever class its format names, or a published ImageReward checkpoint.

    Returns:
        a `RewardModel`, which is a `torch.nn.Module` as well, in evaluation mode.

    Raises:
        ModelError: there is none, or no installed package reads its format.
    """
    path = Path(location)
    name = format_of(path) or (CLIP if is_clip(path) else PUBLISHED)
    known = declared(REWARD_MODELS)
    if name not in known:
        raise ModelError(
            f"{path} holds a reward model of the format {name!r}, which no installed package reads{did_you_mean(name, known)}",
            fix=f"install the package that declares it under the entry-point group {REWARD_MODELS!r}",
        )
    return known[name].load().from_pretrained(path)
