"""Text-to-image pipelines of diffusers: loaded with clear errors, and sampled in batches with a seed for every image."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from irpipe.models.loading import device_errors, load_errors, pick_device, quiet
from irpipe.models.whole import check_pipeline
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.shards import digest_of
from irpipe.pipeline.stage import Model

SchedulerName = Literal["own", "ddpm", "ddim", "pndm", "lms", "euler", "euler-ancestral", "dpm-solver++", "unipc"]

_SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "dpm-solver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# What `encode_prompt` returns, by pipeline. The prompts of any other pipeline are encoded by its own call.
_ENCODINGS = {
    "StableDiffusionPipeline": ("prompt_embeds", "negative_prompt_embeds"),
    "StableDiffusionXLPipeline": (
        "prompt_embeds",
        "negative_prompt_embeds",
        "pooled_prompt_embeds",
        "negative_pooled_prompt_embeds",
    ),
}


PROMPT = "{prompt}"  # in a negative prompt: the place of the image's own prompt


@dataclass(frozen=True)
class Sampling:
    """How images are sampled; `width` and `height` of None are the model's own.

    Attributes:
        negative_prompt: for the guidance; `{prompt}` in it is the image's own prompt.
    """

    num_steps: int
    guidance_scale: float
    scheduler: SchedulerName
    width: int | None
    height: int | None
    negative_prompt: str
    dtype: Literal["float32", "bfloat16", "float16"]
    safety_checker: bool


def sampling_of(config: Any, negative_prompt: str) -> Sampling:
    """The sampling that a stage's settings of the same names describe."""
    others = {field.name: getattr(config, field.name) for field in fields(Sampling) if field.name != "negative_prompt"}
    return Sampling(**others, negative_prompt=negative_prompt)


@dataclass(frozen=True)
class Overlong:
    """A prompt that the text encoder cannot take whole."""

    prompt: str
    tokens: int
    lost: str


class ImageGenerator:
    """A loaded pipeline. Make one with `load`."""

    def __init__(self, pipeline: Any, sampling: Sampling) -> None:
        self.pipeline = pipeline
        self.sampling = sampling
        self.adapters = ""  # the digest of LoRA weights that were added to the model's own
        self._takes = frozenset(inspect.signature(type(pipeline).__call__).parameters)

    @property
    def settings(self) -> str:
        """The sampling as JSON with sorted keys, by the scheduler's class; a size of null is the model's own."""
        shown = asdict(self.sampling) | {"scheduler": type(self.pipeline.scheduler).__name__}
        return json.dumps(shown | ({"lora": self.adapters} if self.adapters else {}), sort_keys=True)

    def add_lora(self, path: Path) -> None:
        """Add LoRA weights from a file or a folder (see `irpipe.models.lora`).

        Raises:
            ModelError: the model has no UNet, or these are not its adapters.
        """
        from irpipe.models.lora import add_adapters

        if getattr(self.pipeline, "unet", None) is None:
            raise ModelError(f"a {type(self.pipeline).__name__} has no UNet for LoRA weights", where=str(path))
        add_adapters(self.pipeline.unet, path)
        self.adapters = digest_of(path)

    def overlong(self, prompts: Sequence[str]) -> list[Overlong]:
        """The prompts of which the tokenizer keeps only a part, and what it drops."""
        if type(self.pipeline).__name__ not in _ENCODINGS:
            return []  # what another pipeline keeps of a prompt is not known
        tokenizer = self.pipeline.tokenizer
        found = []
        for prompt in prompts:
            ids = tokenizer(prompt, truncation=False, add_special_tokens=True, verbose=False).input_ids
            if len(ids) > tokenizer.model_max_length:
                lost = tokenizer.decode(ids[tokenizer.model_max_length - 1 : -1])
                found.append(Overlong(prompt, len(ids), lost))
        return found

    def encode(self, prompts: Sequence[str], batch_size: int, negative_prompt: str | None = None) -> Encodings:
        """Encode prompts for `sample`, each once, so many at a time.

        Args:
            negative_prompt: instead of the sampling's.
        """
        import torch

        names = _ENCODINGS.get(type(self.pipeline).__name__)
        parts: dict[str, list[Any]] = {}
        for start in range(0, len(prompts) if names else 0, batch_size):
            part = list(prompts[start : start + batch_size])
            with torch.inference_mode():
                encoded = self.pipeline.encode_prompt(
                    prompt=part,
                    device=self.pipeline._execution_device,
                    num_images_per_prompt=1,
                    do_classifier_free_guidance=self.sampling.guidance_scale > 1,
                    negative_prompt=self._negative(part, negative_prompt),
                )
            for name, value in zip(names or (), encoded, strict=True):
                if value is not None:
                    parts.setdefault(name, []).append(value)
        return Encodings(list(prompts), {name: torch.cat(values) for name, values in parts.items()})

    def _negative(self, prompts: Sequence[str], given: str | None = None) -> list[str] | None:
        """The negative prompt of each prompt; None for an empty one, which SDXL takes otherwise than an empty text."""
        negative = self.sampling.negative_prompt if given is None else given
        return [negative.replace(PROMPT, prompt) for prompt in prompts] if negative and self.sampling.guidance_scale > 1 else None

    def sample(self, encodings: Encodings, rows: Sequence[int], seeds: Sequence[int]) -> tuple[NDArray[np.float32], list[bool]]:
        """Images of some of the encoded prompts.

        Args:
            rows: (n,) which prompt each image is of.
            seeds: (n,) each image's noise is drawn on the CPU from its own seed, whatever the batch and the device.

        Returns:
            (n, height, width, 3) from 0 to 1, and for each image whether a safety checker blackened it.
        """
        import torch

        sampling = self.sampling
        given: dict[str, Any] = {name: value[list(rows)] for name, value in encodings.tensors.items()}
        if not given:
            given = {"prompt": [encodings.prompts[row] for row in rows]}
            if "negative_prompt" in self._takes:
                given["negative_prompt"] = self._negative(given["prompt"])
        sizes = {name: size for name, size in (("width", sampling.width), ("height", sampling.height)) if size is not None}
        with torch.inference_mode():
            made = self.pipeline(
                **given,
                **sizes,
                num_inference_steps=sampling.num_steps,
                guidance_scale=sampling.guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
            )
        flags = getattr(made, "nsfw_content_detected", None) or [False] * len(rows)
        return made.images, [bool(flag) for flag in flags]


