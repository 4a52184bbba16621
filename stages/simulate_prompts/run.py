"""The work of `simulate-prompts`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from irpipe.microworld.grammar import prompts
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.stages.simulate_prompts import SimulatePromptsConfig


def run(config: SimulatePromptsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    with (out / "prompts.jsonl").open("w", encoding="utf-8") as file:
        part = None if config.part == "all" else config.part
        for text in prompts(config.count, part, config.paraphrase_share, config.duplicate_share, config.seed):
            file.write(json.dumps({"prompt": text}) + "\n")
    return Report(Rows(config.count, config.count, 0), {"prompts": config.count})
