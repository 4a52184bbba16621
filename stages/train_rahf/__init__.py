"""Train RAHF: one model for the scores, heatmaps and misaligned words of an image; or one of the paper's baselines.

Reads: rich feedback; the images and splits of the recipe, or those that came with the feedback; captioned images if asked for.
Writes: the model, a reward model whose score is the plausibility unless somebody asks for another; curves; the table `rejected`.
Paper: RichHF, section 4: mean squared errors of heatmap pixels and scores, teacher-forced cross-entropy of the words, weighted.
Deviates: what the paper leaves open is ours (loss weights, augmentation); padding is masked; see `irpipe.models.reward.rahf`.
    Learning rate: the paper's 0.015 belongs to another optimiser.
Cost: a step is one pass of the vision tower and one of the T5 encoder per sample (multi-head), three encoder passes (augmented
    prompt). Disk: image_size^2 * 5 bytes per image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field, Strict

from irpipe.models.plugins import plugins
from irpipe.models.published import NO_GENERATOR, T5, VIT
from irpipe.models.training.config import OptimizerSettings, TrainingConfig, TrainingSettings, workers
from irpipe.pipeline.settings import Group
from irpipe.pipeline.stage import Config, Stage, group, setting

Channels = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Strict(False)]
_REPLICATIONS = "replications of RichHF"


class HeadSettings(Group):
    """Channels of the heads' layers."""

    map_convs: Channels = setting((768, 384), meaning="Convolutions of a heatmap head.", source=_REPLICATIONS)
    map_deconvs: Channels = setting(
        (768, 384, 384, 192),
        meaning="Its deconvolutions, each of which doubles the size: as many as lead from patches to pixels.",
        source=_REPLICATIONS,
    )
    map_refinements: int = setting(2, ge=0, le=8, meaning="Convolutions behind each deconvolution.", source=_REPLICATIONS)
    pixel_channels: int = setting(
        0, ge=0, meaning="Channels of a convolution of the picture itself that joins a heatmap. 0: none, as in the paper."
    )
    score_convs: Channels = setting((384, 128, 64), meaning="Convolutions of a score head.", source=_REPLICATIONS)
    score_denses: Channels = setting((2048, 1024), meaning="Its dense layers.", source=_REPLICATIONS)


class T5Settings(Group):
    """Sizes of the new T5 that stands on a BLIP (model names one)."""

    d_model: int = setting(768, ge=8, meaning="Width.", source="T5 base")
    d_ff: int = setting(2048, ge=8, meaning="Width of its dense layers.", source="T5 base")
    num_heads: int = setting(12, ge=1, meaning="Heads of its attention.", source="T5 base")
    num_layers: int = setting(12, ge=1, meaning="Layers of its encoder.", source="T5 base")
    num_decoder_layers: int = setting(12, ge=1, meaning="Layers of its decoder.", source="T5 base")


class AugmentationSettings(Group):
    """What is done to pictures at random; heatmaps move along."""

    horizontal_flip: bool = setting(False, meaning="Flip every other picture, unless its prompt says left or right.")
    crop: float = setting(1.0, gt=0, le=1, meaning="Cut out a square of at least this share of the side. 1: none.")
    noise_std: float = setting(
        0.0, ge=0, le=1, meaning="Add noise whose standard deviation is drawn from 0 to this (pixels 0 to 1)."
    )
    colour_jitter: float = setting(
        0.0, ge=0, le=1, meaning="Brightness, contrast and saturation change by a factor of up to 1 + this, or 1 - this."
    )
    jpeg_quality: int = setting(
        100, ge=10, le=100, meaning="Every other picture goes through JPEG of at least this quality. 100: none."
    )


class CaptionSettings(Group):
    """Pre-training on captioned images: which words of a caption were replaced (the paper's mixture has captions)."""

    weight: float = setting(0.0, ge=0, meaning="Weight of its loss. 0: off.")
    replaced: float = setting(0.15, gt=0, lt=1, meaning="Share of a caption's words that another caption's words replace.")
    images: int = setting(10_000, ge=1, meaning="Captioned images that are used, the first ones.")


