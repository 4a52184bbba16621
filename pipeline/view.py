"""What people should see of an artifact: blocks that `irpipe show` prints in the terminal and `irpipe report` draws in a page.

A view is a function from `Shown` to blocks, one for each kind of artifact. A package declares its own under the entry-point group
`irpipe.views`: kind = "module:function".
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
    """A sentence or two. A headline also stands at the top of a page."""

    text: str
    headline: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. `note` says what is left out, if anything is."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """Numbers drawn.

    Attributes:
        alt: what it shows, in words, for those who do not see it.
        mark: line: y over x. points: y over x. bars: y by category x. intervals: y with low and high, by category x.
        data: rows with the columns that the others name.
        colour: the column that tells lines, points or bars apart; panel: the one that has a panel for each value.
        detail: the column that a point or bar tells when it is pointed at.
        x_title, y_title: what the axes say; the columns' names without.
        references: values of y, by name, that intervals are held against.
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


@dataclass(frozen=True)
class Picture:
    """A picture that the artifact holds."""

    title: str
    alt: str
    path: Path


@dataclass(frozen=True)
class Thumbnail:
    """An image as it is encoded, what it is called, and its score, if it has one."""

    data: bytes
    caption: str
    score: float | None = None


@dataclass(frozen=True)
class Card:
    """Images that belong together: those of a prompt, say. `tags` are what a gallery is filtered by."""

    heading: str
    images: Sequence[Thumbnail]
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Gallery:
    """Cards that can be filtered. `note` states the sampling."""

    title: str
    cards: Sequence[Card]
    note: str = ""


Block = Text | Grid | Chart | Picture | Gallery


@dataclass(frozen=True)
class Shown:
    """An artifact and those around it.

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
        """What it is."""
        return kind_of(self.record)

    def near(self, kind: str) -> Artifact | None:
        """The artifact of a kind that this one was made from, the nearest, or else the newest that was made from it."""
        found = self.near_run(kind)
        return self.store.open(found.content_id) if found is not None else None

    def near_run(self, kind: str) -> Record | None:
        """The run that made it."""
        of_kind = [run for run in self.runs if kind_of(run) == kind and self.store.holds(run.content_id)]
        behind = self._behind(self.record)
        above = [run for run in of_kind if run.key in behind]
        if above:
            return min(above, key=lambda run: (behind[run.key], _newest_first(run)))
        below = [run for run in of_kind if self.record.key in self._behind(run)]
        return min(below, key=_newest_first, default=None)

    def _behind(self, record: Record) -> dict[str, int]:
        """Keys of the runs that a run was made from, and over how many steps at least."""
        by_key = {run.key: run for run in self.runs}
        found: dict[str, int] = {}
        pending = deque([(record, 1)])
        while pending:
            run, steps = pending.popleft()
            for key in parents_of(run, self.runs):
                if key in by_key and key not in found:
                    found[key] = steps
                    pending.append((by_key[key], steps + 1))
        return found

    def ask(self, query: str, **tables: Sequence[Path]) -> list[dict[str, Any]]:
        """Rows of a query over Parquet files, each table by the name it is given here; row ids as 16 hex digits."""
        answer = ask_files(self.store, tables, query)
        return [dict(zip(answer.columns, row, strict=True)) for row in answer.rows]


def _newest_first(run: Record) -> float:
    return -datetime.fromisoformat(run.ended).timestamp()


View = Callable[[Shown], Sequence[Block]]


def kind_of(record: Record) -> str:
    """What a run wrote; nothing where the stage is not installed."""
    try:
        return find_stage(record.stage).writes
    except IrpipeError:
        return ""


def view_of(shown: Shown) -> Sequence[Block]:
    """The blocks of an artifact: those of its kind's view, and what was rejected, as every kind has it.

    Raises:
        IrpipeError: a part of it is missing or damaged.
    """
    point = declared(VIEWS).get(shown.kind)
    blocks = list(point.load()(shown)) if point is not None else []
    return [*blocks, *_rejected(shown)]


def seen(shown: Shown) -> tuple[Sequence[Block], str]:
    """The blocks of an artifact, or none and why.

    A view is anybody's code and meets anybody's data: what is wrong with one artifact must not hide the others.
    """
    try:
        return view_of(shown), ""
    except IrpipeError as error:
        return [], f"it cannot be shown: {error.what}"
    except Exception as error:  # noqa: BLE001 # whatever it is, it is told in its place
        return [], f"it cannot be shown: {type(error).__name__}: {error}"


def _rejected(shown: Shown) -> list[Block]:
    """How many rows were rejected for each reason."""
    table = shown.artifact.manifest.tables.get("rejected")
    if table is None or not table.rows:
        return []
    rows = shown.ask(
        "SELECT reason::VARCHAR AS reason, count(*) AS rows FROM rejected GROUP BY ALL ORDER BY rows DESC",
        rejected=shown.artifact.table("rejected"),
    )
    return [Grid("Rejected, by reason", ("reason", "rows"), [(row["reason"], row["rows"]) for row in rows])]
