"""The work of `predict-rich-feedback`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from irpipe.models.loading import worker_device
from irpipe.models.maps import encoded, map_shape, of_shape
from irpipe.models.pictures import decode_stream
from irpipe.models.reward.base import load_chosen
from irpipe.models.reward.rich import RichRewardModel
from irpipe.models.scorers.base import Pictures
from irpipe.models.scorers.reward import squares
from irpipe.pipeline.errors import InputError, ModelError, StageError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.stage import Context, Inputs, Model, Report, Rows
from irpipe.schemas.gathered import gather, write_reasons
from irpipe.schemas.images import ImageReader, RowGroup, in_shards, row_groups
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.rich_feedback import ASPECTS, HEATMAPS, KINDS, RICH_FEEDBACK, prompt_tokens
from irpipe.schemas.splits import prompts_table
from irpipe.stages.predict_rich_feedback import PredictRichFeedbackConfig

_ROWS_PER_SHARD = 256


def run(config: PredictRichFeedbackConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    source = inputs["images" if config.images == "recipe" else "rich-feedback"]
    if "images" not in source.manifest.tables:
        raise InputError("no images came with the feedback", fix="--set predict-rich-feedback.images=recipe")
    groups = row_groups(source.table("images"))
    shards = {f"{number:05}": shard for number, shard in enumerate(in_shards(groups, _ROWS_PER_SHARD))}
    made = context.map(
        ShardPredictor(config, inputs, context.models),
        shards,
        "predicting",
        "images",
        size=lambda shard: sum(group.rows for group in shard),
        processes=config.num_processes,
        executor=config.executor,
    )
    rejections = Rejections(config.max_rejected, "images")
    with (
        RICH_FEEDBACK.writer(out / f"{RICH_FEEDBACK.name}.parquet") as feedback,
        HEATMAPS.writer(out / f"{HEATMAPS.name}.parquet", _ROWS_PER_SHARD) as heatmaps,
    ):
        read = gather(made, {RICH_FEEDBACK: feedback, HEATMAPS: heatmaps}, rejections)
    kept = read - len(rejections)
    rejections.check(read, kept)
    return Report(Rows(read, kept, rejections.write(out)), {"rejected_for": rejections.counts()})


@dataclass
class ShardPredictor:
    """Writes the predictions for the images of some row groups, and why some have none."""

    config: PredictRichFeedbackConfig
    inputs: Inputs
    models: Mapping[str, tuple[Model, ...]]

    def __call__(self, groups: list[RowGroup], draft: Path) -> None:
        reader = ImageReader(groups=groups)
        images = list(reader.rows(["prompt_id", "width", "height", "fault"]))
        texts = [self._prompts.get(image["prompt_id"]) for image in images]
        reasons = [
            image["fault"] or (None if text is not None else "its prompt is not known")
            for image, text in zip(images, texts, strict=True)
        ]
        rows: list[dict[str, Any]] = []
        maps: list[dict[str, Any]] = []
        size = self._model.preprocess.image_size
        for start, pictures, faults in decode_stream(reader, 0, self.config.batch_size, size, fit="pad"):
            for place, fault in faults.items():
                reasons[start + place] = reasons[start + place] or fault
            good = [place for place in range(len(pictures)) if reasons[start + place] is None]
            if good:
                chosen = [images[start + place] for place in good]
                found = self.predict([str(texts[start + place]) for place in good], chosen, [pictures[place] for place in good])
                rows += found[0]
                maps += found[1]
        draft.mkdir()
        RICH_FEEDBACK.write(draft, {column.name: [row[column.name] for row in rows] for column in RICH_FEEDBACK.columns})
        HEATMAPS.write(draft, {column.name: [row[column.name] for row in maps] for column in HEATMAPS.columns})
        write_reasons(draft, reasons)

    @cached_property
    def _prompts(self) -> dict[int, str]:
        table = prompts_table(self.inputs)
        if self.config.images == "feedback":
            feedback = self.inputs["rich-feedback"]
            table = RICH_FEEDBACK.read(feedback.table(RICH_FEEDBACK.name), ["prompt_id", "prompt"])
        return dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))

    @cached_property
    def _model(self) -> Any:
        """The RAHF, loaded at its first use.

        Raises:
            ModelError: it is another reward model.
        """
        model = load_chosen(self.models, self.inputs)
        if not isinstance(model, RichRewardModel):
            raise ModelError(
                f"a reward model of the format {model.format!r} is no RichRewardModel", expected="a RAHF, or a baseline"
            )
        return model.to(device=worker_device(self.config.device), dtype=getattr(torch, self.config.dtype)).eval()

    def predict(
        self, prompts: Sequence[str], images: Sequence[Mapping[str, Any]], pictures: Pictures
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of `rich_feedback` and `heatmaps` for pictures (size, size, 3), each with its prompt."""
        model = self._model
        with torch.no_grad():
            pixels = squares(pictures, model.preprocess, model.device, getattr(torch, self.config.dtype))
            image, texts = model.look(pixels), model.encode_texts(prompts)
            shared = model.shared(image, texts)
            scores = {aspect: model.score(image, texts, aspect, shared).float().tolist() for aspect in ASPECTS}
            kinds = KINDS if "heatmaps" in model.outputs else ()
            heat = {kind: model.heatmap(pixels, image, texts, kind, shared).float().cpu().numpy() for kind in kinds}
            shares = model.word_probabilities(image, texts, prompts, shared) if "words" in model.outputs else None
        numbers = [*scores.values(), *(shares or ()), *(found.ravel() for found in heat.values())]
        if not all(np.isfinite(values).all() for values in numbers):
            raise StageError("a prediction is not finite", fix="--set predict-rich-feedback.dtype=float32, or bfloat16 on a GPU")
        rows, maps = [], []
        for place, (prompt, one) in enumerate(zip(prompts, images, strict=True)):
            uid = show_row_id(one["image_id"])
            row = {"uid": uid, "image_id": one["image_id"], "prompt_id": one["prompt_id"], "prompt": prompt}
            row |= self.words(prompt, shares[place]) if shares is not None else {"words": None, "labels": None}
            row |= {aspect: values[place] for aspect, values in scores.items()}
            rows.append(row | {"annotators": None, "split": None})
            shape = map_shape(one["width"], one["height"], self.config.map_size)
            for kind, found in heat.items():
                data = encoded(np.clip(of_shape(found[place], shape), 0, 1))
                maps.append({"uid": uid, "kind": kind, "image": {"bytes": data, "path": f"{uid}-{kind}"}})
        return rows, maps

    def words(self, prompt: str, shares: Sequence[float]) -> dict[str, Any]:
        """The columns of a prompt's words, by the probability that each is misaligned."""
        wrong = [share > self._model.config.word_cut for share in shares]
        rows = zip(prompt_tokens(prompt), wrong, shares, strict=True)
        return {"words": [{"word": word, "misaligned": flag, "share": share} for word, flag, share in rows], "labels": wrong}
