"""The captioned images of a tuning, of the recipe or from outside, encoded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from irpipe.models.tuning.caption_files import LocalCaptions, decoded, local_captions
from irpipe.models.tuning.captions import CaptionedImages, encode_captioned
from irpipe.models.tuning.config import TuneConfig
from irpipe.models.tuning.denoiser import Denoiser
from irpipe.models.tuning.prompts import excluded
from irpipe.pipeline.errors import InputError, LeakError
from irpipe.pipeline.stage import Context
from irpipe.pipeline.store import Artifact
from irpipe.schemas.captions import CAPTIONS
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import normalise


def read_captioned(config: TuneConfig, inputs: Mapping[str, Artifact], context: Context, denoiser: Denoiser) -> CaptionedImages:
    """Captioned images, encoded.

    Raises:
        InputError: there are too few.
        LeakError: an evaluation prompt is a caption.
    """
    held_out = config.evaluation.captioned_images
    most = config.pretraining.max_images if config.pretraining.weight else held_out
    if config.pretraining_data is not None:
        given = local_captions(context.sources["pretraining_data"][0], most)
        what = str(context.sources["pretraining_data"][0])
    else:
        given, what = captions_of(inputs["captioned-images"], most), inputs["captioned-images"].content_id
    least = held_out + (1 if config.pretraining.weight else 0)
    if len(given.captions) < least:
        raise InputError(
            f"there are {len(given.captions):,} captioned images, and {held_out:,} are only evaluated on",
            where="captioned images",
            expected=f"at least {least:,}",
            fix="more captioned images, or a smaller evaluation.captioned_images",
        )
    forbidden = excluded(context)
    leaked = [text for text in given.captions if normalise(text) in forbidden]
    if leaked:
        raise LeakError(
            f"{len(leaked):,} evaluation prompts are captions of captioned images, such as {leaked[0]!r}", fix="drop those images"
        )
    batch_size = config.training.sample_batch_size
    with context.progress("encoding captioned images", len(given.captions), "images") as bar:
        return encode_captioned(
            denoiser, given.captions, lambda: decoded(given.open()), what, context.work, batch_size, bar.advance
        )


def captions_of(artifact: Artifact, most: int) -> LocalCaptions:
    """Captions of an artifact of captioned images, and how to read its images."""
    texts = CAPTIONS.read(artifact.table("captions"))
    captions = dict(zip(texts["prompt_id"].to_pylist(), texts["prompt"].to_pylist(), strict=True))
    images = ImageReader(artifact.table("images"))
    chosen = images.ids[:most].tolist()
    prompts = [captions[row["prompt_id"]] for row in images.rows(["prompt_id"], chosen)]

    def pictures() -> Iterator[bytes]:
        return (row["image"]["bytes"] for row in images.rows(["image"], chosen))

    return LocalCaptions(prompts, pictures)
