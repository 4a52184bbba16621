"""Every identity is computed here, and nowhere else. docs/hashing.md explains it on one page.

Values are encoded with a type tag and a length before they are hashed, so that no two different values
share an encoding: ``("ab", "c")`` is not ``("a", "bc")``, ``1`` is not ``1.0``, ``"1"`` or ``True``.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Part of every key. Changing how keys are made changes this number, and so every key.
SCHEME = 1

_READ_BYTES = 1 << 20


def encode(value: Any) -> bytes:
    """The canonical bytes of a value made of None, bool, int, float, str, bytes, lists, tuples and dicts.

    Raises:
        TypeError: for a value of any other type, and for a dict key that is not a string.
        ValueError: for NaN, which equals nothing, not even itself.
    """
    if value is None:
        return b"n"
    if value is True:
        return b"t"
    if value is False:
        return b"f"
    kind = type(value)
    if kind is int:
        return b"i" + _sized(str(value).encode("ascii"))
    if kind is float:
        if math.isnan(value):
            raise ValueError("NaN has no identity")
        return b"d" + struct.pack(">d", value)
    if kind is str:
        return b"s" + _sized(value.encode("utf-8"))
    if kind is bytes:
        return b"b" + _sized(value)
    if kind is list or kind is tuple:
        return b"l" + _sized(b"".join(encode(item) for item in value))
    if kind is dict:
        return b"m" + _sized(b"".join(_encode_item(key, value[key]) for key in sorted(value)))
    raise TypeError(f"cannot hash a value of type {kind.__name__}: {value!r}")


def _sized(data: bytes) -> bytes:
    return b"%d:" % len(data) + data


def _encode_item(key: Any, value: Any) -> bytes:
    if type(key) is not str:
        raise TypeError(f"cannot hash a dict with a key of type {type(key).__name__}: {key!r}")
    return encode(key) + encode(value)


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical encoding, as 64 hex digits."""
    return hashlib.sha256(encode(value)).hexdigest()


def stage_key(stage: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str], external: Mapping[str, Any]) -> str:
    """The key: what a run would be, known before it.

    Args:
        stage: name of the stage.
        version: version of the stage.
        config: the settings that change its result.
        inputs: content id of each input artifact, by kind.
        external: digest of each file from outside (or revision of each model), by setting.
    """
    return digest(["key", SCHEME, stage, version, dict(config), dict(inputs), dict(external)])


def content_id(files: Iterable[tuple[str, int, str]]) -> str:
    """The content id of a run's result: the Merkle digest of (relative path, size in bytes, SHA-256) of its files."""
    return digest(["content", SCHEME, sorted([path, size, sha] for path, size, sha in files)])


def file_digest(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file's bytes, the same as ``sha256sum`` prints.

    Args:
        advance: told of every piece that was read, in bytes.
    """
    with path.open("rb", buffering=0) as file:
        sha = hashlib.sha256()
        while chunk := file.read(_READ_BYTES):
            sha.update(chunk)
            if advance is not None:
                advance(len(chunk))
        return sha.hexdigest()


def row_id(*identity: Any) -> int:
    """64-bit id of a row: the first 8 bytes of a SHA-256 over what identifies it.

    Among n rows the chance of a collision is about n^2 / 2^65: 9e-8 for 1.8 million.
    """
    return int.from_bytes(hashlib.sha256(encode(identity)).digest()[:8], "big")


def show_row_id(value: int) -> str:
    """A row id as people and ``irpipe trace`` see it: 16 hex digits."""
    return f"{value:016x}"


def mix_row_ids(*columns: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Row ids of rows that are identified by other row ids, column by column.

    Args:
        columns: (n,) each. Their order matters.

    A SHA-256 per row would cost more than everything else in building pairs. The columns are SHA-256 prefixes already,
    so one round of the splitmix64 finaliser (Steele et al. 2014) per column keeps them spread.
    """
    import numpy as np

    mixed = np.full(columns[0].shape, 0x9E3779B97F4A7C15, dtype=np.uint64)
    for column in columns:
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + column
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
