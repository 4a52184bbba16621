"""A remote of two runs: whatever becomes of one of its files, a pull brings what was pushed or nothing; `gc` deletes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from irpipe.pipeline.commit import remove
from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.exchange import checked, pull
from irpipe.pipeline.manifest import MANIFEST_FILE
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import MARK, Remote
from irpipe.pipeline.remote_upkeep import collect
from irpipe.pipeline.store import Store

RECIPE = 'recipe = "team"\n[simulate-prompts]\ncount = 40\n[embed-prompts]\nembedder = "lexical"\ndimensions = 8\n'
FOLDERS = {"mark": MARK, "manifest": "objects", "part": "parts", "record": "keys", "root": "roots"}


@cache
def pushed() -> dict[str, bytes]:
    """The files of a remote, by path."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "irpipe.toml").write_text(RECIPE, encoding="utf-8")
        for command in (("run", "embed-prompts", "--quiet"), ("push", "--remote", f"file://{folder}/remote")):
            subprocess.run([sys.executable, "-m", "irpipe.cli", *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        root = folder / "remote"
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@cache
def whole() -> tuple[dict[str, bytes], list[str]]:
    """What an undisturbed pull brings; see `brought`."""
    with tempfile.TemporaryDirectory() as name:
        laid(Path(name))
        return brought(Path(name))


def laid(folder: Path) -> None:
    """Write the remote below a folder, and empty the store beside it."""
    for part in ("remote", "store"):
        if (folder / part).exists():
            remove(folder / part)
    for name, data in pushed().items():
        (folder / "remote" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "remote" / name).write_bytes(data)


def name_of(kind: str) -> str:
    """The path of the first file of a kind."""
    return min(name for name in pushed() if name.startswith(FOLDERS[kind]))


def first_of(kind: str) -> bytes:
    """The bytes of the first file of a kind."""
    return pushed()[name_of(kind)]


def brought(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Files of all artifacts and the runs' keys, after a pull into an empty store."""
    remote, store = Remote(f"file://{folder}/remote"), Store(folder / "store")
    remote.check_begun()
    found = [remote.record(key) for kind, key, _ in remote.files() if kind == "keys"]
    records = sorted((checked(remote, record) for record in found if record is not None), key=lambda record: record.key)
    pull(remote, store, records, Watcher())
    files = {
        f"{identity.name}/{path.relative_to(identity).as_posix()}": path.read_bytes()
        for identity in store.objects()
        for path in identity.rglob("*")
        if path.is_file() and path.name != MANIFEST_FILE
    }
    return files, [json.dumps(record.config, sort_keys=True) + record.key for record in records]


def read(kind: str, folder: Path) -> dict[tuple[tuple[int]], str]:
    """Pull and collect from a remote whose first file of a kind is the folder's file `changed`.

    Raises:
        AssertionError: another artifact came, or something would be deleted.
        IrpipeError: one of the two was refused.
    """
    laid(folder)
    (folder / "remote" / name_of(kind)).write_bytes((folder / "changed").read_bytes())
    refused: list[IrpipeError] = []
    with _kept(refused):
        assert brought(folder) == whole()
    with _kept(refused):  # also where nothing could be pulled
        assert collect(Remote(f"file://{folder}/remote"), 0.0, Watcher()) == []
    if refused:
        raise refused[0]
    return {((0,),): "whole"}


@contextmanager
def _kept(refused: list[IrpipeError]) -> Iterator[None]:
    try:
        yield
    except IrpipeError as error:
        refused.append(error)
