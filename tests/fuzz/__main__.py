"""See `tests.fuzz`. Ends with 1 where there is a traceback or a silent change."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.run import try_one
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS)
    chosen = parser.parse_args()
    names = [chosen.target] if chosen.target else list(TARGETS)
    ends: Counter[tuple[str, str]] = Counter()
    findings, start = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(chosen.count):
            name = names[number % len(names)]
            end, finding = try_one(name, chosen.seed + number, Path(folder))
            ends[name, end] += 1
            if finding is not None:
                findings.append(finding)
                print(f"{finding.target}, seed {finding.seed}:\n{finding.what}\n", flush=True)
    for name in names:
        print(f"{name:20}" + "  ".join(f"{end} {ends[name, end]:5}" for end in ("kept", "error", "traceback", "silent")))
    print(f"{chosen.count:,} inputs in {time.monotonic() - start:.0f} s, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
