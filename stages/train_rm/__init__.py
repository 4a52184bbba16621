"""Train a reward model on preference pairs.

Reads: the pairs, the annotations (for the prompts' texts), and the images, or what the vision tower's frozen part made of them.
Writes: the best model (safetensors, tokenizer, score card), the last one in `last/`, the tables `curves` and `rejected`, a plot.
Paper: ImageReward, sections 3.1 and 4.1, and the released training code.
Deviates: by default it starts from a BLIP tuned on COCO's captions, for its matching head, and the head starts as the logit of
    image-text matching (`head = "published"` for the paper's); all pairs of a prompt are in one step, so that each image is
    encoded once; frozen blocks of the vision tower run without stochastic depth, once an image where their output is kept.
Cost: per epoch O(images) of the vision tower and of the text tower, whatever the number of pairs; disk O(images * size^2);
    memory O(micro_batch) of activations, and 60 bytes a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Strict, model_validator

from irpipe.models.plugins import plugins
from irpipe.models.published import BLIP
from irpipe.pipeline.stage import Config, Stage, setting

CODE = "released code, train/"


class TrainRmConfig(Config):
    model: str = setting(
        BLIP,
        role="model",
        meaning="What it starts from: a BLIP with a matching head, BLIP's model_large.pth or ImageReward.pt in a folder,"
        " or a folder that train-rm wrote.",
        source="ImageReward 3.1: BLIP",
    )
    head: Literal["auto", "itm", "published", "random", "kept"] = setting(
        "auto",
        meaning="How the head starts. itm: as the start's logit of image-text matching. published: near zero. random: with"
        " even gain. kept: as it comes. auto: kept, else itm, else random.",
        source="published: ImageReward 3.1, N(0, 1/(d+1)); see docs/LOG.md for why it is not the default",
    )
    fit_scale: bool = setting(
        True,
        meaning="With the head itm: scale it, by one number, to the least loss on training pairs before the first step. The"
        " logit of image-text matching is far too sure of itself as a preference.",
    )
    image_size: int | None = setting(
        224,
        ge=8,
        le=1024,
        meaning="Pixels of the vision tower's square. Unset: the start's own.",
        source="ImageReward: 224",
    )
    text_dropout: float = setting(
        0.1, ge=0, lt=1, meaning="Dropout of the text tower, in training.", source="released code, med_config.json: 0.1"
    )
    learning_rate: float = setting(1e-5, gt=0, le=1, meaning="Peak learning rate of Adam.", source="ImageReward 4.1")
    warmup: float = setting(
        0.0,
        ge=0,
        lt=1,
        meaning="Share of the steps over which the learning rate rises to its peak; then a cosine to 0.",
        source=CODE + "scripts/train_one_node.sh",
    )
    weight_decay: float = setting(
        0.0, ge=0, meaning="Decoupled weight decay; 0 is plain Adam.", source=CODE + "src/train.py: Adam"
    )
    max_grad_norm: float = setting(0.0, ge=0, meaning="Longest gradient; longer ones are scaled down. 0: any.", source=CODE)
    batch_pairs: int = setting(64, ge=1, meaning="Pairs a step, about: prompts are not cut.", source="ImageReward 4.1")
    epochs: int = setting(10, ge=1, le=10_000, meaning="Passes over the pairs.", source=CODE + "scripts/train_one_node.sh")
    freeze: Literal["published", "layers"] = setting(
        "published",
        meaning="What freeze_rate freezes. published: exactly what the released code does, with one parameter of the next layer."
        " layers: embeddings and whole layers.",
        source=CODE + "src/utils.py",
    )
    freeze_rate: float = setting(
        0.7,
        ge=0,
        le=1,
        meaning="Share of both towers' layers that stay, rounded down. 0: none, nor embeddings.",
        source="ImageReward 4.1",
    )
    frozen_part: Literal["auto", "kept", "recomputed"] = setting(
        "auto",
        meaning="The vision tower's frozen part. kept: once an image, by encode-images. recomputed: in every step. auto: kept"
        " where that is possible and pays: something is frozen, images are not augmented, and there are at least 2 epochs.",
    )
    shift: int = setting(
        0, ge=0, le=64, meaning="Move a prompt's images by up to so many pixels. The paper does not.", source=CODE
    )
    mirror: bool = setting(
        False, meaning="Mirror the images of every other prompt, and swap left and right in its text. The paper does not."
    )
    grain: float = setting(0.0, ge=0, le=1, meaning="Noise added to pixels from 0 to 1: up to this deviation.", source=CODE)
    max_prompts: int = setting(
        0,
        ge=0,
        role="neutral",
        meaning="Train on so many prompts, drawn by id: more hold fewer. 0: all.",
        source="ImageReward, table 2: 1k, 2k, 4k, 8k",
    )
    average: float = setting(
        0.0,
        ge=0,
        lt=1,
        role="neutral",
        meaning="Decay, a step, of a running average of the weights, which is what is validated and kept. 0: none.",
    )
    validations: int = setting(4, ge=1, le=1000, meaning="Validations an epoch, and one before.", source=CODE + "src/train.py")
    keep_by: Literal["loss", "accuracy"] = setting(
        "loss", meaning="Which validation figure the best model is of.", source=CODE + "src/train.py: lowest loss"
    )
    patience: int = setting(0, ge=0, meaning="Stop after so many validations without a better one. 0: never.")
    collapse_after: int = setting(
        200,
        ge=0,
        role="execution",
        meaning="Stop with an error if by this step the loss is still ln 2 and all images score alike. 0: never, which"
        " head = published may need.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", meaning="Precision of the arithmetic; what is trained stays float32.", source=CODE + "fp32"
    )
    seed: int = setting(1234, ge=0, meaning="Seed of head, order, dropout and augmentation.", source=CODE + "src/train.py")
    micro_batch: int = setting(
        64, ge=1, role="execution", meaning="Images a forward pass, about: prompts are not cut. Lower it where memory ends."
    )
    checkpoint_activations: bool = setting(
        False, role="execution", meaning="Compute activations again on the way back: less memory, a third more time."
    )
    checkpoint_minutes: float = setting(
        5.0, ge=0, role="execution", meaning="Minutes between checkpoints, besides those at every validation and interrupt."
    )
    device: str = setting("auto", role="execution", meaning="Where it trains: auto, cpu, cuda, mps.")
    num_workers: int | None = setting(
        None,
        ge=0,
        le=256,
        role="execution",
        meaning="Processes that decode images. Unset: as many as may be used, one for few images.",
    )
    trackers: Annotated[tuple[Literal["tensorboard", "wandb", "mlflow"], ...], Strict(False)] = setting(
        (), role="execution", meaning="Where curves go besides, while it runs; each must be installed."
    )
    track_to: str = setting("runs", role="execution", meaning="The folder of TensorBoard's files.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of pairs (of at least 100) with unusable images that stops the run."
    )

    @model_validator(mode="after")
    def _kept_is_possible(self) -> TrainRmConfig:
        if self.frozen_part == "kept" and self.augmented:
            raise ValueError("frozen_part = kept goes without shift, mirror and grain: they change the images in every step")
        if self.frozen_part == "kept" and self.freeze_rate == 0:
            raise ValueError("frozen_part = kept goes with a freeze_rate above 0")
        return self

    @property
    def augmented(self) -> bool:
        """Whether a step sees other pixels than the image's."""
        return bool(self.shift or self.mirror or self.grain)

    @property
    def reads_features(self) -> bool:
        """Whether the frozen part's output is read rather than computed.

        Keeping costs one pass and reading back; computing again costs a pass an epoch and one for each of its validations.
        """
        pays = self.freeze_rate > 0 and not self.augmented and self.epochs >= 2
        return self.frozen_part == "kept" or (self.frozen_part == "auto" and pays)

    def unused(self) -> dict[str, str]:
        idle = {} if self.trackers else {"track_to": "no trackers are given"}
        if self.head in ("published", "random", "kept"):
            idle["fit_scale"] = f"head = {self.head}"
        if not self.freeze_rate:
            idle |= dict.fromkeys(("freeze", "frozen_part"), "freeze_rate is 0")
        return idle | ({"num_workers": "the frozen part is kept: nothing is decoded"} if self.reads_features else {})


def _reads(config: TrainRmConfig) -> Sequence[str]:
    return ("pairs", "annotations", "image-features" if config.reads_features else "images")


STAGE = Stage(
    name="train-rm",
    version=1,
    reads=_reads,
    writes="reward-model",
    processes=True,
    determinism="numeric",
    extra="train",
    config=TrainRmConfig,
    run="irpipe.stages.train_rm.run:run",
    plugins=plugins,
)
