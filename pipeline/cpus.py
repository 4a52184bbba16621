"""The number of processors that this process may use, and of threads that it computes with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_OPENMP = "OMP_NUM_THREADS"  # read by torch, MKL and OpenBLAS when they are loaded
# How long a thread of GNU OpenMP, which torch brings, holds its core while it waits for the others: 1 ms and more by default.
# On a machine with other work the thread that is waited for then gets no core: two threads were ten times slower than one.
_SPINNING = ("GOMP_SPINCOUNT", "10000")


def usable_cpus(root: Path = Path("/")) -> int:
    """The processors that this process may use: its affinity, and the CPU quota of its control groups (rounded up).

    Args:
        root: where `proc` and `sys` are mounted.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """The quotas, in processors, of this process's control groups and of those above them (cgroup versions 1 and 2)."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            hierarchy, controllers, path = line.split(":", 2)
            if hierarchy == "0" and not controllers:
                for folder in _and_above(root / "sys/fs/cgroup", path):
                    yield from _quota(folder / "cpu.max")
            elif "cpu" in controllers.split(","):
                for mount in (controllers, "cpu"):
                    for folder in _and_above(root / "sys/fs/cgroup" / mount, path):
                        yield from _quota(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _and_above(mount: Path, path: str) -> Iterator[Path]:
    """A control group's folder and those above it; in a container, `path` may be the host's and only the mount be there."""
    inside = PurePosixPath(path.lstrip("/"))
    for part in (inside, *inside.parents):
        yield mount / part


def _quota(*files: Path) -> Iterator[float]:
    """Quota / period of one control group; nothing where there is no limit or no such file."""
    with suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (float(word) for file in files for word in file.read_text(encoding="utf-8").split())
        if quota > 0:
            yield quota / period


def set_threads(count: int | None = None) -> int:
    """Fix how many threads the libraries compute with that this process, or one that it starts, has not loaded yet.

    Without this they take every core of the machine, also where a quota gives this process fewer; each operation then waits
    for threads that do not run. Threads that wait give their core to other work.

    Args:
        count: the number; None for the one that the environment gives (OMP_NUM_THREADS), or else every usable processor.

    Returns:
        the number.
    """
    if count is None:
        count = threads()
    os.environ[_OPENMP] = str(count)
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*_SPINNING)
    return count


def threads() -> int:
    """How many threads this process computes with."""
    value = os.environ.get(_OPENMP, "").partition(",")[0]
    return int(value) if value.isdigit() and int(value) > 0 else usable_cpus()
