"""embed-prompts in one process of two threads against two processes of one thread: idle, beside others' work, and on one core.

On a CPU with the micro world's sentence encoder. The rate is of the shards after the first ones, so that start-up does not count.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.common import quiet_context, show
from irpipe.microworld.grammar import describe, sample_scene
from irpipe.pipeline.cpus import set_threads
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.progress import Pace
from irpipe.pipeline.stage import Context, Model
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.vectors import embed_in_shards

FULL, TINY = (24, 128), (8, 16)  # shards, and prompts of each
SPINNING = {"GOMP_SPINCOUNT": "300000"}  # the default of GNU OpenMP
ROWS = {"idle": (0, 2), "beside two busy processes": (2, 2), "one core by affinity": (0, 1)}


def main(folder: Path, size: tuple[int, int]) -> None:
    for number, (row, (others, cores)) in enumerate(ROWS.items()):
        rates = {}
        for processes, threads, more in ((1, 2, {}), (1, 2, SPINNING), (2, 1, {}), (1, 1, {})):
            name = f"{processes} x {threads}{' spinning' if more else ''}"
            work = folder / f"{number} {name}"
            command = [sys.executable, "-m", "benchmarks.threads", str(work), str(processes), str(cores), *map(str, size)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), **more}
            with busy(others):
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            rates[name] = f"{float(done.stdout.split()[-1]):,.0f}/s"
        show(row, **rates)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes beside, each with a core's worth of work."""
    while_parent_lives = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"
    others = [subprocess.Popen([sys.executable, "-c", while_parent_lives]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


class Clock(Pace):
    """A bar that notes when each shard was done."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[float] = []

    def advance(self, amount: int, note: str = "") -> None:  # noqa: ARG002 (the names of the protocol)
        self.moments.append(time.perf_counter())


def rate(work: Path, processes: int, shards: int, shard_size: int) -> float:
    """Prompts per second, the first shards left out."""
    rng = np.random.default_rng(0)
    texts = [describe(sample_scene(rng)) for _ in range(shards * shard_size)]
    config = EmbedPromptsConfig(shard_size=shard_size, dtype="float32", device="cpu", num_processes=processes)
    clock, quiet = Clock(), quiet_context(work)

    @contextmanager
    def progress(what: str, total: int | None, unit: str) -> Iterator[Clock]:  # noqa: ARG001
        yield clock

    model = Model("micro-sentences", "shipped", shipped_folder("micro-sentences"))
    embed_in_shards(config, texts, Context(work, progress, quiet.say, {}, {"model": (model,)}))
    skipped = 2 * processes
    return (shards - skipped) * shard_size / (clock.moments[-1] - clock.moments[skipped - 1])


if __name__ == "__main__":
    set_threads()
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[: int(sys.argv[3])]))
    print(rate(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[4]), int(sys.argv[5])))
