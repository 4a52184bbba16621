"""Score images for their prompts, by a reward model and by others to compare it with.

Reads: the images, the prompts' texts, the reward model if it is asked, and the pairs if only one split is scored.
Writes: the tables `scores` and `rejected`.
Paper: ImageReward, section 4.1 (baselines) and the released code's scorers.
Deviates: nothing.
Cost: one forward pass per image and scorer; memory O(512 images) per process, and the prompts' texts; a kill costs at most one
    shard of 512 images per process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Strict

from irpipe.models.published import BLIP, CLIP
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import Determinism, Stage, setting


class ScoreImagesConfig(MapConfig):
    scorers: Annotated[tuple[str, ...], Strict(False)] = setting(
        ("reward-model",),
        min_length=1,
        meaning="Who scores: reward-model, clip, aesthetic, blip, random, or what installed packages declare as irpipe.scorers.",
        source="clip, aesthetic, blip: ImageReward, table 3",
    )
    prompts: Literal["annotations", "selected-prompts"] = setting("annotations", meaning="Where the prompts' texts are from.")
    split: Literal["all", "train", "validation", "test"] = setting("all", meaning="Score only the images of one split's prompts.")
    clip_model: str = setting(
        CLIP,
        role="model",
        meaning="The CLIP of the scorers clip and aesthetic.",
        source="released code, models/CLIPScore.py: ViT-L/14",
    )
    aesthetic_model: str | None = setting(
        None, role="model", meaning="The folder with the aesthetic head's weights, such as sac+logos+ava1-l14-linearMSE.pth."
    )
    blip_model: str = setting(
        BLIP,
        role="model",
        meaning="The BLIP of the scorer blip.",
        source="released code, models/BLIPScore.py: BLIP large",
    )
    seed: int = setting(0, ge=0, meaning="Seed of the scorer random.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", meaning="Precision of the models.")
    batch_size: int = setting(64, ge=1, le=4096, role="execution", meaning="Images per forward pass.")
    device: str = setting("auto", role="execution", meaning="Where the models run: auto, cpu, cuda, cuda:1, mps.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) that cannot be scored that stops the run."
    )

    def unused(self) -> dict[str, str]:
        asked = set(self.scorers)
        needs = {
            "clip_model": {"clip", "aesthetic"},
            "aesthetic_model": {"aesthetic"},
            "blip_model": {"blip"},
            "seed": {"random"},
        }
        return super().unused() | {
            name: f"no scorer needs it: {' or '.join(sorted(who))}" for name, who in needs.items() if not asked & who
        }


def _reads(config: ScoreImagesConfig) -> Sequence[str]:
    kinds = ["images", config.prompts]
    if "reward-model" in config.scorers:
        kinds.append("reward-model")
    return (*kinds, "pairs") if config.split != "all" else tuple(kinds)


def _determinism(config: ScoreImagesConfig) -> Determinism:
    return "bitwise" if set(config.scorers) == {"random"} else "numeric"


STAGE = Stage(
    name="score-images",
    version=1,
    reads=_reads,
    writes="scores",
    determinism=_determinism,
    extra="train",
    config=ScoreImagesConfig,
    run="irpipe.stages.score_images.run:run",
)
