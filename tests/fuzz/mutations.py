"""Changes of valid inputs: of bytes anywhere, and of single values in JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

PIECES = [
    *(b"\x00", b"\xff", b"\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"'", b",", b"\\", b"{", b"}", b"[", b"]", b"../"),
    *(
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e400",
        b"9" * 5000,
        b"-0",
        b"null",
        b"true",
        b"\\ud800",
        b"\xed\xa0\x80",
        b"PK\x03\x04",
    ),
    *(b"\x00" * 64, b"A" * 3000, b"[" * 2000, "\u202e\u0000\u200b".encode()),
]
ODD = [
    *(None, True, False, 0, -1, 1.5, 9.0, 1e308, 10**400, float("nan"), float("inf"), "", " ", "None", "nan", "False", "9.0"),
    *("\u200b", "\ud800", "a\x00b", "x" * 3000, "../../etc/passwd", "=1+1", [], [[]], [None], ["a", "a"], {}, {"a": {}}),
]


def bytes_changed(data: bytes, draw: random.Random) -> bytes:
    """A few changes of bytes: flipped, cut out, repeated, inserted, or everything behind a place gone."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4, 8))):
        place = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 8, 64))
        match draw.randrange(6):
            case 0 if changed:
                changed[min(place, len(changed) - 1)] ^= 1 << draw.randrange(8)
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                changed[place:place] = draw.choice(PIECES)
            case 4:
                changed[place : place + length] = draw.randbytes(length)
            case _ if draw.random() < 0.3:
                del changed[place:]
    return bytes(changed)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for name, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from _places(one, (*path, name))


def _changed(value: Any, path: tuple[Any, ...], change: Callable[[Any, Any], None], odd: Any) -> Any:
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in path[:-1]:
        inner = inner[name]
    change(inner, (path[-1], odd))
    return copy


def _set(inner: Any, told: Any) -> None:
    inner[told[0]] = told[1]


def _drop(inner: Any, told: Any) -> None:
    del inner[told[0]]


def value_changed(record: Any, draw: random.Random) -> Any:
    """One value of a record replaced by an odd one, or dropped."""
    path = draw.choice([path for path in _places(record) if path])
    return _changed(record, path, draw.choice((_set, _set, _set, _drop)), draw.choice(ODD))


def json_changed(data: bytes, draw: random.Random) -> tuple[bytes, set[int]]:
    """A JSON list, or JSON lines, with one record changed; and which records are."""
    text = data.decode()
    lines = not text.lstrip().startswith("[")
    records = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    chosen = draw.randrange(len(records))
    records[chosen] = value_changed(records[chosen], draw)
    parts = [json.dumps(record, ensure_ascii=True) for record in records]
    return ("\n".join(parts) + "\n" if lines else f"[{','.join(parts)}]").encode(), {chosen}


def csv_changed(data: bytes, draw: random.Random) -> tuple[bytes, set[int]]:
    """A CSV file with one cell changed; and which rows are."""
    rows = list(csv.reader(io.StringIO(data.decode())))
    chosen = draw.randrange(1, len(rows))
    odd = draw.choice([one for one in ODD if isinstance(one, str | int | float) or one is None])
    rows[chosen][draw.randrange(len(rows[chosen]))] = "" if odd is None else str(odd)[:4000].replace("\ud800", "?")
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode(), {chosen - 1}


def parquet_changed(data: bytes, draw: random.Random) -> tuple[bytes, set[int]]:
    """A Parquet file with one cell changed to null, or a text to bytes that are no UTF-8; and which rows are."""
    table = pq.read_table(io.BytesIO(data))
    name = draw.choice(table.column_names)
    chosen = draw.randrange(table.num_rows)
    values = table.column(name).to_pylist()
    kind = table.schema.field(name).type
    if pa.types.is_string(kind):
        raw = [None if value is None else value.encode() for value in values]
        raw[chosen] = draw.choice((None, b"", b"\xff\xfe", b"\xed\xa0\x80", b"None", b"nan", b"9.0", "\u200b".encode()))
        column = _as_text(raw)
    elif pa.types.is_floating(kind):
        values[chosen] = draw.choice((None, float("nan"), float("inf"), -1.0, 1e308, 2.5))
        column = pa.array(values, kind)
    else:
        values[chosen] = None
        column = pa.array(values, kind)
    changed = table.set_column(table.column_names.index(name), name, column)
    out = io.BytesIO()
    pq.write_table(changed, out)
    return out.getvalue(), {chosen}


def _as_text(raw: list[bytes | None]) -> pa.Array:
    """Bytes as a column of text, whether they are UTF-8 or not."""
    binary = pa.array(raw, pa.binary())
    return pa.StringArray.from_buffers(len(raw), binary.buffers()[1], binary.buffers()[2], binary.buffers()[0], binary.null_count)


def document_changed(data: bytes, draw: random.Random) -> tuple[bytes, set[int]]:
    """A JSON document with one value, anywhere in it, replaced or removed; row 0, since it is one thing."""
    return json.dumps(value_changed(json.loads(data), draw)).encode(), {0}
