"""Train a reward model on preference pairs.

Reads: the pairs, the annotations (for the prompts' texts), and the images.
Writes: the best model (safetensors, tokenizer, score card), the last one in `last/`, the tables `curves` and `rejected`, a plot.
Paper: ImageReward, sections 3.1 and 4.1, and the released training code.
Deviates: by default it starts from a BLIP tuned on COCO's captions, for its matching head, and the head starts as the logit of
    image-text matching (`head = "published"` for the paper's); all pairs of a prompt are in one step, so that each image is
    encoded once; frozen blocks of the vision tower run without stochastic depth.
Cost: per epoch O(images) of the vision tower and of the text tower, whatever the number of pairs; disk O(images * size^2);
    memory O(micro_batch_size) of activations, and 60 bytes per pair.
"""

from __future__ import annotations

from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.published import BLIP, NO_GENERATOR
from irpipe.models.training.config import OptimizerSettings, TrainingConfig, TrainingSettings, workers
from irpipe.pipeline.stage import Config, Group, Stage, group, setting

CODE = "released code, train/"


class RmOptimizer(OptimizerSettings):
    """AdamW, its learning rate, and the averaged weights."""

    warmup_steps: int = setting(
        0,
        ge=0,
        meaning="Steps over which the learning rate rises linearly to its peak.",
        source=CODE + "scripts/train_one_node.sh: warmup 0",
    )
    schedule: Literal["constant", "cosine"] = setting(
        "cosine",
        meaning="The learning rate after the warm-up. constant: its peak. cosine: half a cosine to 0 at the last step.",
        source=CODE + "scripts/train_one_node.sh",
    )
    weight_decay: float = setting(0.0, ge=0, meaning="Decoupled weight decay. 0: plain Adam.", source=CODE + "src/train.py: Adam")
    max_grad_norm: float = setting(0.0, ge=0, meaning="Clip the gradient norm to this value. 0: no clipping.", source=CODE)


class RmEvaluation(Group):
    """When the validation pairs are evaluated."""

    per_epoch: int = setting(
        4,
        ge=1,
        le=1000,
        meaning="Evaluations per epoch, evenly spaced, and one before the first step.",
        source=CODE + "src/train.py",
    )
    patience: int = setting(0, ge=0, meaning="Stop after so many evaluations without a lower loss. 0: never.")


class RmTraining(TrainingSettings):
    """How a training is computed: precision, seed, memory, checkpoints and trackers."""

    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", meaning="Precision of the arithmetic. Trained weights stay in float32.", source=CODE + "fp32"
    )
    seed: int = setting(1234, ge=0, meaning="Seed of initial weights, order and noise.", source=CODE + "src/train.py")
    micro_batch_size: int = setting(
        64,
        ge=1,
        role="execution",
        meaning="About this many images per forward pass; a prompt's images stay together. Lower it if memory runs out.",
    )


