"""Measure sets of images by their features: FID, KID and Inception Score.

Reads: what is measured: the images of a comparison by generator, whole artifacts of images, or chosen images by kind; and the
    captioned images that are the reference, unless a path names others.
Writes: the table `image_sets` and `report.txt`.
Paper: HPS, tables 1 and 4 (FID, Inception Score in 10 splits).
Deviates: intervals by bootstrap over prompts, the reference fixed, around the figure, since a resampled FID is biased upwards.
    Any network can make the features; figures of different networks do not compare.
Cost: one forward pass per image; FID O(n d^2 + d^3) for n images of d features, `bootstrap` times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Strict

from irpipe.models.plugins import OWN_EXTRACTORS, plugins
from irpipe.models.published import CLIP, NO_GENERATOR
from irpipe.pipeline.errors import did_you_mean
from irpipe.pipeline.registry import EXTRACTORS, declared
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import FilePath, Many, Stage, setting

Metric = Literal["fid", "kid", "inception-score"]


class MeasureImagesConfig(MapConfig):
    of: Literal["comparison", "images", "chosen-images"] = setting(
        "comparison",
        meaning="What is measured. comparison: the images of compare-generators, by generator. images: all that the recipe names,"
        " by node. chosen-images: those that choose-images chose, preferred and not.",
    )
    reference_data: FilePath | None = setting(
        None,
        role="external",
        meaning="Real images instead of the recipe's captioned ones: a folder with metadata.jsonl or metadata.csv (file_name,"
        " text), or Parquet with image and text.",
        source="HPS, table 4: 10,000 of LAION",
    )
    max_reference: int = setting(10_000, ge=2, meaning="Reference images that are used, the first ones.", source="HPS: 10,000")
    metrics: Annotated[tuple[Metric, ...], Strict(False)] = setting(
        ("fid", "kid"), min_length=1, meaning="What is measured: fid, kid, inception-score."
    )
    extractor: str = setting(
        "clip",
        meaning="Which network makes the features. clip: the CLIP that `model` names. inception: as published FIDs have it, by"
        " torch-fidelity. Or the name of one that another package declares (entry points of the group irpipe.extractors).",
        source="inception: HPS, tables 1 and 4",
    )
    model: str = setting(CLIP, role="model", check=NO_GENERATOR, meaning="The CLIP (extractor = clip).")
    inception_weights: FilePath | None = setting(
        None, role="external", meaning="torch-fidelity's weights of Inception v3 (extractor = inception); nothing is downloaded."
    )
    classes: Annotated[tuple[str, ...], Strict(False)] = setting(
        (), meaning="Texts that are a CLIP's classes, for its Inception Score; Inception has its own."
    )
    splits: int = setting(10, ge=1, le=1000, meaning="Parts of a set for the Inception Score.", source="HPS, table 1: 10")
    bootstrap: int = setting(200, ge=0, le=100_000, meaning="Resamplings for 95 % intervals of FID. 0: none.")
    seed: int = setting(0, ge=0, meaning="Seed of resampling, subsets and splits.")
    batch_size: int = setting(64, ge=1, le=4096, role="execution", meaning="Images per forward pass.")
    device: str = setting("auto", role="execution", meaning="Where the network runs: auto, cpu, cuda, cuda:1, mps.")

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        known = (*OWN_EXTRACTORS, *declared(EXTRACTORS))
        if self.extractor not in known:
            yield f"there is no extractor {self.extractor!r}{did_you_mean(self.extractor, known)}"
        if self.extractor == "inception" and self.inception_weights is None:
            yield "extractor is 'inception' and inception_weights names no file"
        if "inception-score" in self.metrics and self.extractor == "clip" and len(self.classes) < 2:
            yield "the inception-score of a CLIP needs two or more classes"

    def unused(self) -> dict[str, str]:
        idle = super().unused()
        if self.extractor != "clip":
            idle |= dict.fromkeys(("model", "classes"), f"extractor is {self.extractor!r}")
        if self.extractor != "inception":
            idle["inception_weights"] = f"extractor is {self.extractor!r}"
        if "inception-score" not in self.metrics:
            idle |= dict.fromkeys(("splits", "classes"), "metrics has no inception-score")
        if set(self.metrics) == {"inception-score"}:
            idle |= dict.fromkeys(("reference_data", "max_reference", "bootstrap"), "the inception-score has no reference")
        return idle

    @property
    def needs_reference(self) -> bool:
        """Whether a metric compares with real images."""
        return set(self.metrics) != {"inception-score"}


def _reads(config: MeasureImagesConfig) -> Sequence[str | Many]:
    kinds: dict[str, tuple[str | Many, ...]] = {
        "comparison": ("comparison",),
        "images": (Many("images"),),
        "chosen-images": ("images", "chosen-images"),
    }
    own = config.needs_reference and config.reference_data is None
    return (*kinds[config.of], *(("captioned-images",) if own else ()))


STAGE = Stage(
    name="measure-images",
    version=1,
    reads=_reads,
    writes="image-metrics",
    determinism="numeric",
    extra="measure",
    plugins=plugins,
    config=MeasureImagesConfig,
    run="irpipe.stages.measure_images.run:run",
    evaluation=True,
)
