"""The work of `measure-images`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.metrics.sets import FrechetDistance, inception_score, kernel_distance
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.chosen import CHOSEN_IMAGES, NON_PREFERRED, PREFERRED
from irpipe.schemas.image_sets import IMAGE_SETS
from irpipe.schemas.images import ImageReader
from irpipe.schemas.rejected import Rejections
from irpipe.stages.measure_images import MeasureImagesConfig
from irpipe.stages.measure_images.features import FeatureMaker, features_of, local_features


@dataclass(frozen=True)
class ImageSet:
    """A set of images.

    Attributes:
        prompts: (n,) ids; features: (n, d); logits: (n, c), or None.
    """

    prompts: NDArray[np.uint64]
    features: NDArray[np.float64]
    logits: NDArray[np.float64] | None

    def of(self, keep: NDArray[Any]) -> ImageSet:
        """Some of its images, by mask or by rows."""
        return ImageSet(self.prompts[keep], self.features[keep], None if self.logits is None else self.logits[keep])


def run(config: MeasureImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    maker = FeatureMaker(config, context.models, next(iter(context.sources.get("inception_weights", ())), None))
    sets = read_sets(config, inputs, maker, context)
    reference = read_reference(config, inputs, maker, context)
    read = sum(len(one.prompts) for one in sets.values())
    good = {name: np.asarray(np.isfinite(one.features).all(axis=1)) for name, one in sets.items()}
    sets = {name: one.of(good[name]) for name, one in sets.items()}
    for name, one in sets.items():
        if len(one.prompts) < 2:
            raise InputError(f"the set {name!r} has {len(one.prompts)} images that can be measured", expected="at least 2")
    rows = measure(config, sets, reference, context)
    IMAGE_SETS.write(out, {column.name: [row[column.name] for row in rows] for column in IMAGE_SETS.columns})
    width = next(iter(sets.values())).features.shape[1]
    text = report_of(config, rows, maker.extractor.resize_rule, width)
    (out / "report.txt").write_text(text, encoding="utf-8")
    few = [name for name, one in sets.items() if len(one.prompts) < width]
    if few and config.needs_reference:
        context.say(f"  {few[0]} has fewer images than there are features ({width:,}): its FID says little, and is too high")
    rejections = Rejections(1.0, "images")
    for row in np.flatnonzero(~np.concatenate(list(good.values()))).tolist():
        rejections.drop(row, "blackened, or does not decode")
    rejected = rejections.write(out)
    metrics = {f"{row['figure']} of {row['set']}": shown(row) for row in rows}
    return Report(Rows(read, read - rejected, rejected), metrics | {"features": width, "fewer_images_than_features": few})


def read_sets(config: MeasureImagesConfig, inputs: Inputs, maker: FeatureMaker, context: Context) -> dict[str, ImageSet]:
    """The sets by name, in the order of their first image."""
    if config.of == "images":
        tables = {node: artifact.table("images") for node, artifact in inputs.all("images").items()}
        return {node: read_set(f"node {node}", files, maker, context)[0] for node, files in tables.items()}
    kind = "comparison" if config.of == "comparison" else "images"
    whole, ids, generators = read_set(kind, inputs[kind].table("images"), maker, context)
    if config.of == "comparison":
        names = np.array(generators)
        return {name: whole.of(names == name) for name in dict.fromkeys(generators)}
    chosen = CHOSEN_IMAGES.read(inputs["chosen-images"].table(CHOSEN_IMAGES.name), ["image_id", "kind"]).to_pylist()
    by_kind = {kind: [row["image_id"] for row in chosen if row["kind"] == kind] for kind in (PREFERRED, NON_PREFERRED)}
    strangers = {row["image_id"] for row in chosen} - set(ids.tolist())
    if strangers:
        raise InputError(f"{len(strangers):,} chosen images are not among the images", where="chosen-images")
    return {kind: whole.of(np.isin(ids, np.array(of_kind, dtype=np.uint64))) for kind, of_kind in by_kind.items() if of_kind}


def read_set(
    name: str, files: Sequence[Path], maker: FeatureMaker, context: Context
) -> tuple[ImageSet, NDArray[np.uint64], list[str]]:
    """All images of a table, their ids, and the generator of each."""
    rows = list(ImageReader(files).rows(["prompt_id", "generator"]))
    features, logits = features_of(name, files, maker, context)
    prompts = np.array([row["prompt_id"] for row in rows], dtype=np.uint64)
    ids = np.array([row["image_id"] for row in rows], dtype=np.uint64)
    whole = ImageSet(prompts, features.astype(np.float64), None if logits is None else logits.astype(np.float64))
    return whole, ids, [row["generator"] or "" for row in rows]


def read_reference(
    config: MeasureImagesConfig, inputs: Inputs, maker: FeatureMaker, context: Context
) -> NDArray[np.float64] | None:
    """Features (m, d) of the reference; None where no metric needs one.

    Raises:
        InputError: it has fewer than two images.
    """
    if not config.needs_reference:
        return None
    if config.reference_data is not None:
        features, _ = local_features(context.sources["reference_data"][0], config.max_reference, maker)
    else:
        files = inputs["captioned-images"].table("images")
        features = features_of("reference", files, maker, context)[0]
        features = features[np.isfinite(features).all(axis=1)][: config.max_reference]
    if len(features) < 2:
        raise InputError(f"the reference has {len(features)} images", expected="at least 2", fix="more captioned images")
    return features.astype(np.float64)


def measure(
    config: MeasureImagesConfig, sets: Mapping[str, ImageSet], reference: NDArray[np.float64] | None, context: Context
) -> list[dict[str, Any]]:
    """Rows of the table."""
    rows = []
    if reference is not None and "fid" in config.metrics:
        rows += fid_rows(config, sets, reference, context)
    for name, one in sets.items():
        if reference is not None and "kid" in config.metrics:
            value = kernel_distance(one.features, reference, config.seed)
            rows.append(row_of(name, "kid", value, len(one.prompts), reference=len(reference)))
        if "inception-score" in config.metrics:
            assert one.logits is not None, "the extractor has classes"
            value, deviation = inception_score(one.logits, min(config.splits, len(one.prompts)), config.seed)
            rows.append(row_of(name, "inception-score", value, len(one.prompts)) | {"deviation": deviation})
    return rows


def fid_rows(
    config: MeasureImagesConfig, sets: Mapping[str, ImageSet], reference: NDArray[np.float64], context: Context
) -> list[dict[str, Any]]:
    """FID of every set, and its difference from the first one, with intervals over the prompts of all sets together."""
    distance = FrechetDistance(reference)
    values = {name: distance(one.features) for name, one in sets.items()}
    prompts = np.unique(np.concatenate([one.prompts for one in sets.values()]))
    rng = np.random.default_rng(config.seed)
    drawn: dict[str, list[float]] = {name: [] for name in sets}
    with context.progress("resampling", config.bootstrap, "draws") as bar:
        for _ in range(config.bootstrap):
            times = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)))
            for name, one in sets.items():
                rows = np.repeat(np.arange(len(one.prompts)), times[np.searchsorted(prompts, one.prompts)])
                drawn[name].append(distance(one.features[rows]) if len(rows) > 1 else np.nan)
            bar.advance(1)
    first = next(iter(sets))
    table = []
    for name, one in sets.items():
        counts = len(one.prompts), len(reference)
        table.append(row_of(name, "fid", values[name], counts[0], centred(values[name], np.array(drawn[name])), counts[1]))
        if name != first:
            gap = values[name] - values[first]
            span = centred(gap, np.array(drawn[name]) - np.array(drawn[first]))
            table.append(row_of(name, f"fid_over_{first}", gap, counts[0], span, counts[1]))
    return table


def centred(value: float, drawn: NDArray[np.float64]) -> tuple[float | None, float | None]:
    """A bootstrap interval: the spread of the draws (b,) around the value, without their bias."""
    if not len(drawn):
        return None, None
    low, high = np.nanquantile(drawn, (0.025, 0.975)).tolist()
    middle = float(np.nanmean(drawn))
    return value + low - middle, value + high - middle


def row_of(
    name: str,
    figure: str,
    value: float,
    images: int,
    span: tuple[float | None, float | None] = (None, None),
    reference: int | None = None,
) -> dict[str, Any]:
    return {
        "set": name,
        "figure": figure,
        "value": value,
        "low": span[0],
        "high": span[1],
        "deviation": None,
        "images": images,
        "reference_images": reference,
    }


def shown(row: Mapping[str, Any]) -> str:
    """A figure with its interval."""
    text = f"{row['value']:.4g}"
    if row["low"] is not None:
        return f"{text} ({row['low']:.4g} to {row['high']:.4g})"
    return text if row["deviation"] is None else f"{text} +- {row['deviation']:.2g}"


def report_of(config: MeasureImagesConfig, rows: Sequence[Mapping[str, Any]], rule: str, width: int) -> str:
    """The table as text, with all that a figure depends on."""
    reference = next((row["reference_images"] for row in rows if row["reference_images"] is not None), None)
    text = f"{width:,} features by {config.extractor}; {rule}"
    text += f"; {reference:,} reference images" if reference is not None else ""
    text += f"; intervals by {config.bootstrap:,} resamplings of prompts\n\n" if config.needs_reference else "\n\n"
    length = max(len(row["set"]) for row in rows)
    for row in rows:
        text += f"{row['set']:<{length}}  {row['figure']:<22}{shown(row):>34}{row['images']:>9,} images\n"
    return text
