"""`irpipe sql` only asks: it writes nothing, and ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def everything(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT 1) TO '{}/x.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{}/x.csv'",
        "explain analyze copy (select 1) to '{}/x.parquet'",
        "EXPLAIN (ANALYZE) COPY (SELECT 1) TO '{}/x.csv'",
        "EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1) TO '{}/x.csv'",
        "/* */ EXPLAIN ANALYZE COPY (SELECT 1) TO '{}/x.csv'",
        "-- a\nEXPLAIN ANALYZE COPY (SELECT 1) TO '{}/x.csv'",
        "EXPLAIN COPY (SELECT 1) TO '{}/x.csv'",
        "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "EXPORT DATABASE '{}/x'",
        "ATTACH '{}/x.db'",
        "SET memory_limit = '1TB'",
        "PRAGMA enable_profiling",
        "INSTALL httpfs",
        "SELECT 1; COPY (SELECT 1) TO '{}/x.csv'",
    ],
)
def test_nothing_is_written(project, shouting, query):
    project.run("count")
    store = project.root / "artifacts"
    for folder in (store / "objects", next(store.glob("objects/??")), next(store.glob("objects/??/*")), project.root):
        folder.chmod(0o755)
        before = everything(project.root)
        result = project("sql", query.format(folder), status=2)
        assert "this is not a single query" in result.err or "Error" in result.err, result
        assert everything(project.root) == before


@pytest.mark.parametrize(
    "query", ["EXPLAIN SELECT 1", "EXPLAIN ANALYZE SELECT 1", "explain (format json) select 1", "FROM range(3)"]
)
def test_questions_are_answered(project, shouting, query):
    project.run("count")
    assert json.loads(project("sql", "--json", query).out)


def test_a_query_that_does_not_end_is_ended(project, shouting):
    project.run("count")
    endless = "SELECT count(*) FROM range(100000000) a, range(100000000) b WHERE a.range * b.range = 7"
    assert "took more than 0.5 s" in project("sql", "--seconds", "0.5", endless, status=2).err


def test_memory_is_bounded(project, shouting):
    project.run("count")
    large = "SELECT max(length(a)) FROM (SELECT string_agg(range::VARCHAR, '') AS a FROM range(50000000))"
    assert "memory" in project("sql", "--memory", "50MB", large, status=2).err.lower()


def test_control_characters_are_shown_and_not_obeyed(project, shouting):
    told = project("sql", "SELECT \x1b[2J\u202e FROM nothing", status=2).err
    assert "\x1b" not in told and "\u202e" not in told and "\u241b[2J" in told
