"""Scoring the images of one shard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from irpipe.models.loading import worker_device
from irpipe.models.pictures import Fit, decode_stream
from irpipe.models.scorers.base import Scorer, image_fit, normalised_scores
from irpipe.models.scorers.make import load_reward_models, make_scorers
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.stage import Inputs, Model
from irpipe.schemas.images import ImageReader, RowGroup
from irpipe.schemas.splits import PROMPT_SPLITS, prompts_table
from irpipe.stages.score_images import ScoreImagesConfig

RAW, SCORE = "raw {}", "score {}"  # columns of a scored shard, by scorer
_CARDS = "scorer_cards"  # in the metadata of a scored shard
_CHUNK, _WHOLE_CHUNK = 64, 16  # images decoded at a time: squares, and pictures as they are


@dataclass
class ShardScorer:
    """Writes the scores of the images of some row groups: a row per image, with the reason where it was not scored.

    Attributes:
        inputs: of the run; the worker reads prompts and reward models.
        models: of the settings.
    """

    config: ScoreImagesConfig
    inputs: Inputs
    models: Mapping[str, tuple[Model, ...]]

    def __call__(self, groups: list[RowGroup], draft: Path) -> None:
        reader = ImageReader(groups=groups)
        images = list(reader.rows(["prompt_id", "generator", "fault"]))
        texts = self._texts_of([image["prompt_id"] for image in images])
        reasons = self._reasons(images, texts)
        scorable = np.array([reason is None for reason in reasons], dtype=bool)
        raw, broken = score_all(self._scorers, reader, texts, scorable, self.config.batch_size)
        for index in broken:
            reasons[index] = "does not decode"
        columns: dict[str, Any] = {
            "image_id": pa.array([image["image_id"] for image in images], pa.uint64()),
            "prompt_id": pa.array([image["prompt_id"] for image in images], pa.uint64()),
            "generator": pa.array([image["generator"] for image in images], pa.string()),
            "reason": pa.array(reasons, pa.string()),
            "detail": pa.array([broken.get(index) for index in range(len(images))], pa.string()),
        }
        for name, scorer in self._scorers.items():
            columns[RAW.format(name)] = raw[name]
            columns[SCORE.format(name)] = normalised_scores(scorer, raw[name])
        pq.write_table(pa.table(columns).replace_schema_metadata({_CARDS: json.dumps(self._cards)}), draft)

    @cached_property
    def _rewards(self) -> dict[str, Any]:
        return load_reward_models(self.inputs, self.models)

    @cached_property
    def _scorers(self) -> dict[str, Scorer]:
        device, dtype, seed = worker_device(self.config.device), self.config.dtype, self.config.seed
        return make_scorers(self.config.scorers, self.models, self._rewards, device=device, dtype=dtype, seed=seed)

    @property
    def _cards(self) -> list[dict[str, Any]]:
        """Rows of `scorer_cards`."""
        return [
            {
                "scorer": name,
                "reward_model": name in self._rewards,
                "log_odds": scorer.card is not None and scorer.card.log_odds,
                "mean": None if scorer.card is None else scorer.card.mean,
                "std": None if scorer.card is None else scorer.card.std,
            }
            for name, scorer in self._scorers.items()
        ]

    @cached_property
    def _prompts(self) -> Any:
        return prompts_table(self.inputs)

    @cached_property
    def _split(self) -> Any:
        """Ids of the prompts whose images are scored; None for all."""
        if self.config.split == "all":
            return None
        table = PROMPT_SPLITS.read(self.inputs["splits"].table(PROMPT_SPLITS.name), ["prompt_id", "split"])
        return table.filter(pc.equal(table["split"].cast("string"), self.config.split))["prompt_id"].combine_chunks()

    def _texts_of(self, prompt_ids: Sequence[int]) -> list[str | None]:
        """The text of each prompt, None where it is unknown."""
        index = pc.index_in(pa.array(prompt_ids, pa.uint64()), self._prompts["prompt_id"].combine_chunks())
        texts: list[str | None] = self._prompts["prompt"].take(index).to_pylist()
        return texts

    def _reasons(self, images: Sequence[Mapping[str, Any]], texts: Sequence[str | None]) -> list[str | None]:
        """Why each image is not scored, or None."""
        ids = pa.array([image["prompt_id"] for image in images], pa.uint64())
        in_splits = pc.is_in(ids, self._split).to_pylist() if self._split is not None else [True] * len(images)
        return [
            "of another split" if not in_split else image["fault"] or ("its prompt is not known" if text is None else None)
            for image, text, in_split in zip(images, texts, in_splits, strict=True)
        ]


def read_cards(shards: Sequence[Path]) -> list[dict[str, Any]]:
    """Rows of `scorer_cards`, from the finished shards, in the scorers' order."""
    cards: list[dict[str, Any]] = json.loads(pq.read_schema(shards[0]).metadata[_CARDS.encode()]) if shards else []
    return cards


def score_all(
    scorers: Mapping[str, Scorer],
    reader: ImageReader,
    texts: Sequence[str | None],
    scorable: NDArray[np.bool_],
    batch_size: int,
) -> tuple[dict[str, NDArray[np.float64]], dict[int, str]]:
    """Score images. They are decoded once per kind of square that the scorers take.

    Args:
        texts: (n,) the prompt of each image of the reader; scorable: (n,) whether it is scored.

    Returns:
        (n,) raw scores by scorer, NaN for images that are not scored, and the faults of images that do not decode, by index.
    """
    raw = {name: np.full(len(texts), np.nan) for name in scorers}
    by_square: dict[tuple[int | None, Fit], list[str]] = {}
    for name, scorer in scorers.items():
        by_square.setdefault((scorer.image_size, image_fit(scorer)), []).append(name)
    broken: dict[int, str] = {}
    for (size, fit), names in by_square.items():
        good: dict[int, NDArray[np.uint8]] = {}
        for start, pictures, faults in decode_stream(reader, 0, _CHUNK if size else _WHOLE_CHUNK, size, wanted=scorable, fit=fit):
            broken |= {start + index: why for index, why in faults.items() if scorable[start + index]}
            good |= {
                start + index: picture
                for index, picture in enumerate(pictures)
                if scorable[start + index] and index not in faults
            }
            while len(good) >= batch_size:
                ask(scorers, names, raw, texts, {index: good.pop(index) for index in list(good)[:batch_size]})
        if good:
            ask(scorers, names, raw, texts, good)
    return raw, broken


def ask(
    scorers: Mapping[str, Scorer],
    names: Sequence[str],
    raw: Mapping[str, NDArray[np.float64]],
    texts: Sequence[str | None],
    pictures: Mapping[int, NDArray[np.uint8]],
) -> None:
    """Score pictures (height, width, 3), given by index, with some scorers, and put the numbers into `raw`, (n,) each.

    Raises:
        StageError: a scorer does not return one finite number per picture.
    """
    indices = list(pictures)
    for name in names:
        scores = np.asarray(scorers[name]([texts[index] or "" for index in indices], list(pictures.values())), dtype=np.float64)
        if scores.shape != (len(indices),) or not np.isfinite(scores).all():
            raise StageError(
                f"the scorer {name} returned {scores.shape} for {len(indices)} pictures, or numbers that are not finite",
                fix="--set score-images.dtype=float32 if it is one of ours",
            )
        raw[name][indices] = scores
