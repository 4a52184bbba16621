"""Options of several commands, and opening the recipe and the store of the current folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from irpipe.pipeline.manifest import Record
    from irpipe.pipeline.plan import Planner
    from irpipe.pipeline.recipe import Recipe
    from irpipe.pipeline.store import Store

_LONGEST_CELL = 2000  # characters, on a terminal

StageArgument = Annotated[str, typer.Argument(metavar="STAGE", help="A stage of the recipe, such as build-pairs.")]
IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="The first digits of a content id or key, or a stage's name for its newest artifact.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="STAGE.FIELD=VALUE", help="Override a setting of the recipe for this command. May be repeated."
    ),
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open what was written in the browser or the picture viewer.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
StrictOption = Annotated[bool, typer.Option("--strict-code", help="Do not reuse results of other versions of the code.")]


def open_recipe(overrides: Sequence[str] | None = None) -> tuple[Recipe, Store]:
    """The recipe in the current folder, or in the nearest one above it, and its store."""
    from irpipe.pipeline.recipe_file import load_recipe
    from irpipe.pipeline.store import Store
    from irpipe.pipeline.trials import with_trials
    from irpipe.pipeline.wiring import RECIPE_FILE

    here = Path.cwd()
    root = next((folder for folder in (here, *here.parents) if (folder / RECIPE_FILE).is_file()), here)
    recipe = load_recipe(root, overrides or ())
    store = Store(recipe.store)
    return with_trials(recipe, store), store


def planner(
    overrides: Sequence[str] | None, *, watcher: Any, force: str | None = None, strict: bool = False, remember: bool = False
) -> Planner:
    """A planner for the recipe in the current folder."""
    from irpipe.pipeline.plan import Planner

    recipe, store = open_recipe(overrides)
    return Planner(recipe, store, watcher, force=force, strict_code=strict, remember=remember)


def find(identifier: str) -> tuple[Recipe, Store, Record]:
    """The run with an id, or the newest run of a stage."""
    from irpipe.pipeline.errors import StoreError, did_you_mean

    recipe, store = open_recipe()
    if identifier not in recipe.tables and any(digit not in "0123456789abcdef" for digit in identifier):
        raise StoreError(f"{identifier!r} is not an id, nor a stage of the recipe{did_you_mean(identifier, recipe.tables)}")
    record = store.newest(recipe.name, identifier) if identifier in recipe.tables else store.resolve(identifier)
    if record is None:
        raise StoreError(f"{identifier} has no artifact yet", fix=f"irpipe run {identifier}")
    if not store.holds(record.content_id):
        raise StoreError(f"the artifact {record.content_id[:12]} is not in the store any more", fix=f"irpipe run {record.node}")
    if identifier in recipe.tables:
        _tell_if_not_the_recipes(recipe, store, record)
    return recipe, store, record


def _tell_if_not_the_recipes(recipe: Recipe, store: Store, record: Record) -> None:
    """Say on stderr that a stage's newest artifact is of other settings than irpipe.toml's, where there is one of those."""
    import sys

    from irpipe.pipeline.plan import Planner
    from irpipe.pipeline.progress import Watcher
    from irpipe.pipeline.status import MOST_BYTES
    from irpipe.pipeline.wiring import Wiring

    wired = Wiring(recipe)
    wired.visit(record.node)
    steps, _ = Planner(recipe, store, Watcher(), most_bytes=MOST_BYTES).steps(wired)
    present = steps[record.node].record if record.node in steps else None
    if present is not None and present.content_id != record.content_id:
        ids = record.content_id[:12], present.content_id[:12]
        print(f"{record.node}: the newest, {ids[0]}, is of other settings than irpipe.toml's, {ids[1]}", file=sys.stderr)


def open_file(path: Path) -> None:
    """Open a file in what the desktop opens such files with.

    Raises:
        InputError: there is no desktop.
    """
    import webbrowser

    from irpipe.pipeline.errors import InputError

    if not webbrowser.open(path.resolve().as_uri()):
        raise InputError(f"nothing here opens {path}", fix="open it by hand, or copy it to a machine with a browser")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout: with lines on a terminal, tab-separated (cells quoted where they must be) in a pipe."""
    import csv
    import sys

    if not sys.stdout.isatty():
        writer = csv.writer(sys.stdout, dialect="excel-tab", lineterminator="\n")
        writer.writerows((columns, *rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from irpipe.pipeline.text import visible

    table = Table(header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if value is None else visible(value, _LONGEST_CELL)) for value in row))
    Console().print(table)
