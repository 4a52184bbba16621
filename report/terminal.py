"""Views in the terminal: charts as short tables, pictures where the terminal can show them, else their paths."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from irpipe.pipeline.text import number, visible
from irpipe.pipeline.view import Block, Chart, Gallery, Grid, Picture, Text

PrintTable = Callable[[Sequence[str], Sequence[Sequence[Any]]], None]

_MOST_ROWS = 12
_SHEET_ROWS, _SHEET_COLUMNS, _CELL, _GAP = 8, 8, 128, 4


def print_blocks(blocks: Sequence[Block], name: str, print_table: PrintTable) -> list[Path]:
    """Print the blocks of an artifact's view. Returns the files of its pictures.

    Args:
        name: of the artifact; contact sheets are named by it.
        print_table: prints columns and rows.
    """
    pictures: list[Path] = []
    for block in blocks:
        match block:
            case Text():
                print(f"\n{visible(block.text, 2000)}")
            case Grid():
                _print_grid(print_table, block.title, block.columns, block.rows, block.note)
            case Chart():
                columns, rows = ends(block)
                _print_grid(print_table, block.title, columns, rows, "from the first to the last" if block.mark == "line" else "")
            case Picture():
                pictures.append(block.path)
                _print_picture(block.title, block.path)
            case Gallery() if any(card.images for card in block.cards):
                print(f"\n{visible(block.title)}: {visible(block.note)}")
                pictures.append(contact_sheet(block, name))
                _print_picture("contact sheet", pictures[-1])
    return pictures


def ends(chart: Chart) -> tuple[list[str], list[list[Any]]]:
    """A chart as a short table: of lines the first and last value, of points how many there are, else the numbers."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    by = [name for name in (chart.panel, chart.colour) if name]
    for row in chart.data:
        groups.setdefault(tuple(str(row[name]) for name in by), []).append(row)
    if chart.mark == "line":
        return [*by, "first", "last"], [[*group, rows[0][chart.y], rows[-1][chart.y]] for group, rows in groups.items()]
    if chart.mark == "points":
        return [*by, "points"], [[*group, len(rows)] for group, rows in groups.items()]
    names = [name for name in (*by, chart.x, chart.y, chart.low, chart.high) if name]
    return names, [[row[name] for name in names] for row in chart.data]


def _print_grid(print_table: PrintTable, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str) -> None:
    print(f"\n{visible(title)}{f' ({visible(note)})' if note else ''}")
    print_table(columns, [[number(cell) for cell in row] for row in rows[:_MOST_ROWS]])
    if len(rows) > _MOST_ROWS:
        print(f"{len(rows) - _MOST_ROWS:,} more rows: irpipe report, or irpipe sql")


def _print_picture(title: str, path: Path) -> None:
    if can_show_pictures():
        from rich.console import Console
        from textual_image.renderable import Image as Shown

        Console().print(Shown(path, width="80%", height="auto"))
    print(f"{visible(title)}: {path}")


def can_show_pictures() -> bool:
    """Whether the terminal draws pictures, by Kitty's protocol or by sixels."""
    if not sys.stdout.isatty() or not os.get_terminal_size(sys.stdout.fileno()).columns:
        return False
    try:
        from textual_image import renderable
    except ModuleNotFoundError:
        return False
    return renderable.Image in (renderable.TGPImage, renderable.SixelImage)


def contact_sheet(gallery: Gallery, name: str) -> Path:
    """The first images of the first cards, one row per card, as a PNG in the cache folder; an older one is overwritten."""
    cards = [card for card in gallery.cards if card.images][:_SHEET_ROWS]
    columns = min(_SHEET_COLUMNS, max(len(card.images) for card in cards))
    step = _CELL + _GAP
    sheet = Image.new("RGB", (columns * step, len(cards) * step), (255, 255, 255))
    for row, card in enumerate(cards):
        for column, image in enumerate(card.images[:columns]):
            with Image.open(io.BytesIO(image.data)) as picture:
                picture.thumbnail((_CELL, _CELL))
                sheet.paste(picture, (column * step, row * step))
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "irpipe"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{re.sub('[^a-z0-9]+', '-', gallery.title.lower())[:40]}.png"
    sheet.save(path, "PNG")
    return path
