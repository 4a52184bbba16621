"""Drawing on the images of one shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.inpainting import Painter, Picture, load_painter, mask_of
from irpipe.models.loading import worker_device
from irpipe.models.maps import decoded, encoded
from irpipe.models.pictures import decode, squared
from irpipe.models.reward.base import load_chosen, of_aspect
from irpipe.models.scorers.reward import squares
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.pipeline.stage import Inputs, Model
from irpipe.schemas.gathered import write_reasons
from irpipe.schemas.images import IMAGES, ImageReader, RowGroup, encoded_row
from irpipe.schemas.inpainted import INPAINTED, MASKS
from irpipe.schemas.rich_feedback import HEATMAPS
from irpipe.schemas.splits import prompts_table
from irpipe.stages.inpaint_images import InpaintImagesConfig


@dataclass(frozen=True)
class Job:
    """An image with something to draw anew."""

    row: Mapping[str, Any]
    prompt: str
    picture: Picture
    mask: NDArray[np.bool_]


@dataclass
class ShardInpainter:
    """Writes the images of some row groups with their masked parts drawn anew."""

    config: InpaintImagesConfig
    inputs: Inputs
    models: Mapping[str, tuple[Model, ...]]

    def __call__(self, groups: list[RowGroup], draft: Path) -> None:
        images = list(ImageReader(groups=groups).rows([column.name for column in IMAGES.columns]))
        reasons: list[str | None] = [None] * len(images)
        jobs: list[Job] = []
        for number, row in enumerate(images):
            try:
                jobs.append(self._job(row))
            except InputError as error:
                reasons[number] = error.what
        rows: list[dict[str, Any]] = []
        told: list[dict[str, Any]] = []
        for start in range(0, len(jobs), self.config.batch_size):
            part = jobs[start : start + self.config.batch_size]
            for job, (row, of_one) in zip(part, self._draw(part), strict=True):
                rows.append(row)
                told.append(of_one | {"masked": float(job.mask.mean()), "prompt_id": job.row["prompt_id"]})
        draft.mkdir()
        masks = [
            {
                "original_id": job.row["image_id"],
                "image": {"bytes": encoded(job.mask.astype(float)), "path": job.row["image"]["path"]},
            }
            for job in jobs
        ]
        IMAGES.write(draft, {column.name: [row[column.name] for row in rows] for column in IMAGES.columns})
        INPAINTED.write(draft, {column.name: [row[column.name] for row in told] for column in INPAINTED.columns})
        MASKS.write(draft, {column.name: [row[column.name] for row in masks] for column in MASKS.columns})
        write_reasons(draft, reasons)

    def _job(self, row: Mapping[str, Any]) -> Job:
        """An image with its prompt and mask.

        Raises:
            InputError: it has no prompt or prediction, does not decode, or is of another size than the generator draws.
        """
        prompt, heatmap = self._prompts.get(row["prompt_id"]), self._heatmaps.get(show_row_id(row["image_id"]))
        if row["fault"] is not None or prompt is None or heatmap is None:
            raise InputError(row["fault"] or ("its prompt is not known" if prompt is None else "it has no predicted heatmap"))
        picture = np.asarray(decode(row["image"]["bytes"]).convert("RGB"))
        height, width = picture.shape[:2]
        self._painter.check_size(width, height)
        share = decoded(heatmap)
        if share.shape != (height, width):
            share = np.asarray(Image.fromarray(np.float32(share), mode="F").resize((width, height)), dtype=np.float64)
        mask = mask_of(share, self.config.threshold, self.config.dilation, moved=self.config.moved)
        return Job(row, prompt, picture, mask)

    def _draw(self, jobs: Sequence[Job]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """For each image its row of `images`, and of `inpainted`."""
        drawn = [(dict(job.row), _told(job, job.row, None, None, None)) for job in jobs]
        places = [place for place, job in enumerate(jobs) if job.mask.any()]
        if not places:
            return drawn
        marked = [jobs[place] for place in places]
        tries = [self._tries(marked, candidate) for candidate in range(self.config.candidates)]
        scores = [self._plausibility(marked, pictures) for pictures in tries]
        before = self._plausibility(marked, [job.picture for job in marked])
        for number, (place, job) in enumerate(zip(places, marked, strict=True)):
            best = max(range(len(tries)), key=lambda candidate: scores[candidate][number])
            if not self.config.keep_original or scores[best][number] > before[number]:
                row = self._row(job, tries[best][number], best)
                drawn[place] = (row, _told(job, row, best, before[number], scores[best][number]))
            else:
                drawn[place] = (dict(job.row), _told(job, job.row, None, before[number], before[number]))
        return drawn

    def _tries(self, jobs: Sequence[Job], candidate: int) -> list[Picture]:
        """One try for each image."""
        seeds = [row_id("inpainting", self.config.seed, job.row["image_id"], candidate) >> 2 for job in jobs]
        return self._painter.draw([job.picture for job in jobs], [job.mask for job in jobs], [job.prompt for job in jobs], seeds)

    def _plausibility(self, jobs: Sequence[Job], pictures: Sequence[Picture]) -> list[float]:
        """The RAHF's plausibility of pictures (h, w, 3)."""
        model = self._judge
        shown = [squared(Image.fromarray(picture), model.preprocess.image_size, "pad") for picture in pictures]
        with torch.no_grad():
            pixels = squares(shown, model.preprocess, model.device, torch.float32)
            scores: list[float] = model(pixels, model.encode_texts([job.prompt for job in jobs])).tolist()
        return scores

    def _row(self, job: Job, picture: Picture, candidate: int) -> dict[str, Any]:
        """A row of `images`. The path names everything that determines the image."""
        config, model = self.config, self.models["model"][0]
        settings = {
            "inpainted": show_row_id(job.row["image_id"]),
            "mask": hashlib.sha256(job.mask.tobytes()).hexdigest()[:16],
            "steps": config.num_steps,
            "guidance": config.guidance_scale,
            "strength": config.strength,
            "candidate": candidate,
            "seed": config.seed,
        }
        name = show_row_id(row_id("inpainted", model.name, model.revision, json.dumps(settings, sort_keys=True)))
        prompt, path = job.row["prompt_id"], f"{show_row_id(job.row['prompt_id'])}/{name}.png"
        origin = {"generator": model.name, "revision": model.revision, "settings": json.dumps(settings, sort_keys=True)}
        return encoded_row(picture, prompt, path, **origin)

    @cached_property
    def _prompts(self) -> dict[int, str]:
        table = prompts_table(self.inputs)
        return dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))

    @cached_property
    def _heatmaps(self) -> dict[str, bytes]:
        """Encoded implausibility maps by uid."""
        rows = HEATMAPS.read(self.inputs["rich-predictions"].table(HEATMAPS.name)).to_pylist()
        return {row["uid"]: row["image"]["bytes"] for row in rows if row["kind"] == "implausibility"}

    @cached_property
    def _painter(self) -> Painter:
        config, device = self.config, worker_device(self.config.device)
        return load_painter(
            self.models["model"][0],
            device,
            config.dtype,
            num_steps=config.num_steps,
            strength=config.strength,
            guidance=config.guidance_scale,
        )

    @cached_property
    def _judge(self) -> Any:
        """The RAHF's plausibility."""
        model = load_chosen(self.models, self.inputs)
        return of_aspect(model, "plausibility").to(worker_device(self.config.device)).eval()


def _told(job: Job, row: Mapping[str, Any], candidate: int | None, before: float | None, after: float | None) -> dict[str, Any]:
    return {
        "image_id": row["image_id"],
        "original_id": job.row["image_id"],
        "candidate": candidate,
        "plausibility_before": before,
        "plausibility": after,
    }
