"""Running out of memory ends in an error that names the settings which need less of it."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from irpipe.pipeline.errors import StageError
from irpipe.pipeline.settings import Config, role_of, settings_of, value_of

# How CUDA, MPS, a CPU, cuBLAS and C++ say it, where the error is no kind of its own.
_SIGNS = ("out of memory", "allocate memory", "not enough memory", "ALLOC_FAILED", "bad_alloc")
_LONGEST = 200  # characters
_SMALLER: dict[tuple[str, object], str] = {
    ("checkpoint_activations", False): "true",
    ("trainable", "unet"): "lora",
    ("dtype", "float32"): "bfloat16",
}
_HALVED = ("micro_batch_size", "sample_batch_size", "num_processes")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, of the machine or of a GPU, did not suffice."""
    torch = sys.modules.get("torch")  # else no error is of torch's kind
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


@contextmanager
def memory_errors(work: str, fix: str) -> Iterator[None]:
    """Running out of memory names the settings that lower it.

    Args:
        work: what was being done: "8 images a batch".

    Raises:
        StageError: there was not enough.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).splitlines() or ["no more is known"])[0][:_LONGEST]
        raise StageError(f"out of memory with {work}: {said}", fix=fix) from None


def stage_memory_errors(node: str, config: Config) -> AbstractContextManager[None]:
    """The same for a whole stage: all of its node's settings that lower it.

    Raises:
        StageError: there was not enough.
    """
    return memory_errors(f"the settings of {node}", "; or ".join(smaller(node, config)) or "a machine with more memory")


def smaller(node: str, config: Config) -> list[str]:
    """The settings of a node under which it needs less memory, as flags."""
    table, names = node.partition("[")[0], list(settings_of(type(config)))  # `--set` names a grid, not its points
    divided = any(name.endswith("micro_batch_size") for name in names)  # then a batch is not held at one time
    changes = []
    for name in names:
        last, value = name.rpartition(".")[2], value_of(config, name)
        if (last, value) in _SMALLER:
            changes.append((name, _SMALLER[last, value]))
        elif (last in _HALVED or (last == "batch_size" and not divided)) and value > 1:
            changes.append((name, value // 2))
    changes.sort(key=lambda one: role_of(type(config), one[0]) != "execution")  # first what leaves the result as it is
    return [f"--set {table}.{name}={value}" for name, value in changes]
