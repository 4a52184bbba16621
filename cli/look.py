"""Commands that show things: show, report, lineage, trace, diff, sql, cite."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irpipe.cli.common import (
    IdArgument,
    JsonOption,
    OpenOption,
    find,
    open_file,
    open_recipe,
    planner,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from irpipe.pipeline.manifest import Record
    from irpipe.pipeline.store import Artifact


class LineageFormat(StrEnum):
    text = "text"
    dot = "dot"
    mermaid = "mermaid"


def show(identifier: IdArgument, json_: JsonOption = False, open_: OpenOption = False) -> None:
    """Show an artifact: how it was made, its files, tables and metrics, and the view of its kind (charts, tables, pictures).

    Example: irpipe show build-pairs
    """
    from dataclasses import asdict

    from irpipe.pipeline.lineage import lineage
    from irpipe.pipeline.text import visible
    from irpipe.pipeline.view import Subject, blocks_or_fault

    _, store, record = find(identifier)
    artifact = store.open(record.content_id)
    if json_:
        print_json({"record": asdict(record), "manifest": asdict(artifact.manifest), "path": str(artifact.path)})
        return
    _print_record(record, artifact)
    try:
        from irpipe.report.terminal import print_blocks
    except ModuleNotFoundError as error:
        print(f"\nto see its view: pip install 'irpipe[report]' ({error.name} is not installed)")
        return
    with store.in_use():
        blocks, fault = blocks_or_fault(Subject(store, record, lineage(store, record).records))
        pictures = print_blocks(blocks, record.content_id[:12], print_table)
    if fault:
        print(f"\n{visible(fault)}")
    for picture in pictures if open_ else ():
        open_file(picture)


def _print_record(record: Record, artifact: Artifact) -> None:
    """Print how an artifact was made, its files, tables, settings and metrics."""
    from irpipe.pipeline.progress import duration, size
    from irpipe.pipeline.text import visible

    print(f"{record.node} {record.content_id}\n  key      {record.key}\n  path     {artifact.path}")
    print(f"  made     {record.ended} in {duration(record.seconds)} on {record.host} ({record.device})")
    print(f"  rows     {', '.join(f'{name} {count:,}' for name, count in record.rows.items())}")
    for slot, entry in record.inputs.items():
        print(f"  read     {slot}: {entry.node} {entry.content_id[:12]}")
    for name, entry in record.external.items():
        print(f"  read     {name}: {visible(entry['given'])}")
    for name, table in artifact.manifest.tables.items():
        print(f"  table    {name}: {table.rows:,} rows ({', '.join(table.columns)})")
    for file in artifact.manifest.files:
        print(f"  file     {file.path}  {size(file.size)}  {file.sha256[:12]}")
    for name, value in record.config.items():
        print(f"  setting  {name} = {visible(value)}")
    for name, value in record.metrics.items():
        print(f"  figure   {visible(name)} = {visible(value)}")


def lineage(
    identifier: IdArgument,
    format_: Annotated[
        LineageFormat, typer.Option("--format", help="Text, or source for Graphviz or Mermaid.")
    ] = LineageFormat.text,
    json_: JsonOption = False,
) -> None:
    """Show the ancestors and descendants of an artifact.

    Example: irpipe lineage build-pairs --format mermaid
    """
    from dataclasses import asdict

    from irpipe.pipeline import lineage as engine

    _, store, record = find(identifier)
    graph = engine.lineage(store, record)
    if json_:
        print_json({"runs": [asdict(run) for run in graph.records], "edges": graph.edges, "focus": record.key})
    elif format_ is LineageFormat.dot:
        print(engine.as_dot(graph))
    elif format_ is LineageFormat.mermaid:
        print(engine.as_mermaid(graph))
    else:
        for run in graph.records:
            mark = "->" if run is graph.focus else "  "
            made_from = ", ".join(entry.content_id[:12] for entry in run.inputs.values())
            print(f"{mark} {run.node} {run.content_id[:12]}{f'  from {made_from}' if made_from else ''}")


def trace(
    row_id: Annotated[str, typer.Argument(metavar="ROW_ID", help="16 hex digits, as `irpipe sql` shows them.")],
    json_: JsonOption = False,
) -> None:
    """Follow one row through every stage: its prompt, images, annotations and pairs.

    Example: irpipe trace 0a1b2c3d4e5f6071
    """
    from dataclasses import asdict

    from irpipe.pipeline import lineage as engine
    from irpipe.pipeline.errors import StoreError
    from irpipe.pipeline.query import newest_records

    recipe, store = open_recipe()
    records = newest_records(store, recipe.name, list(recipe.tables))
    rows = list(engine.trace(store, records, engine.parse_row_id(row_id)))
    if not rows:
        raise StoreError(f"no table of the recipe {recipe.name!r} holds the row id {row_id}")
    if json_:
        print_json([asdict(row) for row in rows])
        return
    last_heading = None
    for row in rows:
        heading = (row.distance, row.stage, row.table)
        if heading != last_heading:
            more = f", {row.more:,} more rows not shown" if row.more else ""
            print(f"{('holds it', 'one step away', 'two steps away')[row.distance]}: {row.stage} {row.table}{more}")
            last_heading = heading
        print("   " + ", ".join(f"{name}={_short(value)}" for name, value in row.row.items() if value is not None))


def _short(value: Any) -> Any:
    from irpipe.pipeline.text import visible

    return f"{value:.6g}" if isinstance(value, float) else visible(value)


def diff(first: IdArgument, second: IdArgument, json_: JsonOption = False) -> None:
    """Compare two artifacts: settings, inputs, figures and files.

    Example: irpipe diff 1f2e3d 4c5b6a
    """
    _, store, left = find(first)
    _, _, right = find(second)
    differences = [*_compare(left, right)]
    files_left, files_right = (
        {file.path: file.sha256 for file in store.open(record.content_id).manifest.files} for record in (left, right)
    )
    for path in sorted(set(files_left) | set(files_right)):
        if files_left.get(path) != files_right.get(path):
            differences.append(
                ("file", path, (files_left.get(path) or "")[:12] or None, (files_right.get(path) or "")[:12] or None)
            )
    if json_:
        print_json([dict(zip(("what", "name", "first", "second"), row, strict=True)) for row in differences])
        return
    if not differences:
        print("the same")
        return
    print_table(("what", "name", left.content_id[:12], right.content_id[:12]), differences)


def _compare(left: Record, right: Record) -> list[tuple[str, str, Any, Any]]:
    rows: list[tuple[str, str, Any, Any]] = []
    inputs_left, inputs_right = ({kind: entry.content_id[:12] for kind, entry in run.inputs.items()} for run in (left, right))
    parts: list[tuple[str, Any, Any]] = [
        ("stage", {"name": left.stage, "version": left.stage_version}, {"name": right.stage, "version": right.stage_version}),
        ("setting", left.config, right.config),
        ("input", inputs_left, inputs_right),
        ("external", left.external, right.external),
        ("code", {"digest": left.code_digest[:12]}, {"digest": right.code_digest[:12]}),
        ("package", left.packages, right.packages),
        ("rows", left.rows, right.rows),
        ("figure", left.metrics, right.metrics),
    ]
    for part, before, after in parts:
        for name in sorted(set(before) | set(after)):
            if before.get(name) != after.get(name):
                rows.append((part, name, before.get(name), after.get(name)))
    return rows


def sql(
    query: Annotated[str, typer.Argument(metavar="QUERY", help="SQL in DuckDB's dialect.")],
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="Stop a query that takes longer.")] = 300.0,
    memory: Annotated[str, typer.Option("--memory", metavar="SIZE", help="Memory that a query may take.")] = "4GB",
    json_: JsonOption = False,
) -> None:
    """Run an SQL query over the recipe's newest tables. `SHOW ALL TABLES` lists them.

    Example: irpipe sql "SELECT split, count(*) FROM pairs GROUP BY split"
    """
    from irpipe.pipeline.errors import StoreError
    from irpipe.pipeline.query import Limits, ask, newest_records

    recipe, store = open_recipe()
    with store.in_use():
        answer = ask(store, newest_records(store, recipe.name, list(recipe.tables)), query, Limits(seconds, memory))
    if json_:
        if len(set(answer.columns)) < len(answer.columns):
            raise StoreError(f"two columns have the same name: {', '.join(answer.columns)}", fix="name them: SELECT a AS b")
        print_json([dict(zip(answer.columns, map(_json_value, row), strict=True)) for row in answer.rows])
    else:
        print_table(answer.columns, answer.rows)


def _json_value(value: Any) -> Any:
    """A value as JSON has it: NaN and infinities become null."""
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _json_value(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cite(
    stage: Annotated[str | None, typer.Argument(metavar="[STAGE]", help="A stage. Default: list all stages.")] = None,
    json_: JsonOption = False,
) -> None:
    """List a stage's settings: default, meaning, and the source of the default; or all stages.

    Example: irpipe cite prompt-graph
    """
    from irpipe.pipeline.settings import role_of, settings_of, source_of
    from irpipe.pipeline.stage import find_stage

    if stage is None:
        _list_stages(json_)
        return
    declared = find_stage(stage)
    rows = []
    for name, field in settings_of(declared.config).items():
        default = "must be given" if field.is_required() else field.default
        default_text = "unset" if default is None or default == () else default
        rows.append((name, default_text, field.description, source_of(declared.config, name), role_of(declared.config, name)))
    columns = ("setting", "default", "meaning", "source", "role")
    if json_:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    import importlib

    print((importlib.import_module(declared.package).__doc__ or "").strip(), end="\n\n")
    print_table(columns, rows)


def _list_stages(json_: bool) -> None:
    """Every installed stage, and what it does."""
    import importlib

    from irpipe.pipeline.stage import find_stage, registered

    packages = {name: find_stage(name).package for name in registered()}
    does = {name: (importlib.import_module(package).__doc__ or "").strip().splitlines() for name, package in packages.items()}
    rows = [(name, lines[0] if lines else "") for name, lines in does.items()]
    if json_:
        print_json([{"stage": name, "does": line} for name, line in rows])
    else:
        print_table(("stage", "does"), rows)


def report(
    identifier: Annotated[
        str | None,
        typer.Argument(
            metavar="[STAGE|ID]", help="A stage or an id: that artifact and its ancestors. Default: the whole recipe."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The file to write. Default: report.html, or report-ID.html.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Rewrite the page every few seconds while a run goes on.")] = False,
    open_: OpenOption = False,
) -> None:
    """Write one self-contained web page: runs, results and evaluations.

    Example: irpipe report --open
    """
    from irpipe.pipeline.progress import Watcher, size, watcher_for
    from irpipe.pipeline.store import disk_errors
    from irpipe.report.write import write_report

    record = find(identifier)[2] if identifier else None
    out = out or Path(f"report-{identifier}.html" if identifier else "report.html")
    examiner = planner(None, watcher=Watcher())
    watcher = watcher_for(json_lines=False, quiet=False)
    with disk_errors(examiner.store.root), examiner.store.in_use():
        written = write_report(examiner, record, out, watcher, watch=watch)
    print(f"{out} ({size(written)})")
    if open_:
        open_file(out)


COMMANDS = (show, report, lineage, trace, diff, sql, cite)
