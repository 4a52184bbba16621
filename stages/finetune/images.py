"""Existing images that were chosen."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torch import Tensor

from irpipe.models.training.objective import Figures, Samples, noise_seed, shuffled
from irpipe.models.tuning.caption_files import decoded
from irpipe.models.tuning.captions import denoising_losses, encode_captioned
from irpipe.models.tuning.pretraining import SampleObjective
from irpipe.models.tuning.prompts import excluded
from irpipe.models.tuning.session import Session
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import digest
from irpipe.pipeline.stage import Inputs
from irpipe.pipeline.store import Artifact
from irpipe.schemas.chosen import CHOSEN_IMAGES, NON_PREFERRED
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import normalise
from irpipe.schemas.splits import read_splits
from irpipe.stages.finetune import FinetuneConfig


class ImagesObjective(SampleObjective):
    """The denoising loss on chosen images, encoded once; the prompts of bad ones begin with the identifier."""

    def __init__(self, config: FinetuneConfig, session: Session, inputs: Inputs) -> None:
        super().__init__("chosen_loss", 1.0, config.batch_size, config, session.accelerator)
        self._session, self._seed = session, config.training.seed
        reader = ImageReader(inputs["images"].table("images"))
        by_split = read_splits(inputs["splits"])
        held_out = {normalise(text) for split in ("validation", "test") for text in by_split[split].values()}
        held_out |= excluded(session.context)
        captions, left_out = captions_of(inputs["chosen-images"], held_out, config.identifier, reader)
        bad = sum(marked for _, marked in captions.values())
        self.figures = {"preferred": len(captions) - bad, "non_preferred": bad, "held_out": left_out}
        images = list(captions)
        folder = session.context.work / "chosen"
        with session.accelerator.main_process_first(), session.context.progress("encoding", len(images), "images") as bar:
            folder.mkdir(exist_ok=True)
            self._encoded = encode_captioned(
                session.denoiser,
                [caption for caption, _ in captions.values()],
                lambda: decoded(row["image"]["bytes"] for row in reader.rows(["image"], images)),
                digest([inputs["images"].content_id, images]),
                folder,
                config.training.sample_batch_size,
                bar.advance,
            )

    def losses(self, step: int, indices: Sequence[int]) -> tuple[Tensor, Figures]:
        """See `SampleObjective`."""
        rows = shuffled(len(self._encoded), self._seed, "chosen", [step * self.batch_size + index for index in indices])
        seeds = [noise_seed(self._seed, "chosen", step, index) for index in indices]
        losses = denoising_losses(self._session.denoiser, self._session.schedule, self._encoded, rows, seeds)
        return losses, {self.name: Samples(losses)}


def has_non_preferred(chosen: Artifact) -> bool:
    """Whether some chosen images are bad ones (those of `select = "best"` are not)."""
    return NON_PREFERRED in CHOSEN_IMAGES.read(chosen.table(CHOSEN_IMAGES.name), ["kind"])["kind"].to_pylist()


def captions_of(
    chosen: Artifact, held_out: Container[str], identifier: str, reader: ImageReader
) -> tuple[dict[int, tuple[str, bool]], int]:
    """Caption of each chosen image and whether it is marked as bad, by id, in the order they lie in; and how many are left out.

    Args:
        held_out: prompts, normalised, whose images are left out.

    Raises:
        InputError: a chosen image is not among the images, or none is left.
    """
    columns = ["image_id", "prompt", "kind"]
    rows = CHOSEN_IMAGES.read(chosen.table(CHOSEN_IMAGES.name), columns).to_pylist()
    position = {int(image): index for index, image in enumerate(reader.ids)}
    strangers = [row for row in rows if row["image_id"] not in position]
    if strangers:
        raise InputError(
            f"{len(strangers):,} of {len(rows):,} chosen images are not among the recipe's images",
            where="chosen-images",
            expected="images chosen from those that are read (not from a file of scores)",
            fix="[finetune.reads] images = ..., the node whose images were scored",
        )
    captions = {
        row["image_id"]: (identifier + row["prompt"], True) if row["kind"] == NON_PREFERRED else (row["prompt"], False)
        for row in sorted(rows, key=lambda row: position[row["image_id"]])
        if normalise(row["prompt"]) not in held_out
    }
    if not captions:
        raise InputError(
            f"all of {len(rows):,} chosen images are of prompts that are held out for evaluation",
            where="chosen-images",
            expected="images of prompts outside the validation and the test split",
            fix="[finetune.reads] chosen-images = ..., chosen from other images",
        )
    return captions, len(rows) - len(captions)
