"""Setting a tuning up and writing what came of it: what the stages that tune a generator have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from irpipe.models.loading import files_of, quiet
from irpipe.models.reward.base import load_reward_model
from irpipe.models.reward.start import init_reward_model
from irpipe.models.scorers.base import Scorer
from irpipe.models.scorers.baselines import ClipScorer
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.training import make_accelerator
from irpipe.models.tuning.config import TuneConfig
from irpipe.models.tuning.denoiser import Course, Denoiser, load_denoiser
from irpipe.models.tuning.loop import Denoising, Objective, Tuner
from irpipe.models.tuning.monitors import DENOISING, HELD_OUT, REWARD, SIMILARITY, Look, Monitor, standard_error, tabulated
from irpipe.models.tuning.pairs import LocalPairs, RealPairs, decoded, encode_pairs, local_pairs
from irpipe.models.tuning.pictures import draw_before_after, draw_curves
from irpipe.pipeline.errors import InputError, LeakError, ModelError, StageError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.settings import shown_config
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.captions import CAPTIONS
from irpipe.schemas.files import read_json
from irpipe.schemas.generator import ADDITIONS, MONITORS, TUNING_STEPS, WHOLE, GeneratorCard
from irpipe.schemas.images import ImageReader, ImageShards, encoded_row
from irpipe.schemas.prompt_files import prompts_of
from irpipe.schemas.prompts import normalise
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.splits import read_splits

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_CONVOLUTIONS = ["conv1", "conv2"]


@dataclass
class Session:
    """Everything a tuning has before its objective.

    Attributes:
        prompts: id and text of the prompts that are trained on.
        reward: the reward model (`RewardModel`), frozen, on the device.
        pairs: real pairs; the first `monitor_pairs` of them are only looked at.
    """

    stage: str
    config: TuneConfig
    context: Context
    inputs: Mapping[str, Artifact]
    accelerator: Accelerator
    denoiser: Denoiser
    course: Course
    prompts: dict[int, str]
    reward: Any
    pairs: RealPairs
    monitor: Monitor
    monitored: dict[int, str]
    rejections: Rejections
    read: int

    @classmethod
    def open(cls, stage: str, config: TuneConfig, inputs: Mapping[str, Artifact], context: Context) -> Session:
        """Read what is read, load what is loaded, and attach what is to be trained.

        Raises:
            LeakError: evaluation prompts are among the training prompts.
            InputError: there are no prompts to train on or to look at, or too few real pairs.
            ModelError: a model is of another kind, or not at hand.
        """
        rejections = Rejections(1.0, "splits")
        prompts, monitored, read = read_prompts(config, inputs, context, rejections)
        accelerator = make_accelerator(
            stage,
            config.device,
            config.dtype,
            config.trackers,
            config.track_to,
            f"{stage} {context.work.parent.name[:12]}",
            shown_config(config),
        )
        denoiser = load_trainee(config, context, str(accelerator.device))
        reward = open_reward_model(inputs, context).to(accelerator.device).requires_grad_(False)
        if config.checkpoint_activations:
            denoiser.unet.enable_gradient_checkpointing()
            denoiser.vae.enable_gradient_checkpointing()
            reward.checkpoint_activations()
        with accelerator.main_process_first():
            pairs = read_pairs(config, inputs, context, denoiser)
        attach(denoiser, config)
        monitor = Monitor(
            config,
            denoiser,
            list(monitored.values()),
            make_judges(stage, reward, config, context, str(accelerator.device)),
            pairs.part(slice(config.monitor_pairs)),
            accelerator.autocast,
        )
        course = denoiser.course(denoiser.pipeline.scheduler.config.num_train_timesteps, "ddpm")
        return cls(
            stage,
            config,
            context,
            inputs,
            accelerator,
            denoiser,
            course,
            prompts,
            reward,
            pairs,
            monitor,
            monitored,
            rejections,
            read,
        )

    def pretraining(self) -> list[Objective]:
        """The objective on real pairs, unless it is switched off."""
        config = self.config
        if not config.pretraining:
            self.context.say("  without the pre-training loss: nothing holds the generator to real pictures")
            return []
        rows = range(config.monitor_pairs, len(self.pairs))
        return [
            Denoising(self.denoiser, self.course, self.pairs, rows, config.pretraining_batch, config.pretraining, config.seed)
        ]

    def tune(self, objective: Objective) -> Tuner:
        """Tune by an objective, beside the one on real pairs."""
        tuner = Tuner(
            self.stage, self.config, self.denoiser, [*self.pretraining(), objective], self.monitor, self.accelerator, self.context
        )
        tuner.run()
        return tuner

    def write(self, tuner: Tuner, out: Path, metrics: Mapping[str, Any] | None = None, negative_prompt: str = "") -> Report:
        """Write the generator and the course of its tuning. Every process takes part."""
        config, state = self.config, tuner.state
        weights = tuner.kept_weights()
        self.accelerator.end_training()
        rows = Rows(self.read, self.read - len(self.rejections), len(self.rejections))
        if not self.accelerator.is_main_process:
            return Report(rows)  # the first process has looked, and writes
        if not state.best_step:
            self.context.say("  no look was better than the first one, by what is held out: what is kept is the base as it was")
        self.rejections.write(out)
        tuner.weights.load(weights)
        save_generator(self.denoiser, config, out)
        GeneratorCard(
            self.context.models["model"][0].name,
            self.context.models["model"][0].revision,
            self.stage,
            config.trained,
            state.step,
            state.best_step,
            state.stopped_for,
            {kind: artifact.content_id for kind, artifact in sorted(self.inputs.items())},
            negative_prompt,
        ).write(out)
        TUNING_STEPS.write(out, dict(zip(("step", "figure", "value"), map(list, zip(*state.rows, strict=True)), strict=True)))
        MONITORS.write(out, tabulated(tuner.looks))
        write_looks(tuner.looks, list(self.monitored.items())[: config.kept_images], self.stage, out)
        draw_curves(tuner.looks, state.rows, state.best_step, state.noted, out / "curves.png")
        last = next(look for look in tuner.looks if look.step == state.best_step)
        draw_before_after(tuner.looks[0].pictures, last.pictures, list(self.monitored.values()), out / "before_after.png")
        return Report(rows, figures(tuner, self) | dict(metrics or {}))


def read_prompts(
    config: TuneConfig, inputs: Mapping[str, Artifact], context: Context, rejections: Rejections
) -> tuple[dict[int, str], dict[int, str], int]:
    """Prompts to train on, prompts to look at, and how many were read. Those of `test` are left alone.

    Raises:
        LeakError: an excluded prompt would be trained on.
        InputError: there are none.
    """
    by_split = read_splits(inputs["splits"])
    parts = {name: by_split[name] for name in ("train", "validation")}
    reasons = {"validation": "only looked at", "test": "kept for evaluation"}
    total = sum(map(len, by_split.values()))
    for index, split in enumerate(split for split, texts in by_split.items() for _ in texts):
        if split != "train":
            rejections.drop(index, reasons[split])
    forbidden = excluded(context)
    leaked = [identity for identity, text in parts["train"].items() if normalise(text) in forbidden]
    if leaked:
        raise LeakError(
            f"{len(leaked):,} evaluation prompts are among the {len(parts['train']):,} training prompts, such as"
            f" {show_row_id(leaked[0])}: {parts['train'][leaked[0]]!r}",
            fix="--set 'select-prompts.exclude=[...]' with the same files, and run the pipeline again",
        )
    held_out = [(identity, text) for identity, text in parts["validation"].items() if normalise(text) not in forbidden]
    if not parts["train"] or len(held_out) < 2:
        raise InputError(
            f"there are {len(parts['train']):,} prompts to train on and {len(held_out):,} to look at",
            where="splits",
            expected="prompts in the train split and at least 2 in the validation split",
            fix="--set select-prompts.count=... or a larger split-prompts.validation_share",
        )
    return parts["train"], dict(held_out[: config.monitor_prompts]), total


def excluded(context: Context) -> set[str]:
    """The evaluation prompts, normalised."""
    return {normalise(text) for path in context.sources.get("exclude", ()) for text in prompts_of(path)}


def open_reward_model(inputs: Mapping[str, Artifact], context: Context) -> Any:
    """The reward model that is tuned for: the one that `reward_model` names, or else the recipe's."""
    given = context.models.get("reward_model")
    return load_reward_model(files_of(given[0]) if given else inputs["reward-model"].path)


