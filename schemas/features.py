"""What the frozen part of a vision tower made of each image, in one file that is read a few images at a time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from irpipe.pipeline.errors import DamageError, InputError
from irpipe.schemas.table import Column, Table

FEATURES = Table(
    "image_features",
    "Which row of features.bin each image has.",
    (
        Column("image_id", pa.uint64(), "Id of the image.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("row", pa.int64(), "Its row, from 0; null for an image without one.", nullable=True),
        Column("fault", pa.string(), "Why it has none.", nullable=True),
    ),
)
DATA, CARD = "features.bin", "features.json"


@dataclass(frozen=True)
class FeatureCard:
    """What the file holds: (rows, tokens, width) of `dtype`, in row order, bfloat16 as the upper halves of float32.

    Attributes:
        model: revision, or digest of the folder, of the model whose first `blocks` blocks made it.
    """

    model: str
    blocks: int
    image_size: int
    tokens: int
    width: int
    dtype: str

    @property
    def bytes_each(self) -> int:
        return self.tokens * self.width * (2 if self.dtype == "bfloat16" else 4)

    def write(self, folder: Path) -> None:
        (folder / CARD).write_text(json.dumps(asdict(self), indent=1, sort_keys=True) + "\n", encoding="utf-8")


class FeatureFile:
    """The features of an artifact. Rows are read plainly: pages of a memory map would count as this process's memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.card = FeatureCard(**json.loads((folder / CARD).read_text(encoding="utf-8")))

    def check(self, model: str, blocks: int, image_size: int) -> None:
        """They must be of the model that trains on.

        Raises:
            InputError: they are not.
        """
        card = self.card
        for name, theirs, ours in (
            ("model", card.model, model),
            ("freeze_rate", card.blocks, blocks),
            ("image_size", card.image_size, image_size),
        ):
            if theirs != ours:
                raise InputError(
                    f"encode-images kept what another {name} made: {theirs}, where train-rm has {ours}",
                    fix=f"set encode-images.{name} and train-rm.{name} alike, or --set train-rm.frozen_part=recomputed",
                )

    @cached_property
    def _table(self) -> Any:
        return pq.read_table(self._folder / f"{FEATURES.name}.parquet", partitioning=None)

    def rows_of(self, images: NDArray[np.uint64]) -> tuple[NDArray[np.int64], dict[int, str]]:
        """The row (n,) of each image (n,) (-1 without one), and why some have none, by id."""
        ids = self._table["image_id"].to_numpy()
        rows = self._table["row"].fill_null(-1).to_numpy()
        order = np.argsort(ids)
        place = np.searchsorted(ids, images, sorter=order).clip(max=max(0, len(ids) - 1))
        found = order[place] if len(ids) else np.zeros(len(images), dtype=np.int64)
        there = ids[found] == images if len(ids) else np.zeros(len(images), dtype=bool)
        result = np.where(there, rows[found] if len(ids) else -1, -1)
        reasons = self._table["fault"].to_pylist()
        faults = {
            int(image): (reasons[place] or "image missing") if known else "image missing"
            for image, place, known, row in zip(images, found, there, result, strict=True)
            if row < 0
        }
        return result, faults

    def read(self, rows: NDArray[np.int64]) -> Any:
        """A tensor (n, tokens, width) of rows (n,), bfloat16 or float32."""
        import torch

        card = self.card
        raw = np.empty((len(rows), card.bytes_each), dtype=np.uint8)
        with (self._folder / DATA).open("rb", buffering=0) as file:
            for place, row in enumerate(rows.tolist()):
                file.seek(row * card.bytes_each)
                if file.readinto(memoryview(raw[place])) != card.bytes_each:
                    raise DamageError(f"{DATA} ends before row {row}", fix="irpipe verify")
        dtype = torch.bfloat16 if card.dtype == "bfloat16" else torch.float32
        return torch.from_numpy(raw).view(dtype).view(len(rows), card.tokens, card.width)
