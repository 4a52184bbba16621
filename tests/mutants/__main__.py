"""See `tests.mutants`. Ends with 1 where fewer than 85 % of the mutants were caught."""

from __future__ import annotations

import argparse
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.mutants import REPOSITORY, Mutant, Table, drawn

WANTED_SHARE = 0.85
_PYTEST = ("-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider")
_PATIENCE = 3.0  # a mutant may take so many times what its tests take
_LEAST_SECONDS = 60.0


@dataclass
class Copy:
    """A copy of the working tree whose folders are what `irpipe` is imported from, also by processes that tests start."""

    root: Path
    tree: Path = field(init=False)

    def __post_init__(self) -> None:
        self.tree = self.root / "tree"
        files = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        for name in filter(None, files.stdout.decode().split("\0")):
            if (REPOSITORY / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(REPOSITORY / name, self.tree / name)
        packages = self.root / "site" / "irpipe"
        packages.mkdir(parents=True)
        project = tomllib.loads((self.tree / "pyproject.toml").read_text(encoding="utf-8"))
        for folder in project["tool"]["setuptools"]["package-dir"].values():
            (packages / folder).symlink_to(self.tree / folder)
        if (REPOSITORY.parent / "shared").is_dir():  # recorded data, which some tests need
            (self.root / "shared").symlink_to(REPOSITORY.parent / "shared")

    def put(self, path: str, text: str) -> None:
        """Write a module, and forget what it was compiled to: a change of the same length in the same second would not show."""
        (self.tree / path).write_text(text, encoding="utf-8")
        for compiled in (self.tree / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
            compiled.unlink()

    def run(self, tests: Sequence[str], seconds: float | None) -> tuple[int | None, str]:
        """What pytest ended with, None where it took longer, and what it printed last."""
        command = [sys.executable, *_PYTEST, f"--basetemp={self.root / 'tmp'}", *tests]
        where = {**os.environ, "PYTHONPATH": str(self.root / "site"), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=self.tree, env=where, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return process.returncode, printed[-3000:]


@dataclass
class Trial:
    """Mutants tried in copies, as many at once as there are copies, until the time is up."""

    table: Table
    modules: dict[str, str]
    copies: queue.Queue[Copy]
    ends: float
    usual: dict[str, float] = field(default_factory=dict)

    def measure(self, tests: str) -> None:
        """How long one of pytest's arguments takes as things are. Modules share most of theirs, so each is measured once.

        Raises:
            SystemExit: they fail without any mutant, or are not there.
        """
        copy, clock = self.copies.get(), time.monotonic()
        try:
            status, printed = copy.run([tests], None)
            if status != 0:
                raise SystemExit(f"without any mutant these do not pass: pytest {tests}\n{printed}")
            self.usual[tests] = time.monotonic() - clock
            print(f"passed    {tests}  {self.usual[tests]:.1f} s", flush=True)
        finally:
            self.copies.put(copy)

    def outcome(self, mutant: Mutant) -> str:
        tests = self.table.tests[mutant.path]
        if mutant.changed in self.table.equivalent:
            return "equivalent"
        if time.monotonic() > self.ends:
            return "not run"
        copy, clock = self.copies.get(), time.monotonic()
        try:
            copy.put(mutant.path, mutant.text)
            status, _ = copy.run(tests, max(_LEAST_SECONDS, _PATIENCE * sum(self.usual[one] for one in tests)))
            found = {0: "survived", None: "timeout"}.get(status, "killed")
        finally:
            copy.put(mutant.path, self.modules[mutant.path])
            self.copies.put(copy)
        print(f"{found:9} {mutant.path}:{mutant.line}  {time.monotonic() - clock:.1f} s", flush=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="mutants, drawn from all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no other mutant is begun")
    parser.add_argument("--workers", type=int, default=2, help="mutants at once")
    parser.add_argument("--only", default="", help="modules whose path begins so")
    given = parser.parse_args()
    table, ends = Table.read(), time.monotonic() + 60 * given.minutes
    modules = {
        path: (REPOSITORY / path).read_text(encoding="utf-8") for path in sorted(table.tests) if path.startswith(given.only)
    }
    mutants = drawn(modules, given.count, given.seed)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(given.workers) as pool:
        copies: queue.Queue[Copy] = queue.Queue()
        for number in range(given.workers):
            copies.put(Copy(Path(folder, str(number))))
        trial = Trial(table, modules, copies, ends)
        list(pool.map(trial.measure, dict.fromkeys(one for mutant in mutants for one in table.tests[mutant.path])))
        outcomes = list(pool.map(trial.outcome, mutants))
    return told(mutants, outcomes)


def told(mutants: Sequence[Mutant], outcomes: Sequence[str]) -> int:
    """Print the survivors and the share caught; the exit status."""
    count = Counter(outcomes)
    for mutant, outcome in zip(mutants, outcomes, strict=True):
        if outcome == "survived":
            print(f"\nsurvived: {mutant.diff}")
    caught, tried = count["killed"] + count["timeout"], count["killed"] + count["timeout"] + count["survived"]
    print(f"\n{', '.join(f'{number} {outcome}' for outcome, number in sorted(count.items()))}")
    print(f"caught: {caught} of {tried}, {caught / max(tried, 1):.1%}; wanted: {WANTED_SHARE:.0%}")
    return 0 if tried and caught / tried >= WANTED_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
