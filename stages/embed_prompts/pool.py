"""The kept prompts of a pool."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass
class Pool:
    """Kept prompts, in the order of their first rows."""

    ids: list[int]
    texts: list[str]
    source_rows: list[int]
    num_images: list[int]
    rows_read: int
    texts_cleaned: int = 0


def take(pool: Pool, keep: NDArray[np.bool_]) -> Pool:
    """The part of a pool that a mask (n,) keeps."""
    indices = np.flatnonzero(keep).tolist()
    return replace(
        pool,
        ids=[pool.ids[index] for index in indices],
        texts=[pool.texts[index] for index in indices],
        source_rows=[pool.source_rows[index] for index in indices],
        num_images=[pool.num_images[index] for index in indices],
    )
