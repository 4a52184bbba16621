"""One change of one input, and what must hold of it."""

from __future__ import annotations

import random
import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import IrpipeError
from tests.fuzz.mutations import bytes_changed
from tests.fuzz.targets import TARGETS, Rows, Target


@dataclass(frozen=True)
class Finding:
    """What is wrong: the target, the seed that makes it again, a traceback or a silent change."""

    target: str
    seed: int
    what: str


def try_one(name: str, seed: int, folder: Path) -> tuple[str, Finding | None]:
    """Change a target's input, and read it. Returns how it ended (kept, error) and what is wrong with that."""
    target, draw = TARGETS[name], random.Random(seed)
    shutil.rmtree(folder)
    folder.mkdir()
    target.beside(folder)
    data = target.make()
    before: Rows = {}
    untouched = None
    if target.structure is not None and draw.random() < 0.5:
        (folder / target.file).write_bytes(data)
        before = target.read(folder)
        data, changed = target.structure(data, draw)
        untouched = {key: value for key, value in before.items() if not changed & rows_of(key)}
    else:
        data = bytes_changed(data, draw)
    (folder / target.file).write_bytes(data)
    try:
        after = target.read(folder)
    except IrpipeError:
        return "error", None
    except Exception:  # noqa: BLE001 # that is what is looked for
        return "traceback", Finding(name, seed, traceback.format_exc(limit=-4))
    if untouched is not None and any(after.get(key) != value for key, value in untouched.items()):
        lost = next((key, value, after.get(key)) for key, value in untouched.items() if after.get(key) != value)
        return "silent", Finding(name, seed, f"another record changed: {lost}")
    return "kept", None


def rows_of(key: Any) -> set[int]:
    """The rows of a file that a kept record was made of."""
    return set(key[0])


def written(target: Target, folder: Path, data: bytes) -> None:
    """A recorded input in place of a target's own."""
    target.beside(folder)
    (folder / target.file).write_bytes(data)
