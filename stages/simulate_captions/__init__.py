"""Draw pictures of the micro world with captions, such as its generator was trained on.

Reads: nothing.
Writes: the tables `images` and `captions`.
Paper: none; it stands in for the 625,000 captioned pictures of LAION that ImageReward's pre-training loss is taken on.
Deviates: as on the web, some captions are wrong and some pictures spoilt, in the shares of the generator's own training: nothing
    is to be learnt from them that it did not know.
Cost: O(count).
"""

from __future__ import annotations

from irpipe.pipeline.stage import Config, Stage, setting


class SimulateCaptionsConfig(Config):
    count: int = setting(3000, ge=1, le=1_000_000, meaning="Pictures to draw.")
    wrong_captions: float = setting(0.15, ge=0, le=1, meaning="Share whose caption contradicts the picture in one word.")
    damaged: float = setting(0.2, ge=0, le=1, meaning="Share of spoilt pictures.")
    seed: int = setting(0, ge=0, meaning="Seed of scenes and faults.")


STAGE = Stage(
    name="simulate-captions",
    version=1,
    writes="captioned-images",
    determinism="bitwise",
    config=SimulateCaptionsConfig,
    run="irpipe.stages.simulate_captions.run:run",
)
