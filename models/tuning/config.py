"""The settings that all tunings of a generator share. Imports no torch: stages declare themselves with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from irpipe.models.published import BLIP, CLIP, NO_GENERATOR, STABLE_DIFFUSION
from irpipe.models.scorers.config import REWARD_MODEL_MEANING
from irpipe.models.training.config import OptimizerSettings, TrainingConfig, TrainingSettings
from irpipe.pipeline.settings import Group
from irpipe.pipeline.stage import Config, FilePath, Sources, group, setting

_CODE = "released code, ReFL.py"


class TuningOptimizer(OptimizerSettings):
    """AdamW, its learning rate, and the averaged weights."""

    weight_decay: float = setting(1e-2, ge=0, meaning="Decoupled weight decay. 0: plain Adam.", source=_CODE)
    max_grad_norm: float = setting(
        1.0, ge=0, meaning="Clip the gradient norm to this value. 0: no clipping.", source=_CODE + ": 1"
    )
    ema_decay: float = setting(
        0.99,
        ge=0,
        lt=1,
        meaning="Decay per step of the weights' exponential moving average (EMA). The averaged weights are evaluated and saved."
        " 0: off.",
        source=_CODE + ": on, with diffusers' own decay",
    )


class TuningSettings(TrainingSettings):
    """How a training is computed: precision, seed, memory, checkpoints and trackers."""

    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "bfloat16",
        meaning="Precision of the arithmetic and of frozen weights. Trained weights stay in float32.",
        source="ImageReward 4.2: half precision",
    )
    sample_batch_size: int = setting(
        16, ge=1, role="execution", meaning="Images sampled at a time without gradients. Lower it if memory runs out."
    )


class LoraSettings(Group):
    """Low-rank adapters (LoRA) of the UNet."""

    rank: int = setting(32, ge=1, le=1024, meaning="Rank of the adapters.", source="HPS 7.2: 32")
    layers: Literal["attention", "attention+convolutions"] = setting(
        "attention", meaning="Layers with an adapter.", source="HPS 7.2: query, key, value and output projections"
    )


class PretrainingSettings(Group):
    """The pre-training loss on captioned images, which keeps a generator from forgetting."""

    weight: float = setting(
        1.0,
        ge=0,
        le=1e6,
        meaning="Weight of the denoising loss on captioned images. 0: off, with which published code made images worse.",
        source="ImageReward, algorithm 1",
    )
    batch_size: int = setting(64, ge=1, le=65_536, meaning="Captioned images per step.", source="ImageReward 4.2: 64")
    max_images: int = setting(
        20_000, ge=1, meaning="Captioned images that are used, the first ones.", source="ImageReward E: 20,000"
    )


class EvaluationSettings(Group):
    """How a generator is evaluated while it is tuned, and when it is stopped."""

    every: int = setting(10, ge=1, meaning="Evaluate on the held-out prompts every so many steps.")
    prompts: int = setting(64, ge=2, le=10_000, meaning="Held-out prompts, of the validation split.")
    images: int = setting(
        2, ge=2, le=16, meaning="Images per held-out prompt. With few prompts, more images tell a gain from chance."
    )
    num_steps: int = setting(40, ge=1, le=1000, meaning="Denoising steps of these images.")
    guidance_scale: float = setting(1.0, ge=0, le=100, meaning="Classifier-free guidance of these images. 1 or less: none.")
    captioned_images: int = setting(
        128, ge=1, le=10_000, meaning="Captioned images on which the denoising loss is measured; none is trained on."
    )
    held_out_model: str = setting(
        BLIP,
        role="model",
        check=NO_GENERATOR,
        meaning="A scorer that nothing is trained on: a reward model of other annotations, or a BLIP with a matching head.",
    )
    similarity_model: str = setting(CLIP, role="model", check=NO_GENERATOR, meaning="The CLIP of the prompt-image similarity.")
    max_denoising_rise: float = setting(
        0.3, gt=0, meaning="Stop rule: the denoising loss may rise by this share of its value at the start (docs/LOG.md)."
    )
    max_statistic_change: float = setting(2.0, gt=1, meaning="Stop rule: an image statistic may grow or shrink by this factor.")
    max_held_out_fall: float = setting(
        3.0,
        gt=0,
        meaning="Stop rule: a held-out scorer may fall below its best by so many standard errors over prompts while the trained"
        " reward has risen.",
    )
    early_stopping: Literal["stop", "log"] = setting(
        "stop",
        meaning="When the stop rule fires. stop: end the run and save the best evaluation so far. log: log it, go on, and save"
        " the last step.",
    )
    kept_images: int = setting(16, ge=0, le=10_000, meaning="Held-out prompts whose images are saved at every evaluation.")


class TuneConfig(Config):
    model: str = setting(
        STABLE_DIFFUSION,
        role="model",
        check="irpipe.models.classes:tunable_generator",
        meaning="The generator to tune: Stable Diffusion 1 or 2, or SDXL, of diffusers.",
        source="ImageReward 4.2: SD v1.4",
    )
    reward_model: str | None = setting(None, role="model", check=NO_GENERATOR, meaning=REWARD_MODEL_MEANING)
    aspect: str | None = setting(
        None,
        role="neutral",
        meaning="Which score of a RAHF is the reward: plausibility, alignment, aesthetics or overall. Unset: the model's own.",
    )
    trainable: Literal["lora", "unet"] = setting(
        "lora",
        meaning="What is trained. lora: low-rank adapters in the UNet. unet: the whole UNet, as published.",
        source="HPS 7.2 for lora; ImageReward tunes the whole UNet",
    )
    steps: int = setting(100, ge=1, le=1_000_000, meaning="Optimiser steps.", source=_CODE + ": 100")
    batch_size: int = setting(
        64, ge=1, le=65_536, meaning="Samples of the objective per step, over all micro-batches.", source="ImageReward 4.2: 64"
    )
    guidance_scale: float = setting(
        1.0, ge=0, le=100, meaning="Classifier-free guidance in training. 1 or less: none.", source=_CODE + ": none"
    )
    updates: Literal["sequential", "together"] = setting(
        "sequential",
        meaning="sequential: an update on captioned images, then one on the objective, as in algorithm 1. together: one on their"
        " sum.",
        source="ImageReward, algorithm 1",
    )
    pretraining_data: FilePath | None = setting(
        None,
        role="external",
        meaning="Captioned images instead of the recipe's: a folder with metadata.jsonl or metadata.csv (file_name, text), or a"
        " Parquet file or folder with the columns image and text, as `datasets` saves them.",
    )
    exclude: Sources = setting(
        (),
        role="external",
        meaning="Files of evaluation prompts, or ids of artifacts: one of them among the training prompts is an error.",
    )
    width: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    height: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    safety_checker: bool = setting(True, meaning="Leave out images that the model's own safety checker blackens, if it has one.")
    optimizer: TuningOptimizer = group(TuningOptimizer)
    lora: LoraSettings = group(LoraSettings)
    pretraining: PretrainingSettings = group(PretrainingSettings)
    evaluation: EvaluationSettings = group(EvaluationSettings)
    training: TuningSettings = group(TuningSettings)

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.evaluation.kept_images > self.evaluation.prompts:
            yield "evaluation.kept_images is above evaluation.prompts"

    def unused(self) -> dict[str, str]:
        idle = self.training.unused() | self.optimizer.unused()
        if self.trainable == "unet":
            idle |= dict.fromkeys(("lora.rank", "lora.layers"), "trainable is 'unet'")
        if not self.pretraining.weight:
            idle |= dict.fromkeys(("pretraining.batch_size", "updates"), "pretraining.weight is 0")
        return idle

    def shared_reads(self) -> Sequence[str]:
        """The kinds that every tuning reads."""
        captioned = () if self.pretraining_data is not None else ("captioned-images",)
        reward = () if self.reward_model is not None else ("reward-model",)
        return ("splits", *reward, *captioned)

    def training_config(self, stage: str) -> TrainingConfig:
        """The training of a stage with these settings."""
        keep: Literal["best", "last"] = "best" if self.evaluation.early_stopping == "stop" else "last"
        return TrainingConfig(stage, self.steps, self.optimizer, self.training, self.updates, keep=keep)
