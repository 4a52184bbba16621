"""Device, precision, processes and trackers of a training."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import InitProcessGroupKwargs

from irpipe.models.loading import device_errors, pick_device
from irpipe.models.training.config import TrainingSettings
from irpipe.pipeline.errors import ModelError, StageError

_PATIENCE = timedelta(days=2)  # the first process encodes, evaluates and samples pools while the others wait
_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def make_accelerator(stage: str, training: TrainingSettings, title: str, settings: Mapping[str, Any]) -> Accelerator:
    """Device, precision and processes of a training.

    Args:
        stage: whose settings errors name.
        title: the run's name in trackers; `settings` are shown beside it.

    Raises:
        ModelError: the device cannot be used.
        StageError: a tracker is not installed.
    """
    trackers, device = training.trackers, pick_device(training.device)
    for shared in (AcceleratorState, PartialState):
        shared._reset_state()  # another training of this process may have had another precision
    on_cpu = device == "cpu"
    os.environ.pop("ACCELERATE_USE_CPU", None)
    if on_cpu:
        os.environ["ACCELERATE_USE_CPU"] = "true"
        if training.dtype == "float16":
            raise ModelError("float16 needs a GPU", fix=f"--set {stage}.training.dtype=float32")
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
            mixed_precision=_PRECISION[training.dtype],
            log_with=list(trackers) or None,
            project_dir=training.tracker_folder if trackers else None,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        )
    if trackers:
        accelerator.init_trackers(title, {name: str(value) for name, value in settings.items()})
    return accelerator


def used_gigabytes(device: torch.device) -> float:
    """Peak memory of this process, of its GPU or else of the machine, in GB (1e9 bytes)."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device) / 1e9)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if os.uname().sysname == "Darwin" else 1e6)
