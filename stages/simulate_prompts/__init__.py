"""Write a pool of prompts from the micro world's grammar.

Reads: nothing.
Writes: `prompts.jsonl`, a file of prompts like any other.
Paper: none; it stands in for DiffusionDB where nothing can be downloaded.
Deviates: sentences of simple scenes, with paraphrases and repetitions among them.
Cost: O(count).
"""

from __future__ import annotations

from typing import Literal

from irpipe.pipeline.stage import Config, Stage, setting


class SimulatePromptsConfig(Config):
    count: int = setting(2000, ge=1, le=1_000_000, meaning="Prompts to write.")
    part: Literal["all", "train", "validation", "test"] = setting(
        "all", meaning="Part of the world. The shipped models were trained on scenes of train only."
    )
    paraphrase_share: float = setting(0.3, ge=0, le=0.9, meaning="Share of prompts that paraphrase an earlier scene.")
    duplicate_share: float = setting(
        0.05, ge=0, le=0.1, meaning="Share of prompts that repeat an earlier one except for case and white space."
    )
    seed: int = setting(0, ge=0, meaning="Seed of the grammar.")


STAGE = Stage(
    name="simulate-prompts",
    version=2,
    writes="prompt-pool",
    determinism="bitwise",
    config=SimulatePromptsConfig,
    run="irpipe.stages.simulate_prompts.run:run",
)
