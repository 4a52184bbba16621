"""The endings of files' names, also of compressed ones."""

from __future__ import annotations

from pathlib import PurePath

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}


def ending_of(path: PurePath) -> str:
    """A file's ending in small letters, that of its content where it is compressed: `.jsonl` of `A.JSONL.gz`."""
    ending = path.suffix.lower()
    return PurePath(path.stem).suffix.lower() if ending in COMPRESSED else ending


def whole_ending(path: PurePath) -> str:
    """All of the ending that says how a file is read: `.jsonl.gz` of `A.JSONL.gz`."""
    ending = path.suffix.lower()
    return ending_of(path) + ending if ending in COMPRESSED else ending
