"""A full disk and a read-only one, for real."""

from __future__ import annotations

import subprocess

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
