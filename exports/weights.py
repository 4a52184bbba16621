"""Copying weights out of artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.export import copy_file
from irpipe.pipeline.store import Artifact

# Files that frameworks write by pickling: loading one runs the code in it.
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")


def copy_weights(artifact: Artifact, folder: Path, files: Mapping[str, str]) -> None:
    """Copy some of an artifact's files (path to new path) into a folder.

    Raises:
        StoreError: one of them is a pickle, or there is none in safetensors.
    """
    for name in files:
        if name.lower().endswith(_PICKLES):
            raise StoreError(
                f"{name} is a pickle, which runs code when it is loaded",
                where=artifact.content_id[:12],
                expected="weights in safetensors",
                fix="let the stage write safetensors, or --to files",
            )
    if not any(name.endswith(".safetensors") for name in files):
        raise StoreError(
            "the artifact holds no weights where they are expected",
            where=artifact.content_id[:12],
            expected="safetensors",
            fix="--to files",
        )
    for name, new in files.items():
        copy_file(artifact, name, folder / new)
