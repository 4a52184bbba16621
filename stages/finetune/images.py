"""Existing images, chosen by their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.training.objective import Figures, Samples, noise_seed, shuffled
from irpipe.models.tuning.caption_files import decoded
from irpipe.models.tuning.captions import denoising_losses, encode_captioned
from irpipe.models.tuning.pretraining import SampleObjective
from irpipe.models.tuning.session import Session
from irpipe.pipeline.errors import InputError, StageError
from irpipe.pipeline.hashing import digest
from irpipe.pipeline.store import Artifact
from irpipe.schemas.images import ImageReader
from irpipe.schemas.scores import SCORES
from irpipe.stages.finetune import FinetuneConfig
from irpipe.stages.finetune.choose import choose


class ImagesObjective(SampleObjective):
    """The denoising loss on existing images of training prompts, chosen by their scores and encoded once."""

    def __init__(self, config: FinetuneConfig, session: Session, inputs: Mapping[str, Artifact]) -> None:
        super().__init__("chosen_loss", 1.0, config.batch_size, session.stage, config, session.accelerator)
        self._session, self._seed = session, config.training.seed
        prompts = list(session.prompts)
        ids, rewards = rewards_by_prompt(inputs["scores"], config.scorer, prompts)
        reader = ImageReader(inputs["images"].table("images"))
        position = {int(image): index for index, image in enumerate(reader.ids)}
        rewards[~np.isin(ids, reader.ids)] = np.nan  # scored once, and no longer among the images
        # In the order in which they lie, so that they are read in one pass.
        chosen = sorted(choose(config, rewards), key=lambda one: position[int(ids[one.prompt, one.image])])
        if not chosen:
            raise StageError(f"of {np.isfinite(rewards).sum():,} images none was chosen", fix="another select, or a lower alpha")
        images = [int(ids[one.prompt, one.image]) for one in chosen]
        texts = [session.prompts[prompts[one.prompt]] for one in chosen]
        captions = [config.identifier + text if one.bad else text for one, text in zip(chosen, texts, strict=True)]
        self._weights = torch.tensor([one.weight for one in chosen])
        self.figures = {"images_scored": int(np.isfinite(rewards).sum()), "images_chosen": len(chosen)}
        folder = session.context.work / "chosen"
        with session.accelerator.main_process_first(), session.context.progress("encoding", len(images), "images") as bar:
            folder.mkdir(exist_ok=True)
            self._encoded = encode_captioned(
                session.denoiser,
                captions,
                lambda: decoded(row["image"]["bytes"] for row in reader.rows(["image"], images)),
                digest([inputs["images"].content_id, images]),
                folder,
                config.training.sample_batch_size,
                bar.advance,
            )

    def losses(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Figures]:
        """See `SampleObjective`."""
        count = len(self._weights)
        rows = [shuffled(count, self._seed, "chosen", step * self.batch_size + index) for index in indices]
        seeds = [noise_seed(self._seed, "chosen", step, index) for index in indices]
        losses = denoising_losses(self._session.denoiser, self._session.schedule, self._encoded, rows, seeds)
        return losses * self._weights[rows].to(losses.device), {self.name: Samples(losses)}


def rewards_by_prompt(scores: Artifact, scorer: str, prompts: Sequence[int]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Image ids and scores, (prompts, most images of a prompt) each; NaN where a prompt has fewer.

    Raises:
        InputError: nobody of that name scored, or no image of these prompts is scored.
    """
    table = SCORES.read(scores.table("scores"), ["scorer", "image_id", "prompt_id", "score"])
    names = pc.unique(table["scorer"].cast("string")).to_pylist()
    if scorer not in names:
        raise InputError(f"the scores have no scorer {scorer!r}", where="scores", expected=" or ".join(sorted(names)))
    table = table.filter(pc.equal(table["scorer"].cast("string"), scorer))
    row_of = {prompt: row for row, prompt in enumerate(prompts)}
    by_row: dict[int, list[tuple[int, float]]] = {}
    for image, prompt, score in zip(*(table[name].to_pylist() for name in ("image_id", "prompt_id", "score")), strict=True):
        if prompt in row_of:
            by_row.setdefault(row_of[prompt], []).append((image, score))
    if not by_row:
        raise InputError("no image of a training prompt is scored", where="scores", fix="--set score-images.split=all, or train")
    most = max(map(len, by_row.values()))
    ids = np.zeros((len(prompts), most), dtype=np.uint64)
    rewards = np.full((len(prompts), most), np.nan)
    for row, images in by_row.items():
        for column, (image, score) in enumerate(sorted(images)):
            ids[row, column], rewards[row, column] = image, score
    return ids, rewards
