"""The work of `refl`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from irpipe.models.tuning.reward import RewardSlope
from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Report
from irpipe.pipeline.store import Artifact
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective


def run(config: ReflConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    session = Session.open("refl", config, inputs, context)
    objective = make_objective(config, session)
    objective.prove([value for value in session.denoiser.unet.parameters() if value.requires_grad])
    tuner = session.tune(objective)
    return session.write(tuner, out)


def make_objective(config: ReflConfig, session: Session) -> ReflObjective:
    """ReFL's objective on a session's prompts: texts are encoded once, for the generator and for the reward model."""
    denoiser, texts = session.denoiser, list(session.prompts.values())
    reward = session.reward
    encoded = {name: values.cpu() for name, values in reward.encode_texts(texts).items()}
    return ReflObjective(
        config,
        denoiser,
        denoiser.course(config.num_steps, config.scheduler),
        denoiser.encode(texts),
        encoded,
        RewardSlope(reward, denoiser, config.phi, config.margin, config.copies, config.grain),
        session.accelerator,
        session.context,
    )
