"""Connect each prompt to its k nearest others by cosine.

Reads: the vectors of `embed-prompts`.
Writes: the tables `edges` and `vertices`.
Paper: ImageReward, appendix A.1; Su et al. 2022 (fast vote-k), section 3.
Deviates: a prompt never counts as its own neighbour, also among exact duplicates, where the released code drops
    whichever comes first.
Cost: exact 2 n^2 d / sets floating-point operations; ivf 2 n^1.5 probes d / 4, and 8 n^1.5 d + 12800 n d for its lists. Memory
    per process: n d / sets floats (ivf: halves). Disk: 12 bytes per edge until the artifact is committed. A kill costs a part of
    20,000 prompts (ivf: 100,000).
"""

from __future__ import annotations

from typing import Literal

from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import Stage, setting


class PromptGraphConfig(MapConfig):
    k: int = setting(
        150, ge=1, le=2000, meaning="Nearest others of each prompt.", source="ImageReward A.1; Su et al. 2022, all call sites"
    )
    sets: int = setting(
        1,
        ge=1,
        meaning="Number of random sets that are searched separately; 1: the whole pool.",
        source="ImageReward A.1 divides 1.8 M prompts into 100 sets",
    )
    seed: int = setting(0, ge=0, meaning="Seed of the division into sets.")
    index: Literal["auto", "exact", "ivf"] = setting(
        "auto",
        meaning="exact: every pair is compared. ivf: each prompt is compared with the lists of an inverted file (faiss) that"
        " are nearest to it, and the recall is measured. auto: exact up to exact_up_to prompts per set.",
    )
    exact_up_to: int = setting(50_000, ge=1, meaning="Largest set that auto searches exactly.")
    probes: int = setting(
        96, ge=1, meaning="Lists of the inverted file that are searched per prompt; more take longer and find more."
    )

    def unused(self) -> dict[str, str]:
        why = super().unused()
        if self.index != "auto":
            why["exact_up_to"] = "index is not 'auto'"
        if self.index == "exact":
            why["probes"] = "index = 'exact' compares every pair"
        if self.index == "exact" and self.sets == 1:
            why["seed"] = "sets = 1 and index = 'exact' leave nothing to chance"
        return why


STAGE = Stage(
    name="prompt-graph",
    version=2,
    reads=("embeddings",),
    writes="prompt-graph",
    determinism="bitwise",
    config=PromptGraphConfig,
    run="irpipe.stages.prompt_graph.run:run",
)
