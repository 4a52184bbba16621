"""Select the prompts to annotate: a few that represent the pool.

Reads: the vectors of `embed-prompts`, and for vote-k the graph of `prompt-graph`.
Writes: the tables `selected_prompts` and `rejected`, and `coverage.png`.
Paper: ImageReward, appendix A.1; Su et al. 2022 (fast vote-k), section 3.
Deviates: no prompt is picked twice, and where no votes are left the rest is picked by number of voters (the
    released code repeats picks or fails). Scores are compared exactly; ties go to more voters, then to the lower row.
Cost: vote-k O(edges + evaluations), one evaluation O(voters) and few per pick, since scores only fall (lazy greedy);
    coverage O(n count d).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from irpipe.pipeline.stage import Config, Sources, Stage, setting


class SelectPromptsConfig(Config):
    count: int = setting(10_000, ge=1, meaning="Prompts to select.", source="ImageReward 2.1: 10,000 (100 from each of 100 sets)")
    method: Literal["vote-k", "k-center", "random"] = setting(
        "vote-k", meaning="vote-k: most votes, discounted. k-center: farthest first.", source="ImageReward A.1"
    )
    rho: int = setting(
        10,
        ge=2,
        le=1000,
        meaning="Base of the discount of a voter that has a selected neighbour (vote-k).",
        source="Su et al. 2022, hard-coded; the paper gives no value",
    )
    seed: int = setting(0, ge=0, meaning="Seed of `random`, and of the random selection that every method is compared with.")
    exclude: Sources = setting(
        (),
        role="external",
        meaning="Files of prompts (or ids of artifacts with a prompt column) that must not be selected: evaluation sets."
        " They are matched after normalisation, and still vote.",
    )

    def unused(self) -> dict[str, str]:
        return {} if self.method == "vote-k" else {"rho": "method is not 'vote-k'"}


def _reads(config: SelectPromptsConfig) -> Sequence[str]:
    return ("embeddings", "prompt-graph") if config.method == "vote-k" else ("embeddings",)


STAGE = Stage(
    name="select-prompts",
    version=2,
    reads=_reads,
    writes="selected-prompts",
    determinism="bitwise",
    config=SelectPromptsConfig,
    run="irpipe.stages.select_prompts.run:run",
)
