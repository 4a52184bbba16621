"""Ancestors and descendants of an artifact, and the trace of one row through them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.store import Store


@dataclass(frozen=True)
class Lineage:
    """One run with its ancestors and descendants, and the edges between them (made from -> made)."""

    focus: Record
    ancestors: tuple[Record, ...]
    descendants: tuple[Record, ...]
    edges: tuple[tuple[str, str], ...]

    @property
    def records(self) -> tuple[Record, ...]:
        return (*self.ancestors, self.focus, *self.descendants)


def lineage(store: Store, focus: Record) -> Lineage:
    """The lineage of one run in both directions, from the records in the store."""
    records, up = _runs(store)
    down: dict[str, list[str]] = {key: [] for key in records}
    for key, parents in up.items():
        for parent in parents:
            down[parent].append(key)
    ancestors, descendants = _reach(focus.key, up), _reach(focus.key, down)
    related = {*ancestors, focus.key, *descendants}
    edges = sorted((parent, key) for key in related for parent in up[key] if parent in related)
    order = {key: index for index, key in enumerate(_sorted_by_depth(records, up))}
    return Lineage(
        focus,
        tuple(records[key] for key in sorted(ancestors, key=order.__getitem__)),
        tuple(records[key] for key in sorted(descendants, key=order.__getitem__)),
        tuple(edges),
    )


def with_ancestors(store: Store, focuses: Iterable[Record]) -> list[Record]:
    """Some runs and all that they were made from, each after its inputs. Every record is read once."""
    records, up = _runs(store)
    given = {record.key: record for record in focuses}
    wanted = given.keys() | {key for start in given for key in _reach(start, up)}
    return [given.get(key, records[key]) for key in _sorted_by_depth(records, up) if key in wanted]


def stages_behind(store: Store, content_ids: Iterable[str]) -> set[str]:
    """Names of the stages that made some artifacts and their ancestors.

    Raises:
        StoreError: no record says what made one of them.
    """
    records, up = _runs(store)
    ids = set(content_ids)
    unknown = ids - {record.content_id for record in records.values()}
    if unknown:
        raise StoreError(f"no record says what made {min(unknown)[:12]}", fix="make it again, or copy its files out of the store")
    keys = [key for key, record in records.items() if record.content_id in ids]
    runs = [records[key] for start in keys for key in {start, *_reach(start, up)}]
    # A parent whose own record is gone is still named by those who read it.
    return {name for record in runs for name in (record.stage, *(entry.stage for entry in record.inputs.values()))}


def parents_of(record: Record, runs: Sequence[Record]) -> list[str]:
    """Keys of those of some runs whose results a run read."""
    makers = {run.content_id: run.key for run in sorted(runs, key=lambda run: run.ended)}
    keys = {run.key for run in runs}
    # The same content may have been made again under another key, which is the one among these.
    read = [entry.key if entry.key in keys else makers.get(entry.content_id, entry.key) for entry in record.inputs.values()]
    return [key for key in dict.fromkeys([*read, *_parents(record, makers)]) if key != record.key]


def _runs(store: Store) -> tuple[dict[str, Record], dict[str, list[str]]]:
    """Every run by key, and the keys of the runs whose results it read."""
    records = {record.key: record for record in store.records()}
    makers = {record.content_id: record.key for record in sorted(records.values(), key=lambda record: record.ended)}
    up = {key: [parent for parent in _parents(record, makers) if parent in records] for key, record in records.items()}
    return records, up


def _parents(record: Record, makers: Mapping[str, str]) -> Iterator[str]:
    """Keys of the runs whose results a run read: its inputs, and artifacts that its settings name."""
    yield from (entry.key for entry in record.inputs.values())
    for entry in record.external.values():
        yield from (makers[artifact] for artifact in entry.get("artifacts", ()) if artifact in makers)


def _reach(start: str, edges: Mapping[str, Iterable[str]]) -> set[str]:
    reached: set[str] = set()
    pending = list(edges[start])
    while pending:
        key = pending.pop()
        if key not in reached:
            reached.add(key)
            pending.extend(edges[key])
    return reached


def _sorted_by_depth(records: Mapping[str, Record], up: Mapping[str, list[str]]) -> list[str]:
    from graphlib import TopologicalSorter

    return list(TopologicalSorter({key: sorted(up[key]) for key in sorted(records)}).static_order())


def as_dot(graph: Lineage) -> str:
    """Graphviz text."""
    lines = ["digraph lineage {", "  rankdir=LR; node [shape=box];"]
    for record in graph.records:
        bold = ", style=bold" if record is graph.focus else ""
        lines.append(f'  "{record.key[:12]}" [label="{record.node}\\n{record.content_id[:12]}"{bold}];')
    lines += [f'  "{parent[:12]}" -> "{child[:12]}";' for parent, child in graph.edges]
    return "\n".join([*lines, "}"])


def as_mermaid(graph: Lineage) -> str:
    """Mermaid text."""
    lines = ["flowchart LR"]
    lines += [f'  k{record.key[:12]}["{record.node}<br/>{record.content_id[:12]}"]' for record in graph.records]
    lines += [f"  k{parent[:12]} --> k{child[:12]}" for parent, child in graph.edges]
    return "\n".join(lines)


@dataclass(frozen=True)
class TracedRow:
    """A row that holds the id, or one that such a row leads to."""

    stage: str
    content_id: str
    table: str
    distance: int
    row: Mapping[str, Any]
    more: int = 0  # further rows of this table at this distance


def trace(store: Store, records: Iterable[Record], row_id: int, *, most: int = 20) -> Iterator[TracedRow]:
    """Walk a row id through all tables: the rows that hold it, then the rows their other ids lead to.

    Args:
        records: the runs whose tables are searched, upstream first.
        most: rows returned per table and distance.

    Of an id in more than `most` rows of a table (the prompt of a hundred pairs), the rest is only counted.
    """
    import duckdb

    tables = list(_id_tables(store, records))
    seen_ids, frontier = {row_id}, {row_id}
    seen_rows: set[tuple[str, str, str]] = set()
    with duckdb.connect() as connection:
        for distance in range(3):
            reached: set[int] = set()
            for record, table, files, columns in tables:
                ids = ", ".join(map(str, sorted(frontier)))
                where = " OR ".join(f'"{column}" IN ({ids})' for column in columns)
                counted = connection.execute(f"SELECT count(*) FROM read_parquet(?) WHERE {where}", [files]).fetchone()
                more = max(0, (counted[0] if counted else 0) - most)
                relation = connection.execute(f"SELECT * FROM read_parquet(?) WHERE {where} LIMIT {most}", [files])
                names = [column[0] for column in relation.description or ()]
                for values in relation.fetchall():
                    row = dict(zip(names, values, strict=True))
                    mark = (record.key, table, repr(values))
                    if mark not in seen_rows:
                        seen_rows.add(mark)
                        yield TracedRow(record.node, record.content_id, table, distance, readable(row, columns), more)
                    reached.update(row[column] for column in columns if row[column] is not None)
            frontier = reached - seen_ids
            seen_ids |= frontier
            if not frontier or len(frontier) > 200:
                return


def _id_tables(store: Store, records: Iterable[Record]) -> Iterator[tuple[Record, str, list[str], list[str]]]:
    for record in records:
        artifact = store.open(record.content_id)
        for name, table in artifact.manifest.tables.items():
            columns = [column for column, kind in table.columns.items() if kind == "uint64"]
            if columns:
                yield record, name, [str(path) for path in artifact.table(name)], columns


def readable(row: Mapping[str, Any], id_columns: Iterable[str]) -> dict[str, Any]:
    """Row ids as 16 hex digits, bytes as their number."""
    values: dict[str, Any] = {name: f"<{len(value)} bytes>" if isinstance(value, bytes) else value for name, value in row.items()}
    for name, value in values.items():
        if isinstance(value, dict):
            values[name] = readable(value, ())
    for name in id_columns:
        if values.get(name) is not None:
            values[name] = show_row_id(values[name])
    return values


def parse_row_id(text: str) -> int:
    """A row id from its 16 hex digits.

    Raises:
        StoreError: the text is something else.
    """
    if len(text) != 16 or any(digit not in "0123456789abcdef" for digit in text):
        raise StoreError(f"{text!r} is not a row id", expected="16 hex digits, as `irpipe sql` shows them")
    return int(text, 16)
