"""A full disk and a read-only one, for real; and what a power cut would lose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.test_faults import SMALL, irpipe, whole


@pytest.fixture
def small_disk(project, pool_renders):
    """The images that the small recipe imports, and the store on a disk of its own that a test can fill, or make read-only."""
    (project.root / "images").symlink_to(pool_renders)
    store = project.root / "artifacts"
    store.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(store)], check=False, capture_output=True
    ).returncode:
        pytest.skip("NEEDS THE RIGHT TO MOUNT a small disk")
    yield store
    subprocess.run(["umount", "--lazy", str(store)], check=True)


def test_a_full_disk(project, small_disk):
    project.recipe(SMALL)
    result = irpipe("run", "build-pairs")
    assert result.returncode == 2, result.stderr
    assert "the store cannot be written" in result.stderr and "Traceback" not in result.stderr
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    assert irpipe("run", "build-pairs").returncode == 0
    whole(project)


def test_a_read_only_store(project, small_disk):
    project.recipe(SMALL)
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    project("run", "load-annotations")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        reused = irpipe("run", "load-annotations")
        assert reused.returncode == 0, reused.stderr
        for command in (["plan", "build-pairs"], ["status"], ["show", "load-annotations"], ["sql", "SELECT 1"]):
            assert irpipe(*command).returncode == 0
        for command in (["verify"], ["gc"]):
            assert irpipe(*command).returncode == 0
        for command in (["run", "build-pairs"], ["run", "load-annotations", "--force"]):
            refused = irpipe(*command)
            assert refused.returncode == 2 and "the store cannot be written" in refused.stderr, refused.stderr
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_a_name_is_given_only_to_what_is_on_the_disk(project, shouting, monkeypatch):
    """A power cut loses what was not synced: before a rename the files (and a folder's names), after it the name itself."""
    synced, unsettled, renamed = set(), set(), []

    def inode(path):
        told = os.fstat(path) if isinstance(path, int) else path.stat()
        return told.st_dev, told.st_ino

    def fsync(descriptor):
        real_fsync(descriptor)
        synced.add(inode(descriptor))
        unsettled.discard(inode(descriptor))

    def renaming(real):
        def rename(path, target):
            missing = [entry for entry in (path, *path.rglob("*")) if inode(entry) not in synced]
            assert not missing, f"renamed before it was synced: {missing}"
            renamed.append(target.relative_to(project.store.root).parts[0])
            done = real(path, target)
            unsettled.add(inode(target.parent))
            return done

        return rename

    run = shouting / "count" / "run.py"  # whose artifact has a folder in it
    told = run.read_text(encoding="utf-8")
    run.write_text(told.replace("(out /", "(out / 'in').mkdir()\n    (out / 'in' /"), encoding="utf-8")
    real_fsync = os.fsync
    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "replace"):
        monkeypatch.setattr(Path, name, renaming(getattr(Path, name)))
    project.run("count")
    assert {"objects", "keys", "refs", "work"} <= set(renamed)
    assert not unsettled, "a name that was given is not on the disk"
