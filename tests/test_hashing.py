"""Identity: injective, sensitive to order and type, and pinned."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpipe.pipeline import hashing

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def canonical(value: object) -> object:
    """The value with its types spelled out: two values are the same exactly if these are equal."""
    if isinstance(value, dict):
        return ("dict", frozenset((key, canonical(item)) for key, item in value.items()))
    if isinstance(value, list):
        return ("list", tuple(canonical(item) for item in value))
    if isinstance(value, float):
        return ("float", value.hex())
    return (type(value).__name__, value)


@given(values, values)
def test_different_values_have_different_encodings(one, two):
    assert (hashing.encode(one) == hashing.encode(two)) == (canonical(one) == canonical(two))


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_no_two_ways_to_cut_a_text_share_an_encoding(one, two):
    assert (hashing.encode(one) == hashing.encode(two)) == (one == two)


@given(st.lists(st.integers(), min_size=2, max_size=5, unique=True))
def test_order_counts_in_lists(items):
    assert hashing.digest(items) != hashing.digest(items[::-1])


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_order_does_not_count_in_dicts(items):
    assert hashing.digest(items) == hashing.digest(dict(reversed(list(items.items()))))


def test_types_count():
    assert len({hashing.digest(value) for value in (1, 1.0, True, "1", b"1", [1], None, "", b"", [], {})}) == 11


def test_unknown_types_raise():
    for value in (object(), {1}, Path("a"), np.int64(1), {1: 2}):
        with pytest.raises(TypeError):
            hashing.encode(value)
    with pytest.raises(ValueError, match="NaN"):
        hashing.encode(float("nan"))


def test_literal_digests():
    """These change only together with `SCHEME`: every artifact's key depends on them."""
    assert hashing.SCHEME == 1
    assert hashing.encode(["ab", 1, {"c": None}]) == b"l17:s2:abi1:1m5:s1:cn"
    assert hashing.digest(["ab", "c"]) == "83eae42064459e3e8f03971287a1aacad5155e693682b5d1be60d5c9a2cd63e0"
    assert (
        hashing.stage_key("build-pairs", 1, {"seed": 0}, {"annotations": "ab" * 32}, {"path": "cd" * 32})
        == "f0318577c908d1d973693d997993e5871b5ea28b6c4396455885b3dc0105fb3b"
    )
    assert (
        hashing.content_id([("b.txt", 1, "00" * 32), ("a.txt", 2, "11" * 32)])
        == "71f117767c8a091ccd13651dcdec2200956a2d4c620a116e609883e2b7b18b25"
    )
    assert hashing.show_row_id(hashing.row_id("prompt", "a red circle")) == "056c9a4f7bd42891"


def test_content_id_does_not_depend_on_order():
    files = [("a", 1, "00"), ("b", 2, "11"), ("c/d", 3, "22")]
    assert hashing.content_id(files) == hashing.content_id(files[::-1])


def test_file_digest_is_what_sha256sum_prints(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 10_000)
    assert hashing.file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_row_ids_are_the_first_8_bytes_of_the_digest():
    whole = hashlib.sha256(hashing.encode(("image", 7, "a.png"))).digest()
    assert hashing.row_id("image", 7, "a.png") == int.from_bytes(whole[:8], "big")


def test_mixed_ids_follow_a_plain_splitmix64():
    """One round of the finaliser a column, in Python's whole numbers."""
    mask = (1 << 64) - 1

    def plain(row: list[int]) -> int:
        mixed = 0x9E3779B97F4A7C15
        for value in row:
            mixed = (mixed * 0x9E3779B97F4A7C15 + value) & mask
            mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
            mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
            mixed ^= mixed >> 31
        return mixed

    columns = np.random.default_rng(0).integers(0, 1 << 63, (3, 50), dtype=np.uint64)
    assert hashing.mix_row_ids(*columns).tolist() == [plain([int(value) for value in row]) for row in columns.T]
    one, two = columns[:2]
    assert (hashing.mix_row_ids(one, two) != hashing.mix_row_ids(two, one)).all()
