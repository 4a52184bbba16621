"""What a model's own files say it is, read before anything is loaded: the `check` of settings that name models. No torch."""

from __future__ import annotations

import json

from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.requirements import folder_of
from irpipe.pipeline.stage import Model

TUNABLE = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")  # pipelines that `models/tuning/denoiser.py` knows
_INDEX = "model_index.json"
_MOST_BYTES = 1_000_000


def generator(model: Model) -> str | None:
    """The class of a pipeline of diffusers; None where the model was not downloaded yet.

    Raises:
        ModelError: it is none.
    """
    folder = folder_of(model)
    if folder is None:
        return None
    path = folder / _INDEX
    try:
        index = json.loads(path.read_bytes()[:_MOST_BYTES])
        name = index["_class_name"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        why = f"names no class ({error})" if path.exists() else "is missing"
        raise ModelError(
            f"the generator {model.shown} cannot be loaded: {_INDEX} {why}",
            where=str(folder),
            expected=f"a diffusers folder: {_INDEX} and safetensors",
            fix=f"--set {model.setting}=FOLDER" if model.setting else None,
        ) from None
    return name if isinstance(name, str) else str(name)


def inpainting_generator(model: Model) -> None:
    """Whether a generator can draw a part of a picture anew: it can be tuned (`inpaint` samples it), or is made for it.

    Raises:
        ModelError: it is of another class.
    """
    name = generator(model)
    if name is None or name in TUNABLE or is_inpainting(name):
        return
    raise ModelError(
        f"{model.setting}: {model.shown} is a {name}, which draws no part of a picture anew",
        expected=f"one of {', '.join(TUNABLE)}, or an inpainting pipeline, such as StableDiffusionInpaintPipeline",
        fix=f"--set {model.setting}=NAME of such a model",
    )


def is_inpainting(name: str) -> bool:
    """Whether a class of diffusers is an inpainting pipeline by its name; its parameters are looked at when it is loaded."""
    return name.endswith("InpaintPipeline")


def no_generator(model: Model) -> None:
    """Whether a model is something else than a generator: a scorer, a reward model.

    Raises:
        ModelError: it is a pipeline of diffusers.
    """
    folder = folder_of(model)
    if folder is not None and (folder / _INDEX).is_file():
        raise ModelError(
            f"{model.setting}: {model.shown} holds no BLIP, nor another model that scores images: it is a {generator(model)}",
            fix=f"--set {model.setting}=NAME of a model that scores images",
        )


def tunable_generator(model: Model) -> None:
    """Whether a generator can be tuned.

    Raises:
        ModelError: it is of another class than `TUNABLE`.
    """
    name = generator(model)
    if name is not None and name not in TUNABLE:
        raise ModelError(
            f"{model.setting}: {model.shown} is a {name}, which cannot be tuned",
            expected=f"one of {', '.join(TUNABLE)}",
            fix=f"--set {model.setting}=NAME of such a model",
        )
