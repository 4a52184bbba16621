"""A tuned generator as a folder for diffusers: LoRA or a whole pipeline at its top, and a model card."""

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
from irpipe.schemas.curves import CURVES
from irpipe.schemas.generator import CARD, LORA, PIPELINE, GeneratorCard

_PICTURES = {"before_after.png": "The same prompts and noise, before and after", "curves.png": "Curves of the tuning"}


def export_generator(store: Store, record: Record, folder: Path, *, hidden: bool = False) -> None:
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
        origin = Origin.of(store, record, hidden=hidden)
        write_lineage(origin.runs, draft)
        parts = (summary(card, folder.name), tuned(card, origin.record), evaluations(artifact, card), pictures(draft))
        write_card(draft, front(card), parts, origin)


def files_of(artifact: Artifact, card: GeneratorCard) -> Iterator[tuple[str, str]]:
    """Pairs of source and target paths: weights go to the top, where diffusers looks for them."""
    within = f"{PIPELINE if card.trained == 'unet' else LORA}/"
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
    contents = "the whole pipeline, its UNet tuned" if card.trained == "unet" else "LoRA weights for its UNet"
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
    fired = record.metrics.get("stop_rule")  # with early_stopping = "log" the training goes on
    verdict = f"fired, and was only logged: {plain('; '.join(fired))}" if fired else "did not fire"
    verdict = f"stopped it: {plain(card.stopped_for)}" if card.stopped_for else verdict
    base_note = "no evaluation was better than the first: these are the base's own weights" if not card.kept_step else ""
    rows = [
        ("base", code(card.base)),
        ("its revision, or the digest of its folder", code(card.revision)),
        ("method", code(card.stage)),
        ("what was trained", "the UNet" if card.trained == "unet" else "LoRA in the UNet"),
        ("steps done", f"{card.steps:,}"),
        ("weights of step", f"{card.kept_step:,}{f' ({base_note})' if base_note else ''}"),
        ("the stop rule", verdict),
        *([("give as negative prompt", code(card.negative_prompt))] if card.negative_prompt else []),
        *((f"trained on {plain(kind)}", code(content)) for kind, content in card.trained_on.items()),
    ]
    return joined("## What it is", table(("", ""), rows)).rstrip()


def evaluations(artifact: Artifact, card: GeneratorCard) -> str:
    """The part on evaluations: before the first step, and with the saved weights."""
    rows = CURVES.read(artifact.table(CURVES.name)).to_pylist() if CURVES.name in artifact.manifest.tables else []
    rows = [row for row in rows if row["split"] == "validation"]
    before = {row["figure"]: row["value"] for row in rows if row["step"] == 0}
    after = {row["figure"]: row["value"] for row in rows if row["step"] == card.kept_step}
    measures = [
        (code(name), _figure(value), _figure(after.get(name)), _figure(after.get(f"{name}_error")))
        for name, value in before.items()
    ]
    if not measures:
        return ""
    return joined(
        "## Before and after",
        "On prompts it was not trained on and fixed captioned images. The reward is what it was tuned for, so its rise proves"
        " nothing; nothing was trained on `held_out` and `similarity`, and `denoising_loss` rises as the generator forgets. The"
        " error is the standard error, over prompts, of the change.",
        table(("measure", "before", "after", "error"), measures),
    ).rstrip()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def pictures(folder: Path) -> str:
    """The plots of the artifact, where they exist."""
    return joined(*(f"![{caption}]({name})" for name, caption in _PICTURES.items() if (folder / name).is_file())).rstrip()
