"""The work of `oracle-truth`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.microworld.grammar import parse, split_of
from irpipe.microworld.pictures import NotOfThisWorldError, verdict_on
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.truth import TRUTH
from irpipe.stages.oracle_truth import OracleTruthConfig


def run(config: OracleTruthConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    selected = SELECTED_PROMPTS.read(inputs["selected-prompts"].table("selected_prompts"), ["prompt_id", "prompt"])
    prompts = dict(zip(selected["prompt_id"].to_pylist(), selected["prompt"].to_pylist(), strict=True))
    images = ImageReader(inputs["images"].table("images"))
    rejections = Rejections(config.max_rejected, "images")
    rows = []
    with context.progress("asking the oracle", len(images), "images") as bar:
        for row, image in enumerate(images.rows(["prompt_id", "image", "fault"])):
            bar.advance(1)
            if image["fault"] is not None:
                rejections.drop(row, image["fault"])  # the stage that made it has limited such images
                continue
            try:
                rows.append(truth_of(image, prompts.get(image["prompt_id"])))
            except NotOfThisWorldError as error:
                rejections.refuse(row, "no verdict", str(error))
    rejections.check(len(images), len(rows))
    rejected = rejections.write(out)
    TRUTH.write(out, {column.name: [row[column.name] for row in rows] for column in TRUTH.columns})
    metrics = {name: round(float(np.mean([row[name] for row in rows])), 4) for name in ("alignment", "fidelity", "utility")}
    return Report(Rows(len(images), len(rows), rejected), metrics)


def truth_of(image: Mapping[str, Any], prompt: str | None) -> dict[str, Any]:
    """A row of `truth`.

    Raises:
        NotOfThisWorldError: the prompt or the image is not of the micro world.
    """
    verdict = verdict_on(prompt, image["image"]["bytes"])
    assert prompt is not None
    return {
        "image_id": image["image_id"],
        "prompt_id": image["prompt_id"],
        "alignment": verdict.alignment,
        "fidelity": verdict.fidelity,
        "utility": verdict.utility,
        "wrong_words": list(verdict.wrong_words),
        "defects": np.rint(verdict.defects * 255).astype(np.uint8).tobytes(),
        "split": split_of(parse(prompt)[0]),
    }
