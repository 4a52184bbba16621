"""The work of `simulate-captions`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from irpipe.microworld.captions import pictures
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.captions import CAPTIONS
from irpipe.schemas.images import ImageShards, encoded_row
from irpipe.schemas.prompts import prompt_id
from irpipe.stages.simulate_captions import SimulateCaptionsConfig


def run(config: SimulateCaptionsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    samples = pictures(config.count, config.seed, wrong_captions=config.wrong_captions, damaged=config.damaged)
    with ImageShards(out) as shards:
        for number, (caption, pixels) in enumerate(zip(samples.captions, samples.pixels, strict=True)):
            shards.append(encoded_row(pixels, prompt_id(caption), f"{number:07}.png"))
    captions = {prompt_id(caption): caption for caption in samples.captions}
    CAPTIONS.write(out, {"prompt_id": list(captions), "prompt": list(captions.values())})
    return Report(Rows(config.count, config.count, 0), {"pictures": config.count, "captions": len(captions)})
