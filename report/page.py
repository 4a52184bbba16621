"""One self-contained HTML page: it fetches nothing, escapes all data, and is of bounded size."""

from __future__ import annotations

import base64
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, PackageLoader, StrictUndefined

from irpipe.exports.reproduction import recipe_of
from irpipe.models.plotting import DARK_PALETTE, PALETTE
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.progress import Progress, duration, local_time, size
from irpipe.pipeline.status import Standing
from irpipe.pipeline.store import Store
from irpipe.pipeline.text import number, visible
from irpipe.pipeline.view import Block, Card, Chart, Gallery, Subject, Text, Thumbnail, blocks_or_fault
from irpipe.report.charts import panels
from irpipe.report.diagram import NARROW, Diagram, draw

MOST_IMAGE_BYTES = 12_000_000  # of encoded images in a page, which base64 makes a third larger
_MOST_ROWS = 200
_LONGEST_WORDS = 20_000  # characters of a card that a filter searches


@dataclass(frozen=True)
class Section:
    """One run in the page.

    Attributes:
        fault: why it cannot be shown, if it cannot.
        standing: the state of its node, if the report is of a recipe.
    """

    record: Record
    blocks: Sequence[Block] = ()
    fault: str = ""
    size: int | None = None
    files: Sequence[tuple[str, int, str]] = ()
    standing: Standing | None = None


@dataclass
class Budget:
    """The bytes of images that still fit into a page."""

    left: int
    left_out: int = 0

    def take(self, count: int) -> bool:
        """Whether `count` bytes still fit; if so they are taken."""
        if count > self.left:
            self.left_out += 1
            return False
        self.left -= count
        return True


@dataclass(frozen=True)
class Page:
    """The values that the template shows."""

    title: str
    made: str
    sections: Sequence[Section]
    diagram: Diagram
    narrow: Diagram
    standings: Sequence[Standing]
    refresh: int
    budget: Budget


def make_page(
    store: Store,
    recipe: str,
    records: Sequence[Record],
    standings: Sequence[Standing],
    bar: Progress,
    refresh: int = 0,
    title: str = "",
    most_image_bytes: int = MOST_IMAGE_BYTES,
) -> str:
    """The page of some runs, in the order given.

    Args:
        standings: the states of the recipe's nodes.
        bar: advances with each run.
        refresh: seconds after which the page reloads itself; 0: never.
        most_image_bytes: images beyond this many encoded bytes are left out, and the page says so.
    """
    by_node = {standing.node: standing for standing in standings}
    sections = []
    for record in records:
        sections.append(make_section(Subject(store, record, records), by_node.get(record.node)))
        bar.advance(1, record.node)
    time = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    runs = [(section.record, size_line(section)) for section in sections]
    diagram, narrow = draw(runs), draw(runs, most_beside=NARROW)
    page = Page(title or f"recipe {recipe}", time, sections, diagram, narrow, standings, refresh, Budget(most_image_bytes))
    text: str = _template().render(page=page, bundle=_bundle())
    return text


def size_line(section: Section) -> str:
    """The line below a run's name in the diagram."""
    return f"{size(section.size)}, {duration(section.record.seconds)}" if section.size is not None else "missing or damaged"


def make_section(subject: Subject, standing: Standing | None) -> Section:
    """A run's blocks, or why there are none."""
    record, store = subject.record, subject.store
    if not store.holds(record.content_id):
        return Section(record, fault="its artifact is missing or damaged", standing=standing)
    manifest = subject.artifact.manifest
    files = [(entry.path, entry.size, entry.sha256) for entry in manifest.files]
    blocks, fault = blocks_or_fault(subject)
    return Section(record, blocks, fault, manifest.size, files, standing)


# -- functions of the template --------------------------------------------------------------------------------------------


def kind_name(block: Block) -> str:
    """Which part of the template draws a block."""
    return type(block).__name__.lower()


