"""Start-up: --help, and a run with nothing to do over a store with 100,000 images."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import show, timed


class Size(NamedTuple):
    """Images, and runs of each command."""

    images: int
    runs: int


FULL, TINY = Size(100_000, 7), Size(50, 1)


def main(folder: Path, size: Size) -> None:
    bare = _median([sys.executable, "-c", "pass"], folder, size.runs)
    irpipe = [sys.executable, "-m", "irpipe.cli"]
    show("irpipe --help", seconds=f"{_median([*irpipe, '--help'], folder, size.runs):.2f}", bare_python=f"{bare:.2f}")
    _write_images(folder, size.images)
    for layout in ("zip", "files"):
        root = "images.zip" if layout == "zip" else "images"
        project = folder / layout
        project.mkdir()
        (project / "irpipe.toml").write_text(
            f'recipe = "bench"\n[load-annotations]\npath = "../mine.jsonl"\n[import-images]\nimage_root = "../{root}"\n'
            "[split-prompts]\nuse_images = true\n[build-pairs]\nuse_images = true\n",
            encoding="utf-8",
        )
        command = [*irpipe, "run", "build-pairs", "--quiet"]
        first, _ = timed(lambda project=project, command=command: subprocess.run(command, cwd=project, check=True))
        subprocess.run(command, cwd=project, check=True)  # by now the files are settled and remembered
        show(
            f"nothing to do, {size.images:,} in {layout}",
            seconds=f"{_median(command, project, size.runs):.2f}",
            first_run=f"{first:.0f}",
        )


def _median(command: list[str], folder: Path, times: int) -> float:
    runs = [timed(lambda: subprocess.run(command, cwd=folder, check=True, capture_output=True))[0] for _ in range(times)]
    return statistics.median(runs)


def _write_images(folder: Path, count: int) -> None:
    """Tiny images, five to a prompt, as files and in one zip."""
    import io
    import json
    import zipfile

    from PIL import Image

    (folder / "images").mkdir()
    with (folder / "mine.jsonl").open("w", encoding="utf-8") as file, zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for prompt in range(count // 5):
            names = [f"{prompt:05}-{place}.png" for place in range(5)]
            file.write(json.dumps({"prompt": f"prompt {prompt}", "images": names, "ranking": [1, 2, 3, 4, 5]}) + "\n")
            for place, name in enumerate(names):
                buffer = io.BytesIO()
                Image.new("RGB", (4, 4), (prompt % 256, prompt // 256, place)).save(buffer, "PNG")
                (folder / "images" / name).write_bytes(buffer.getvalue())
                archive.writestr(name, buffer.getvalue())
