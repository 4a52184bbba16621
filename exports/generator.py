"""A tuned generator as a folder for diffusers: LoRA weights or a whole pipeline at its top, and a model card."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from irpipe.exports.cards import Origin, write_card
from irpipe.exports.kinds import is_generator, kind_of, refuse
from irpipe.exports.markup import code, fenced, joined, plain, table
from irpipe.exports.weights import copy_weights
from irpipe.pipeline.export import new_folder, write_lineage
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.registry import MODELS, declared
from irpipe.pipeline.store import Artifact, Store
from irpipe.schemas.generator import ADDITIONS, CARD, MONITORS, WHOLE, GeneratorCard

_PICTURES = {"before_after.png": "The same prompts and noise, before and after", "curves.png": "The course of the tuning"}


def export_generator(store: Store, record: Record, folder: Path) -> None:
    """A tuned generator for `load_lora_weights(FOLDER)` or `DiffusionPipeline.from_pretrained(FOLDER)`, and a model card.

    Raises:
        StoreError: the artifact is no tuned generator, its weights are pickled, or the folder exists already.
    """
    if not is_generator(kind_of(record)):
        raise refuse(store, record, "diffusers")
    artifact = store.open(record.content_id)
    card = GeneratorCard.read(artifact.path)
    with new_folder(folder) as draft:
        copy_weights(artifact, draft, dict(files_of(artifact, card)))
        write_lineage(store, record, draft)
        parts = (summary(card, folder.name), tuned(card, record), monitors(artifact, card), pictures(draft))
        write_card(draft, front(card), parts, Origin.of(store, record))


def files_of(artifact: Artifact, card: GeneratorCard) -> Iterator[tuple[str, str]]:
    """Pairs of source and target paths: weights go to the top, where diffusers looks for them."""
    within = f"{WHOLE if card.trained == 'unet' else ADDITIONS}/"
    for file in artifact.manifest.files:
        if file.path.startswith(within):
            yield file.path, file.path.removeprefix(within)
        elif file.path == CARD or file.path in _PICTURES:
            yield file.path, file.path


def front(card: GeneratorCard) -> dict[str, Any]:
    """The card's front matter. Only a base on the hub is named."""
    adapter = card.trained != "unet"
    relation = {"base_model": card.base, "base_model_relation": "adapter" if adapter else "finetune"}
    return {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["irpipe", "text-to-image", card.stage, *(["lora"] if adapter else [])],
        **(relation if on_hub(card) else {}),
    }


def on_hub(card: GeneratorCard) -> bool:
    """Whether the base is on the hub: its revision then has 40 digits, a commit, not a digest."""
    return len(card.revision) == 40


def summary(card: GeneratorCard, folder: str) -> str:
    """The head of the card: the generator, and how to load it."""
    contents = "the whole pipeline, its UNet tuned" if card.trained == "unet" else "LoRA weights of its UNet"
    return joined(
        f"# {plain(card.base)}, tuned by {plain(card.stage)}",
        f"A text-to-image generator tuned to human preference: {contents}.",
        fenced("python", "\n".join(["import torch", "from diffusers import DiffusionPipeline", *loading(card, folder)])),
    ).rstrip()


def loading(card: GeneratorCard, folder: str) -> list[str]:
    """The lines of code that load it; `BASE` stands for a base that is a local folder.

    The precision is given, since parts of a pipeline may be stored in different ones.
    """
    dtype = "dtype=torch.float32)"
    if card.trained == "unet":
        return ["", f"pipeline = DiffusionPipeline.from_pretrained({folder!a}, {dtype}"]
    more = [f"pipeline.load_lora_weights({folder!a})"]
    if on_hub(card):
        return ["", f"pipeline = DiffusionPipeline.from_pretrained({card.base!a}, revision={card.revision!a}, {dtype}", *more]
    if card.base in declared(MODELS):
        imported = ["from irpipe.pipeline.external import shipped_folder", ""]
        return [*imported, f"pipeline = DiffusionPipeline.from_pretrained(shipped_folder({card.base!a}), {dtype}", *more]
    return [
        "",
        f"# BASE: the base's folder, which is not on the hub\npipeline = DiffusionPipeline.from_pretrained(BASE, {dtype}",
        *more,
    ]


def tuned(card: GeneratorCard, record: Record) -> str:
    """The part on the tuning: base, method, steps, stop rule, and negative prompt."""
    warnings = record.metrics.get("noted")  # with on_trip = "note" the run only logs it
    verdict = f"fired, and was set to go on: {plain('; '.join(warnings))}" if warnings else "did not fire"
    verdict = f"stopped it: {plain(card.stopped_for)}" if card.stopped_for else verdict
    base_note = "no evaluation was better than the first: these are the base's own weights" if not card.kept_step else ""
    rows = [
        ("base", code(card.base)),
        ("its revision, or the digest of its folder", code(card.revision)),
        ("method", code(card.stage)),
        ("what was trained", "the UNet" if card.trained == "unet" else "LoRA weights of the UNet"),
        ("steps done", f"{card.steps:,}"),
        ("weights of step", f"{card.kept_step:,}{f' ({base_note})' if base_note else ''}"),
        ("the stop rule", verdict),
        *([("give as negative prompt", code(card.negative_prompt))] if card.negative_prompt else []),
        *((f"trained on {plain(kind)}", code(content)) for kind, content in card.trained_on.items()),
    ]
    return joined("## What it is", table(("", ""), rows)).rstrip()


def monitors(artifact: Artifact, card: GeneratorCard) -> str:
    """The part on evaluations: before the first step, and with the saved weights."""
    evaluations = MONITORS.read(artifact.table(MONITORS.name)).to_pylist() if MONITORS.name in artifact.manifest.tables else []
    before = {row["measure"]: row for row in evaluations if row["step"] == 0}
    after = {row["measure"]: row for row in evaluations if row["step"] == card.kept_step}
    rows = [
        (code(name), _figure(before[name]["value"]), _figure(row["value"]), _figure(row["error"]))
        for name, row in after.items()
        if name in before
    ]
    if not rows:
        return ""
    return joined(
        "## Before and after",
        "On held-out prompts and fixed captioned images. The reward is the training objective, so its rise proves nothing;"
        " `held_out` and `similarity` are scorers that were not trained on, and a higher `denoising_loss` means forgetting."
        " The error is the standard error, over prompts, of the change.",
        table(("measure", "before", "after", "error"), rows),
    ).rstrip()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def pictures(folder: Path) -> str:
    """The plots of the artifact, where they exist."""
    return joined(*(f"![{caption}]({name})" for name, caption in _PICTURES.items() if (folder / name).is_file())).rstrip()
