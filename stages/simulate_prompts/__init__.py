"""Write a pool of prompts from the micro world's grammar.

Reads: nothing.
Writes: `prompts.jsonl`, as people's prompt files are.
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
        "all", meaning="Part of the world. What is trained on it and shipped saw scenes of train alone."
    )
    paraphrase_share: float = setting(0.3, ge=0, le=0.9, meaning="Share that says an earlier scene in other words.")
    duplicate_share: float = setting(
        0.05, ge=0, le=0.1, meaning="Share that repeats an earlier prompt but for case and white space."
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
