"""The pipeline as a diagram: runs from top to bottom, each below its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from irpipe.pipeline.lineage import parents_of
from irpipe.pipeline.manifest import Record

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _MOST_BESIDE = 216, 74, 22, 40, 4
NARROW = 2  # runs beside each other on a phone


@dataclass(frozen=True)
class Box:
    """A run in the diagram: its position in pixels and its lines of text."""

    record: Record
    x: int
    y: int
    size_line: str
    settings: str


@dataclass(frozen=True)
class Diagram:
    """Boxes, and the paths of the lines between them."""

    boxes: Sequence[Box]
    paths: Sequence[str]
    width: int
    height: int
    box_width: int = _WIDTH
    box_height: int = _HEIGHT


def draw(runs: Sequence[tuple[Record, str]], most_beside: int = _MOST_BESIDE) -> Diagram:
    """A diagram of runs, each with a line of text.

    Independent runs are beside each other, at most `most_beside` in a row. Lines that
    others imply are left out: they would pass behind boxes. The page's lineage has them all.
    """
    import networkx as nx

    records, lines = [record for record, _ in runs], {record.key: line for record, line in runs}
    graph = nx.DiGraph()
    graph.add_nodes_from(record.key for record in records)
    for record in records:
        graph.add_edges_from((parent, record.key) for parent in parents_of(record, records) if parent in lines)
    by_key = {record.key: record for record in records}
    rows: list[list[str]] = []
    for generation in _late(graph):
        row = sorted(generation, key=list(lines).index)
        rows += [row[start : start + most_beside] for start in range(0, len(row), most_beside)]
    width = max((len(row) for row in rows), default=1) * (_WIDTH + _GAP_X) + _GAP_X
    boxes = {}
    for number, row in enumerate(rows):
        left = (width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) // 2
        for column, key in enumerate(row):
            x, y = left + column * (_WIDTH + _GAP_X), number * (_HEIGHT + _GAP_Y) + 10
            boxes[key] = Box(by_key[key], x, y, lines[key], _settings(by_key[key]))
    paths = [_path(boxes[parent], boxes[key]) for parent, key in nx.transitive_reduction(graph).edges]
    return Diagram(list(boxes.values()), paths, width, len(rows) * (_HEIGHT + _GAP_Y) + 10)


def _late(graph: Any) -> list[list[str]]:
    """Generations of a graph, each node just above the first one that needs it: fewer lines pass behind boxes."""
    import networkx as nx

    generations = list(nx.topological_generations(graph.reverse()))
    return [list(generation) for generation in reversed(generations)]


def _path(above: Box, below: Box) -> str:
    x1, y1, x2, y2 = above.x + _WIDTH // 2, above.y + _HEIGHT, below.x + _WIDTH // 2, below.y
    middle = (y1 + y2) // 2
    return f"M{x1},{y1} C{x1},{middle} {x2},{middle} {x2},{y2}"


def _settings(record: Record) -> str:
    """The given settings, as many as fit."""
    text = ", ".join(f"{name} {record.config[name]}" for name in record.given if not isinstance(record.config[name], list))
    return text[:27] + "…" if len(text) > 28 else text
