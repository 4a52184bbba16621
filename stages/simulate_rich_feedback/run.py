"""The work of `simulate-rich-feedback`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.microworld.pictures import NotOfThisWorldError, rich_truth_of
from irpipe.microworld.render import SIDE
from irpipe.microworld.rich import RichAnswer, Slips, answer
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.rich_feedback import ASPECTS, KINDS, RAW_RECORDS
from irpipe.stages.simulate_rich_feedback import SimulateRichFeedbackConfig

RATERS = "raters.json"


def run(config: SimulateRichFeedbackConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    selected = SELECTED_PROMPTS.read(inputs["selected-prompts"].table("selected_prompts"), ["prompt_id", "prompt"])
    prompts = dict(zip(selected["prompt_id"].to_pylist(), selected["prompt"].to_pylist(), strict=True))
    images = ImageReader(inputs["images"].table("images"))
    rejections = Rejections(config.max_rejected, "images")
    slips, seen, answers = Slips(), Counter[int](), 0
    with (
        context.progress("looking at images", len(images), "images") as bar,
        (out / RAW_RECORDS).open("w", encoding="utf-8") as file,
    ):
        for row, image in enumerate(images.rows(["prompt_id", "image", "fault"])):
            bar.advance(1)
            prompt_id = image["prompt_id"]
            if image["fault"] is not None:
                rejections.drop(row, image["fault"])
                continue
            if config.max_images and seen[prompt_id] == config.max_images:
                rejections.drop(row, "more images than are annotated")
                continue
            try:
                for record in records_of(config, prompts.get(prompt_id), image, slips):
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                    answers += 1
                seen[prompt_id] += 1
            except NotOfThisWorldError as error:
                rejections.refuse(row, "nobody can judge it", str(error))
    rejections.check(len(images), len(images) - len(rejections))
    (out / RATERS).write_text(json.dumps({"slips": asdict(slips), **config_of(config)}, indent=1) + "\n", encoding="utf-8")
    rejected = rejections.write(out)
    metrics = {"images": sum(seen.values()), "prompts": len(seen), "answers": answers, "rejected_for": rejections.counts()}
    return Report(Rows(len(images), len(images) - rejected, rejected), metrics)


def config_of(config: SimulateRichFeedbackConfig) -> dict[str, int]:
    """How many people there are, in all and per image."""
    return {"annotators": config.annotators, "annotators_per_image": config.annotators_per_image}


def records_of(
    config: SimulateRichFeedbackConfig, prompt: str | None, image: Mapping[str, Any], slips: Slips
) -> Iterator[dict[str, Any]]:
    """The answers of some people on one image. Draws depend on the seed and the image, not on the order of images.

    Raises:
        NotOfThisWorldError: there is no truth about it.
    """
    truth = rich_truth_of(prompt, image["image"]["bytes"])
    rng = np.random.default_rng([config.seed, row_id("rich feedback", image["image_id"])])
    for person in rng.choice(config.annotators, config.annotators_per_image, replace=False).tolist():
        yield {
            "image": image["image"]["path"],
            "prompt": prompt,
            "annotator": f"rater-{person:02}",
            "width": SIDE,
            "height": SIDE,
            **shown(answer(truth, slips, rng)),
        }


def shown(given: RichAnswer) -> dict[str, Any]:
    """An answer in our own format."""
    points = [
        {"kind": kind, "x": round(x / SIDE, 5), "y": round(y / SIDE, 5)}
        for kind, places in zip(KINDS, (given.implausible, given.misaligned), strict=True)
        for x, y in places
    ]
    return {"points": points, "misaligned_words": list(given.words), "scores": dict(zip(ASPECTS, given.scores, strict=True))}
