"""Files of a training's work folder that survive a kill."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


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
