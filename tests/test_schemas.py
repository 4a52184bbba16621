"""Every table round-trips, documents its columns, and is the same file however its rows arrive."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpipe.pipeline.errors import InputError, RejectedError
from irpipe.schemas import annotations, graph, images, pairs, prompts, rejected, splits
from irpipe.schemas.embeddings import open_vectors, save_vectors, unit_rows
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.table import Table

MODULES = (annotations, graph, images, pairs, prompts, rejected, splits)
TABLES = [value for module in MODULES for value in vars(module).values() if isinstance(value, Table)]
IDS = [f"{table.name}-{len(table.columns)}" for table in TABLES]


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Values of an Arrow type."""
    if pa.types.is_dictionary(kind):
        return values(kind.value_type)
    if pa.types.is_list(kind):
        return st.lists(values(kind.value_type), max_size=3)
    if pa.types.is_struct(kind):
        return st.fixed_dictionaries({field.name: values(field.type) for field in kind})
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_string(kind):
        return st.text(max_size=8)
    if pa.types.is_binary(kind):
        return st.binary(max_size=8)
    if pa.types.is_floating(kind):
        return st.floats(allow_nan=False, width=kind.bit_width)
    signed = not pa.types.is_unsigned_integer(kind)
    top = 1 << (kind.bit_width - signed)
    return st.integers(-top if signed else 0, top - 1)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_round_trip_and_chunking(tmp_path_factory, table, data):
    folder = tmp_path_factory.mktemp("table")
    count = data.draw(st.integers(0, 12))
    columns = {}
    for column in table.columns:
        cell = values(column.type)
        cells = st.one_of(st.none(), cell) if column.nullable else cell
        columns[column.name] = data.draw(st.lists(cells, min_size=count, max_size=count))
    table.write(folder, columns)
    path = folder / f"{table.name}.parquet"
    back = table.read([path])
    assert {name: back[name].to_pylist() for name in columns} == columns
    with table.writer(folder / "pieces.parquet") as writer:
        step = data.draw(st.integers(1, 5))
        for start in range(0, count, step):
            writer.append({name: cells[start : start + step] for name, cells in columns.items()})
    assert table.read([folder / "pieces.parquet"]).equals(back)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_every_column_says_what_it_is(table):
    assert table.doc.endswith(".")
    assert all(column.doc.strip().endswith(".") for column in table.columns)
    assert all(field.metadata[b"doc"] for field in table.schema)


def test_the_file_does_not_tell_how_rows_arrived(tmp_path):
    """Invariant 9: whole row groups, cut at fixed places."""
    rows = {"prompt_id": np.arange(1000), "prompt": ["a"] * 1000, "split": ["train"] * 1000, "component": np.arange(1000)}
    for name, step in (("one", 1000), ("two", 7), ("three", 100)):
        with splits.PROMPT_SPLITS.writer(tmp_path / name, row_group=100) as writer:
            for start in range(0, 1000, step):
                writer.append({key: column[start : start + step] for key, column in rows.items()})
    one, two, three = ((tmp_path / name).read_bytes() for name in ("one", "two", "three"))
    assert one == two == three
    assert pq.read_metadata(tmp_path / "two").num_row_groups == 10


def test_a_file_without_a_column_is_named(tmp_path):
    pq.write_table(pa.table({"prompt_ids": [1]}), tmp_path / "x.parquet")
    with pytest.raises(InputError, match="no column 'prompt_id'; did you mean 'prompt_ids'"):
        prompts.PROMPTS.read([tmp_path / "x.parquet"])


def test_values_of_another_type_are_not_written(tmp_path):
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)), prompts.PROMPTS.writer(tmp_path / "x.parquet") as writer:
        writer.append({"prompt_id": ["a"], "prompt": ["a"], "source_row": [1], "num_images": [1]})


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_failed_write_is_not_silent(tmp_path, monkeypatch, failing):
    """Rows are written by another thread, whose error must come out wherever the disk fills up: 25 rows are three writes."""
    real, written = pq.ParquetWriter.write_table, []

    def write_table(self, *arguments, **options):
        written.append(1)
        if len(written) == failing:
            raise OSError(errno.ENOSPC, "no space left on device")
        return real(self, *arguments, **options)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(OSError, match="no space left"):
        write_25_rows(tmp_path / "x.parquet")


def write_25_rows(path):
    rows = {"prompt_id": [1] * 10, "prompt": ["a"] * 10, "split": ["train"] * 10, "component": [1] * 10}
    with splits.PROMPT_SPLITS.writer(path, row_group=10) as writer:
        for count in (10, 10, 5):
            writer.append({name: column[:count] for name, column in rows.items()})


def test_a_failed_write_of_a_small_table_is_not_silent(tmp_path, monkeypatch):
    def write_table(*_, **__):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", write_table)
    with pytest.raises(OSError, match="no space left"):
        splits.PROMPT_SPLITS.write(
            tmp_path, {"prompt_id": [1, 2], "prompt": ["a", "b"], "split": ["train", "test"], "component": [0, 1]}
        )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(1, 3))
def test_vectors_round_trip(tmp_path_factory, rows, columns, step):
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    vectors = np.arange(rows * columns, dtype=np.float16).reshape(rows, columns)
    save_vectors(path, (vectors[start : start + step] for start in range(0, rows, step)), vectors.shape)
    np.testing.assert_array_equal(np.load(path) if not rows else open_vectors(path), vectors)


def test_zero_vectors_stay_zero():
    assert unit_rows(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0.0, 0.0], pytest.approx([0.6, 0.8])]


HOW_MANY = [(99, 49, False), (99, 50, True), (3, 1, False), (3, 2, True)]
HOW_MANY += [(100, 5, False), (100, 6, True), (1000, 50, False), (1000, 51, True)]


@pytest.mark.parametrize(("read", "bad", "stops"), HOW_MANY)
def test_how_many_bad_rows_stop_a_run(read, bad, stops):
    """5 % once there are 100 rows, and more than half of any number."""
    rejections = Rejections(0.05, "here")
    for row in range(bad):
        rejections.refuse(row, "bad")
    if stops:
        with pytest.raises(RejectedError, match=f"{bad} of .* rows are bad: row 0: bad; row 1: bad"):
            rejections.check(read, read - bad)
    else:
        rejections.check(read, read - bad)


def test_filtered_rows_never_stop_a_run_unless_nothing_is_left():
    rejections = Rejections(0.05, "here")
    for row in range(990):
        rejections.drop(row, "duplicate")
    rejections.check(1000, 10)
    with pytest.raises(RejectedError, match="none of 990 rows can be kept: row 0: duplicate"):
        rejections.check(990, 0)
