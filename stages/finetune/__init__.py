"""Tune a generator on chosen images: its own, or existing ones that were chosen (RAFT, reward weighting, adaptation as in HPS).

Reads: the prompts with their splits, the reward model, and captioned images; with `source = "images"` the images and
    which of them were chosen.
Writes: what `refl` writes; `generator.json` names the negative prompt, which holds the identifier of bad images.
Paper: Dong et al. 2023 (RAFT: `select = "best"`), Lee et al. 2023 (`weighted`: E[r * -log p] + beta * E[-log p of captioned
    images]) and HPS, sections 6 and 7.2 (`best-and-worst`), as ImageReward, appendix E, sets them up for its table 4; HPS's own
    adaptation is `source = "images"`, and its control `source = "none"`.
Deviates: LoRA by default; -log p is the denoising loss; the pre-training loss has a weight in every step. RAFT's pools have
    100,000 images in the paper (10,000 prompts by 10); an iteration is `pool_every` steps.
Cost: per pool O(pool_prompts * images_per_prompt * num_steps) of the network, then O(batch_size) per step; of existing images one
    encoding each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.training.config import workers
from irpipe.models.tuning.config import TuneConfig
from irpipe.pipeline.stage import Stage, setting

_POOLS = ("pool_prompts", "images_per_prompt", "num_steps", "guidance_scale", "pool_every")


class FinetuneConfig(TuneConfig):
    source: Literal["pools", "images", "none"] = setting(
        "pools",
        meaning="What is trained on beside captioned images. pools: images that the generator makes, scored by the reward model,"
        " and chosen. images: what choose-images chose. none: nothing, as a control (regularisation only).",
        source="none: HPS 7.2",
    )
    select: Literal["best", "weighted", "best-and-worst"] = setting(
        "best",
        meaning="best: the best images of each prompt. weighted: all, each by the weight of its reward scaled to 0..1."
        " best-and-worst: the best and, marked by the identifier, the worst image of each prompt, if they stand out."
        " (source = pools; choose-images has its own.)",
        source="best: RAFT; weighted: Lee et al. 2023; best-and-worst: HPS 6",
    )
    best: int = setting(
        1, ge=1, le=1000, meaning="Images per prompt that are trained on (select = best).", source="ImageReward E: 1 of 10"
    )
    scale: Literal["pool", "prompt"] = setting(
        "pool",
        meaning="Over what rewards are scaled to 0..1 (select = weighted): all images, or those of each prompt.",
        source="ImageReward E",
    )
    alpha: float = setting(
        2.0,
        gt=0,
        le=100,
        meaning="An image stands out if its share of the softmax of its prompt's rewards (or, for bad ones, of their negatives)"
        " is above alpha / images (select = best-and-worst).",
        source="HPS 6: 2.0",
    )
    identifier: str = setting(
        "Weird image. ",
        min_length=1,
        meaning="What bad images' prompts begin with (select = best-and-worst, or source = images).",
        source="HPS, released code",
    )
    negative: Literal["identifier", "identifier+prompt"] = setting(
        "identifier",
        meaning="The negative prompt of the tuned generator, in evaluations and wherever it is used later: the identifier alone,"
        " or with the prompt behind it, as training saw it.",
        source="HPS 6: the identifier alone",
    )
    steps: int = setting(
        312, ge=1, le=1_000_000, meaning="Optimiser steps.", source="ImageReward E: one epoch of 20,000 images by 64"
    )
    pool_prompts: int = setting(
        2000, ge=1, meaning="Prompts per pool.", source="ImageReward E: 2,000; for RAFT 10,000 per iteration"
    )
    images_per_prompt: int = setting(10, ge=2, le=1000, meaning="Images per prompt of a pool.", source="ImageReward E: 10")
    num_steps: int = setting(50, ge=1, le=1000, meaning="Denoising steps of a pool's images.", source="DiffusionDB's default")
    guidance_scale: float = setting(
        7.5, ge=0, le=100, meaning="Classifier-free guidance of a pool's images. 1 or less: none.", source="ImageReward E: 7.5"
    )
    pool_every: int = setting(
        0, ge=0, meaning="Steps between pools of the tuned generator. 0: one pool, of the base.", source="RAFT in E: 156"
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        pools = self.source == "pools"
        if self.source == "none" and not self.pretraining.weight:
            yield "source is 'none' and pretraining.weight is 0: nothing would be trained on"
        if pools and self.pool_every >= self.steps:
            yield "pool_every is not below steps: there would be one pool. 0 says so"
        if pools and self.select == "best" and self.best >= self.images_per_prompt:
            yield "best is not below images_per_prompt: nothing would be chosen"

    def unused(self) -> dict[str, str]:
        idle = super().unused()
        if self.source != "pools":
            idle |= dict.fromkeys((*_POOLS, "select", "best", "scale", "alpha"), f"source is {self.source!r}")
        if self.source == "none":
            idle |= dict.fromkeys(("batch_size", "updates", "identifier", "negative"), "source is 'none'")
        if self.source == "pools":
            for select, names in (
                ("best", ("best",)),
                ("weighted", ("scale",)),
                ("best-and-worst", ("alpha", "identifier", "negative")),
            ):
                if self.select != select:
                    idle |= dict.fromkeys(names, f"select is {self.select!r}")
        return idle

    @property
    def marks(self) -> bool:
        """Whether bad images are trained on, marked by the identifier."""
        return self.source == "images" or (self.source == "pools" and self.select == "best-and-worst")

    def reads(self) -> Sequence[str]:
        """The kinds that are read."""
        return (*self.shared_reads(), *(("images", "chosen-images") if self.source == "images" else ()))


STAGE = Stage(
    name="finetune",
    version=3,
    reads=FinetuneConfig.reads,
    writes="generator",
    processes=workers,
    determinism="numeric",
    extra="tune",
    config=FinetuneConfig,
    run="irpipe.stages.finetune.run:run",
    plugins=plugins,
)
