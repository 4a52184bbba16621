"""The settings that all tunings of a generator share. Imports no torch: stages declare themselves with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Strict, model_validator

from irpipe.models.published import BLIP, CLIP, STABLE_DIFFUSION
from irpipe.models.scorers.config import REWARD_MODEL_MEANING
from irpipe.pipeline.stage import Config, FilePath, Sources, setting

_CODE = "released code, ReFL.py"


class TuneConfig(Config):
    model: str = setting(
        STABLE_DIFFUSION,
        role="model",
        meaning="The generator to tune: Stable Diffusion 1 or 2, or SDXL, of diffusers.",
        source="ImageReward 4.2: SD v1.4",
    )
    reward_model: str | None = setting(None, role="model", meaning=REWARD_MODEL_MEANING)
    trained: Literal["lora", "unet"] = setting(
        "lora",
        meaning="What is trained. lora: low-rank additions to the attention. unet: the whole network, as published.",
        source="HPS 7.2 for lora; ImageReward tunes the whole UNet",
    )
    rank: int = setting(32, ge=1, le=1024, meaning="Rank of the additions (lora).", source="HPS 7.2: 32")
    lora_layers: Literal["attention", "attention+convolutions"] = setting(
        "attention", meaning="Which layers get additions (lora).", source="HPS 7.2: query, key, value and output projections"
    )
    steps: int = setting(100, ge=1, le=1_000_000, meaning="Optimiser steps.", source=_CODE + ": 100")
    batch_size: int = setting(
        64, ge=1, le=65_536, meaning="Samples of the objective a step, whatever the micro-batch.", source="ImageReward 4.2: 64"
    )
    learning_rate: float = setting(1e-5, gt=0, le=1, meaning="Of AdamW, once warmed up; constant.", source="ImageReward 4.2")
    warmup_steps: int = setting(0, ge=0, meaning="Steps over which the learning rate rises to its value.", source=_CODE + ": 0")
    adam_beta2: float = setting(0.999, ge=0, lt=1, meaning="AdamW's second decay.", source=_CODE)
    weight_decay: float = setting(1e-2, ge=0, meaning="AdamW's.", source=_CODE)
    optimizer: Literal["adamw", "adamw8bit"] = setting(
        "adamw", meaning="adamw8bit keeps its state in 8 bits; needs bitsandbytes."
    )
    max_grad_norm: float = setting(1.0, ge=0, meaning="Longest gradient; longer ones are scaled down. 0: any.", source=_CODE)
    average: float = setting(
        0.99,
        ge=0,
        lt=1,
        meaning="Decay, a step, of a running average of the weights, which is judged and kept. 0: none.",
        source=_CODE + ": on, with diffusers' own decay",
    )
    guidance_scale: float = setting(
        1.0, ge=0, le=100, meaning="Classifier-free guidance in training; 1 and less is none.", source=_CODE + ": none"
    )
    pretraining: float = setting(
        1.0,
        ge=0,
        le=1e6,
        meaning="Weight of the denoising loss on real pairs. 0: none, which is how published code made images worse.",
        source="ImageReward, algorithm 1",
    )
    pretraining_batch: int = setting(64, ge=1, le=65_536, meaning="Real pairs a step.", source="ImageReward 4.2: 64")
    pretraining_data: FilePath | None = setting(
        None,
        role="external",
        meaning="Real pairs instead of the recipe's: a folder with metadata.jsonl or metadata.csv (file_name, text), or a Parquet"
        " file or folder with the columns image and text, as `datasets` saves them.",
    )
    max_pretraining: int = setting(
        20_000, ge=1, meaning="Real pairs that are used, the first ones.", source="ImageReward E: 20,000"
    )
    updates: Literal["sequential", "together"] = setting(
        "sequential",
        meaning="sequential: a step on real pairs, then one on the objective, as in algorithm 1. together: one on their sum.",
        source="ImageReward, algorithm 1",
    )
    exclude: Sources = setting(
        (),
        role="external",
        meaning="Files of evaluation prompts, or ids of artifacts: one of them among the training prompts is an error.",
    )
    width: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    height: int | None = setting(None, ge=8, le=8192, multiple_of=8, meaning="Pixels. Unset: the model's own.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "bfloat16",
        meaning="Precision of the arithmetic and of what is not trained; what is trained stays float32.",
        source="ImageReward 4.2: half precision",
    )
    safety_checker: bool = setting(True, meaning="Leave out images that the model's own safety checker blackens, if it has one.")
    seed: int = setting(0, ge=0, meaning="Seed of order, noise and initial additions.")
    # -- monitors and the stop rule
    monitor_every: int = setting(10, ge=1, meaning="Steps between looks at held-out prompts.")
    monitor_prompts: int = setting(64, ge=2, le=10_000, meaning="Held-out prompts that are looked at, of the validation split.")
    monitor_images: int = setting(
        2,
        ge=2,
        le=16,
        role="neutral",
        meaning="Images of each. The fewer prompts, the more it takes to tell a gain from chance.",
    )
    monitor_steps: int = setting(40, ge=1, le=1000, meaning="Denoising steps of monitored images.")
    monitor_guidance: float = setting(
        1.0, ge=0, le=100, meaning="Classifier-free guidance of monitored images; 1 and less is none."
    )
    monitor_pairs: int = setting(128, ge=1, le=10_000, meaning="Real pairs, never trained on, of the watched denoising loss.")
    held_out_model: str = setting(
        BLIP,
        role="model",
        meaning="The judge that nothing is trained on: a reward model of other annotations, or a BLIP with a matching head.",
    )
    similarity_model: str = setting(CLIP, role="model", meaning="The CLIP of prompt-image similarity.")
    max_denoising_rise: float = setting(
        0.3, gt=0, meaning="Stop rule: the denoising loss on real pairs may rise by this share of its start (docs/LOG.md)."
    )
    max_statistic_change: float = setting(2.0, gt=1, meaning="Stop rule: an image statistic may grow or shrink by this factor.")
    max_held_out_fall: float = setting(
        3.0,
        gt=0,
        meaning="Stop rule: a held-out judge may fall below its best by so many standard errors over prompts while the"
        " trained reward has risen.",
    )
    on_trip: Literal["stop", "note"] = setting(
        "stop",
        meaning="What the rule does. stop: end, and keep the best look before it. note: only say so, and keep the last step.",
    )
    kept_images: int = setting(16, ge=0, le=10_000, meaning="Monitored prompts whose images are kept at every look.")
    # -- how it is reached
    micro_batch: int = setting(2, ge=1, role="execution", meaning="Samples a backward pass. Lower it where memory ends.")
    sample_batch: int = setting(16, ge=1, role="execution", meaning="Images that are sampled at a time without gradients.")
    checkpoint_activations: bool = setting(
        False, role="execution", meaning="Compute activations again on the way back: less memory, a third more time."
    )
    checkpoint_minutes: float = setting(
        5.0, ge=0, role="execution", meaning="Minutes between checkpoints, besides those at every look and interrupt."
    )
    device: str = setting("auto", role="execution", meaning="Where it trains: auto, cpu, cuda, mps.")
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Strict(False)] = setting(
        (), role="execution", meaning="Where curves go besides, while it runs; each must be installed."
    )
    track_to: str = setting("runs", role="execution", meaning="The folder of TensorBoard's files.")

    @model_validator(mode="after")
    def _looks_before_its_end(self) -> Any:
        if self.kept_images > self.monitor_prompts:
            raise ValueError("kept_images is above monitor_prompts")
        return self

    def unused(self) -> dict[str, str]:
        idle = {} if self.trackers else {"track_to": "no trackers are given"}
        if self.trained == "unet":
            idle |= dict.fromkeys(("rank", "lora_layers"), "trained is 'unet'")
        if not self.pretraining:
            idle |= dict.fromkeys(("pretraining_batch", "updates"), "pretraining is 0")
        return idle

    def shared_reads(self) -> Sequence[str]:
        """The kinds that every tuning reads."""
        real = () if self.pretraining_data is not None else ("captioned-images",)
        reward = () if self.reward_model is not None else ("reward-model",)
        return ("splits", *reward, *real)


class PoolConfig(TuneConfig):
    pool_prompts: int = setting(2000, ge=1, meaning="Prompts of a pool.", source="ImageReward E: 2,000")
    images_per_prompt: int = setting(10, ge=2, le=1000, meaning="Images of each of them.", source="ImageReward E: 10")
    num_steps: int = setting(50, ge=1, le=1000, meaning="Denoising steps of the pool's images.", source="DiffusionDB's default")
    guidance_scale: float = setting(
        7.5, ge=0, le=100, meaning="Classifier-free guidance of the pool's images.", source="ImageReward E: 7.5"
    )
    pool_every: int = setting(0, ge=0, meaning="Steps between pools of the tuned generator. 0: one, of the base.")

    @model_validator(mode="after")
    def _pools(self) -> PoolConfig:
        if self.pool_every >= self.steps:
            raise ValueError("pool_every is not below steps: there would be one pool. 0 says so")
        return self
