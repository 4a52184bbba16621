"""Whether the tests can fail: small changes to the modules that decide, each held against the tests that cover it.

`make mutants`, or `python -m tests.mutants --count 20 --seed 1 --minutes 10`. `table.toml` says which tests cover which module,
and which survivors are equivalent to what they were made of.

The changes are cosmic-ray's (MIT licence); drawing them and choosing their tests is ours. Its own `exec` has one test command for
all modules, no budget, and changes files where they lie. mutmut 3.8 was tried and finds no test for any mutant here: it names a
function by its file (`pipeline.plan`) and looks for it by its module (`irpipe.pipeline.plan`).
"""

from __future__ import annotations

import difflib
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("table.toml")
_TOLD = ("raise_stmt", "assert_stmt", "fstring")  # what is said, and what never happens
_GUARDS = ("strict", "frozen")  # arguments that only say what never happens
_LEFT_OUT = "core/RemoveDecorator"  # what it makes cannot be imported
_UNCAUGHT = "CosmicRayTestingException"  # which an `except` names that is to catch nothing


@dataclass(frozen=True)
class Mutant:
    """One change to one module.

    Attributes:
        path: of the module, from the repository's root.
        line: the first one that differs.
    """

    path: str
    text: str
    line: int
    diff: str

    @property
    def changed(self) -> tuple[str, str, str]:
        """What tells it in the table: the module, and its lines before and after."""
        lines = [line for line in self.diff.splitlines()[2:] if line[:1] in "+-"]
        before, after = ("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
        return self.path, before, after


@dataclass(frozen=True)
class Table:
    """Arguments of pytest by module, and the reason by what tells an equivalent mutant."""

    tests: Mapping[str, list[str]]
    equivalent: Mapping[tuple[str, str, str], str]

    @classmethod
    def read(cls, path: Path = TABLE) -> Table:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        same = {(one["path"], one["before"], one["after"]): one["reason"] for one in data.get("equivalent", ())}
        return cls(data["tests"], same)


def drawn(modules: Mapping[str, str], count: int, seed: int) -> list[Mutant]:
    """So many places of some modules (path to text), each changed in one of the ways it can be, in random order."""
    from cosmic_ray.mutating import mutate_code

    places: dict[tuple[Any, ...], list[tuple[Any, int]]] = {}
    for path, text in modules.items():
        for place, operator, occurrence in positions(text):
            places.setdefault((path, *place), []).append((operator, occurrence))
    draw = random.Random(seed)
    found: list[Mutant] = []
    for path, *place in draw.sample(sorted(places), len(places)):
        ways = places[(path, *place)]
        for operator, occurrence in draw.sample(ways, len(ways)):
            text = mutate_code(modules[path], operator, occurrence)
            if text is not None and text != modules[path] and compiles(text):
                found.append(mutant(path, modules[path], text))
                break
        if len(found) == count:
            break
    return found


def positions(text: str) -> Iterator[tuple[tuple[Any, Any], Any, int]]:
    """Where a module can be changed: start and end, the operator, and its occurrence there."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    nodes = list(ast_nodes(get_ast(text)))
    for name in operator_names():
        kind = get_operator(name)
        if kind.arguments() or name == _LEFT_OUT:
            continue
        operator = kind()
        every = [(node, place) for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (node, place) in enumerate(every):
            if decides(node, place[0]):
                yield place, operator, occurrence


def decides(node: Any, start: tuple[int, int]) -> bool:
    """Whether something hangs on a place: it is in no annotation, message, assertion or path of constant names."""
    if any(child.type in ("string", "fstring") for child in getattr(node, "children", ()) if node.type == "term"):
        return False
    while node is not None:
        if node.type in _TOLD or (node.type == "argument" and node.get_first_leaf().value in _GUARDS):
            return False
        equals = [child.start_pos for child in node.children if child == "="] if node.type == "annassign" else []
        if node.type == "tfpdef" or (node.type == "annassign" and (not equals or start < equals[0])):
            return False
        if node.parent is not None and node.parent.type == "funcdef" and node.parent.annotation is node:
            return False
        node = node.parent
    return True


def compiles(text: str) -> bool:
    try:
        compile(text, "mutant", "exec")
    except SyntaxError:
        return False
    return True


def mutant(path: str, before: str, after: str) -> Mutant:
    lines = list(difflib.unified_diff(before.splitlines(), after.splitlines(), path, path, "", "", 0, ""))
    line = int(re.search(r"-(\d+)", lines[2])[1])
    if _UNCAUGHT in after:
        after += f"\n\nclass {_UNCAUGHT}(Exception): ...\n"
    return Mutant(path, after, line, "\n".join(lines))
