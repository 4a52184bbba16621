"""The recipe under which a run comes out again, from the records of its lineage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from irpipe.exports.markup import toml
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.recipe import WIRING

_BARE = re.compile(r"[A-Za-z0-9_-]+")  # TOML's names that need no quotes


def recipe_of(runs: Sequence[Record]) -> str:
    """irpipe.toml with a table for each stage of some runs, in their order: what was set, and what reads from where.

    Where a stage ran several times (trials), only what these runs share is told: the stage that tried it sets the rest.
    """
    by_stage: dict[str, list[Record]] = {}
    for run in runs:
        by_stage.setdefault(run.stage, []).append(run)
    blocks = [f"recipe = {toml(runs[-1].recipe)}"]
    producers = _producers(runs)
    for stage, same in by_stage.items():
        lines = [
            f"[{stage if _BARE.fullmatch(stage) else toml(stage)}]",
            *(f"{name} = {toml(value)}" for name, value in _shared(same).items()),
        ]
        wiring = _wiring(same, producers)
        lines += [f"{WIRING} = {toml(wiring)}"] if wiring else []
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _shared(same: Sequence[Record]) -> dict[str, Any]:
    """Settings that somebody gave and that are equal in all runs of a stage. A null is what is not given: TOML has none."""
    first, *others = same
    return {
        name: value
        for name in first.given
        if (value := first.config[name]) is not None
        and all(name in other.given and other.config[name] == value for other in others)
    }


def _producers(runs: Sequence[Record]) -> Mapping[str, set[str]]:
    """The stages that each kind was read from. A trial's kind is `kind[settings]`."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for kind, entry in run.inputs.items():
            found.setdefault(kind.partition("[")[0], set()).add(entry.stage)
    return found


def _wiring(same: Sequence[Record], producers: Mapping[str, set[str]]) -> dict[str, str]:
    """What a stage read from where, of kinds that several stages of the recipe write."""
    read = {kind.partition("[")[0]: entry.stage for run in same for kind, entry in run.inputs.items()}
    return {kind: stage for kind, stage in sorted(read.items()) if len(producers[kind]) > 1}
