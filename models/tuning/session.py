"""Setting a tuning up and writing what came of it: what the stages that tune a generator have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.checkpoint import checkpoint

from irpipe.models.loading import quiet
from irpipe.models.reward.base import load_chosen, of_aspect
from irpipe.models.reward.clip import ClipReward
from irpipe.models.reward.start import init_reward_model
from irpipe.models.scorers.base import Scorer
from irpipe.models.scorers.baselines import ClipScorer
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.training.accelerator import make_accelerator
from irpipe.models.training.checkpoints import Checkpoints
from irpipe.models.training.loop import Trainer
from irpipe.models.training.objective import Objective
from irpipe.models.tuning.captioned import read_captioned
from irpipe.models.tuning.captions import CaptionedImages
from irpipe.models.tuning.config import TuneConfig
from irpipe.models.tuning.denoiser import Denoiser, NoiseSchedule, load_denoiser
from irpipe.models.tuning.evaluation import (
    DENOISING,
    HELD_OUT,
    REWARD,
    SIMILARITY,
    GeneratorEvaluator,
    standard_error,
    write_evaluated,
)
from irpipe.models.tuning.plots import draw_before_after, draw_curves
from irpipe.models.tuning.pretraining import Pretraining
from irpipe.models.tuning.prompts import read_prompts
from irpipe.pipeline.errors import ModelError, StageError
from irpipe.pipeline.settings import shown_config
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.curves import write_curves
from irpipe.schemas.files import read_json
from irpipe.schemas.generator import LORA, PIPELINE, GeneratorCard
from irpipe.schemas.rejected import Rejections

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_CONVOLUTIONS = ["conv1", "conv2"]


@dataclass
class Session:
    """Everything a tuning has before its objective.

    Attributes:
        prompts: id and text of the prompts that are trained on; held_out: of those that are evaluated on.
        reward: the reward model (`RewardModel`), frozen, on the device.
        captioned: captioned images; the first `evaluation.captioned_images` of them are only evaluated on.
        schedule: all noise levels of the generator's own training.
        read: how many prompts were read.
    """

    stage: str
    config: TuneConfig
    context: Context
    inputs: Inputs
    accelerator: Accelerator
    denoiser: Denoiser
    schedule: NoiseSchedule
    prompts: dict[int, str]
    held_out: dict[int, str]
    reward: Any
    captioned: CaptionedImages
    evaluator: GeneratorEvaluator
    rejections: Rejections
    read: int

    @classmethod
    def open(cls, stage: str, config: TuneConfig, inputs: Inputs, context: Context, negative_prompt: str = "") -> Session:
        """Read the inputs, load the models, and make trainable what is trained.

        Args:
            negative_prompt: of the tuned generator, with which it is evaluated.

        Raises:
            LeakError: evaluation prompts are among the training prompts.
            InputError: there are no prompts to train on or to evaluate on, or too few captioned images.
            ModelError: a model is of another kind, or missing.
        """
        rejections = Rejections(1.0, "splits")
        prompts, held_out, read = read_prompts(config, inputs, context, rejections)
        title = f"{stage} {context.work.parent.name[:12]}"
        accelerator = make_accelerator(stage, config.training, title, shown_config(config))
        denoiser = load_trainee(config, context, str(accelerator.device))
        reward = open_reward_model(inputs, context, config.aspect).to(accelerator.device).requires_grad_(False)
        if config.training.checkpoint_activations:
            checkpoint_activations(denoiser, reward)
        with accelerator.main_process_first():
            captioned = read_captioned(config, inputs, context, denoiser)
        make_trainable(denoiser, config)
        evaluator = GeneratorEvaluator(
            config,
            denoiser,
            list(held_out.values()),
            make_scorers(stage, reward, config, context, str(accelerator.device)),
            captioned.part(slice(config.evaluation.captioned_images)),
            accelerator,
            Checkpoints(context.work),
            context.say,
            negative_prompt,
        )
        schedule = denoiser.noise_schedule(denoiser.pipeline.scheduler.config.num_train_timesteps, "ddpm")
        args = (stage, config, context, inputs, accelerator, denoiser, schedule, prompts, held_out, reward)
        return cls(*args, captioned, evaluator, rejections, read)

    def pretraining(self) -> list[Objective]:
        """The objective on captioned images, unless it is switched off."""
        config = self.config
        if not config.pretraining.weight:
            self.context.say("  without the pre-training loss: nothing keeps the generator from forgetting real images")
            return []
        rows = range(config.evaluation.captioned_images, len(self.captioned))
        return [Pretraining(config, self.denoiser, self.schedule, self.captioned, rows, self.accelerator)]

    def train(self, *objectives: Objective) -> Trainer:
        """Train by objectives, beside the one on captioned images."""
        trainer = Trainer(
            self.config.training_config(self.stage),
            dict(self.denoiser.unet.named_parameters()),
            [*self.pretraining(), *objectives],
            self.evaluator,
            self.accelerator,
            self.context,
        )
        trainer.run()
        return trainer

    def write(self, trainer: Trainer, out: Path, metrics: Mapping[str, Any] | None = None) -> Report:
        """Write the generator and the curves of its tuning. Every process takes part."""
        state = trainer.state
        weights = trainer.best_weights()
        self.accelerator.end_training()
        rows = Rows(self.read, self.read - len(self.rejections), len(self.rejections))
        if not self.accelerator.is_main_process:
            return Report(rows)  # the first process writes
        if not state.best_step:
            self.context.say("  no evaluation was better than the first one on what is held out: the base is kept as it was")
        self.rejections.write(out)
        trainer.weights.load(weights)
        save_generator(self.denoiser, self.config, out)
        self._card(trainer).write(out)
        write_curves(state.rows, out)
        self._write_images(trainer, out)
        return Report(rows, figures(trainer, self) | dict(metrics or {}))

    def _card(self, trainer: Trainer) -> GeneratorCard:
        base, state = self.context.models["model"][0], trainer.state
        trained_on = {kind: artifact.content_id for kind, artifact in sorted(self.inputs.items())}
        return GeneratorCard(
            base.name,
            base.revision,
            self.stage,
            self.config.trainable,
            state.step,
            state.best_step,
            state.stopped_for,
            trained_on,
            self.evaluator.negative_prompt,
        )

    def _write_images(self, trainer: Trainer, out: Path) -> None:
        """The table of every evaluation's images, and the plots."""
        state, evaluations = trainer.state, self.evaluator.evaluations
        write_evaluated(evaluations, list(self.held_out.items())[: self.config.evaluation.kept_images], self.stage, out)
        draw_curves(evaluations, state.rows, state.best_step, self.evaluator.fired, out / "curves.png")
        kept = next(one for one in evaluations if one.step == state.best_step)
        prompts = list(self.held_out.values())
        draw_before_after(evaluations[0], kept, prompts, out / "before_after.png")