def is_number(value: Any) -> bool:
    """Whether a cell is a number, aligned to the right."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def numeric(rows: Sequence[Sequence[Any]], column: int) -> bool:
    """Whether a column holds numbers, by its first cell that is not empty."""
    return is_number(next((row[column] for row in rows if row[column] is not None), None))


def as_webp(thumbnail: Thumbnail, budget: Budget) -> str:
    """A thumbnail as a data URL; empty where the page is full."""
    return _data_url("image/webp", thumbnail.data) if budget.take(len(thumbnail.data)) else ""


def as_png(path: Path, budget: Budget) -> str:
    """A picture of an artifact as a data URL; empty where the page is full or the file is missing."""
    data = path.read_bytes() if path.is_file() else b""
    return _data_url("image/png", data) if data and budget.take(len(data)) else ""


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def finite(value: Any) -> Any:
    """NaN and infinities are no JSON."""
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def words(card: Card) -> str:
    """The text of a card that the search field searches."""
    return visible(" ".join([card.heading, *card.tags.values()]), longest=_LONGEST_WORDS).lower()


def tags(card: Card) -> dict[str, str]:
    """The tags of a card, as in the gallery's filters."""
    return {name: visible(value) for name, value in card.tags.items()}


def best(card: Card) -> str:
    """The highest score of a card's images, or nothing."""
    scores = [image.score for image in card.images if image.score is not None]
    return f"{max(scores):.6g}" if scores else ""


def spread(card: Card) -> str:
    """The difference of the highest and the lowest score of a card's images, or nothing."""
    scores = [image.score for image in card.images if image.score is not None]
    return f"{max(scores) - min(scores):.6g}" if scores else ""


def choices(gallery: Gallery) -> dict[str, list[str]]:
    """The tags for a gallery's filters, with their values: those with at least two values but fewer than one per card."""
    tags: dict[str, set[str]] = {}
    for card in gallery.cards:
        for name, value in card.tags.items():
            if value:
                tags.setdefault(name, set()).add(value)
    return {name: sorted(values) for name, values in tags.items() if 1 < len(values) <= max(2, len(gallery.cards) // 2)}


def scored(gallery: Gallery) -> bool:
    """Whether its images have scores."""
    return any(image.score is not None for card in gallery.cards for image in card.images)


def few(gallery: Gallery) -> bool:
    """Whether several cards fit beside each other: none has more than two images."""
    return all(len(card.images) <= 2 for card in gallery.cards)


def rows_of(chart: Chart) -> list[list[Any]]:
    """A chart's numbers as a table, for screen readers."""
    return [list(row.values()) for row in chart.data]


def first(rows: Sequence[Any]) -> Sequence[Any]:
    """The first rows, as many as a table shows."""
    return rows[:_MOST_ROWS]


def command(record: Record) -> str:
    """The command that made a run."""
    return shlex.join(["irpipe", *record.command[1:]])


def recipe_text(sections: Sequence[Section]) -> str:
    """An irpipe.toml that reproduces these artifacts."""
    return recipe_of([section.record for section in sections])


def headlines(sections: Sequence[Section]) -> list[tuple[Section, str]]:
    """The headline of each run that has one."""
    return [
        (section, block.text) for section in sections for block in section.blocks if isinstance(block, Text) and block.headline
    ]


def results(sections: Sequence[Section]) -> list[tuple[Section, Block]]:
    """The charts and galleries that say what the runs came to, those of the last run first."""
    return [
        (section, block)
        for section in reversed(sections)
        for block in section.blocks
        if isinstance(block, Chart | Gallery) and block.headline
    ]


def palettes() -> dict[str, Sequence[str]]:
    """The colours of lines, points and bars on a light and on a dark page."""
    return {"light": PALETTE, "dark": DARK_PALETTE}


def anchor(record: Record) -> str:
    """The anchor of a run's section."""
    return f"{record.node}-{record.key[:12]}"


def packages(sections: Sequence[Section]) -> dict[str, str]:
    """Versions of packages, from the newest run."""
    newest = max((section.record for section in sections), key=lambda record: record.ended, default=None)
    return dict(newest.packages) if newest is not None else {}


@cache
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return text.replace("</script", "<\\/script")


@cache
def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("irpipe.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    functions = (
        anchor,
        as_png,
        as_webp,
        best,
        choices,
        command,
        duration,
        few,
        finite,
        first,
        headlines,
        is_number,
        kind_name,
        local_time,
        number,
        numeric,
        packages,
        palettes,
        panels,
        recipe_text,
        results,
        rows_of,
        scored,
        size,
        spread,
        tags,
        visible,
        words,
    )
    environment.globals |= {function.__name__: function for function in functions}
    return environment.get_template("page.html")
