"""Views of artifacts: blocks that `irpipe show` prints in the terminal and `irpipe report` draws in a page.

A view is a function from a `Subject` to blocks, one for each kind of artifact. A package declares its own under the entry-point
group `irpipe.views`: kind = "module:function".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.lineage import parents_of
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.query import ask_files
from irpipe.pipeline.registry import VIEWS, declared
from irpipe.pipeline.stage import find_stage
from irpipe.pipeline.store import Artifact, Store


@dataclass(frozen=True)
class Text:
    """A sentence or two. A headline is what the run came to, and stands at the top of a page."""

    text: str
    headline: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. `note` says what is left out, if anything."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Numbers drawn.

    Attributes:
        alt: a description in words, for screen readers.
        mark: line: y over x. points: y over x. bars: y by category x. intervals: y with low and high, by category x.
        data: rows with the columns that the others name.
        colour: the column that tells lines, points or bars apart; panel: the one that has a panel for each value.
        detail: the column in a point's or bar's tooltip.
        x_title, y_title: titles of the axes. Default: the columns' names.
        references: values of y, by name, drawn as lines beside the intervals.
        steps: values of x, by name, drawn as upright lines: the step whose weights are kept.
        units: titles of the y axes of panels, by the panel's value.
        headline: whether it is also what the whole run came to, and stands at the top of a page.
    """

    title: str
    alt: str
    mark: Literal["line", "points", "bars", "intervals"]
    data: Sequence[Mapping[str, Any]]
    x: str
    y: str
    colour: str | None = None
    panel: str | None = None
    low: str | None = None
    high: str | None = None
    detail: str | None = None
    axes: bool = True
    references: Mapping[str, float] = field(default_factory=dict)
    x_title: str = ""
    y_title: str = ""
    steps: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    headline: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture that the artifact holds."""

    title: str
    alt: str
    path: Path


@dataclass(frozen=True)
class Thumbnail:
    """An encoded image, its caption, its score, if it has one, and whether that is the best of its card."""

    data: bytes
    caption: str
    score: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Card:
    """Images that belong together, such as those of a prompt. A gallery is filtered by `tags`."""

    heading: str
    images: Sequence[Thumbnail]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Cards that can be filtered, sorted and paged. `note` states the sampling; `headline` is as that of a chart."""

    title: str
    cards: Sequence[Card]
    note: str = ""
    headline: bool = False


Block = Text | Grid | Chart | Picture | Gallery


@dataclass(frozen=True)
class Subject:
    """The artifact that a view shows, and the runs around it.

    Attributes:
        runs: the runs it is shown among, itself included.
    """

    store: Store
    record: Record
    runs: Sequence[Record]

    @cached_property
    def artifact(self) -> Artifact:
        """The artifact itself."""
        return self.store.open(self.record.content_id)

    @cached_property
    def kind(self) -> str:
        """The artifact's kind."""
        return kind_of(self.record)

    def read(self, kind: str) -> dict[str, tuple[Record, Artifact]]:
        """The runs whose artifacts of a kind it read itself, with these, by node."""
        parents = set(parents_of(self.record, self.runs))
        runs = [run for run in self.runs if run.key in parents and kind_of(run) == kind and self.store.holds(run.content_id)]
        return {run.node: (run, self.store.open(run.content_id)) for run in runs}

    def related(self, kind: str) -> Artifact | None:
        """The nearest ancestor of a kind, or else the newest descendant of that kind."""
        run = self.related_run(kind)
        return self.store.open(run.content_id) if run is not None else None

    def related_run(self, kind: str) -> Record | None:
        """The run that made the related artifact of a kind."""
        of_kind = [run for run in self.runs if kind_of(run) == kind and self.store.holds(run.content_id)]
        distances = self._distances_behind(self.record)
        upstream = [run for run in of_kind if run.key in distances]
        if upstream:
            return min(upstream, key=lambda run: (distances[run.key], _newest_first(run)))
        downstream = [run for run in of_kind if self.record.key in self._distances_behind(run)]
        return min(downstream, key=_newest_first, default=None)

    def _distances_behind(self, record: Record) -> dict[str, int]:
        """Keys of a run's ancestors, each with the least number of steps to it."""
        by_key = {run.key: run for run in self.runs}
        distances: dict[str, int] = {}
        pending = deque([(record, 1)])
        while pending:
            run, steps = pending.popleft()
            for key in parents_of(run, self.runs):
                if key in by_key and key not in distances:
                    distances[key] = steps
                    pending.append((by_key[key], steps + 1))
        return distances

    def ask(self, query: str, **tables: Sequence[Path]) -> list[dict[str, Any]]:
        """Rows of a query over Parquet files, each table by the name it is given here; row ids as 16 hex digits."""
        answer = ask_files(self.store, tables, query)
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def _newest_first(run: Record) -> float:
    return -datetime.fromisoformat(run.ended).timestamp()


View = Callable[[Subject], Sequence[Block]]


def kind_of(record: Record) -> str:
    """The kind that a run wrote; empty where its stage is not installed."""
    try:
        return find_stage(record.stage).writes
    except IrpipeError:
        return ""


def blocks_of(subject: Subject) -> Sequence[Block]:
    """The blocks of an artifact: those of its kind's view, and its rejected rows.

    Raises:
        IrpipeError: a part of it is missing or damaged.
    """
    point = declared(VIEWS).get(subject.kind)
    blocks = list(point.load()(subject)) if point is not None else []
    return [*blocks, *_rejected(subject)]


def blocks_or_fault(subject: Subject) -> tuple[Sequence[Block], str]:
    """The blocks of an artifact, or none and the error.

    A view may be another package's code on any data: an error in one must not hide the other artifacts.
    """
    try:
        return blocks_of(subject), ""
    except IrpipeError as error:
        return [], f"it cannot be shown: {error.what}"
    except Exception as error:  # noqa: BLE001 # any error is reported in place of the view
        return [], f"it cannot be shown: {type(error).__name__}: {error}"


def _rejected(subject: Subject) -> list[Block]:
    """How many rows were rejected for each reason."""
    table = subject.artifact.manifest.tables.get("rejected")
    if table is None or not table.rows:
        return []
    rows = subject.ask(
        "SELECT reason::VARCHAR AS reason, count(*) AS rows FROM rejected GROUP BY ALL ORDER BY rows DESC",
        rejected=subject.artifact.table("rejected"),
    )
    return [Grid("Rejected, by reason", ("reason", "rows"), [(row["reason"], row["rows"]) for row in rows])]
