"""What a run's result may depend on besides its key: packages, BLAS, threads, the recipe's commit. Records hold it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import threadpoolctl

from irpipe.pipeline.manifest import Record


def numerics(determinism: str) -> dict[str, str]:
    """Whether two runs give the same bytes, and the libraries that computed in this process, with their kernels.

    Args:
        determinism: `bitwise`, or `numeric`: the last bits depend on the threads, the libraries and the processor.
    """
    fields = ("internal_api", "version", "architecture", "threading_layer")
    pools = [" ".join(pool[name] for name in fields if pool.get(name)) for pool in threadpoolctl.threadpool_info()]
    return {"determinism": determinism, "libraries": ", ".join(sorted(set(pools)))}


def surroundings(before: Record, now: Record) -> Iterator[str]:
    """What differs between the surroundings of two runs of one key."""
    for name in ("host", "device", "processes", "threads", "code_digest"):
        if getattr(before, name) != getattr(now, name):
            yield f"{name} {getattr(before, name)} -> {getattr(now, name)}"
    for old, new in ((before.packages, now.packages), (before.numerics, now.numerics)):
        for name in sorted(old.keys() | new.keys()):
            if old.get(name) != new.get(name):
                yield f"{name} {old.get(name)} -> {new.get(name)}"


def packages() -> dict[str, str]:
    """Versions of irpipe and of the packages it names."""
    names = {"irpipe", *(requirement.split(";")[0].strip() for requirement in metadata.requires("irpipe") or ())}
    versions = {}
    for name in sorted(names):
        plain = name.split("[")[0].split("<")[0].split(">")[0].split("=")[0].split("~")[0].split("!")[0].strip()
        try:
            versions[plain] = metadata.version(plain)
        except metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return versions


def git(folder: Path) -> dict[str, object] | None:
    """The git commit of the recipe's folder, and whether the folder has changes."""

    def answer(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    commit_id = answer("rev-parse", "HEAD")
    return None if commit_id is None else {"commit": commit_id, "dirty": bool(answer("status", "--porcelain"))}
