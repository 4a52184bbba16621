"""What `make mutants` draws and reads: its table names what is there, and a draw is its seed's. It runs no mutant."""

from __future__ import annotations

import pytest

from tests.mutants import REPOSITORY, Table, drawn

MODULE = """
def first(values: list[int | None], most: int = 3) -> int | None:
    assert most > 0, "most is a number"
    if not values:
        raise ValueError(f"{most + 1} values")
    for one, other in zip(values, values[1:], strict=True):
        if one < other and most:
            return one
    return None
"""


def test_the_table_names_what_is_there():
    table = Table.read()
    assert table.tests and all((REPOSITORY / path).is_file() for path in table.tests)
    for test in {test for tests in table.tests.values() for test in tests}:
        file, *names = test.split("::")
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        assert all(f"def {name}(" in text or f"class {name}:" in text for name in names), test
    for path, before, _ in table.equivalent:
        lines = {line.strip() for line in (REPOSITORY / path).read_text(encoding="utf-8").splitlines()}
        assert all(line in lines for line in before.splitlines()), f"{path} has no line {before!r} any more"
    assert all(reason.endswith(".") for reason in table.equivalent.values())


class TestDraw:
    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("cosmic_ray", reason="NEEDS COSMIC-RAY: pip install 'irpipe[mutants]'")

    def test_every_place_that_decides_is_changed_once_and_no_other(self):
        mutants = drawn({"m.py": MODULE}, 100, 0)
        assert {mutant.line for mutant in mutants} == {2, 4, 6, 7}, "no assertion, message or annotation; the default of `most`"
        assert all(mutant.text != MODULE and "strict=False" not in mutant.text for mutant in mutants)
        assert len({mutant.changed for mutant in mutants}) == len(mutants)

    def test_a_draw_is_its_seeds(self):
        one, again, other = (drawn({"m.py": MODULE}, 3, seed) for seed in (0, 0, 1))
        assert one == again != other and len(one) == 3
