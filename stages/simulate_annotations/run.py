"""The work of `simulate-annotations`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.microworld.annotators import Annotator, annotate, crowd
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.stages.simulate_annotations import SimulateAnnotationsConfig


def run(config: SimulateAnnotationsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    if config.annotators_per_prompt > config.annotators or config.min_images > config.max_images:
        raise InputError("more annotators a prompt than annotators, or min_images above max_images", where="simulate-annotations")
    prompts = SELECTED_PROMPTS.read(inputs["selected-prompts"].table("selected_prompts"), ["prompt_id", "prompt"]).to_pylist()
    people = crowd(config.annotators, np.random.default_rng([config.seed, 0]))
    records = 0
    with (out / "annotations.jsonl").open("w", encoding="utf-8") as file:
        for prompt in prompts:
            for record in campaign(config, prompt["prompt_id"], prompt["prompt"], people):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                records += 1
    return Report(Rows(len(prompts), len(prompts), 0), {"prompts": len(prompts), "records": records})


def campaign(config: SimulateAnnotationsConfig, prompt_id: int, prompt: str, people: list[Annotator]) -> Iterator[dict[str, Any]]:
    """Every annotator's record of one prompt. Draws depend on the seed and the prompt alone, not on its place."""
    rng = np.random.default_rng([config.seed, row_id("campaign", prompt_id)])
    name = show_row_id(prompt_id)
    count = int(rng.integers(config.min_images, config.max_images + 1))
    worth = rng.normal(0, 1, count)
    unclear = bool(rng.random() < config.unclear_share)
    for person in rng.choice(len(people), config.annotators_per_prompt, replace=False).tolist():
        yield {
            "ranking_id": name,
            "prompt_id": name,
            "prompt": prompt,
            "annotator": people[person].name,
            "images": [f"{name}/{place}.png" for place in range(count)],
            **annotate(people[person], worth, rng),
            "labels": {"category": "Artifacts", "intent_unclear": unclear, "unsafe": []},
        }
