"""The reliability campaign: random faults while a recipe runs, and what was lost. `python -m benchmarks.faults --hours 1`

Each trial does one or two things to a store (a kill, a signal, a flipped bit, a cut file, a missing record, two runs at once, a
clock that jumps), runs the recipe again, and asks: does it end well, with the artifacts of an undisturbed run, and does `irpipe
verify` find nothing? `lost`: a run that did not end well. `wrong`: another artifact, or damage that stays.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

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
TARGETS = ("split-prompts", "select-prompts", "simulate-captions")
_LONGEST = 300.0  # seconds of one run


class Campaign:
    """A store that is disturbed, and what its artifacts should be."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.random = folder, random.Random(seed)
        (folder / "irpipe.toml").write_text(RECIPE, encoding="utf-8")
        self.wanted = {target: self.made(target) for target in TARGETS}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "irpipe.cli", *arguments]

    def start(self, target: str) -> subprocess.Popen[bytes]:
        """A run in the background."""
        command, nowhere = self.command("run", target), subprocess.DEVNULL
        return subprocess.Popen(command, cwd=self.folder, start_new_session=True, stdout=nowhere, stderr=nowhere)

    def made(self, target: str) -> str | None:
        """The content id of a run, None where it does not end well."""
        try:
            told = subprocess.run(
                self.command("run", target, "--json"), cwd=self.folder, capture_output=True, check=True, timeout=_LONGEST
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        return str(json.loads(told.stdout.splitlines()[-1])["content_id"])

    # -- faults -------------------------------------------------------------------------------------------------------

    def interrupt(self, how: signal.Signals) -> None:
        """Stop a run at a random moment."""
        shutil.rmtree(self.folder / "artifacts" / "keys", ignore_errors=True)  # so that there is something to do
        process = self.start(self.random.choice(TARGETS))
        time.sleep(self.random.uniform(0.05, 2.5))
        os.killpg(process.pid, how)
        process.wait()

    def two_at_once(self) -> None:
        """Two runs of the same recipe, one of which is killed."""
        shutil.rmtree(self.folder / "artifacts" / "keys", ignore_errors=True)
        one, other = (self.start(self.random.choice(TARGETS)) for _ in range(2))
        time.sleep(self.random.uniform(0.05, 2.0))
        os.killpg(one.pid, signal.SIGKILL)
        one.wait()
        other.wait()

    def damage(self, change: Callable[[bytes], bytes]) -> None:
        """Change the bytes of a random file of the store, as a disk might; what is damaged is found by `verify`."""
        store = self.folder / "artifacts"
        files = [path for part in ("objects", "keys") for path in (store / part).rglob("*") if path.is_file()]
        if files:
            path = self.random.choice(files)
            data = path.read_bytes()
            path.chmod(0o644)
            path.write_bytes(change(data))
            subprocess.run(self.command("verify"), cwd=self.folder, capture_output=True, check=False)

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

    def trial(self) -> tuple[str, str]:
        """One or two faults and a run: their names, and `kept`, `lost` or `wrong`."""
        faults: dict[str, Callable[[], None]] = {
            "kill -9": lambda: self.interrupt(signal.SIGKILL),
            "SIGTERM": lambda: self.interrupt(signal.SIGTERM),
            "SIGINT": lambda: self.interrupt(signal.SIGINT),
            "two at once": self.two_at_once,
            "flipped bit": lambda: self.damage(self.flip),
            "cut file": lambda: self.damage(lambda data: data[: len(data) // 2]),
            "lost record": self.lose_a_record,
            "clock": self.clock,
        }
        names = self.random.sample(sorted(faults), self.random.choice((1, 1, 2)))
        for name in names:
            faults[name]()
        made = {target: self.made(target) for target in TARGETS}
        clean = subprocess.run(self.command("verify"), cwd=self.folder, capture_output=True, check=False).returncode == 0
        outcome = "lost" if None in made.values() else "kept" if made == self.wanted and clean else "wrong"
        return " + ".join(names), outcome


def main() -> None:
    """Run trials until the time is up; status 1 where anything was lost or wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ends, outcomes = time.monotonic() + 3600 * given.hours, Counter[str]()
    with tempfile.TemporaryDirectory(prefix="irpipe-faults-") as folder:
        campaign = Campaign(Path(folder), given.seed)
        while time.monotonic() < ends:
            names, outcome = campaign.trial()
            outcomes[outcome] += 1
            if outcome != "kept":
                print(f"{outcome}: {names} (trial {sum(outcomes.values())}, seed {given.seed})", flush=True)
    print(f"tried {sum(outcomes.values()):,}, lost {outcomes['lost']}, wrong {outcomes['wrong']}")
    sys.exit(bool(outcomes["lost"] or outcomes["wrong"]))


if __name__ == "__main__":
    main()
