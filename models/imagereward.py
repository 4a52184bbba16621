"""The first release's place of `ImageReward`, which now lives in `irpipe.models.reward.imagereward`."""

from irpipe.models.reward.imagereward import ImageReward

__all__ = ["ImageReward"]
