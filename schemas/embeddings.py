"""Vectors of prompts: `vectors.npy`, float16 (n, d), row i for row i of the table `prompts`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VECTORS_FILE = "vectors.npy"


def open_vectors(path: Path) -> NDArray[np.float16]:
    """The vectors, (n, d), memory-mapped."""
    vectors: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


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
