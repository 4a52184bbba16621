"""Run all benchmarks, or those named: `python -m benchmarks votek pairs`."""

from __future__ import annotations

import importlib
import sys
import tempfile
from pathlib import Path

NAMES = (
    "startup",
    "store",
    "pairs",
    "votek",
    "embed",
    "graph",
    "generate",
    "threads",
    "images",
    "oracle",
    "reward_model",
    "refl",
    "report",
)

if __name__ == "__main__":
    for name in sys.argv[1:] or NAMES:
        if name not in NAMES:
            sys.exit(f"there is no benchmark {name!r}; known: {', '.join(NAMES)}")
        print(f"\n{name}: {(importlib.import_module(f'benchmarks.{name}').__doc__ or '').strip().splitlines()[0]}")
        with tempfile.TemporaryDirectory(prefix="irpipe-bench-") as folder:
            importlib.import_module(f"benchmarks.{name}").main(Path(folder))
