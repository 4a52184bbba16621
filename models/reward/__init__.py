"""Reward models behind one protocol: ImageReward, and those of other packages."""

from irpipe.models.reward.base import RewardModel, load_reward_model

__all__ = ["RewardModel", "load_reward_model"]
