"""The work of `train-rm`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from irpipe.models.pictures import decode_all
from irpipe.models.reward.start import init_reward_model
from irpipe.models.training import make_accelerator
from irpipe.pipeline.errors import InputError, RejectedError
from irpipe.pipeline.settings import shown_config
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.features import FeatureFile
from irpipe.schemas.files import read_json
from irpipe.schemas.reward_model import CURVES, REJECTED_TRAINING_PAIRS, ScoreCard
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.curves import draw_curves
from irpipe.stages.train_rm.data import PairRows, check_splits, fewer_prompts, group, read_pairs, read_prompts
from irpipe.stages.train_rm.loop import State, Texts, Trainer


def run(config: TrainRmConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    pairs = fewer_prompts(read_pairs(inputs["pairs"].table("pairs"), ("train", "validation")), config.max_prompts)
    prompts = read_prompts(inputs["annotations"].table("annotated_prompts"))
    check_splits(pairs, prompts)
    accelerator = make_accelerator(
        "train-rm",
        config.device,
        config.dtype,
        config.trackers,
        config.track_to,
        f"train-rm {context.work.parent.name[:12]}",
        shown_config(config),
    )
    model, head = init_reward_model(context.models["model"][0], config.head, config.seed, config.image_size)
    model.set_text_dropout(config.text_dropout)
    model.freeze(config.freeze_rate, config.freeze)
    blocks = int(config.freeze_rate * len(model.vision.encoder.layers))
    images = pairs.images
    read, faults = open_images(config, inputs, context, model, blocks, images, accelerator)
    kept, rejected = without_faults(pairs, faults, config.max_rejected)
    check_splits(kept, prompts)
    texts = {identity: prompts[identity] for identity in dict.fromkeys(kept.prompt_id.tolist())}
    trainer = Trainer(
        config,
        model,
        blocks,
        group(kept.of(kept.split == "train"), images),
        group(kept.of(kept.split == "validation"), images),
        Texts.of(model, texts, config.mirror),
        read,
        config.reads_features,
        accelerator,
        context,
    )
    scale = trainer.fit_scale() if head == "itm" and config.fit_scale else None
    state = trainer.run()
    metrics = {"head": head, "head_scale": scale, "rejected_for": rejected_for(rejected)}
    metrics |= figures(trainer, state, kept)
    card = {"trained_on": trained_on(inputs, kept, context), "metrics": {name: metrics[name] for name in _ON_THE_CARD}}
    write_models(trainer, card, out)
    if accelerator.is_main_process:
        CURVES.write(out, {column.name: [row[column.name] for row in state.rows] for column in CURVES.columns})
        draw_curves(state.rows, out / "curves.png")
        REJECTED_TRAINING_PAIRS.write(out, rejected)
    accelerator.end_training()
    return Report(Rows(len(pairs), len(kept), len(pairs) - len(kept)), metrics)


def open_images(
    config: TrainRmConfig,
    inputs: Mapping[str, Artifact],
    context: Context,
    model: Any,
    blocks: int,
    images: NDArray[np.uint64],
    accelerator: Accelerator,
) -> tuple[Callable[[Any], Tensor], dict[int, str]]:
    """A way to read images by their row in `images`, and why some cannot be read, by id.

    Raises:
        InputError: none of the images is there: pairs and images come from different sources.
    """
    if config.reads_features:
        features = FeatureFile(inputs["image-features"].path)
        features.check(context.models["model"][0].revision, blocks, model.preprocess.image_size)
        rows, faults = features.rows_of(images)

        def read(places: Any) -> Tensor:
            return features.read(rows[places])

    else:
        files = inputs["images"].table("images")
        with accelerator.main_process_first():
            pictures, faults = decode_all(files, images, model.preprocess.image_size, context, config.num_workers)

        def read(places: Any) -> Tensor:
            return torch.from_numpy(pictures.read(places))

    if len(faults) == len(images):
        raise InputError(
            f"none of the {len(images):,} images of the pairs can be used: {next(iter(faults.values()))}",
            where="images",
            fix="let pairs and images come of the same images: irpipe lineage build-pairs, and --set"
            f" {'encode-images' if config.reads_features else 'train-rm'}.reads.images=import-images or generate-images",
        )
    return read, faults


def without_faults(pairs: PairRows, faults: Mapping[int, str], most: float) -> tuple[PairRows, dict[str, list[Any]]]:
    """The pairs both of whose images are good, and the others as columns of `rejected`.

    Raises:
        RejectedError: too many are bad.
    """
    bad = np.array(sorted(faults), dtype=np.uint64)
    ends = np.isin(pairs.better, bad), np.isin(pairs.worse, bad)
    lost = ends[0] | ends[1]
    culprits = np.where(ends[0], pairs.better, pairs.worse)[lost]
    rejected = {
        "pair_id": pairs.pair_id[lost].tolist(),
        "reason": [faults[image] for image in culprits.tolist()],
        "image_id": culprits.tolist(),
    }
    if len(pairs) >= 100 and lost.mean() > most:
        first = "; ".join(f"image {image:016x}: {faults[image]}" for image in dict.fromkeys(culprits.tolist()[:3]))
        raise RejectedError(
            f"{int(lost.sum()):,} of {len(pairs):,} pairs have unusable images: {first}",
            where="images",
            fix="fix the images, or raise train-rm.max_rejected",
        )
    return pairs.of(~lost), rejected


def rejected_for(rejected: Mapping[str, list[Any]]) -> dict[str, int]:
    names, counts = np.unique(np.array(rejected["reason"], dtype=object).astype(str), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


_ON_THE_CARD = ("pairs", "prompts", "steps", "best_step", "validation_loss", "validation_accuracy")


def figures(trainer: Trainer, state: State, pairs: PairRows) -> dict[str, Any]:
    """What people want to see of the training."""
    best = next(row for row in state.rows if row["split"] == "validation" and row["step"] == state.best_step)
    before = next(row for row in state.rows if row["split"] == "validation")
    trained = {split: int((pairs.split == split).sum()) for split in ("train", "validation")}
    ids = trainer.texts.mask[0]
    metrics: dict[str, Any] = {
        "pairs": trained,
        "prompts": {"train": len(trainer.train), "validation": len(trainer.validation)},
        "images": len(np.unique(np.concatenate([trainer.train.image_rows, trainer.validation.image_rows]))),
        "trainable_parameters": sum(value.numel() for value in trainer.weights.trained.values()),
        "steps": state.step,
        "best_step": state.best_step,
        "validation_loss": round(best["loss"], 5),
        "validation_accuracy": round(best["accuracy"], 5),
        "validation_accuracy_before": round(before["accuracy"], 5),
        "cut_prompts": int((ids.sum(dim=1) >= trainer.model.max_length).sum()),
    }
    if len(state.micro_batches) > 1:
        metrics["micro_batches"] = state.micro_batches  # it went on with another one: equal to rounding, not bit by bit
    return metrics


def trained_on(inputs: Mapping[str, Artifact], pairs: PairRows, context: Context) -> dict[str, Any]:
    """For the score card: which data these are, by content."""
    return {kind: artifact.content_id for kind, artifact in sorted(inputs.items())} | {
        "prompts": {split: len(set(pairs.prompt_id[pairs.split == split].tolist())) for split in ("train", "validation")},
        "ties": "left out",
        "label_source": read_json(inputs["annotations"].file("agreement.json"))["label_source"],
        "started_from": {"name": context.models["model"][0].name, "revision": context.models["model"][0].revision},
    }


def write_models(trainer: Trainer, card: Mapping[str, Any], out: Path) -> None:
    """The last model, then the best one, each with the normaliser of its own scores. Every process takes part."""
    trainer.accelerator.wait_for_everyone()  # the first one may still be writing the best weights
    for folder, weights in ((out / "last", trainer.weights.kept()), (out, trainer.best_weights())):
        trainer.weights.load(weights)
        sums = trainer.evaluate(trainer.validation)
        mean = sums.score / sums.images
        std = max(sums.square / sums.images - mean**2, 0.0) ** 0.5
        trainer.model.card = replace(
            ScoreCard(mean, std or 1.0, f"the {int(sums.images):,} images of the validation split"), **card
        )
        if trainer.accelerator.is_main_process:
            trainer.model.save_pretrained(folder)
