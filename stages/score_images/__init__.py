"""Score images for their prompts, by reward models and by other scorers.

Reads: the images, the prompts with their splits (to score all images: the prompts from any of splits, annotations and selected
    prompts), and the reward models if one is a scorer.
Writes: the tables `scores`, `scorer_cards` and `rejected`.
Paper: ImageReward, section 4.1 (baselines) and the released code's scorers.
Deviates: nothing.
Cost: one forward pass per image and scorer; memory O(512 images) per process, and the prompts' texts; a kill costs at most one
    shard of 512 images per process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.scorers.config import ScorersConfig
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import Determinism, First, Many, Stage, setting


class ScoreImagesConfig(ScorersConfig, MapConfig):
    split: Literal["all", "train", "validation", "test"] = setting("all", meaning="Score only the images of one split's prompts.")
    seed: int = setting(0, ge=0, meaning="Seed of the scorer random.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", meaning="Precision of the models.")
    batch_size: int = setting(64, ge=1, le=4096, role="execution", meaning="Images per forward pass.")
    device: str = setting("auto", role="execution", meaning="Where the models run: auto, cpu, cuda, cuda:1, mps.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) that cannot be scored that stops the run."
    )

    def unused(self) -> dict[str, str]:
        return super().unused() | ({} if "random" in self.scorers else {"seed": "no scorer needs it: random"})


def _reads(config: ScoreImagesConfig) -> Sequence[str | Many | First]:
    texts = First(("splits", "annotations", "selected-prompts")) if config.split == "all" else "splits"
    return ("images", texts, *config.reads_reward_models())


def _determinism(config: ScoreImagesConfig) -> Determinism:
    return "bitwise" if set(config.scorers) == {"random"} else "numeric"


STAGE = Stage(
    name="score-images",
    version=2,
    reads=_reads,
    writes="scores",
    determinism=_determinism,
    extra="train",
    config=ScoreImagesConfig,
    run="irpipe.stages.score_images.run:run",
    plugins=plugins,
)
