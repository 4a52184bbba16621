"""What loading any model shares: where it runs, and errors that say what to do."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from irpipe.models.whole import refuse_parts_elsewhere, whole_weights
from irpipe.pipeline.cpus import threads
from irpipe.pipeline.errors import IrpipeError, ModelError
from irpipe.pipeline.executors import worker_number
from irpipe.pipeline.memory import is_out_of_memory
from irpipe.pipeline.requirements import how_to_get, is_reachable
from irpipe.pipeline.stage import Model


def pick_device(device: str) -> str:
    """The device that `auto` means here, the first GPU if there is one; and torch computes with this process's threads."""
    import torch

    torch.set_num_threads(threads())
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def worker_device(device: str) -> str:
    """The device of this process: one of several workers takes the GPU of its number, if there are any."""
    import torch

    picked, number = pick_device(device), worker_number()
    if picked == "cuda" and number is not None and torch.cuda.is_available():
        return f"cuda:{number % torch.cuda.device_count()}"
    return picked


def quiet(*libraries: Any) -> None:
    """The bars and hints of transformers, and of other libraries like it, go; ours come."""
    import transformers

    for library in (transformers, *libraries):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@contextmanager
def device_errors(device: str) -> Iterator[None]:
    """A device that is not there is the user's error.

    Raises:
        ModelError: it cannot be used.
    """
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        told = (str(error).splitlines() or [""])[0][:200]
        raise ModelError(f"the device {device!r} cannot be used: {told}", expected="auto, cpu, cuda, cuda:1 or mps") from None


@contextmanager
def load_errors(model: Model, what: str, expected: str, other: str = "", unused: str = "") -> Iterator[None]:
    """Load a model whole, and turn what the hub and the loaders raise into one error that says what to do.

    Args:
        what: the model's part in the run: "the generator".
        expected: what a local folder must hold.
        other: another way out, added to the fix.
        unused: what begins the names of weights that are not used, a pattern: they may be missing, or more than the model has.

    Raises:
        ModelError: it cannot be loaded, or not whole (see `whole_weights`).
    """
    quiet()
    try:
        with warnings.catch_warnings():
            # diffusers still passes it, and the hub's client says on every download that it does nothing.
            warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument")
            with _without_waiting(model), whole_weights(f"{what} {model.shown}", unused):
                if model.folder is not None:
                    refuse_parts_elsewhere(model.folder)
                yield
    except IrpipeError:
        raise
    except Exception as error:  # a damaged file makes libraries raise anything; this is where files come in
        if is_out_of_memory(error):
            raise
        raise _loading_error(error, model, what, expected, other) from None


def _loading_error(error: Exception, model: Model, what: str, expected: str, other: str) -> ModelError:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    if any(isinstance(cause, GatedRepoError) for cause in chain):
        return ModelError(
            f"{model.name} is given only to those who accept its licence",
            fix=f"accept it on https://huggingface.co/{model.name}, then: hf auth login",
        )
    where = str(model.folder) if model.folder else None
    message = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, pickle.UnpicklingError):
        message = "it is a pickle with more in it than tensors, and no code from a checkpoint is run"
    elif any(isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError) for cause in chain):
        message = "the hub cannot be reached, and what was downloaded before does not hold it"
    return ModelError(
        f"{what} {model.shown} cannot be loaded: {message}",
        where=where,
        expected=expected if where else None,
        fix="; ".join(filter(None, [None if where else how_to_get(model), other])) or None,
    )


@contextmanager
def _without_waiting(model: Model) -> Iterator[None]:
    """Where the hub cannot be reached, look only at what was downloaded before: its client would try for half a minute."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or (model.folder is None and not is_reachable(constants.ENDPOINT))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def files_of(model: Model) -> Path:
    """The folder with a model's files; those of the hub are fetched first, but for formats of other frameworks.

    Raises:
        ModelError: they cannot be had.
    """
    if model.folder is not None:
        return model.folder
    from huggingface_hub import snapshot_download

    with load_errors(model, "the model", "safetensors"):
        return Path(
            snapshot_download(model.name, revision=model.revision, ignore_patterns=["*.bin", "*.h5", "*.msgpack", "*.onnx"])
        )
