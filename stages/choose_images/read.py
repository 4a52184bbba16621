"""Images with their scores, from the recipe's artifacts or from a file of scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Inputs
from irpipe.schemas.annotations import ANNOTATED_PROMPTS
from irpipe.schemas.files import is_text, read_jsonl
from irpipe.schemas.images import in_shards, row_groups
from irpipe.schemas.prompts import prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.scores import SCORES
from irpipe.schemas.splits import prompts_table
from irpipe.schemas.values import is_finite
from irpipe.stages.choose_images import ChooseImagesConfig
from irpipe.stages.choose_images.blur import StepMeasurer

_ROWS_PER_SHARD = 512
_FIELDS = ("id", "prompt", "score", "blurry")


@dataclass(frozen=True)
class ScoredImages:
    """Images that may be chosen, n of them, in the order of their source.

    Attributes:
        rows: (n,) of the table of images, or the ids of a file of scores; lines: (n,) where they stand in the source, from 0.
        image_ids: (n,), None for a file of scores.
        groups: (n,) which prompt each is of: an index into `prompt_ids` and `texts`.
        scores: (n,) raw, higher is better.
        read: images that were read, those that may not be chosen included.
    """

    rows: NDArray[np.int64]
    lines: NDArray[np.int64]
    image_ids: NDArray[np.uint64] | None
    groups: NDArray[np.int64]
    prompt_ids: NDArray[np.uint64]
    texts: list[str]
    scores: NDArray[np.float64]
    read: int

    def members(self) -> list[NDArray[np.int64]]:
        """The images of every prompt, (images,) indices each, in their order."""
        order = np.argsort(self.groups, kind="stable")
        return np.split(order, np.cumsum(np.bincount(self.groups, minlength=len(self.prompt_ids)))[:-1])


def read_score_file(path: Path, rejections: Rejections) -> ScoredImages:
    """The released code's scores: JSON lines with id, prompt, score, blurry. Equal texts, to the letter, are one prompt.

    Raises:
        RejectedError: too many rows are unusable.
    """
    rows: list[int] = []
    lines: list[int] = []
    groups: list[int] = []
    scores: list[float] = []
    index: dict[str, int] = {}
    seen: set[int] = set()
    read = 0
    for number, value, broken in read_jsonl(path):
        read += 1
        fault = ("not JSON", broken) if broken is not None else _fault_of(value, seen)
        if fault is not None:
            rejections.refuse(number, *fault)
            continue
        seen.add(value["id"])
        if value["blurry"]:
            rejections.drop(number, "blurry")
            continue
        rows.append(value["id"])
        lines.append(number)
        groups.append(index.setdefault(value["prompt"], len(index)))
        scores.append(float(value["score"]))
    rejections.check(read, len(rows))
    identities = np.array([prompt_id(text) for text in index], dtype=np.uint64)
    arrays = np.array(rows, np.int64), np.array(lines, np.int64), None, np.array(groups, np.int64), identities
    return ScoredImages(*arrays, list(index), np.array(scores), read)


def _fault_of(value: Any, seen: set[int]) -> tuple[str, str | None] | None:
    """Why a row of a file of scores cannot be used, or None."""
    if not isinstance(value, dict) or (missing := [name for name in _FIELDS if name not in value]):
        return "missing field", ", ".join(missing) if isinstance(value, dict) else "not an object"
    identity = value["id"]
    if type(identity) is not int or not 0 <= identity < 1 << 63:
        return "id is no whole number", repr(identity)[:80]
    if identity in seen:
        return "id was there before", str(identity)
    if not is_text(value["prompt"]):
        return "prompt is no text", repr(value["prompt"])[:80]
    if not is_finite(value["score"]):
        return "score is no finite number", repr(value["score"])[:80]
    return None if isinstance(value["blurry"], bool) else ("blurry is neither true nor false", repr(value["blurry"])[:80])


def read_scored_images(config: ChooseImagesConfig, inputs: Inputs, rejections: Rejections, context: Context) -> ScoredImages:
    """The recipe's images that are scored, sharp, and of prompts that nobody annotated.

    Raises:
        InputError: the scorer is unknown, or the scores are of other images.
    """
    files = inputs["images"].table("images")
    table = pa.concat_tables([pq.read_table(file, columns=["image_id", "prompt_id"], partitioning=None) for file in files])
    image_ids, prompts = (table[name].to_numpy() for name in ("image_id", "prompt_id"))
    scores = scores_of(inputs, config.scorer, image_ids)
    known = prompts_table({kind: artifact for kind, artifact in inputs.items() if kind != "annotations"})
    texts = dict(zip(known["prompt_id"].to_pylist(), known["prompt"].to_pylist(), strict=True))
    reasons = reasons_of(prompts, scores, known["prompt_id"].to_numpy(), inputs)
    undecoded = np.zeros(len(image_ids), dtype=bool)
    if config.rule("blur_threshold"):
        steps = measure_steps(config, row_groups(files), context)
        reasons[(reasons == "") & (steps < config.rule("blur_threshold"))] = "blurry"
        undecoded = (reasons == "") & np.isnan(steps)
    reject(reasons, undecoded, rejections)
    keep = np.flatnonzero((reasons == "") & ~undecoded)
    rejections.check(len(image_ids), len(keep))
    identities, first, inverse = np.unique(prompts[keep], return_index=True, return_inverse=True)
    order = np.argsort(first, kind="stable")  # prompts in the order of their first image
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    identities = identities[order]
    given = [texts[int(identity)] for identity in identities]
    rows = keep.astype(np.int64)
    return ScoredImages(rows, rows, image_ids[keep], place[inverse], identities, given, scores[keep], len(image_ids))


def reasons_of(
    prompts: NDArray[np.uint64], scores: NDArray[np.float64], known: NDArray[np.uint64], inputs: Mapping[str, Any]
) -> NDArray[Any]:
    """(n,) why each image may not be chosen, by its prompt (n,) and its score (n,); empty where it may.

    Args:
        known: prompts whose text is known.
    """
    reasons = np.full(len(prompts), "", dtype=object)
    reasons[np.isnan(scores)] = "not scored"
    reasons[~np.isin(prompts, known)] = "its prompt is not known"
    if "annotations" in inputs:
        judged = ANNOTATED_PROMPTS.read(inputs["annotations"].table(ANNOTATED_PROMPTS.name), ["prompt_id"])
        reasons[np.isin(prompts, judged["prompt_id"].to_numpy())] = "its prompt was annotated"
    return reasons


def reject(reasons: NDArray[Any], undecoded: NDArray[np.bool_], rejections: Rejections) -> None:
    """Drop the images that may not be chosen, (n,) reasons, and refuse those that do not decode, (n,)."""
    for row in np.flatnonzero((reasons != "") | undecoded).tolist():
        if undecoded[row]:
            rejections.refuse(row, "does not decode")
        else:
            rejections.drop(row, reasons[row])


def scores_of(inputs: Mapping[str, Any], scorer: str, image_ids: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(n,) raw scores of images by one scorer; NaN where it has none.

    Raises:
        InputError: nobody of that name scored, or there are scores of other images.
    """
    table = SCORES.read(inputs["scores"].table("scores"), ["scorer", "image_id", "raw"])
    names = sorted(pc.unique(table["scorer"].cast("string")).to_pylist())
    if scorer not in names:
        raise InputError(
            f"the scores have no scorer {scorer!r}",
            where="scores",
            expected=" or ".join(names),
            fix=f"--set choose-images.scorer={names[0]}" if names else None,
        )
    table = table.filter(pc.equal(table["scorer"].cast("string"), scorer))
    scored = table["image_id"].to_numpy()
    order = np.argsort(image_ids)
    place = np.searchsorted(image_ids, scored, sorter=order).clip(max=max(0, len(image_ids) - 1))
    rows = order[place] if len(image_ids) else np.empty(0, dtype=np.int64)
    strangers = int((image_ids[rows] != scored).sum()) if len(image_ids) else len(scored)
    if strangers:
        raise InputError(
            f"{strangers:,} of {len(scored):,} scores are of images that are not among the recipe's",
            where="scores",
            fix="irpipe lineage score-images; name the images that were scored: [choose-images.reads] images = ...",
        )
    scores = np.full(len(image_ids), np.nan)
    scores[rows] = table["raw"].to_numpy()
    return scores


def measure_steps(config: ChooseImagesConfig, groups: list[Any], context: Context) -> NDArray[np.float32]:
    """(n,) the largest step of every image (see `blur.py`)."""
    shards = {f"{config.rules}-{number:05}.npy": shard for number, shard in enumerate(in_shards(groups, _ROWS_PER_SHARD))}
    made = context.map(
        StepMeasurer(config.rules),
        shards,
        "measuring blur",
        "images",
        size=lambda shard: sum(group.rows for group in shard),
        processes=config.num_processes,
        executor=config.executor,
    )
    return np.concatenate([np.load(path, allow_pickle=False) for path in made] or [np.empty(0, np.float32)])
