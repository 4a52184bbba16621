"""Vectors of prompts: `vectors.npy`, float16 (n, d), row i for row i of the table `prompts`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VECTORS_FILE = "vectors.npy"


def open_vectors(path: Path) -> NDArray[np.float16]:
    """The vectors, (n, d), memory-mapped."""
    vectors: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def save_vectors(path: Path, blocks: Iterable[NDArray[Any]], shape: tuple[int, ...]) -> None:
    """Write vectors, blocks of (rows, d), as a file of `shape` (n, d).

    Plain writes, no memory map: on a full disk these raise an error, where a mapped page would end the process.
    """
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": shape})
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f2").data)


def unit_rows(vectors: NDArray[Any], rows: Any = slice(None)) -> NDArray[np.float32]:
    """Some rows in float32, each of length 1; a zero vector stays zero, similar to nothing.

    Args:
        vectors: (n, d).
        rows: a slice or an index array of m rows.

    Returns:
        (m, d).
    """
    block = np.asarray(vectors[rows], dtype=np.float32)
    lengths = np.linalg.norm(block, axis=1, keepdims=True)
    units: NDArray[np.float32] = np.divide(block, lengths, out=np.zeros_like(block), where=lengths > 0)
    return units
