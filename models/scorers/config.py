"""The settings by which stages choose scorers and reward models. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Strict

from irpipe.models.published import BLIP, CLIP, NO_GENERATOR
from irpipe.pipeline.stage import Config, Many, setting

REWARD_MODEL_MEANING = (
    "A reward model instead of the recipe's: a folder, a published ImageReward.pt, or one that a package ships."
)


class ScorersConfig(Config):
    """What stages that score images have in common."""

    scorers: Annotated[tuple[str, ...], Strict(False)] = setting(
        ("reward-model",),
        min_length=1,
        meaning="Who scores: reward-model (all that the recipe names), clip, aesthetic, blip, random, or what installed packages"
        " declare as irpipe.scorers.",
        source="clip, aesthetic, blip: ImageReward, table 3",
    )
    reward_model: str | None = setting(None, role="model", check=NO_GENERATOR, meaning=REWARD_MODEL_MEANING)
    clip_model: str = setting(
        CLIP,
        role="model",
        check=NO_GENERATOR,
        meaning="The CLIP of the scorers clip and aesthetic.",
        source="released code, models/CLIPScore.py: ViT-L/14",
    )
    aesthetic_model: str | None = setting(
        None,
        role="model",
        check=NO_GENERATOR,
        meaning="The folder with the aesthetic head's weights, such as sac+logos+ava1-l14-linearMSE.pth.",
    )
    blip_model: str = setting(
        BLIP,
        role="model",
        check=NO_GENERATOR,
        meaning="The BLIP of the scorer blip.",
        source="released code, models/BLIPScore.py: BLIP large",
    )

    @property
    def needs_reward_model(self) -> bool:
        """Whether a reward model is asked at all."""
        return "reward-model" in self.scorers

    def reads_reward_models(self) -> Sequence[Many]:
        """The recipe's reward models, where they are asked and no other one is given."""
        return (Many("reward-model"),) if self.needs_reward_model and self.reward_model is None else ()

    def unused(self) -> dict[str, str]:
        asked = set(self.scorers)
        needs = {"clip_model": {"clip", "aesthetic"}, "aesthetic_model": {"aesthetic"}, "blip_model": {"blip"}}
        idle = {name: f"no scorer needs it: {' or '.join(sorted(who))}" for name, who in needs.items() if not asked & who}
        idle |= super().unused()
        return idle if self.needs_reward_model else idle | {"reward_model": "no reward model is asked"}
