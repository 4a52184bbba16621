"""Run all benchmarks, or those named: `python -m benchmarks votek pairs`.

With `--tiny`, at sizes of seconds, to see that they still run.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

from benchmarks import common

NAMES = (
    "startup",
    "store",
    "engine",
    "pairs",
    "votek",
    "embed",
    "graph",
    "generate",
    "threads",
    "images",
    "oracle",
    "reward_model",
    "choices",
    "rahf",
    "guidance",
    "refl",
    "presets",
    "memory",
    "report",
)


def main(arguments: list[str]) -> None:
    """Run benchmarks one after the other, each in a folder of its own that is removed after it."""
    names = [argument for argument in arguments if argument != "--tiny"]
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        sys.exit(f"there is no benchmark {unknown[0]!r}; known: {', '.join(NAMES)}")
    for name in names or NAMES:
        benchmark = importlib.import_module(f"benchmarks.{name}")
        print(f"\n{name}: {(benchmark.__doc__ or '').strip().splitlines()[0]}", flush=True)
        before = len(common.shown)
        with tempfile.TemporaryDirectory(prefix="irpipe-bench-") as folder:
            benchmark.main(Path(folder), benchmark.TINY if "--tiny" in arguments else benchmark.FULL)
        assert len(common.shown) > before, f"{name} measured nothing"


if __name__ == "__main__":
    main(sys.argv[1:])
