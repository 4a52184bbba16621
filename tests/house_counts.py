"""What of the house can be counted: lengths of files and functions, shapes in docstrings, places that name a stage."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

FOLDERS = (
    "cli",
    "exports",
    "microworld",
    "microworld/build",
    "models",
    "pipeline",
    "recipes",
    "report",
    "schemas",
    "stages",
    "views",
)
_ARRAY = re.compile(r"\b(NDArray|Tensor)\b")
_BY_NAME = re.compile(r"\b(?:Mapping|dict)\[str, (?:NDArray\[[^\]]*\]|Tensor)\]")  # weights: each has a shape of its own
_SHAPE = re.compile(r"\((?:\.\.\.|[a-z0-9][\w ]*(?: [+*-] \w+)*),|\[(?:n|m|k), ")


class Function(NamedTuple):
    """A function: its file, qualified name, number of lines, and whether it takes or returns arrays and names a shape."""

    file: str
    name: str
    lines: int
    has_arrays: bool
    has_shape: bool


def files(folder: str) -> list[Path]:
    """The Python files of a folder, without those of another one of `FOLDERS` in it."""
    within = [REPOSITORY / other for other in FOLDERS if other.startswith(f"{folder}/")]
    return sorted(path for path in (REPOSITORY / folder).rglob("*.py") if not any(path.is_relative_to(other) for other in within))


def functions(folder: str) -> Iterator[Function]:
    """Every function of a folder, nested ones too."""
    for path in files(folder):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        yield from _functions(tree, path.relative_to(REPOSITORY).as_posix(), "", "")


def _functions(node: ast.AST, file: str, outer: str, outer_doc: str) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _functions(child, file, f"{outer}{child.name}.", ast.get_docstring(child) or "")
        elif isinstance(child, ast.FunctionDef):
            doc = ast.get_docstring(child) or ""
            if child.name in ("__init__", "__call__"):
                doc += outer_doc  # the class's docstring describes them
            lines = (child.end_lineno or child.lineno) - child.lineno + 1
            yield Function(file, f"{outer}{child.name}", lines, _has_arrays(child), _SHAPE.search(doc) is not None)
            yield from _functions(child, file, f"{outer}{child.name}.", "")
        else:
            yield from _functions(child, file, outer, outer_doc)


def _has_arrays(function: ast.FunctionDef) -> bool:
    """Whether an annotation of a parameter or of the result names an array or a tensor."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    annotations = [parameter.annotation for parameter in parameters] + [function.returns]
    return any(_ARRAY.search(_BY_NAME.sub("", ast.unparse(one))) for one in annotations if one is not None)


def shapeless(folder: str) -> tuple[list[Function], int]:
    """The functions on arrays whose docstring names no shape, and the number of all functions on arrays."""
    with_arrays = [function for function in functions(folder) if function.has_arrays]
    return [function for function in with_arrays if not function.has_shape], len(with_arrays)
