"""The work of `score-images`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from irpipe.models.loading import memory_errors
from irpipe.models.pictures import decode_stream
from irpipe.models.scorers.base import Scorer, normalised_scores
from irpipe.models.scorers.make import load_reward_models, make_scorers
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATED_PROMPTS
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.scores import SCORES
from irpipe.schemas.splits import PROMPT_SPLITS
from irpipe.stages.score_images import ScoreImagesConfig

_CHUNK, _WHOLE_CHUNK = 256, 16  # images decoded at a time: squares, and pictures as they are


def run(config: ScoreImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    files = inputs["images"].table("images")
    reader = ImageReader(files)
    images = list(reader.rows(["prompt_id", "generator", "fault"]))
    texts = read_texts(config, inputs)
    rejections = Rejections(config.max_rejected, "images")
    wanted = choose(images, texts, split_of(config, inputs), rejections)
    reward_models = load_reward_models(inputs, context)
    scorers = make_scorers(
        config.scorers, context.models, reward_models, device=config.device, dtype=config.dtype, seed=config.seed
    )
    raw = score_all(scorers, files, images, wanted, texts, config, context, rejections)
    kept = np.flatnonzero(wanted).tolist()
    rejections.check(len(images), len(kept))
    write_scores(scorers, raw, images, kept, out)
    metrics: dict[str, Any] = {"scorers": list(scorers), "rejected_for": rejections.counts()}
    return Report(Rows(len(images), len(kept), rejections.write(out)), metrics)


def read_texts(config: ScoreImagesConfig, inputs: Mapping[str, Artifact]) -> dict[int, str]:
    """Prompts by id."""
    table = ANNOTATED_PROMPTS if config.prompts == "annotations" else SELECTED_PROMPTS
    found = table.read(inputs[config.prompts].table(table.name), ["prompt_id", "prompt"])
    return dict(zip(found["prompt_id"].to_pylist(), found["prompt"].to_pylist(), strict=True))


def split_of(config: ScoreImagesConfig, inputs: Mapping[str, Artifact]) -> set[int] | None:
    """The prompts of the split that is scored; None for all."""
    if config.split == "all":
        return None
    table = PROMPT_SPLITS.read(inputs["pairs"].table("prompt_splits"), ["prompt_id", "split"])
    return set(table.filter(pc.equal(table["split"].cast("string"), config.split))["prompt_id"].to_pylist())


def choose(
    images: Sequence[Mapping[str, Any]], texts: Mapping[int, str], prompts: set[int] | None, rejections: Rejections
) -> NDArray[np.bool_]:
    """(n,) which images are scored."""
    wanted = np.ones(len(images), dtype=bool)
    for place, image in enumerate(images):
        why = None
        if prompts is not None and image["prompt_id"] not in prompts:
            why = "of another split"
        elif image["fault"] is not None:
            why = image["fault"]
        elif image["prompt_id"] not in texts:
            why = "its prompt is not known"
        if why is not None:
            wanted[place] = False
            rejections.drop(place, why)
    return wanted


def score_all(
    scorers: Mapping[str, Scorer],
    files: Sequence[Path],
    images: Sequence[Mapping[str, Any]],
    wanted: NDArray[np.bool_],
    texts: Mapping[int, str],
    config: ScoreImagesConfig,
    context: Context,
    rejections: Rejections,
) -> dict[str, NDArray[np.float64]]:
    """(n,) raw scores by scorer, NaN for images that are not scored. Images are decoded once a size."""
    raw = {name: np.full(len(images), np.nan) for name in scorers}
    by_size: dict[int | None, list[str]] = {}
    for name, scorer in scorers.items():
        by_size.setdefault(scorer.image_size, []).append(name)
    broken: dict[int, str] = {}
    with context.progress("scoring", int(wanted.sum()) * len(scorers), "images") as bar:
        for size, names in by_size.items():
            for start, pictures, faults in decode_stream(
                files, 0, _CHUNK if size else _WHOLE_CHUNK, size, config.num_workers, wanted
            ):
                good = [place for place in range(start, start + len(pictures)) if wanted[place] and place - start not in faults]
                broken |= {start + place: why for place, why in faults.items() if wanted[start + place]}
                for name in names:
                    for part in cut(good, config.batch_size):
                        prompts = [texts[images[place]["prompt_id"]] for place in part]
                        raw[name][part] = ask(name, scorers[name], prompts, [pictures[place - start] for place in part])
                    bar.advance(int(wanted[start : start + len(pictures)].sum()))
    for place, why in sorted(broken.items()):
        wanted[place] = False
        rejections.refuse(place, "does not decode", why)
    return raw


def cut(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]


def ask(name: str, scorer: Scorer, prompts: Sequence[str], pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """A scorer's numbers.

    Raises:
        StageError: they are not one finite number a picture.
    """
    smaller = f"--set score-images.batch_size={max(1, len(pictures) // 2)}"
    with memory_errors(f"{len(pictures)} images a forward pass", smaller):
        scores = np.asarray(scorer(prompts, pictures), dtype=np.float64)
    if scores.shape != (len(pictures),) or not np.isfinite(scores).all():
        raise StageError(
            f"the scorer {name} returned {scores.shape} for {len(pictures)} pictures, or numbers that are not finite",
            fix="--set score-images.dtype=float32 if it is one of ours",
        )
    return scores


def write_scores(
    scorers: Mapping[str, Scorer],
    raw: Mapping[str, NDArray[np.float64]],
    images: Sequence[Mapping[str, Any]],
    kept: Sequence[int],
    out: Path,
) -> None:
    """The table `scores`: scorers one after the other, images in the order they lie in."""
    with SCORES.writer(out / f"{SCORES.name}.parquet") as writer:
        for name, scorer in scorers.items():
            given = raw[name][list(kept)]
            writer.append(
                {
                    "scorer": [name] * len(kept),
                    "image_id": [images[place]["image_id"] for place in kept],
                    "prompt_id": [images[place]["prompt_id"] for place in kept],
                    "generator": [images[place]["generator"] for place in kept],
                    "score": normalised_scores(scorer, given),
                    "raw": given,
                }
            )
