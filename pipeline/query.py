"""SQL queries by DuckDB over the store's tables. DuckDB stores nothing."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.store import Store


@dataclass(frozen=True)
class Answer:
    """Column names and rows; row ids (unsigned 64-bit columns) as 16 hex digits."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def newest_records(store: Store, recipe: str, nodes: Sequence[str]) -> list[Record]:
    """The newest run of each node that has one, in the given order."""
    newest = (store.newest(recipe, node) for node in nodes)
    return [record for record in newest if record is not None and store.holds(record.content_id)]


@dataclass(frozen=True)
class Limits:
    """What a query may take: seconds, and memory as DuckDB takes it ("4GB")."""

    seconds: float = 300.0
    memory: str | None = "4GB"


_NO_LIMITS = Limits(math.inf, None)


def ask(store: Store, records: Sequence[Record], query: str, limits: Limits = _NO_LIMITS) -> Answer:
    """Run a query over the newest tables.

    Each table is a view, `build_pairs.pairs` or, for the newest of that name, `pairs`; and `row_id('0123456789abcdef')`
    makes a row id of its hex digits. Nothing outside the store can be read, and nothing can be written.

    Raises:
        StoreError: DuckDB cannot answer.
    """
    return _answer(store, dict(views(store, records)), query, lambda error: _fix(error, store, records), limits)


def ask_files(store: Store, tables: Mapping[str, Sequence[Path]], query: str) -> Answer:
    """Run a query over some of the store's Parquet files, each table under the name that it is given.

    Raises:
        StoreError: DuckDB cannot answer, or a file is damaged.
    """
    return _answer(store, {name: [str(path) for path in files] for name, files in tables.items()}, query, lambda _: None)


def _answer(
    store: Store,
    tables: Mapping[str, list[str]],
    query: str,
    fix: Callable[[Exception], str | None],
    limits: Limits = _NO_LIMITS,
) -> Answer:
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("CREATE MACRO row_id(digits) AS ('0x' || digits)::UBIGINT")
        try:
            for name, files in tables.items():
                _add_view(connection, name, files)
            connection.execute("SET allowed_directories = [?]", [str(store.root / "objects")])
            if limits.memory is not None:
                connection.execute("SET memory_limit = ?", [limits.memory])
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            statement = _question(connection, query)
            with _at_most(connection, limits.seconds):
                answer = connection.execute(statement)
                description, found = answer.description or [], answer.fetchall()
        except duckdb.InterruptException:
            raise StoreError(
                f"the query took more than {limits.seconds:g} s", where=query, fix="irpipe sql --seconds N"
            ) from None
        except duckdb.Error as error:
            raise StoreError(str(error).strip(), where=query, fix=fix(error)) from None
    ids = [str(column[1]) == "UBIGINT" for column in description]
    rows = [
        tuple(show_row_id(value) if is_id and value is not None else value for value, is_id in zip(row, ids, strict=True))
        for row in found
    ]
    return Answer(tuple(column[0] for column in description), rows)


_EXPLAIN = re.compile(r"\s*explain\b\s*(analyze\b)?\s*(\([^()]*\))?", re.IGNORECASE)


def _question(connection: Any, query: str) -> Any:
    """The one statement of a query, which only asks: `EXPLAIN ANALYZE` does what it explains, also `COPY` into a file.

    Raises:
        StoreError: it is none, several, or does something.
    """
    import duckdb

    statements = connection.extract_statements(query)
    explained = _EXPLAIN.match(query) if len(statements) == 1 and statements[0].type == duckdb.StatementType.EXPLAIN else None
    asked = connection.extract_statements(query[explained.end() :]) if explained else statements
    if len(statements) != 1 or len(asked) != 1 or asked[0].type != duckdb.StatementType.SELECT:
        raise StoreError("this is not a single query", where=query, expected='such as "SELECT count(*) FROM pairs"')
    return statements[0]


@contextmanager
def _at_most(connection: Any, seconds: float) -> Iterator[None]:
    """Interrupt a query that takes longer."""
    if math.isinf(seconds):
        yield
        return
    timer = threading.Timer(seconds, connection.interrupt)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _add_view(connection: Any, name: str, files: Sequence[str]) -> None:
    listed = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
    schema, dot, table = name.rpartition(".")
    if dot:
        connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
    quoted = f'"{schema}"."{table}"' if dot else f'"{table}"'
    connection.execute(f"CREATE VIEW {quoted} AS SELECT * FROM read_parquet([{listed}])")


def _fix(error: Exception, store: Store, records: Sequence[Record]) -> str | None:
    if "UINT64" in str(error) or "UBIGINT" in str(error):
        return "write a row id as row_id('0123456789abcdef')"
    if "does not exist" in str(error):
        names = sorted({name for name, _ in views(store, records) if "." not in name})
        return f"the tables are {', '.join(names)}" if names else "irpipe run a stage first: there are no tables yet"
    return None


def views(store: Store, records: Sequence[Record]) -> Iterator[tuple[str, list[str]]]:
    """View names and their Parquet files: `build_pairs.rejected`, and `rejected` for the newest of all nodes."""
    newest: dict[str, list[str]] = {}
    for record in sorted(records, key=lambda record: record.ended):
        artifact = store.open(record.content_id)
        for name in artifact.manifest.tables:
            newest[name] = [str(path) for path in artifact.table(name)]
            yield f"{record.node.replace('-', '_')}.{name}", newest[name]
    yield from newest.items()