def open_reward_model(inputs: Inputs, context: Context, aspect: str | None) -> Any:
    """The reward model that is tuned for: the one that `reward_model` names, or the recipe's; of a RAHF one of its scores."""
    return of_aspect(load_chosen(context.models, inputs), aspect)


def checkpoint_activations(denoiser: Denoiser, reward: Any) -> None:
    """Keep only what enters each layer, and compute the rest again on the way back.

    The decoder needs the most. diffusers would keep what enters each of its blocks, of several layers: for an image of 512 pixels
    that is 3.4 GB at the peak instead of 2.5 (benchmarks/memory.py), for the same work.
    """
    from diffusers.models.resnet import ResnetBlock2D
    from diffusers.models.upsampling import Upsample2D

    denoiser.unet.enable_gradient_checkpointing()
    for layer in denoiser.vae.decoder.modules():
        if isinstance(layer, ResnetBlock2D | Upsample2D):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    reward.checkpoint_activations()


def load_trainee(config: TuneConfig, context: Context, device: str) -> Denoiser:
    """The generator: in float32 if all of the UNet is trained, else in the training's precision (see `make_trainable`)."""
    return load_denoiser(
        context.models["model"][0],
        device,
        "float32" if config.trainable == "unet" else config.training.dtype,
        guidance_scale=max(config.evaluation.guidance_scale, config.guidance_scale),
        width=config.width,
        height=config.height,
        safety_checker=config.safety_checker,
    )