def load_trainee(config: TuneConfig, context: Context, device: str) -> Denoiser:
    """The generator: in float32 if all of the UNet is trained, else in the training's precision (see `attach`)."""
    return load_denoiser(
        context.models["model"][0],
        device,
        "float32" if config.trained == "unet" else config.dtype,
        guidance_scale=max(config.monitor_guidance, config.guidance_scale),
        width=config.width,
        height=config.height,
        safety_checker=config.safety_checker,
    )


def attach(denoiser: Denoiser, config: TuneConfig) -> None:
    """Make what is trained trainable, in float32.

    Raises:
        StageError: peft is not installed.
    """
    if config.trained == "unet":
        denoiser.unet.requires_grad_(True)
        return
    try:
        from peft import LoraConfig
    except ImportError:
        raise StageError("low-rank additions need the extra 'tune'", fix="pip install 'irpipe[tune]'") from None
    targets = _ATTENTION + (_CONVOLUTIONS if config.lora_layers == "attention+convolutions" else [])
    torch.manual_seed(config.seed)  # peft draws from the global stream
    additions = LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=targets, init_lora_weights="gaussian")
    denoiser.unet.add_adapter(additions)
    for value in denoiser.unet.parameters():
        if value.requires_grad:
            value.data = value.data.float()


def save_generator(denoiser: Denoiser, config: TuneConfig, out: Path) -> None:
    """Write what diffusers loads: `lora/` for `load_lora_weights`, or `pipeline/` for `from_pretrained`."""
    quiet()
    if config.trained == "unet":
        denoiser.pipeline.save_pretrained(out / WHOLE, safe_serialization=True)
        _forget_paths(out / WHOLE)
        return
    from diffusers.utils import convert_state_dict_to_diffusers
    from peft.utils import get_peft_model_state_dict

    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(denoiser.unet))
    type(denoiser.pipeline).save_lora_weights(out / ADDITIONS, unet_lora_layers=layers, safe_serialization=True)


