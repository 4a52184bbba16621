"""`python -m irpipe.microworld.build FOLDER`: train every model the micro world ships and write their manifest."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from irpipe.microworld.build import contrast, generator, judge, matching, resnet, rich, sentences

PARTS = {
    "generator": generator.build,
    "sentences": sentences.build,
    "blip": matching.build,
    "clip": contrast.build,
    "judge": judge.build,
    "resnet": resnet.build,
    "rahf": rich.build,
}
MOST_BYTES = 12_000_000


def main() -> None:
    """Parse the command line, build, and tell."""
    parser = argparse.ArgumentParser(prog="python -m irpipe.microworld.build", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the weights go; parts that lie there already are kept")
    parser.add_argument("--only", choices=PARTS, action="append", help="build this part anew (may be given again)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the training steps and pictures, to try the build")
    parser.add_argument("--threads", type=int, default=1, help="the result depends on it in its last bits")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.use_deterministic_algorithms(True)
    for name in given.only or [name for name in PARTS if not (given.folder / name).exists()]:
        started = time.monotonic()
        figures = build_part(given.folder / name, given.scale)
        print(f"{name}: {figures}, {(time.monotonic() - started) / 60:.1f} minutes")
    manifest = write_manifest(given.folder)
    print(f"{len(manifest['files'])} files, {sum(entry['bytes'] for entry in manifest['files'].values()):,} bytes")


def build_part(folder: Path, scale: float) -> dict[str, float]:
    """Build one part beside its place and move it there whole."""
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    figures = PARTS[folder.name](draft, scale)
    (draft / "figures.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return figures


def write_manifest(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """`manifest.json`: size and SHA-256 of every file."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).parts[0] in PARTS:
            data = path.read_bytes()
            files[path.relative_to(folder).as_posix()] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    total: int = sum(entry["bytes"] for entry in files.values())
    if total > MOST_BYTES:
        raise SystemExit(f"{total:,} bytes are more than the {MOST_BYTES:,} that the wheel has room for")
    return manifest


if __name__ == "__main__":
    main()
