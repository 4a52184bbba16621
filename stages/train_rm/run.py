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

from irpipe.models.pictures import decode_all, fit_of
from irpipe.models.reward.start import init_reward_model, prepare_for_training, sized
from irpipe.models.training.accelerator import make_accelerator
from irpipe.models.training.loop import Trainer
from irpipe.pipeline.errors import InputError, RejectedError
from irpipe.pipeline.settings import shown_config
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.curves import write_curves
from irpipe.schemas.files import read_json
from irpipe.schemas.reward_model import REJECTED_TRAINING_PAIRS
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.batches import BatchReader
from irpipe.stages.train_rm.curves import draw_curves
from irpipe.stages.train_rm.data import PairRows, check_splits, fewer_prompts, group, of_loss, read_pairs, read_prompts
from irpipe.stages.train_rm.evaluate import PairEvaluator, evaluation_steps
from irpipe.stages.train_rm.objective import PairwiseObjective


def run(config: TrainRmConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    pairs = fewer_prompts(read_pairs(inputs["pairs"].table("pairs"), ("train", "validation")), config.max_prompts)
    prompts = read_prompts(inputs["annotations"].table("annotated_prompts"))
    check_splits(pairs, prompts)
    title = f"train-rm {context.work.parent.name[:12]}"
    accelerator = make_accelerator("train-rm", config.training, title, shown_config(config))
    model, head = start(config, context)
    prepare_for_training(
        model,
        freeze_rate=config.freeze_rate,
        freeze=config.freeze,
        text_dropout=config.text_dropout,
        image_layers=config.image_layers,
        text_layers=config.text_layers,
    )
    model.to(accelerator.device)
    read, faults = open_images(config, inputs, context, model, pairs.images, accelerator)
    kept, rejected = without_faults(pairs, faults, config.max_rejected)
    kept = of_loss(kept, config.loss)
    check_splits(kept, prompts)
    texts = {identity: prompts[identity] for identity in dict.fromkeys(kept.prompt_id.tolist())}
    objective, evaluator = make_task(config, model, kept, pairs.images, texts, read, accelerator)
    scale = objective.fit_scale() if head == "itm" and config.fit_scale else None
    if config.training.checkpoint_activations:
        model.checkpoint_activations()
    training = config.training_config(len(objective.steps))
    trainer = Trainer(training, dict(model.named_parameters()), [objective], evaluator, accelerator, context)
    trainer.run()
    metrics = {"head": head, "head_scale": scale, "rejected_for": rejected_for(rejected)}
    metrics |= figures(trainer, objective, evaluator, kept)
    card = {"trained_on": trained_on(inputs, kept, context), "metrics": {name: metrics[name] for name in _ON_THE_CARD}}
    write_models(trainer, evaluator, card, out)
    if accelerator.is_main_process:
        write_curves(trainer.state.rows, out)
        draw_curves(trainer.state.rows, trainer.state.best_step, out / "curves.png")
        REJECTED_TRAINING_PAIRS.write(out, rejected)
    accelerator.end_training()
    return Report(Rows(len(pairs), len(kept), len(pairs) - len(kept)), metrics)


def open_images(
    config: TrainRmConfig,
    inputs: Mapping[str, Artifact],
    context: Context,
    model: Any,
    images: NDArray[np.uint64],
    accelerator: Accelerator,
) -> tuple[Callable[[NDArray[np.int64]], Tensor], dict[int, str]]:
    """A way to read images by their row in `images`, and why some cannot be read, by id.

    Raises:
        InputError: none of the images is there: pairs and images come from different sources.
    """
    files, size = inputs["images"].table("images"), model.preprocess.image_size
    with accelerator.main_process_first():
        pictures, faults = decode_all(files, images, size, context, config.num_workers, fit_of(model.preprocess))
    if len(faults) == len(images):
        raise InputError(
            f"none of the {len(images):,} images of the pairs can be used: {next(iter(faults.values()))}",
            where="images",
            fix="pairs and images must come from the same images: irpipe lineage build-pairs, and --set"
            " train-rm.reads.images=import-images or generate-images",
        )
    return (lambda rows: torch.from_numpy(pictures.read(rows))), faults


def start(config: TrainRmConfig, context: Context) -> tuple[Any, str]:
    """The model that training starts from, and which head it got."""
    given = context.models["model"][0]
    model, head = init_reward_model(given, config.head, config.training.seed)
    own = model.preprocess.image_size
    if config.image_size not in (None, own):
        context.say(f"  its start looks at images of {own} px, and image_size is {config.image_size}: cost grows by the square")
    model = sized(model, config.image_size, given)
    if config.fit is not None:
        model.preprocess = replace(model.preprocess, fit=config.fit)
    return model, head


def make_task(
    config: TrainRmConfig,
    model: Any,
    pairs: PairRows,
    images: NDArray[np.uint64],
    prompts: Mapping[int, str],
    read: Callable[[NDArray[np.int64]], Tensor],
    accelerator: Accelerator,
) -> tuple[PairwiseObjective, PairEvaluator]:
    """What is trained on and what is evaluated on; texts are encoded once.

    Args:
        images: (n,) all images, by whose rows `read` reads.
        prompts: texts by id.
    """
    texts = {name: values.cpu() for name, values in model.encode_texts(list(prompts.values())).items()}
    row_of = {identity: row for row, identity in enumerate(prompts)}
    reader = BatchReader(read, texts, row_of, config.training.micro_batch_size, accelerator)
    training, validation = (group(pairs.of(pairs.split == split), images, config.loss) for split in ("train", "validation"))
    objective = PairwiseObjective(config, model, training, prompts, reader, accelerator)
    due = evaluation_steps(objective.epochs, config.evaluation.per_epoch)
    return objective, PairEvaluator(model, validation, reader, due, accelerator)


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
    """How many pairs were rejected, by reason."""
    names, counts = np.unique(np.array(rejected["reason"], dtype=object).astype(str), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


_ON_THE_CARD = ("pairs", "prompts", "steps", "best_step", "validation_loss", "validation_accuracy")


def figures(trainer: Trainer, objective: PairwiseObjective, evaluator: PairEvaluator, pairs: PairRows) -> dict[str, Any]:
    """The figures of a training for its record."""
    state, groups = trainer.state, (objective.groups, evaluator.groups)
    evaluated = {(step, name): value for step, split, name, value in state.rows if split == "validation"}
    metrics: dict[str, Any] = {
        "pairs": {split: int((pairs.split == split).sum()) for split in ("train", "validation")},
        "prompts": {"train": len(groups[0]), "validation": len(groups[1])},
        "images": len(np.unique(np.concatenate([one.image_rows for one in groups]))),
        "trainable_parameters": sum(value.numel() for value in trainer.weights.trained.values()),
        "steps": state.step,
        "best_step": state.best_step,
        "validation_loss": round(evaluated[state.best_step, "loss"], 5),
        "validation_accuracy": round(evaluated[state.best_step, "accuracy"], 5),
        "validation_accuracy_before": round(evaluated[0, "accuracy"], 5),
    }
    if (mask := objective.reader.texts.get("attention_mask")) is not None:
        metrics["cut_prompts"] = int((mask.sum(dim=1) >= objective.model.max_length).sum())
    if len(state.micro_batch_sizes) > 1:
        metrics["micro_batch_sizes"] = state.micro_batch_sizes  # resumed with another one: equal to rounding, not bit by bit
    return metrics


def trained_on(inputs: Mapping[str, Artifact], pairs: PairRows, context: Context) -> dict[str, Any]:
    """For the score card: which data these are, by content."""
    return {kind: artifact.content_id for kind, artifact in sorted(inputs.items())} | {
        "prompts": {split: len(set(pairs.prompt_id[pairs.split == split].tolist())) for split in ("train", "validation")},
        "ties": "left out",
        "label_source": read_json(inputs["annotations"].file("agreement.json"))["label_source"],
        "started_from": {"name": context.models["model"][0].name, "revision": context.models["model"][0].revision},
    }


def write_models(trainer: Trainer, evaluator: PairEvaluator, card: Mapping[str, Any], out: Path) -> None:
    """The last model, then the best one, each with the normaliser of its own scores. Every process takes part."""
    model = evaluator.model
    for folder, weights in ((out / "last", trainer.weights.evaluated()), (out, trainer.best_weights())):
        trainer.weights.load(weights)
        totals = evaluator.totals()
        images = f"the {int(totals.images):,} images of the validation split"
        scale = {"mean": totals.mean_score, "std": totals.std_score or 1.0, "normalised_on": images}
        model.card = replace(model.card, **scale, **card)
        if trainer.accelerator.is_main_process:
            model.save_pretrained(folder)