def _forget_paths(folder: Path) -> None:
    """Take out where the base lay on this machine: it is no content, and the card names the base."""
    for path in folder.rglob("*.json"):
        told = read_json(path)
        if isinstance(told, dict) and told.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def make_judges(stage: str, reward: Any, config: TuneConfig, context: Context, device: str) -> dict[str, Scorer]:
    """The trained reward, and those that nothing is trained on.

    Raises:
        ModelError: the held-out judge is the trained reward.
    """
    held_out, _ = init_reward_model(context.models["held_out_model"][0], "auto", config.seed)
    theirs, ours = held_out.state_dict(), reward.state_dict()
    if theirs.keys() == ours.keys() and all(
        theirs[name].shape == value.shape and torch.equal(theirs[name], value.cpu()) for name, value in ours.items()
    ):
        raise ModelError(
            "the held-out judge is the reward model that is tuned for: it could not tell hacking",
            fix=f"--set {stage}.held_out_model=... of other annotations, or a BLIP with a matching head",
        )
    return {
        REWARD: RewardModelScorer(reward, device, torch.float32),
        HELD_OUT: RewardModelScorer(held_out, device, torch.float32),
        SIMILARITY: ClipScorer(context.models["similarity_model"][0], device, torch.float32),
    }


def read_pairs(config: TuneConfig, inputs: Mapping[str, Artifact], context: Context, denoiser: Denoiser) -> RealPairs:
    """Real pairs, encoded.

    Raises:
        InputError: there are too few.
    """
    most = config.max_pretraining if config.pretraining else config.monitor_pairs
    if config.pretraining_data is not None:
        given = local_pairs(context.sources["pretraining_data"][0], most)
        what = str(context.sources["pretraining_data"][0])
    else:
        given, what = captioned(inputs["captioned-images"], most), inputs["captioned-images"].content_id
    least = config.monitor_pairs + (1 if config.pretraining else 0)
    if len(given.captions) < least:
        raise InputError(
            f"there are {len(given.captions):,} real pairs, and {config.monitor_pairs:,} are only looked at",
            where="real pairs",
            expected=f"at least {least:,}",
        )
    forbidden = excluded(context)
    leaked = [text for text in given.captions if normalise(text) in forbidden]
    if leaked:
        raise LeakError(
            f"{len(leaked):,} evaluation prompts are captions of real pairs, such as {leaked[0]!r}", fix="drop those pairs"
        )
    with context.progress("encoding real pairs", len(given.captions), "pairs") as bar:
        return encode_pairs(
            denoiser, given.captions, lambda: decoded(given.open()), what, context.work, config.sample_batch, bar.advance
        )


