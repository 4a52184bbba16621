"""What every training shares: processes and precision, checkpoints that survive a kill, and how much memory it took."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from irpipe.models.loading import device_errors, pick_device
from irpipe.pipeline.errors import ModelError, StageError

_PATIENCE = timedelta(days=2)  # the first process encodes, looks and draws while the others wait
_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(
    stage: str,
    device: str,
    dtype: str,
    trackers: Sequence[str] = (),
    track_to: str = "runs",
    title: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Accelerator:
    """Device, precision and processes of a training.

    Args:
        stage: whose setting an error names.
        device: auto, cpu, cuda, mps.
        dtype: float32, bfloat16, float16.
        trackers: where curves go besides; the run is called `title`, and `settings` stand beside it.

    Raises:
        ModelError: the device cannot be used.
        StageError: a tracker is not installed.
    """
    device = pick_device(device)
    for shared in (AcceleratorState, PartialState):
        shared._reset_state()  # another training of this process may have had another precision
    on_cpu = device == "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if dtype == "float16":
            raise ModelError("float16 needs a GPU", fix=f"--set {stage}.dtype=float32")
    missing = sorted(set(trackers) - {str(tracker.value) for tracker in get_available_trackers()})
    if missing:
        raise StageError(f"the tracker {missing[0]} is not installed", fix=f"pip install {missing[0]}")
    with device_errors(device):
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.empty(1, device=device)
        if device.startswith("cuda"):
            torch.cuda.set_device(device)
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=_PRECISION[dtype],
            log_with=list(trackers) or None,
            project_dir=track_to if trackers else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    if trackers:
        accelerator.init_trackers(title, {name: str(value) for name, value in (settings or {}).items()})
    return accelerator


class Checkpoints:
    """Files of one training's work folder, each put in its place whole and on the disk, or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved_at = time.monotonic()

    @property
    def minutes(self) -> float:
        """Since the last one was written, or since the training began."""
        return (time.monotonic() - self.saved_at) / 60

    def write(self, name: str, value: Any) -> None:
        """Write tensors and plain values under a name."""
        draft = self.folder / f"{name}.draft"
        with draft.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.folder / name)
        self.saved_at = time.monotonic()

    def read(self, name: str) -> Any:
        """What was written under a name, on the CPU; None where nothing was."""
        path = self.folder / name
        return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None

    def keep_only(self, pattern: str, names: Sequence[str]) -> None:
        """Drop the files of a pattern that are none of these."""
        for path in self.folder.glob(pattern):
            if path.name not in names:
                path.unlink()


class Weights:
    """The trained part of a model, and its running average if there is one.

    Args:
        parameters: by name; what requires a gradient of them is trained.
        decay: of the running average, a step (Polyak averaging); quicker at the start. 0: none.
    """

    def __init__(self, parameters: Mapping[str, Any], decay: float) -> None:
        self.trained = {name: value for name, value in parameters.items() if value.requires_grad}
        self._decay = decay
        self.average: dict[str, Tensor] = {}
        self.restart_average()

    def restart_average(self) -> None:
        """The average begins at the weights as they are."""
        self.average = self.copy() if self._decay else {}

    def take_average(self, steps: int) -> None:
        """The average takes the weights in, after so many steps."""
        decay = min(self._decay, steps / (9 + steps))
        with torch.no_grad():
            for name, kept in self.average.items():
                kept.lerp_(self.trained[name], 1 - decay)

    def copy(self) -> dict[str, Tensor]:
        """The weights as they are, apart."""
        return {name: value.detach().clone() for name, value in self.trained.items()}

    def on_cpu(self) -> dict[str, Tensor]:
        """The weights as they are, on the CPU."""
        return {name: value.detach().cpu().clone() for name, value in self.trained.items()}

    def kept(self) -> dict[str, Tensor]:
        """What is judged and kept, on the CPU: the average, or the weights as they are."""
        return {name: value.cpu().clone() for name, value in self.average.items()} if self.average else self.on_cpu()

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in their place."""
        with torch.no_grad():
            for name, value in weights.items():
                self.trained[name].copy_(value)

    def load_average(self, average: Mapping[str, Tensor]) -> None:
        """Put a kept average in its place."""
        self.average = {name: value.to(self.trained[name].device) for name, value in average.items()}

    def fill_gradients(self) -> None:
        """Zero gradients, also where there are none yet: every process has something to add up."""
        for value in self.trained.values():
            value.grad = torch.zeros_like(value)

    def add_up(self, accelerator: Accelerator) -> None:
        """Gradients become their sum over all processes."""
        if accelerator.num_processes > 1:
            for value in self.trained.values():
                value.grad = accelerator.reduce(value.grad, "sum")

    def gradients_finite(self) -> bool:
        """Whether every gradient is."""
        return all(bool(torch.isfinite(value.grad).all()) for value in self.trained.values() if value.grad is not None)


def used_gigabytes(device: torch.device) -> float:
    """The most memory that this process has had: of its GPU, or else of the machine."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 1e9)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if os.uname().sysname == "Darwin" else 1e6)
