"""Hashing and committing 20,000 files of 40 kB, against `dvc add` on the same files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.common import show, timed
from irpipe.pipeline.commit import begin, commit
from irpipe.pipeline.manifest import Manifest, Record
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.store import Store

FILES, SIZE, ROUNDS = 20_000, 40_000, 3


def main(folder: Path) -> None:
    files = folder / "files"
    for number in range(FILES):
        path = files / f"{number // 1000:02}" / f"{number:05}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SIZE))
    ours, theirs = [], []
    for round_ in range(ROUNDS):
        ours.append(_commit(folder / f"ours-{round_}", files))
        theirs.append(_dvc_add(folder / f"dvc-{round_}", files))
    best = min(ours), min(theirs)
    show("commit of 20,000 files", irpipe=f"{best[0]:.1f} s", dvc_add=f"{best[1]:.1f} s", ratio=f"{best[1] / best[0]:.1f}x")


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
        "0" * 64,
        manifest.content_id,
        "bench",
        1,
        "bench",
        {},
        (),
        {},
        {},
        "",
        {},
        None,
        "",
        "",
        (),
        "",
        "",
        0.0,
        {"read": 0, "kept": 0, "rejected": 0},
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