class RahfOptimizer(OptimizerSettings):
    learning_rate: float = setting(
        2e-5, gt=0, le=1, meaning="Peak learning rate of AdamW.", source="a replication of RichHF; the paper's .015 is no AdamW's"
    )
    schedule: Literal["constant", "cosine"] = setting(
        "cosine", meaning="The learning rate after the warm-up. constant: its peak. cosine: half a cosine to 0 at the last step."
    )
    weight_decay: float = setting(2e-3, ge=0, meaning="Decoupled weight decay.", source="a replication of RichHF")


class RahfTraining(TrainingSettings):
    micro_batch_size: int = setting(
        16, ge=1, role="execution", meaning="Images per forward and backward pass. Lower it if memory runs out."
    )


class TrainRahfConfig(Config):
    variant: Literal["multi-head", "augmented-prompt", "resnet", "clip"] = setting(
        "multi-head",
        meaning="multi-head: a head per output. augmented-prompt: one head of each sort; the prompt says which output is wanted."
        " resnet, clip: the paper's baselines, scores and heatmaps of the image alone, and the four scores by a CLIP.",
        source="RichHF 4.2 and 4.4",
    )
    model: str | None = setting(
        None,
        role="model",
        check=NO_GENERATOR,
        meaning="A RAHF to go on from, or a BLIP whose two towers a new T5 stands on, instead of vision and t5; for a baseline"
        " the ResNet or the CLIP of transformers that is tuned, or a baseline to go on from.",
    )
    vision: str = setting(
        VIT,
        role="model",
        check=NO_GENERATOR,
        meaning="The vision tower: a ViT, SigLIP, CLIP or BLIP of transformers.",
        source="RichHF 4.1: ViT B/16; 384 pixels: a replication",
    )
    t5: str = setting(T5, role="model", check=NO_GENERATOR, meaning="The T5, with its tokenizer.", source="RichHF 4.1: base")
    prompt: Literal["read", "hidden"] = setting(
        "read",
        role="neutral",
        meaning="hidden: a baseline whose scores and heatmaps come from the image alone. Its decoder still sees the words.",
        source="RichHF, table 1: ResNet-50",
    )
    images: Literal["recipe", "feedback"] = setting(
        "recipe",
        meaning="Whose images and splits. recipe: those of its stages, by image id. feedback: those that came with the feedback.",
    )
    steps: int = setting(20_000, ge=1, le=10_000_000, meaning="Optimiser steps.", source=_REPLICATIONS)
    batch_size: int = setting(256, ge=1, le=65_536, meaning="Images per step.", source=_REPLICATIONS)
    heatmap_weight: float = setting(1.0, ge=0, meaning="Weight of the heatmaps' mean squared error.", source="a replication: 1")
    prompt_contrast: float = setting(
        0.0,
        ge=0,
        meaning="Weight, beside a heatmap's error, of the error of how it differs between the prompts of one image; then each"
        " step takes its images under all their prompts. Not in the validation loss. 0: off.",
    )
    score_weight: float = setting(1.0, ge=0, meaning="Weight of the scores' mean squared error.", source="a replication: 1")
    word_weight: float = setting(1.0, ge=0, meaning="Weight of the words' cross-entropy.", source="a replication: 1")
    freeze_rate: float = setting(
        0.0,
        ge=0,
        le=1,
        meaning="Share of the vision tower's layers that are frozen, and of a BLIP's text tower's; of a ResNet's stages; of both"
        " towers of a CLIP. 1: all of them.",
    )
    freeze: Annotated[tuple[Literal["encoder", "implausibility", "misalignment"], ...], Strict(False)] = setting(
        (),
        meaning="Parts of the RAHF that model names which stay as they are: the T5's encoder, heads of heatmaps. A heatmap that"
        " reads the prompt forgets it on feedback under one prompt per image; both frozen, with freeze_rate = 1, keep it.",
    )
    evaluate_every: int = setting(1000, ge=1, meaning="Steps between evaluations on the validation images.")
    evaluation_images: int = setting(1000, ge=1, meaning="Validation images that are evaluated, the first ones.")
    patience: int = setting(0, ge=0, meaning="Stop after so many evaluations without a lower loss. 0: never.")
    num_workers: int | None = setting(
        None, ge=0, le=256, role="execution", meaning="Processes that decode images. Unset: as many as may be used."
    )
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) that cannot be used that stops the run."
    )
    heads: HeadSettings = group(HeadSettings)
    t5_sizes: T5Settings = group(T5Settings)
    augmentation: AugmentationSettings = group(AugmentationSettings)
    captions: CaptionSettings = group(CaptionSettings)
    optimizer: RahfOptimizer = group(RahfOptimizer)
    training: RahfTraining = group(RahfTraining)

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if not (self.heatmap_weight or self.score_weight or self.word_weight):
            yield "all weights are 0: there is nothing to train"
        if self.freeze and self.model is None:
            yield "freeze keeps parts of a RAHF, and model names none"
        if set(self.freeze) - {"encoder"} and self.variant == "augmented-prompt":
            yield "freeze names a heatmap's head, and augmented-prompt has one head for both"
        if self.is_baseline and self.model is None:
            yield f"variant = {self.variant} tunes a network that model names, and it names none"
        if self.is_baseline and not self.score_weight:
            yield f"score_weight is 0, and a reward model as variant = {self.variant} gives scores"

    @property
    def is_baseline(self) -> bool:
        """Whether a baseline is trained, which gives less than a RAHF."""
        return self.variant in ("resnet", "clip")

    def unused(self) -> dict[str, str]:
        idle = self.training.unused() | self.optimizer.unused()
        if self.is_baseline:
            idle |= dict.fromkeys(_RAHF_ONLY, f"variant = {self.variant} has no such part")
            idle |= {f"t5_sizes.{name}": f"variant = {self.variant} has no T5" for name in T5Settings.model_fields}
            idle |= {f"captions.{name}": f"variant = {self.variant} has no words" for name in CaptionSettings.model_fields}
            if self.variant == "clip":
                maps = [f"heads.{name}" for name in HeadSettings.model_fields if name != "score_denses"]
                idle |= dict.fromkeys(("heatmap_weight", *maps), "variant = clip gives scores alone, of embeddings")
            elif self.heatmap_weight == 0:
                maps = [f"heads.{name}" for name in HeadSettings.model_fields if not name.startswith("score")]
                idle |= dict.fromkeys(maps, "heatmap_weight is 0: it has no heatmaps")
            return idle
        if self.heatmap_weight == 0:
            idle["prompt_contrast"] = "heatmap_weight is 0"
        if len(set(self.freeze)) == 3 and self.freeze_rate == 1:
            idle |= dict.fromkeys(("heatmap_weight", "prompt_contrast"), "freeze keeps all that heatmaps are made of")
        if self.model is not None:
            idle |= dict.fromkeys(("vision", "t5"), "model is given")
        if self.model is None:
            idle |= {f"t5_sizes.{name}": "t5 is given" for name in T5Settings.model_fields}
        if not self.captions.weight:
            idle |= {f"captions.{name}": "captions.weight is 0" for name in ("replaced", "images")}
        return idle

    def training_config(self) -> TrainingConfig:
        """The training as it is laid out."""
        report = max(1, self.steps // _ROWS)
        return TrainingConfig(
            "train-rahf", self.steps, self.optimizer, self.training, report_every=report, patience=self.patience
        )


_ROWS = 200  # of the training curves
_RAHF_ONLY = ("vision", "t5", "prompt", "prompt_contrast", "word_weight", "freeze")


def _reads(config: TrainRahfConfig) -> Sequence[str]:
    own = ("images", "splits") if config.images == "recipe" else ()
    return ("rich-feedback", *own, *(("captioned-images",) if config.captions.weight and not config.is_baseline else ()))


STAGE = Stage(
    name="train-rahf",
    version=1,
    reads=_reads,
    writes="reward-model",
    processes=workers,
    determinism="numeric",
    extra="train",
    plugins=plugins,
    config=TrainRahfConfig,
    run="irpipe.stages.train_rahf.run:run",
)
