"""The work of `train-rahf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from irpipe.models.loading import files_of
from irpipe.models.pictures import PictureFiles
from irpipe.models.plugins import format_of
from irpipe.models.reward.base import load_given
from irpipe.models.reward.baselines import Baseline, ClipBaseline, ResNetBaseline
from irpipe.models.reward.rahf import Rahf, Variant
from irpipe.models.reward.rahf_heads import HeadSizes
from irpipe.models.reward.rahf_start import is_rahf, start_from_blip, start_from_vit
from irpipe.models.training.accelerator import make_accelerator
from irpipe.models.training.loop import Trainer
from irpipe.models.training.objective import Objective
from irpipe.pipeline.errors import InputError, ModelError
from irpipe.pipeline.settings import shown_config
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.captions import CAPTIONS
from irpipe.schemas.curves import write_curves
from irpipe.schemas.images import ImageReader
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.rich_feedback import ASPECTS, RICH_FEEDBACK
from irpipe.stages.train_rahf import TrainRahfConfig
from irpipe.stages.train_rahf.curves import draw_curves
from irpipe.stages.train_rahf.data import Examples, open_pictures, read_examples
from irpipe.stages.train_rahf.evaluate import RahfEvaluator, fitted_cards, fitted_cut
from irpipe.stages.train_rahf.objective import CaptionObjective, RahfObjective


def run(config: TrainRahfConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    read = RICH_FEEDBACK.read(inputs["rich-feedback"].table(RICH_FEEDBACK.name), ["uid"]).num_rows
    rejections = Rejections(config.max_rejected, "rich-feedback")
    title = f"train-rahf {context.work.parent.name[:12]}"
    accelerator = make_accelerator("train-rahf", config.training, title, shown_config(config))
    model = start(config, context)
    model.freeze(config.freeze_rate)
    model.to(accelerator.device)
    examples = read_examples(inputs, rejections, own_splits=config.images == "feedback")
    examples, read_pictures = with_pictures(config, inputs, examples, model, rejections, accelerator, context)
    rejections.check(read, len(examples))
    objectives, evaluator = make_task(config, model, examples, read_pictures, accelerator)
    if config.captions.weight and isinstance(model, Rahf):
        objectives.append(make_captions(config, inputs, model, accelerator, context))
    if config.training.checkpoint_activations:
        model.checkpoint_activations()
    trainer = Trainer(config.training_config(), dict(model.named_parameters()), objectives, evaluator, accelerator, context)
    trainer.run()
    metrics = figures(trainer, objectives[0], evaluator)
    metrics |= write_model(trainer, model, evaluator, inputs, metrics, out)
    if accelerator.is_main_process:
        write_curves(trainer.state.rows, out)
        draw_curves(trainer.state.rows, trainer.state.best_step, out / "curves.png")
        rejections.write(out)
    accelerator.end_training()
    metrics["rejected_for"] = rejections.counts()
    return Report(Rows(read, read - len(rejections), len(rejections)), metrics)


def start(config: TrainRahfConfig, context: Context) -> Rahf | Baseline:
    """The model that training starts from.

    Raises:
        ModelError: a model is of another class, or the heads do not lead to the picture's size.
    """
    return start_baseline(config, context) if config.is_baseline else start_rahf(config, context)


def start_baseline(config: TrainRahfConfig, context: Context) -> Baseline:
    """A baseline to go on from, or a pre-trained network with new heads."""
    given, heads, seed = context.models["model"][0], HeadSizes(**config.heads.model_dump()), config.training.seed
    heatmaps = config.heatmap_weight > 0
    if format_of(files_of(given)) == f"{config.variant}-baseline":
        known: Baseline = load_given(given)
        check_sizes(config, known)
        if config.variant == "resnet" and heatmaps and "heatmaps" not in known.outputs:
            raise ModelError(f"{given.shown} has no heatmaps", fix="--set train-rahf.heatmap_weight=0")
        return known
    if config.variant == "clip":
        return ClipBaseline.start(given, heads, seed)
    model = ResNetBaseline.start(given, heads, seed, heatmaps=heatmaps)
    if heatmaps:
        check_deconvolutions(heads, model.side, model.preprocess.image_size)
    return model


def start_rahf(config: TrainRahfConfig, context: Context) -> Rahf:
    """A RAHF to go on from, or a new one."""
    heads, seed = HeadSizes(**config.heads.model_dump()), config.training.seed
    variant: Variant = "augmented-prompt" if config.variant == "augmented-prompt" else "multi-head"
    if config.model is None:
        model = start_from_vit(context.models["vision"][0], context.models["t5"][0], variant, heads, seed)
    elif is_rahf(context.models["model"][0]):
        known: Rahf = load_given(context.models["model"][0])
        if known.config.variant != config.variant:
            raise ModelError(f"the RAHF is {known.config.variant}", fix=f"--set train-rahf.variant={known.config.variant}")
        if known.config.reads_prompt != (config.prompt == "read"):
            was = "read" if known.config.reads_prompt else "hidden"
            raise ModelError(f"the RAHF was trained with its prompts {was}", fix=f"--set train-rahf.prompt={was}")
        check_sizes(config, known)
        known.freeze_parts(config.freeze)
        return known
    elif config.freeze:
        given = context.models["model"][0]
        raise ModelError(f"{given.shown} is no RAHF: it has no {config.freeze[0]} to keep", fix="--set train-rahf.freeze=[]")
    else:
        given = context.models["model"][0]
        model = start_from_blip(given, variant, heads, config.t5_sizes.model_dump(), seed)
    check_deconvolutions(heads, model.side, model.preprocess.image_size)
    model.config = replace(model.config, reads_prompt=config.prompt == "read")
    return model


def check_deconvolutions(heads: HeadSizes, side: int, image_size: int) -> None:
    """A heatmap has the size of the picture.

    Raises:
        ModelError: the deconvolutions lead to another.
    """
    reached = side * 2 ** len(heads.map_deconvs)
    if reached != image_size:
        raise ModelError(
            f"{len(heads.map_deconvs)} deconvolutions make heatmaps of {reached} pixels, and pictures have {image_size}",
            fix="--set train-rahf.heads.map_deconvs=[...], one for each doubling from patches to pixels",
        )


def check_sizes(config: TrainRahfConfig, known: Rahf | Baseline) -> None:
    """A RAHF that goes on has its own sizes: settings that say others would have no effect.

    Raises:
        ModelError: they do.
    """
    own, asked = asdict(known.heads), asdict(HeadSizes(**config.heads.model_dump()))
    idle = config.unused()
    other = [f"heads.{one} is {own[one]}" for one, value in asked.items() if own[one] != value and f"heads.{one}" not in idle]
    if isinstance(known, Rahf) and known.config.text_tower is not None:
        sizes = config.t5_sizes.model_dump()
        other += [
            f"t5_sizes.{name} is {known.config.t5[name]}" for name, value in sizes.items() if known.config.t5[name] != value
        ]
    if other:
        raise ModelError(
            f"the {known.format} has other sizes: {'; '.join(other)}", fix="give the same: --set train-rahf.heads..."
        )


class Reader:
    """Pictures (n, size, size, 3) by rows of examples."""

    def __init__(self, pictures: PictureFiles, rows: NDArray[np.int64]) -> None:
        self._pictures, self._rows = pictures, rows

    def __call__(self, rows: Sequence[int]) -> NDArray[np.uint8]:
        return self._pictures.read(self._rows[np.asarray(rows, dtype=np.int64)])

    def of(self, rows: NDArray[np.int64]) -> Reader:
        """Of some of the examples (m,)."""
        return Reader(self._pictures, self._rows[rows])


def with_pictures(
    config: TrainRahfConfig,
    inputs: Mapping[str, Artifact],
    examples: Examples,
    model: Rahf | Baseline,
    rejections: Rejections,
    accelerator: Accelerator,
    context: Context,
) -> tuple[Examples, Reader]:
    """The examples whose image can be used, and their pictures.

    Raises:
        InputError: none can be used.
    """
    if not len(examples):
        raise InputError(f"no feedback can be used: {rejections.counts()}", where="rich-feedback")
    kind = "images" if config.images == "recipe" else "rich-feedback"
    with accelerator.main_process_first():
        pictures, faults = open_pictures(
            inputs, kind, examples.image_ids, model.preprocess.image_size, context, config.num_workers
        )
    good = [row for row, identity in enumerate(examples.image_ids.tolist()) if identity not in faults]
    for row, identity in enumerate(examples.image_ids.tolist()):
        if identity in faults:
            rejections.refuse(int(examples.rows[row]), faults[identity], f"{identity:016x}")
    return examples.of(good), Reader(pictures, np.array(good, dtype=np.int64))


def make_task(
    config: TrainRahfConfig, model: Rahf | Baseline, examples: Examples, read: Reader, accelerator: Accelerator
) -> tuple[list[Objective], RahfEvaluator]:
    """What is trained on and what is evaluated on.

    Raises:
        InputError: a split has no images.
    """
    rows = {name: np.flatnonzero(examples.splits == name) for name in ("train", "validation")}
    for name, found in rows.items():
        if not len(found):
            raise InputError(f"the feedback has no images of the {name} split", where="rich-feedback")
    rows["validation"] = rows["validation"][: config.evaluation_images]
    training = RahfObjective(config, model, examples.of(rows["train"]), read.of(rows["train"]), accelerator)
    alone = config.model_copy(update={"prompt_contrast": 0.0})  # validation is of rows, each for itself
    validation = RahfObjective(alone, model, examples.of(rows["validation"]), read.of(rows["validation"]), accelerator)
    return [training], RahfEvaluator(config, validation, accelerator)


def make_captions(
    config: TrainRahfConfig, inputs: Mapping[str, Artifact], model: Rahf, accelerator: Accelerator, context: Context
) -> CaptionObjective:
    """Pre-training on the recipe's captioned images, the first ones."""
    artifact = inputs["captioned-images"]
    table = CAPTIONS.read(artifact.table(CAPTIONS.name))
    texts = dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    images = list(ImageReader(artifact.table("images")).rows(["prompt_id"]))[: config.captions.images]
    ids = np.array([image["image_id"] for image in images], dtype=np.uint64)
    with accelerator.main_process_first():
        pictures, faults = open_pictures(
            inputs, "captioned-images", ids, model.preprocess.image_size, context, config.num_workers
        )
    good = [row for row, identity in enumerate(ids.tolist()) if identity not in faults]
    prompts = [texts[images[row]["prompt_id"]] for row in good]
    words = model.words_of(prompts)
    examples = Examples(
        np.array(good, dtype=np.int64),
        ids[good],
        prompts,
        np.full((len(good), len(ASPECTS)), np.nan, dtype=np.float32),
        [[False] * count for count in words.counts],
        [{}] * len(good),
        np.array(["train"] * len(good)),
    )
    objective = CaptionObjective(config, model, examples, Reader(pictures, np.array(good, dtype=np.int64)), accelerator)
    objective.weight = config.captions.weight
    return objective