class TrainRmConfig(Config):
    model: str = setting(
        BLIP,
        role="model",
        check=NO_GENERATOR,
        meaning="What it starts from: a BLIP with a matching head, BLIP's model_large.pth or ImageReward.pt, or a folder with a"
        " reward model of any installed format, such as one that train-rm wrote.",
        source="ImageReward 3.1: BLIP",
    )
    head: Literal["auto", "itm", "published", "random", "kept"] = setting(
        "auto",
        meaning="How the head starts. itm: as the start's logit of image-text matching. published: near zero. random: with"
        " even gain. kept: as it comes. auto: kept, else itm, else random.",
        source="published: ImageReward 3.1, N(0, 1/(d+1)); see docs/LOG.md for why it is not the default",
    )
    loss: Literal["pairwise", "choice", "plackett-luce"] = setting(
        "pairwise",
        role="neutral",
        meaning="pairwise: each pair by itself. choice: which image of a ranking people put first, among all of it."
        " plackett-luce: and then which of the others, down to the last.",
        source="pairwise: ImageReward, equation 1; choice: HPS, section 5",
    )
    fit_scale: bool = setting(
        True,
        meaning="With the head itm: scale it, by one number, to the lowest loss on training pairs before the first step. The"
        " logit of image-text matching is far too confident as a preference.",
    )
    image_size: int | None = setting(
        224,
        ge=8,
        le=1024,
        meaning="Side of the vision tower's square input, in pixels. Unset: the start's own.",
        source="ImageReward: 224",
    )
    text_dropout: float = setting(
        0.1, ge=0, lt=1, meaning="Dropout of ImageReward's text tower, in training.", source="released code, med_config.json: 0.1"
    )
    batch_pairs: int = setting(
        64,
        ge=1,
        meaning="Target number of pairs per optimiser step. All pairs of a prompt stay in one step, so a step may hold a few more"
        " or fewer.",
        source="ImageReward 4.1",
    )
    epochs: int = setting(10, ge=1, le=10_000, meaning="Passes over the pairs.", source=CODE + "scripts/train_one_node.sh")
    freeze: Literal["published", "layers"] = setting(
        "published",
        meaning="What is frozen. Of an ImageReward, published: exactly what the released code freezes, with one parameter of the"
        " next layer; layers: embeddings and whole layers. Of a CLIP, what image_layers counts; published: the projection is one,"
        " as in HPSv2's code; layers: blocks alone.",
        source=CODE + "src/utils.py; HPSv2, released code",
    )
    freeze_rate: float = setting(
        0.7,
        ge=0,
        le=1,
        meaning="Share of both towers' layers that are frozen, rounded down, and the embeddings with them. 0: nothing.",
        source="ImageReward 4.1",
    )
    image_layers: int | None = setting(
        None,
        ge=0,
        le=1000,
        role="neutral",
        meaning="Layers of a CLIP's image tower that train, the last ones (see freeze). Unset: by freeze_rate.",
        source="HPS 7.1: 10",
    )
    text_layers: int | None = setting(
        None,
        ge=0,
        le=1000,
        role="neutral",
        meaning="Layers of a CLIP's text tower that train, the last ones. 0: nothing of it. Unset: by freeze_rate.",
        source="HPS 7.1: 6",
    )
    fit: Literal["crop", "pad"] | None = setting(
        None,
        role="neutral",
        meaning="How a picture becomes a square. crop: the shorter side is resized and the centre cropped. pad: the longer side"
        " is resized, and the rest is black. Unset: as the start does it.",
        source="HPS 7.1: pad",
    )
    random_shift: int = setting(
        0, ge=0, le=64, meaning="Shift a prompt's images by up to so many pixels, at random. The paper does not.", source=CODE
    )
    horizontal_flip: bool = setting(
        False,
        meaning="Flip the images of every other prompt, at random, unless its text says left or right. The paper does not.",
    )
    noise_std: float = setting(
        0.0,
        ge=0,
        le=1,
        meaning="Add noise to pixels from 0 to 1, with a standard deviation drawn per prompt from 0 to this value.",
        source=CODE,
    )
    max_prompts: int = setting(
        0,
        ge=0,
        role="neutral",
        meaning="Train on so many prompts, drawn by id: larger numbers contain the smaller ones. 0: all.",
        source="ImageReward, table 2: 1k, 2k, 4k, 8k",
    )
    collapse_after: int = setting(
        200,
        ge=0,
        role="execution",
        meaning="Detect collapse early: stop with an error if by this step the loss is still ln 2 and all images score alike."
        " 0: never, which head = published may need.",
    )
    num_workers: int | None = setting(
        None,
        ge=0,
        le=256,
        role="execution",
        meaning="Processes that decode images. Unset: all that may be used, one for few images.",
    )
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of pairs (of at least 100) with unusable images that stops the run."
    )
    optimizer: RmOptimizer = group(RmOptimizer)
    evaluation: RmEvaluation = group(RmEvaluation)
    training: RmTraining = group(RmTraining)

    def unused(self) -> dict[str, str]:
        idle = self.training.unused() | self.optimizer.unused()
        if self.head in ("published", "random", "kept"):
            idle["fit_scale"] = f"head = {self.head}"
        if self.loss != "pairwise":
            idle["fit_scale"] = f"loss = {self.loss}"
        if not self.freeze_rate and self.image_layers is None:
            idle["freeze"] = "freeze_rate is 0"
        if self.image_layers is not None and self.text_layers is not None:
            idle["freeze_rate"] = "image_layers and text_layers are given"
        return idle

    def training_config(self, steps: int) -> TrainingConfig:
        """The training of so many steps."""
        return TrainingConfig(
            "train-rm",
            steps,
            self.optimizer,
            self.training,
            report_every=max(1, steps // (self.epochs * _ROWS_PER_EPOCH)),
            patience=self.evaluation.patience,
        )


_ROWS_PER_EPOCH = 20  # of the training curves

STAGE = Stage(
    name="train-rm",
    version=1,
    reads=("pairs", "annotations", "images"),
    writes="reward-model",
    processes=workers,
    determinism="numeric",
    extra="train",
    plugins=plugins,
    config=TrainRmConfig,
    run="irpipe.stages.train_rm.run:run",
)
