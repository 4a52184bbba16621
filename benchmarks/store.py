"""Hashing and committing 20,000 files of 40 kB, against `dvc add` on the same files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import show, timed
from irpipe.pipeline.commit import begin, commit
from irpipe.pipeline.manifest import Manifest, Record
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.store import Store


class Size(NamedTuple):
    """How many files, the bytes of each, and how often each is timed."""

    files: int
    bytes: int
    rounds: int


FULL, TINY = Size(20_000, 40_000, 3), Size(30, 400, 1)


def main(folder: Path, size: Size) -> None:
    files = folder / "files"
    for number in range(size.files):
        path = files / f"{number // 1000:02}" / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size.bytes))
    ours, theirs = [], []
    for round_ in range(size.rounds):
        ours.append(_commit(folder / f"ours-{round_}", files))
        if find_spec("dvc") is not None:
            theirs.append(_dvc_add(folder / f"dvc-{round_}", files))
    against = (
        {"dvc_add": f"{min(theirs):.1f} s", "ratio": f"{min(theirs) / min(ours):.1f}x"}
        if theirs
        else {"dvc_add": "not installed"}
    )
    show(f"commit of {size.files:,} files", irpipe=f"{min(ours):.1f} s", **against)


def _commit(root: Path, files: Path) -> float:
    """Without the copy into the work folder: there the stage has written them."""
    store = Store(root)
    out, _ = begin(store, "0" * 64, "code")
    out.rmdir()
    shutil.copytree(files, out)
    os.sync()
    seconds, _ = timed(lambda: commit(store, "0" * 64, _record, Watcher()))
    subprocess.run(["chmod", "-R", "u+w", str(root)], check=True)
    shutil.rmtree(root)
    return seconds


def _record(manifest: Manifest) -> Record:
    return Record(
        key="0" * 64,
        content_id=manifest.content_id,
        stage="bench",
        node="bench",
        stage_version=1,
        recipe="bench",
        config={},
        given=(),
        inputs={},
        external={},
        code_digest="",
        packages={},
        git=None,
        host="",
        device="",
        command=(),
        started="",
        ended="",
        seconds=0.0,
        rows={"read": 0, "kept": 0, "rejected": 0},
    )


def _dvc_add(root: Path, files: Path) -> float:
    root.mkdir()
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(root / "site")}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "--quiet"], cwd=root, check=True, env=environment)
    shutil.copytree(files, root / "files")
    os.sync()
    command = [*dvc, "add", "--quiet", "files"]
    seconds, _ = timed(lambda: subprocess.run(command, cwd=root, check=True, env=environment, stderr=subprocess.DEVNULL))
    shutil.rmtree(root)
    return seconds
