"""A recipe that reproduces a run, from the records of its lineage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from irpipe.exports.markup import toml
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.recipe import STAGE, WIRING
from irpipe.pipeline.stage import kind_in

_BARE = re.compile(r"[A-Za-z0-9_-]+")  # TOML's names that need no quotes


def recipe_of(runs: Sequence[Record]) -> str:
    """irpipe.toml with a table for each node of some runs, in their order: given settings and wiring."""
    producers = _producers(runs)
    blocks = [f"recipe = {toml(runs[-1].recipe)}"]
    for run in runs:
        name = table_name(run.node)
        settings = {setting: run.config[setting] for setting in run.given if run.config[setting] is not None}
        wiring = _wiring(run, producers)
        lines = [
            f"[{name}]",
            *([f"{STAGE} = {toml(run.stage)}"] if name != run.stage else []),
            *(f"{setting} = {toml(value)}" for setting, value in settings.items()),
            *([f"{WIRING} = {toml(wiring)}"] if wiring else []),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def table_name(node: str) -> str:
    """A node's name as a table of irpipe.toml: the name of a grid's point becomes a plain one."""
    return node if _BARE.fullmatch(node) else re.sub(r"[^A-Za-z0-9_-]+", "-", node).strip("-")


def _producers(runs: Sequence[Record]) -> Mapping[str, set[str]]:
    """The nodes that each kind was read from."""
    nodes: dict[str, set[str]] = {}
    for run in runs:
        for slot, entry in run.inputs.items():
            nodes.setdefault(kind_in(slot), set()).add(entry.node)
    return nodes


def _wiring(run: Record, producers: Mapping[str, set[str]]) -> dict[str, str | list[str]]:
    """The wiring of a node, for kinds that several nodes of the recipe write."""
    read: dict[str, list[str]] = {}
    for slot, entry in run.inputs.items():
        read.setdefault(kind_in(slot), []).append(table_name(entry.node))
    return {kind: nodes[0] if len(nodes) == 1 else nodes for kind, nodes in sorted(read.items()) if len(producers[kind]) > 1}
