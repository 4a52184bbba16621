"""Draw captioned images of the micro world, like those its generator was trained on.

Reads: nothing.
Writes: the tables `images` and `captions`.
Paper: none; it stands in for the 625,000 captioned pictures of LAION that ImageReward's pre-training loss is taken on.
Deviates: as on the web, some captions are wrong and some pictures damaged, in the same shares as in the generator's training, so
    that they teach it nothing new.
Cost: O(count).
"""

from __future__ import annotations

from irpipe.pipeline.stage import Config, Stage, setting


class SimulateCaptionsConfig(Config):
    count: int = setting(3000, ge=1, le=1_000_000, meaning="Pictures to draw.")
    wrong_captions: float = setting(0.15, ge=0, le=1, meaning="Share whose caption contradicts the picture in one word.")
    damaged: float = setting(0.2, ge=0, le=1, meaning="Share of damaged pictures.")
    seed: int = setting(0, ge=0, meaning="Seed of scenes and faults.")


STAGE = Stage(
    name="simulate-captions",
    version=1,
    writes="captioned-images",
    determinism="bitwise",
    config=SimulateCaptionsConfig,
    run="irpipe.stages.simulate_captions.run:run",
)
