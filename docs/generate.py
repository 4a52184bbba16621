"""Write docs/cli.md from the commands themselves; with --check, fail where it is out of date."""

from __future__ import annotations

import html
import subprocess
import sys
from pathlib import Path

TARGET = Path(__file__).with_name("cli.md")


def main() -> int:
    command = [sys.executable, "-m", "typer", "irpipe.pipeline.cli", "utils", "docs", "--name", "irpipe"]
    text = html.unescape(subprocess.run(command, check=True, capture_output=True, text=True).stdout).rstrip() + "\n"
    if "--check" not in sys.argv:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") != text:
        print(f"{TARGET.name} is out of date: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
