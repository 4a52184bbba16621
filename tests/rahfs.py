"""RAHF's objectives on random images, for the tests of every objective; and the tests' recipe with rich feedback."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from irpipe.models.maps import encoded
from irpipe.models.reward.baselines import ClipBaseline, ResNetBaseline
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import start_from_blip
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.schemas.rich_feedback import KINDS, prompt_tokens
from irpipe.stages.train_rahf import TrainRahfConfig
from irpipe.stages.train_rahf.data import Examples
from irpipe.stages.train_rahf.objective import CaptionObjective, RahfObjective
from tests.paired import RECIPE

HEADS = HeadSizes((16,), (12, 8), 1, 4, (8,), (16,))
T5 = {"d_model": 32, "d_ff": 32, "num_heads": 2, "num_layers": 2, "num_decoder_layers": 1}
AUGMENTED = {"horizontal_flip": True, "crop": 0.7, "noise_std": 0.1, "colour_jitter": 0.3, "jpeg_quality": 40}
TEXTS = ("a red circle", "a large blue square on the left", "a small green cross above a yellow circle", "a yellow cross")

RICH_RECIPE = (
    RECIPE.replace("[split-prompts]\n", "[split-prompts]\nsource = 'selected-prompts'\nnear_duplicate = 'off'\n")
    + """
[reads]
reward-model = "train-rm"
images = "generate-images"
[simulate-rich-feedback]
[load-rich-feedback]
[train-rahf]
model = "micro-blip"
steps = 4
batch_size = 8
evaluate_every = 2
freeze_rate = 1.0
heads.map_convs = [16]
heads.map_deconvs = [12, 8]
heads.map_refinements = 1
heads.score_convs = [8]
heads.score_denses = [16]
t5_sizes.d_model = 32
t5_sizes.d_ff = 32
t5_sizes.num_heads = 2
t5_sizes.num_layers = 2
t5_sizes.num_decoder_layers = 1
optimizer.learning_rate = 1e-3
[predict-rich-feedback]
reads.reward-model = "train-rahf"
[inpaint-images]
model = "micro-generator"
num_steps = 6
guidance_scale = 1.0
candidates = 2
threshold = 0.05
reads.images = "generate-images"
reads.reward-model = "train-rahf"
[evaluate-rahf]
truth = true
panels = 3
bootstrap = 50
"""
)


def examples(count: int = 10) -> Examples:
    """Random feedback on so many images; one of them without a score."""
    rng = np.random.default_rng(3)
    prompts = [TEXTS[number % 4] for number in range(count)]
    scores = rng.random((count, 4), dtype=np.float32)
    scores[1, 2] = np.nan
    maps = [{kind: encoded(rng.random((32, 32))) for kind in KINDS} for _ in range(count)]
    labels = [(rng.random(len(prompt_tokens(prompt))) < 0.3).tolist() for prompt in prompts]
    return Examples(
        np.arange(count), np.arange(count, dtype=np.uint64), prompts, scores, labels, maps, np.array(["train"] * count)
    )


def rahf(kind: type[RahfObjective] = RahfObjective, variant: str = "multi-head", contrast: float = 0.0) -> Any:
    """One of RAHF's objectives, in micro-batches of a size; with a contrast of prompts, images of one to four prompts."""

    def made(folder: Path, size: int, **settings: Any) -> tuple[RahfObjective, dict[str, Any]]:
        config = TrainRahfConfig(
            model="x",
            variant=variant,
            batch_size=3 if contrast else 6,
            prompt_contrast=contrast,
            augmentation=AUGMENTED,
            captions={"weight": 1.0, "replaced": 0.3},
            training={"micro_batch_size": size, **settings},
        )
        model = start_from_blip(Model("micro-blip", "r", shipped_folder("micro-blip")), variant, HEADS, T5, 0)
        rng = np.random.default_rng(4)
        pictures = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        if contrast:
            pictures = pictures[[0, 1, 2, 1, 0, 3, 1, 4, 1, 0]]

        def read(rows: Sequence[int]) -> np.ndarray:
            return pictures[list(rows)]

        return kind(config, model, examples(), read, Accelerator(cpu=True)), dict(model.named_parameters())

    return made


def baseline(kind: type[ResNetBaseline | ClipBaseline], variant: str, model: str) -> Any:
    """The objective of a baseline, in micro-batches of a size."""

    def made(folder: Path, size: int, **settings: Any) -> tuple[RahfObjective, dict[str, Any]]:
        config = TrainRahfConfig(
            model="x", variant=variant, batch_size=6, augmentation=AUGMENTED, training={"micro_batch_size": size, **settings}
        )
        heads = HeadSizes((16,), (12, 8, 8), 1, 4, (8,), (16,))
        network = kind.start(Model(model, "r", shipped_folder(model)), heads, 0)
        pictures = np.random.default_rng(4).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)

        def read(rows: Sequence[int]) -> np.ndarray:
            return pictures[list(rows)]

        return RahfObjective(config, network, examples(), read, Accelerator(cpu=True)), dict(network.named_parameters())

    return made


OBJECTIVES = {
    "resnet baseline": baseline(ResNetBaseline, "resnet", "micro-resnet"),
    "clip baseline": baseline(ClipBaseline, "clip", "micro-clip"),
    "rahf": rahf(),
    "rahf, augmented prompt": rahf(variant="augmented-prompt"),
    "rahf, captions": rahf(CaptionObjective),
    "rahf, contrast": rahf(contrast=4.0),
}
