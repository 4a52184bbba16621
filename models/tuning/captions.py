"""Captioned images for the pre-training loss, encoded once, and that loss."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pillow
from torch import Tensor

from irpipe.models.pictures import need_room
from irpipe.models.tuning.denoiser import Denoiser, NoiseSchedule, drawn, rows_of
from irpipe.pipeline.hashing import digest
from irpipe.pipeline.store import write_durably

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
        files["moments"][start : start + len(texts)] = denoiser.moments(batch).cpu().numpy()
        for name, value in denoiser.encode(texts, batch_size).items():
            files[name][start : start + len(texts)] = value.numpy()
        advance(len(texts))
    for file in files.values():
        file.flush()  # type: ignore[attr-defined]