def make_trainable(denoiser: Denoiser, config: TuneConfig) -> None:
    """Make the UNet or its adapters (LoRA) trainable, in float32.

    Raises:
        StageError: peft is not installed.
    """
    if config.trainable == "unet":
        denoiser.unet.requires_grad_(True)
        return
    try:
        from peft import LoraConfig
    except ImportError:
        raise StageError("LoRA needs the extra 'tune'", fix="pip install 'irpipe[tune]'") from None
    targets = _ATTENTION + (_CONVOLUTIONS if config.lora.layers == "attention+convolutions" else [])
    torch.manual_seed(config.training.seed)  # peft draws from the global stream
    rank = config.lora.rank
    denoiser.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights="gaussian"))
    for value in denoiser.unet.parameters():
        if value.requires_grad:
            value.data = value.data.float()


def save_generator(denoiser: Denoiser, config: TuneConfig, out: Path) -> None:
    """Write what diffusers loads: `lora/` for `load_lora_weights`, or `pipeline/` for `from_pretrained`."""
    quiet()
    if config.trainable == "unet":
        denoiser.pipeline.save_pretrained(out / PIPELINE, safe_serialization=True)
        _forget_paths(out / PIPELINE)
        return
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser.unet))
    type(denoiser.pipeline).save_lora_weights(out / LORA, unet_lora_layers=layers, safe_serialization=True)


def _forget_paths(folder: Path) -> None:
    """Remove the base's path on this machine: it is no content, and the card names the base."""
    for path in folder.rglob("*.json"):
        settings = read_json(path)
        if isinstance(settings, dict) and settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make_scorers(stage: str, reward: Any, config: TuneConfig, context: Context, device: str) -> dict[str, Scorer]:
    """The trained reward, and the scorers that nothing is trained on.

    Raises:
        ModelError: the held-out scorer is the trained reward.
    """
    held_out, _ = init_reward_model(context.models["evaluation.held_out_model"][0], "auto", config.training.seed)
    similarity = ClipScorer(context.models["evaluation.similarity_model"][0], "cpu", torch.float32)
    if isinstance(reward, ClipReward) and _equal_weights(similarity.clip, reward.clip):
        raise ModelError(
            "the CLIP of the prompt-image similarity is the reward model that is tuned for: it could not tell hacking",
            fix=f"--set {stage}.evaluation.similarity_model=another CLIP",
        )
    if _equal_weights(held_out, reward):
        raise ModelError(
            "the held-out scorer is the reward model that is tuned for: it could not tell hacking",
            fix=f"--set {stage}.evaluation.held_out_model=... of other annotations, or a BLIP with a matching head",
        )
    return {
        REWARD: RewardModelScorer(reward, device, torch.float32),
        HELD_OUT: RewardModelScorer(held_out, "cpu", torch.float32),
        SIMILARITY: similarity,
    }


def _equal_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    """Whether two models have the same weights under the same names."""
    ours, theirs = first.state_dict(), second.state_dict()
    return ours.keys() == theirs.keys() and all(
        theirs[name].shape == value.shape and torch.equal(theirs[name].cpu(), value.cpu()) for name, value in ours.items()
    )


def figures(trainer: Trainer, session: Session) -> dict[str, Any]:
    """The figures of a tuning for its record."""
    state, config, evaluations = trainer.state, session.config, session.evaluator.evaluations
    metrics: dict[str, Any] = {
        "steps": state.step,
        "kept_step": state.best_step,
        "stopped_for": state.stopped_for,
        "stop_rule": session.evaluator.fired,
        "prompts": len(session.prompts),
        "captioned_images": len(session.captioned) - config.evaluation.captioned_images,
        "trainable_parameters": sum(value.numel() for value in trainer.weights.trained.values()),
        "pretraining_loss": "on" if config.pretraining.weight else "off",
    }
    first, kept = evaluations[0], next(one for one in evaluations if one.step == state.best_step)
    for name in (REWARD, HELD_OUT, SIMILARITY, DENOISING):
        metrics[name] = {
            "before": round(first.mean(name), 4),
            "after": round(kept.mean(name), 4),
            "error": round(standard_error(kept.measures[name] - first.measures[name]), 4),
        }
    blackened = [value for _, split, name, value in state.rows if (split, name) == ("train", "blackened_share")]
    if any(blackened):
        metrics["blackened_share"] = round(float(np.mean(blackened)), 4)
    if len(state.micro_batch_sizes) > 1:
        metrics["micro_batch_sizes"] = state.micro_batch_sizes  # resumed with another one: equal to rounding, not bit by bit
    return metrics
