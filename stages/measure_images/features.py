"""Features of the images that are measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.loading import worker_device
from irpipe.models.metrics.extractors import ClipFeatures, Extractor, Features, InceptionFeatures
from irpipe.models.pictures import decode_stream, resize_and_crop
from irpipe.models.tuning.caption_files import decoded, local_captions
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.registry import EXTRACTORS, declared
from irpipe.pipeline.stage import Context, Model
from irpipe.schemas.images import ImageReader, RowGroup, in_shards, row_groups
from irpipe.stages.measure_images import MeasureImagesConfig

_ROWS_PER_SHARD = 512


def make_extractor(config: MeasureImagesConfig, models: Mapping[str, tuple[Model, ...]], weights: Path | None) -> Extractor:
    """The network that makes the features.

    Raises:
        StageError: what another package declares is none.
    """
    device = worker_device(config.device)
    if config.extractor == "inception":
        assert weights is not None, "checked with the settings"
        return InceptionFeatures(weights, device)
    if config.extractor == "clip":
        return ClipFeatures(models["model"][0], config.classes, device)
    extractor = declared(EXTRACTORS)[config.extractor].load()(device)
    if not (callable(extractor) and hasattr(extractor, "image_size") and hasattr(extractor, "resize_rule")):
        raise StageError(f"{config.extractor!r} is no extractor", expected="see irpipe.models.metrics.extractors.Extractor")
    made: Extractor = extractor
    return made


@dataclass
class FeatureMaker:
    """Writes the features of the images of some row groups: arrays `features` (n, d) and `logits` (n, c), or (n, 0) without.

    Images that nobody should judge, or that do not decode, have features of NaN.
    """

    config: MeasureImagesConfig
    models: Mapping[str, tuple[Model, ...]]
    weights: Path | None
    _extractor: Extractor | None = field(default=None, init=False)

    @property
    def extractor(self) -> Extractor:
        """The network, loaded at its first use."""
        if self._extractor is None:
            self._extractor = make_extractor(self.config, self.models, self.weights)
        return self._extractor

    def __call__(self, groups: Sequence[RowGroup], draft: Path) -> None:
        reader = ImageReader(groups=groups)
        parts = []
        for _, pictures, faults in decode_stream(reader, 0, self.config.batch_size, self.extractor.image_size):
            features, logits = self._of(pictures)
            for array in (features, logits):
                if array is not None:
                    array[list(faults)] = np.nan
            parts.append((features, logits))
        save(parts, draft)

    def of_pictures(self, images: Iterator[Image.Image]) -> Features:
        """Features of pictures of any size."""
        parts, batch = [], []
        size = self.extractor.image_size
        for image in images:
            batch.append(np.asarray(image.convert("RGB")) if size is None else resize_and_crop(image, size))
            if len(batch) == self.config.batch_size:
                parts.append(self._of(batch))
                batch = []
        if batch:
            parts.append(self._of(batch))
        return joined(parts)

    def _of(self, pictures: list[NDArray[np.uint8]]) -> Features:
        features, logits = self.extractor(pictures)
        if logits is None and "inception-score" in self.config.metrics:
            raise StageError(f"the extractor {self.config.extractor!r} has no classes, which the inception-score needs")
        for array in (features,) if logits is None else (features, logits):
            if array.ndim != 2 or len(array) != len(pictures) or not np.isfinite(array).all():
                raise StageError(
                    f"the extractor {self.config.extractor!r} gave {array.shape} for {len(pictures)} images",
                    expected="finite numbers (images, features)",
                )
        return features, logits


def joined(parts: Sequence[Features]) -> Features:
    """Features of several batches as one."""
    logits = [part for _, part in parts if part is not None]
    return np.concatenate([part for part, _ in parts]), np.concatenate(logits) if logits else None


def save(parts: Sequence[Features], path: Path) -> None:
    """Write features of batches to a file."""
    features, logits = joined(parts)
    with path.open("wb") as file:
        np.savez(file, features=features, logits=np.empty((len(features), 0)) if logits is None else logits)


def features_of(name: str, files: Sequence[Path], maker: FeatureMaker, context: Context) -> Features:
    """Features of all images of a table, in its order."""
    groups = row_groups(files)
    title = f"measuring {name}"  # the folder of its shards as well
    made = context.map(
        maker,
        {f"{name}-{number:05}.npz": shard for number, shard in enumerate(in_shards(groups, _ROWS_PER_SHARD))},
        title,
        "images",
        size=lambda shard: sum(group.rows for group in shard),
        processes=maker.config.num_processes,
        executor=maker.config.executor,
    )
    parts: list[Features] = []
    for path in made:
        with np.load(path, allow_pickle=False) as file:
            parts.append((file["features"], file["logits"] if file["logits"].shape[1] else None))
    return joined(parts)


def local_features(path: Path, most: int, maker: FeatureMaker) -> Features:
    """Features of images with captions from outside."""
    return maker.of_pictures(decoded(local_captions(path, most).open()))