@dataclass(frozen=True)
class Encodings:
    """Encoded prompts: tensors with one row a prompt, by the name under which the pipeline takes them."""

    prompts: list[str]
    tensors: dict[str, Any]


def load(model: Model, sampling: Sampling, device: str) -> ImageGenerator:
    """Load a text-to-image pipeline from safetensors.

    Args:
        device: auto, cpu, cuda, cuda:1, mps.

    Raises:
        ModelError: the library or the weights are not at hand, need a licence to be accepted, or are no text-to-image pipeline.
    """
    pipeline = load_pipeline(model, sampling.dtype, device, _TEXT_TO_IMAGE, safety_checker=sampling.safety_checker)
    if sampling.scheduler != "own":
        import diffusers

        pipeline.scheduler = getattr(diffusers, _SCHEDULERS[sampling.scheduler]).from_config(pipeline.scheduler.config)
    return ImageGenerator(pipeline, sampling)


@dataclass(frozen=True)
class PipelineKind:
    """What a pipeline must be called with, and what it must not ask for besides.

    Attributes:
        what: it is, in errors; example: a class of diffusers.
    """

    what: str
    example: str
    takes: frozenset[str]
    refuses: frozenset[str]


_CALL = frozenset(("prompt", "generator", "num_inference_steps", "guidance_scale", "output_type"))
_CONDITIONS = frozenset(("control_image", "image_embeds", "num_frames", "audio_length_in_s"))
_TEXT_TO_IMAGE = PipelineKind(
    "a text-to-image pipeline",
    "a pipeline that makes images of a prompt, such as StableDiffusionPipeline or StableDiffusionXLPipeline",
    _CALL,
    _CONDITIONS | {"image", "mask_image"},
)


def load_pipeline(
    model: Model,
    dtype: Literal["float32", "bfloat16", "float16"],
    device: str,
    kind: PipelineKind,
    *,
    safety_checker: bool,
) -> Any:
    """A pipeline of diffusers, whole, on its device, from safetensors.

    Raises:
        ModelError: as `load`; or it is of another kind.
    """
    index = read_index(model)
    import diffusers
    import torch

    _check_class(index.get("_class_name"), model, kind)
    drops_checker = "safety_checker" in index and not safety_checker
    unsafe = {"safety_checker": None, "requires_safety_checker": False} if drops_checker else {}
    with _at_hand(model):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            **model.location, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **unsafe
        )
        check_pipeline(pipeline, model.shown)
    pipeline.set_progress_bar_config(disable=True)
    where = pick_device(device)
    with device_errors(where):
        return pipeline.to(where)


def read_index(model: Model) -> dict[str, Any]:
    """A pipeline's `model_index.json`: its class as `_class_name`, and its parts.

    Raises:
        ModelError: diffusers or the model is not at hand.
    """
    try:
        import diffusers
        import torch  # noqa: F401 # diffusers comes without it
    except ImportError:
        raise ModelError("generating images needs the extra 'generate'", fix="pip install 'irpipe[generate]'") from None
    quiet(diffusers)
    with _at_hand(model):
        index: dict[str, Any] = diffusers.DiffusionPipeline.load_config(**model.location)
    return index


def _check_class(name: object, model: Model, kind: PipelineKind) -> None:
    """Whether a pipeline's class is of a kind.

    Raises:
        ModelError: diffusers has no such class, it does not take what it must, or asks for more.
    """
    import diffusers

    pipeline: Any = getattr(diffusers, name, None) if isinstance(name, str) else None
    callable_class = inspect.isclass(pipeline) and "__call__" in dir(pipeline)
    parameters = inspect.signature(pipeline.__call__).parameters if callable_class else {}
    demands = [parameter for parameter in parameters if parameter in kind.refuses]
    if not kind.takes <= set(parameters) or demands:
        why = f"takes {', '.join(demands)}" if demands else f"is not {kind.what} of diffusers"
        raise ModelError(f"{model.shown} is a {name}, which {why}", expected=kind.example)


def _at_hand(model: Model) -> AbstractContextManager[None]:
    return load_errors(model, "the generator", "a diffusers folder: model_index.json and safetensors")
