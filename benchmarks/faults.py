"""The reliability campaign: random faults while a recipe runs, and what was lost. `python -m benchmarks.faults --hours 1`

Each trial does some things to a store (a kill, a signal, a full disk, a flipped bit, a cut file, a missing record, two runs at
once, a clock that jumps), most of them beside a run, runs the recipe again, and asks: does it end well, with the artifacts of an
undisturbed run, and does `irpipe verify` find nothing? `lost`: a run that did not end well. `wrong`: another artifact, or damage
that stays. Runs are forks of a process that has loaded everything: most of a short run is loading.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from irpipe.cli import main as irpipe

RECIPE = """
recipe = "faults"
[simulate-prompts]
count = 300
[embed-prompts]
embedder = "lexical"
dimensions = 32
[prompt-graph]
k = 10
[select-prompts]
count = 30
[split-prompts]
near_duplicate = "off"
[simulate-captions]
count = 200
"""
TARGETS = ("split-prompts", "simulate-captions", "prompt-graph")
_STAGES = ("simulate_prompts", "embed_prompts", "prompt_graph", "select_prompts", "split_prompts", "simulate_captions")
# What a run loads where it needs it.
_LOADED = (
    *(f"irpipe.stages.{stage}.run" for stage in _STAGES),
    *(f"irpipe.{name}" for name in ("cli.commands", "pipeline.runner", "pipeline.trials", "pipeline.verify")),
    *("duckdb", "faiss", "matplotlib.pyplot", "pyarrow.dataset", "scipy.stats", "sklearn.feature_extraction.text"),
)
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_LONGEST = 300  # seconds of one run
_MOST_FAULTS = 8  # of a trial


class Campaign:
    """A store that is disturbed, and what its artifacts should be."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        for name in _LOADED:
            importlib.import_module(name)
        (folder / "irpipe.toml").write_text(RECIPE, encoding="utf-8")
        self.wanted = {target: self.made(target) for target in TARGETS}
        if None in self.wanted.values():
            sys.exit("an undisturbed run does not end well")

    def start(self, *arguments: str, most_bytes: int | None = None) -> int:
        """`irpipe` in a process group of its own; its id.

        Args:
            most_bytes: of a file, as if the disk were full behind it.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)  # until the fork has its way out
        process = os.fork()
        if not process:
            self._run(arguments, most_bytes)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        return process

    def _run(self, arguments: tuple[str, ...], most_bytes: int | None) -> NoReturn:
        """In the fork: the command, and out, whatever happens: what is above it would delete the store."""
        status: object = 1
        try:
            os.setsid()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
            os.chdir(self.folder)
            output = os.open(self.folder / f"output-{os.getpid()}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.alarm(_LONGEST)
            if most_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
            sys.argv = ["irpipe", *arguments]
            irpipe()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            try:
                sys.stdout.flush()
            finally:
                os._exit(status if isinstance(status, int) else 1)

    def end(self, process: int) -> tuple[int, str]:
        """Its exit status, and what it printed."""
        _, status = os.waitpid(process, 0)
        output = self.folder / f"output-{process}"
        text = output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""
        output.unlink(missing_ok=True)
        return os.waitstatus_to_exitcode(status), text

    def made(self, target: str) -> str | None:
        """The content id of a run, None where it does not end well."""
        status, output = self.end(self.start("run", target, "--json"))
        if status:
            print(output[-2000:], flush=True)
            return None
        return str(json.loads(output.splitlines()[-1])["content_id"])

    # -- faults -------------------------------------------------------------------------------------------------------

    def begin(self, most_bytes: int | None = None) -> int:
        """A run that has something to do: some records are gone before."""
        for _ in range(self.random.choice((1, 1, 2, 5))):
            self.lose_a_record()
        return self.start("run", self.random.choice(TARGETS), most_bytes=most_bytes)

    def interrupt(self, how: signal.Signals) -> None:
        """Stop a run at a random moment."""
        process = self.begin()
        time.sleep(self.random.uniform(0.0, 1.0))
        self.stop(process, how)

    def stop(self, process: int, how: signal.Signals) -> None:
        """Send a signal to a run and what it started, if it is still there."""
        try:
            os.killpg(process, how)
        except ProcessLookupError:  # it has not made its group yet
            os.kill(process, how)
        self.end(process)

    def two_at_once(self) -> None:
        """Two runs of the same recipe, one of which is killed."""
        one, other = self.begin(), self.begin()
        time.sleep(self.random.uniform(0.0, 1.0))
        self.stop(one, signal.SIGKILL)
        self.end(other)

    def full_disk(self) -> None:
        """A run whose files cannot grow beyond a random size."""
        self.end(self.begin(most_bytes=int(2 ** self.random.uniform(0, 16))))

    def damage(self, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of a random file of the store, as a disk might; what is damaged is found by `verify`."""
        store = self.folder / "artifacts"
        files = [path for part in ("objects", "keys") for path in (store / part).rglob("*") if path.is_file()]
        if files:
            path = self.random.choice(files)
            data = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(change(data))
            self.end(self.start("verify"))

    def flip(self, data: bytes) -> bytes:
        at = self.random.randrange(max(1, len(data)))
        return data[:at] + bytes([data[at] ^ (1 << self.random.randrange(8))]) + data[at + 1 :] if data else b"x"

    def lose_a_record(self) -> None:
        """Delete a random record."""
        records = list((self.folder / "artifacts" / "keys").rglob("*.json"))
        if records:
            self.random.choice(records).unlink()

    def clock(self) -> None:
        """Times of random files jump by years."""
        for path in self.random.sample(paths := list((self.folder / "artifacts").rglob("*")), min(5, len(paths))):
            when = time.time() + self.random.choice((-1, 1)) * 1e8
            os.utime(path, (when, when))

    def trial(self) -> tuple[list[str], str]:
        """Some faults and a run: their names, and `kept`, `lost` or `wrong`."""
        faults: dict[str, Callable[[], None]] = {
            "kill -9": lambda: self.interrupt(signal.SIGKILL),
            "SIGTERM": lambda: self.interrupt(signal.SIGTERM),
            "SIGINT": lambda: self.interrupt(signal.SIGINT),
            "two at once": self.two_at_once,
            "full disk": self.full_disk,
            "flipped bit": lambda: self.damage(self.flip),
            "cut file": lambda: self.damage(lambda data: data[: len(data) // 2]),
            "lost record": self.lose_a_record,
            "clock": self.clock,
        }
        names = self.random.choices(sorted(faults), k=self.random.randint(1, _MOST_FAULTS))
        for name in names:
            faults[name]()
        made = {target: self.made(target) for target in TARGETS}
        clean = self.end(self.start("verify"))[0] == 0
        return names, "lost" if None in made.values() else "kept" if made == self.wanted and clean else "wrong"


def main() -> None:
    """Run trials until the time is up; status 1 where anything was lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ends, outcomes, tried = time.monotonic() + 3600 * given.hours, Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="irpipe-faults-") as folder:
        campaign = Campaign(Path(folder), given.seed)
        while time.monotonic() < ends:
            names, outcome = campaign.trial()
            outcomes[outcome] += 1
            tried.update(names)
            if outcome != "kept":
                print(f"{outcome}: {', '.join(names)} (trial {outcomes.total()}, seed {given.seed})", flush=True)
    by_name = ", ".join(f"{name} {count:,}" for name, count in tried.most_common())
    print(
        f"{tried.total():,} faults ({by_name}) in {outcomes.total():,} trials: lost {outcomes['lost']}, wrong {outcomes['wrong']}"
    )
    sys.exit(bool(outcomes["lost"] or outcomes["wrong"]))


if __name__ == "__main__":
    main()
