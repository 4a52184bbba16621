"""The prompts of a tuning: those that are trained on, and those that are only evaluated on."""

from __future__ import annotations

from collections.abc import Mapping

from irpipe.models.tuning.config import TuneConfig
from irpipe.pipeline.errors import InputError, LeakError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.stage import Context
from irpipe.pipeline.store import Artifact
from irpipe.schemas.prompt_files import prompts_of
from irpipe.schemas.prompts import normalise
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.splits import read_splits


def read_prompts(
    config: TuneConfig, inputs: Mapping[str, Artifact], context: Context, rejections: Rejections
) -> tuple[dict[int, str], dict[int, str], int]:
    """Prompts to train on, prompts to evaluate on, and how many were read. Those of `test` are left alone.

    Raises:
        LeakError: an excluded prompt would be trained on.
        InputError: there are none.
    """
    by_split = read_splits(inputs["splits"])
    parts = {name: by_split[name] for name in ("train", "validation")}
    reasons = {"validation": "only evaluated on", "test": "kept for evaluation"}
    total = sum(map(len, by_split.values()))
    for index, split in enumerate(split for split, texts in by_split.items() for _ in texts):
        if split != "train":
            rejections.drop(index, reasons[split])
    forbidden = excluded(context)
    leaked = [identity for identity, text in parts["train"].items() if normalise(text) in forbidden]
    if leaked:
        raise LeakError(
            f"{len(leaked):,} evaluation prompts are among the {len(parts['train']):,} training prompts, such as"
            f" {show_row_id(leaked[0])}: {parts['train'][leaked[0]]!r}",
            fix="--set 'select-prompts.exclude=[...]' with the same files, and run the pipeline again",
        )
    held_out = [(identity, text) for identity, text in parts["validation"].items() if normalise(text) not in forbidden]
    if not parts["train"] or len(held_out) < 2:
        raise InputError(
            f"there are {len(parts['train']):,} prompts to train on and {len(held_out):,} to evaluate on",
            where="splits",
            expected="prompts in the train split and at least 2 in the validation split",
            fix="--set select-prompts.count=... or a larger split-prompts.validation_share",
        )
    return parts["train"], dict(held_out[: config.evaluation.prompts]), total


def excluded(context: Context) -> set[str]:
    """The evaluation prompts, normalised."""
    return {normalise(text) for path in context.sources.get("exclude", ()) for text in prompts_of(path)}