def captioned(artifact: Artifact, most: int) -> LocalPairs:
    """Real pairs of an artifact of captioned images."""
    texts = CAPTIONS.read(artifact.table("captions"))
    captions = dict(zip(texts["prompt_id"].to_pylist(), texts["prompt"].to_pylist(), strict=True))
    images = ImageReader(artifact.table("images"))
    chosen = images.ids[:most].tolist()
    prompts = [captions[row["prompt_id"]] for row in images.rows(["prompt_id"], chosen)]

    def pictures() -> Iterator[bytes]:
        return (row["image"]["bytes"] for row in images.rows(["image"], chosen))

    return LocalPairs(prompts, pictures)


def write_looks(looks: Sequence[Look], prompts: Sequence[tuple[int, str]], stage: str, out: Path) -> None:
    """The table `images`: two of each prompt at every look, by the generator `stage step N`."""
    with ExitStack() as stack:
        shards = stack.enter_context(ImageShards(out))
        for look in looks:
            for (identity, _), pictures in zip(prompts, look.pictures, strict=False):
                for turn, picture in enumerate(pictures):
                    shards.append(
                        encoded_row(
                            picture, identity, f"{show_row_id(identity)}/{look.step}-{turn}.png", f"{stage} step {look.step}"
                        )
                    )


def figures(tuner: Tuner, session: Session) -> dict[str, Any]:
    """What people want to see of a tuning."""
    state, first = tuner.state, tuner.looks[0]
    told: dict[str, Any] = {
        "steps": state.step,
        "kept_step": state.best_step,
        "stopped_for": state.stopped_for,
        "noted": state.noted,
        "prompts": len(session.prompts),
        "real_pairs": len(session.pairs) - session.config.monitor_pairs,
        "trainable_parameters": sum(value.numel() for value in tuner.weights.trained.values()),
        "pretraining_loss": "on" if session.config.pretraining else "left out",
    }
    kept = next(look for look in tuner.looks if look.step == state.best_step)
    for name in (REWARD, HELD_OUT, SIMILARITY, DENOISING):
        told[name] = {
            "before": round(first.mean(name), 4),
            "after": round(kept.mean(name), 4),
            "error": round(standard_error(kept.measures[name] - first.measures[name]), 4),
        }
    black = [value for _, name, value in state.rows if name == "blackened_share"]
    if any(black):
        told["blackened_share"] = round(float(np.mean(black)), 4)
    if len(state.micro_batches) > 1:
        told["micro_batches"] = state.micro_batches  # it went on with another one: equal to rounding, not bit by bit
    return told
