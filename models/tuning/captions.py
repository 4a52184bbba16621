"""Captioned images for the pre-training loss, encoded once, and that loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from irpipe.models.pictures import decode, need_room
from irpipe.models.tuning.denoiser import Denoiser, NoiseSchedule, drawn, rows_of, sampling_memory
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import digest
from irpipe.pipeline.store import write_durably
from irpipe.schemas.files import check_columns, is_text, open_parquet, read_csv, read_jsonl

_CHUNK = 64


@dataclass(frozen=True)
class CaptionedImages:
    """Encoded pictures and texts, row by row.

    Attributes:
        moments: (n, 2, channels, h, w) mean and standard deviation of the latents.
        conditions: (n, ...) encoded texts by name.
    """

    moments: NDArray[np.float32]
    conditions: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.moments)

    def part(self, rows: slice) -> CaptionedImages:
        """Some of the rows."""
        return CaptionedImages(self.moments[rows], {name: value[rows] for name, value in self.conditions.items()})

    def texts(self, rows: Sequence[int], device: torch.device) -> dict[str, Tensor]:
        """Encoded texts of some rows, on a device."""
        chosen = {name: torch.from_numpy(np.ascontiguousarray(value[list(rows)])) for name, value in self.conditions.items()}
        return rows_of(chosen, range(len(rows)), device)


def denoising_losses(
    denoiser: Denoiser, schedule: NoiseSchedule, captioned: CaptionedImages, rows: Sequence[int], seeds: Sequence[int]
) -> Tensor:
    """The loss that generators are pre-trained with, (n,): mean squared error of the network's output at a random noise level.

    Source: ImageReward, section 3.2, L_pre; DDPM, equation 14.

    Args:
        rows: (n,) of `captioned`; seeds: (n,) of each row's latents, noise level and noise.
    """
    device = denoiser.device
    moments = torch.from_numpy(np.ascontiguousarray(captioned.moments[list(rows)])).to(device)
    draws = drawn((2, *denoiser.shape), seeds, device)
    latents, noise = moments[:, 0] + moments[:, 1] * draws[:, 0], draws[:, 1]
    levels = [int(torch.randint(len(schedule.alphas), (), generator=torch.Generator().manual_seed(seed ^ 1))) for seed in seeds]
    timesteps = torch.tensor(levels, device=device)
    predicted = denoiser.predict(denoiser.noised(latents, noise, timesteps, schedule), timesteps, captioned.texts(rows, device))
    target = denoiser.target(latents, noise, timesteps, schedule)
    return F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))


def fitted(picture: Pillow.Image, width: int, height: int) -> NDArray[np.uint8]:
    """A picture (height, width, 3): scaled to cover the frame (bicubic), its centre cropped."""
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    if size != picture.size:
        picture = picture.resize(size, Pillow.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return np.asarray(picture.crop((left, top, left + width, top + height)).convert("RGB"))


def encode_captioned(
    denoiser: Denoiser,
    captions: Sequence[str],
    pictures: Callable[[], Iterator[Pillow.Image]],
    what: str,
    folder: Path,
    batch_size: int,
    advance: Callable[[int], None],
) -> CaptionedImages:
    """Encode pictures and captions into files of a folder; what an earlier attempt finished is used again.

    Args:
        pictures: gives them in the order of the captions.
        what: identity of pictures, captions and encoders.

    Cost: on the disk, 4 bytes for each number of latents (twice) and encodings; of memory one chunk.
    """
    card = folder / "captioned.json"
    shapes = {name: list(value.shape[1:]) for name, value in denoiser.encode(list(captions[:1])).items()}
    shapes |= {"moments": [2, *denoiser.shape]}
    identity = {"of": digest([what, denoiser.width, denoiser.height, len(captions)]), "shapes": shapes}
    done = card.is_file() and json.loads(card.read_text(encoding="utf-8")) == identity
    if not done:
        card.unlink(missing_ok=True)
        size = sum(4 * len(captions) * int(np.prod(shape)) for shape in shapes.values())
        need_room(folder / "moments.f32", size, "captioned images")
    files = {
        name: np.memmap(folder / f"{name}.f32", np.float32, "r" if done else "w+", shape=(len(captions), *shape))
        for name, shape in shapes.items()
    }
    if done:
        advance(len(captions))
    else:
        _encode(denoiser, captions, pictures(), files, batch_size, advance)
        write_durably(card, json.dumps(identity))
    moments = files.pop("moments")
    return CaptionedImages(moments, dict(files))


def _encode(
    denoiser: Denoiser,
    captions: Sequence[str],
    pictures: Iterator[Pillow.Image],
    files: Mapping[str, NDArray[np.float32]],
    batch_size: int,
    advance: Callable[[int], None],
) -> None:
    """Fill mapped files with moments and encoded captions, and bring them to the disk."""
    for start in range(0, len(captions), batch_size):
        texts = list(captions[start : start + batch_size])
        frames = np.stack([fitted(next(pictures), denoiser.width, denoiser.height) for _ in texts])
        batch = torch.from_numpy(frames).permute(0, 3, 1, 2).float().div(255).to(denoiser.device)
        with sampling_memory(batch_size):
            files["moments"][start : start + len(texts)] = denoiser.moments(batch).cpu().numpy()
        for name, value in denoiser.encode(texts, batch_size).items():
            files[name][start : start + len(texts)] = value.numpy()
        advance(len(texts))
    for file in files.values():
        file.flush()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class LocalCaptions:
    """Captions of a local data set, and where its pictures are.

    Attributes:
        open: gives the encoded pictures in order.
    """

    captions: list[str]
    open: Callable[[], Iterator[bytes | None]]


def local_captions(path: Path, most: int) -> LocalCaptions:
    """Captioned images of a local data set: an image folder with its metadata, or Parquet, both as `datasets` knows them.

    Raises:
        InputError: it is none, has no captions, or names pictures outside of it.
    """
    if path.is_dir() and not list(path.glob("*.parquet")):
        return _of_folder(path, most)
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    captions: list[str] = []
    for file in files:
        parquet = open_parquet(file)
        check_columns(parquet.schema_arrow.names, ["image", "text"], str(file))
        captions += [text for batch in parquet.iter_batches(columns=["text"]) for text in batch["text"].to_pylist()]
    return LocalCaptions(_checked(captions, str(path))[:most], lambda: _of_parquet(files))


def _of_parquet(files: Sequence[Path]) -> Iterator[bytes | None]:
    for file in files:
        for batch in open_parquet(file).iter_batches(batch_size=_CHUNK, columns=["image"]):
            for image in batch["image"].to_pylist():
                yield image["bytes"] if isinstance(image, dict) else image


def _of_folder(path: Path, most: int) -> LocalCaptions:
    lines, table = path / "metadata.jsonl", path / "metadata.csv"
    if lines.is_file():
        rows: list[Any] = [value for _, value, _ in read_jsonl(lines)]
    elif table.is_file():
        rows = [cells for _, cells in read_csv(table, ["file_name", "text"])]
    else:
        raise InputError(
            f"{path} holds no captioned images",
            where="pretraining_data",
            expected="metadata.jsonl or metadata.csv with file_name and text, or Parquet with image and text",
        )
    rows = rows[:most]
    if any(not isinstance(row, dict) or not is_text(row.get("file_name")) for row in rows):
        raise InputError("a row names no picture", where=str(path), expected="file_name and text in every row")
    names = [path / row["file_name"] for row in rows]
    for name in names:
        if not name.resolve().is_relative_to(path.resolve()):
            raise InputError(f"{name} lies outside of the data set", where=str(path))
        if not name.is_file():
            raise InputError(f"there is no {name}", where=str(path))
    return LocalCaptions(_checked([row.get("text") for row in rows], str(path)), lambda: (name.read_bytes() for name in names))


def _checked(captions: Sequence[Any], where: str) -> list[str]:
    if not captions:
        raise InputError("there are no captioned images", where=where)
    for row, text in enumerate(captions):
        if not is_text(text) or not text.strip():
            raise InputError(f"row {row} has no caption", where=where, expected="a text for every picture")
    return list(captions)


def decoded(data: Iterator[bytes | None]) -> Iterator[Pillow.Image]:
    """Pictures of encoded bytes.

    Raises:
        InputError: names the row of one that is none.
    """
    for row, one in enumerate(data):
        try:
            yield decode(one or b"")
        except InputError as error:
            raise InputError(f"row {row} of the captioned images: {error.what}", fix="drop that row from the data set") from None