def figures(trainer: Trainer, objective: Any, evaluator: RahfEvaluator) -> dict[str, Any]:
    """The figures of a training for its record."""
    state = trainer.state
    best = {name: value for step, split, name, value in state.rows if split == "validation" and step == state.best_step}
    return {
        "images": {"train": len(objective.examples), "validation": len(evaluator.objective.examples)},
        "parameters": sum(value.numel() for value in objective.model.parameters()),
        "trainable_parameters": sum(value.numel() for value in trainer.weights.trained.values()),
        "steps": state.step,
        "best_step": state.best_step,
        "stopped_for": state.stopped_for,
        "validation": {name: round(value, 5) for name, value in best.items()},
        "cut_prompts": objective.model.cut_prompts(objective.examples.prompts),
    }


def write_model(
    trainer: Trainer,
    model: Rahf | Baseline,
    evaluator: RahfEvaluator,
    inputs: Mapping[str, Artifact],
    metrics: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Write the best model, with the normalisers of its scores and the cut for words. Every process takes part."""
    trainer.weights.load(trainer.best_weights())
    trained_on: dict[str, Any] = {kind: artifact.content_id for kind, artifact in sorted(inputs.items())}
    on_card = {"steps": metrics["steps"], "best_step": metrics["best_step"], **metrics["images"], **metrics["validation"]}
    model.cards = fitted_cards(evaluator, {"trained_on": trained_on, "metrics": on_card})
    fitted = {}
    if isinstance(model, Rahf):
        cut, f1 = fitted_cut(model, evaluator)
        model.config, fitted = replace(model.config, word_cut=cut), {"word_cut": cut, "validation_word_f1": round(f1, 4)}
    if trainer.accelerator.is_main_process:
        model.save_pretrained(out)
    return fitted
