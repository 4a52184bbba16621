"""A recipe that reproduces a run, from the records of its lineage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from irpipe.exports.markup import quoted, toml
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.recipe import GRID, STAGE
from irpipe.pipeline.stage import find_stage, kind_in, registered
from irpipe.pipeline.wiring import WIRING

_BARE = re.compile(r"[A-Za-z0-9_-]+")  # TOML's names that need no quotes
_AXES = re.compile(r"(?:\[|, )([A-Za-z0-9_.-]+)=")  # in the name of a grid's point: GRID[SETTING=VALUE, SETTING=VALUE]


def recipe_of(runs: Sequence[Record]) -> str:
    """irpipe.toml with a table for each node or grid of some runs, in their order: given settings and wiring.

    Nodes keep their names, since a run that reads several of a kind knows them by name.
    """
    producers = _producers(runs)
    tables: dict[str, list[Record]] = {}
    for run in runs:
        tables.setdefault(run.node.partition("[")[0], []).append(run)
    blocks = [f"recipe = {toml(runs[-1].recipe)}"]
    for name, points in tables.items():
        run = points[0]
        grid = _grid(points)
        wiring = {kind: nodes for kind, nodes in _wiring(run, producers).items() if f"{WIRING}.{kind}" not in grid}
        settings = {key: run.config[key] for key in run.given if run.config[key] is not None and key not in grid}
        lines = [
            f"[{name if _BARE.fullmatch(name) else quoted(name)}]",
            *([f"{STAGE} = {toml(run.stage)}"] if name != run.stage else []),
            *(f"{setting} = {toml(value)}" for setting, value in settings.items()),
            *(f"{GRID}.{setting} = {toml(values)}" for setting, values in grid.items()),
            *([f"{WIRING} = {toml(wiring)}"] if wiring else []),
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _producers(runs: Sequence[Record]) -> Mapping[str, set[str]]:
    """The nodes that write each kind, and that it was read from, which may be runs of other recipes."""
    nodes: dict[str, set[str]] = {}
    for run in runs:
        if run.stage in registered():
            nodes.setdefault(find_stage(run.stage).writes, set()).add(run.node)
        for slot, entry in run.inputs.items():
            nodes.setdefault(kind_in(slot), set()).add(entry.node)
    return nodes


def _wiring(run: Record, producers: Mapping[str, set[str]]) -> dict[str, str | list[str]]:
    """The wiring of a node: kinds that several nodes of the recipe write, and points of grids, which are read by name only."""
    read: dict[str, list[str]] = {}
    for slot, entry in run.inputs.items():
        read.setdefault(kind_in(slot), []).append(entry.node)
    return {
        kind: nodes[0] if len(nodes) == 1 else nodes
        for kind, nodes in sorted(read.items())
        if len(producers[kind]) > 1 or any("[" in node for node in nodes)
    }


def _grid(points: Sequence[Record]) -> dict[str, list[Any]]:
    """The values of each setting that the points of a grid are named by; nothing for a plain node."""
    node = points[0].node
    values = {axis: [_value(point, axis) for point in points] for axis in _AXES.findall(node) if _is_axis(points[0], axis)}
    return {axis: [value for place, value in enumerate(own) if value not in own[:place]] for axis, own in values.items()}


def _is_axis(point: Record, axis: str) -> bool:
    return axis in point.config or axis.partition(".")[0] == WIRING


def _value(point: Record, axis: str) -> Any:
    """The value of an axis as its point's name has it: a whole number given for a setting of floats stays one."""
    outer, _, kind = axis.partition(".")
    if outer == WIRING:
        return next(entry.node for slot, entry in point.inputs.items() if kind_in(slot) == kind)
    value = point.config[axis]
    return int(value) if isinstance(value, float) and f"{axis}={value}" not in point.node and value.is_integer() else value
