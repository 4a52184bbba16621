"""A digest of a stage's code and of the first-party code it imports, blind to comments, docstrings and layout."""

from __future__ import annotations

import ast
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

from irpipe.pipeline.hashing import digest

_ENGINE = "irpipe.pipeline"  # decides when a stage runs, not its result


Parsed = dict[Path, tuple[str, frozenset[str]]]


def code_digest(package: str, parsed: Parsed | None = None) -> str:
    """Digest of every module of a package and of what they import from the same top-level package.

    The engine is left out. Modules count by name and syntax tree.

    Args:
        parsed: cache of parsed files, filled here; stages share most of their imports.
    """
    top = package.partition(".")[0]
    modules = parsed if parsed is not None else {}
    trees: dict[str, str] = {}
    pending = _modules_of(package)
    while pending:
        module, path = pending.popitem()
        if module in trees:
            continue
        if path not in modules:
            modules[path] = _read(module, path)
        trees[module], imports = modules[path]
        for name in imports:
            if name.partition(".")[0] == top and not f"{name}.".startswith(f"{_ENGINE}."):
                pending.update(_file_of(name))
    return digest(["code", trees])


def _read(module: str, path: Path) -> tuple[str, frozenset[str]]:
    """A module's syntax tree as text, without docstrings, and its imports."""
    tree = ast.parse(path.read_bytes())
    imports: set[str] = set()
    for node in ast.walk(tree):  # once: this is on the way of every run
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports.update(_imported(node, module))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
                node.body = node.body[1:]
    return ast.dump(tree), frozenset(imports)


def _imported(node: ast.Import | ast.ImportFrom, module: str) -> set[str]:
    """Names that an import statement brings in; some may be functions of a module rather than modules."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    base = node.module or ""
    if node.level:
        base = ".".join((*module.split(".")[: -node.level], *([base] if base else [])))
    return {base, *(f"{base}.{alias.name}" for alias in node.names)}


def _modules_of(package: str) -> dict[str, Path]:
    spec = _spec_of(package)
    if spec is None or spec.submodule_search_locations is None:
        return _file_of(package)
    modules: dict[str, Path] = {}
    for folder in map(Path, spec.submodule_search_locations):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join((package, *(part for part in parts if part != "__init__")))] = path
    return modules


def _file_of(module: str) -> dict[str, Path]:
    """The module's file, by name; empty where there is no such module, or it is no Python file."""
    spec = _spec_of(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return {}
    return {module: Path(spec.origin)}


def _spec_of(module: str) -> ModuleSpec | None:
    """The spec of a module. Neither it nor the packages above it are imported: they may take seconds."""
    if module in sys.modules:
        return sys.modules[module].__spec__
    package = module.rpartition(".")[0]
    above = _spec_of(package) if package else None
    if package and (above is None or above.submodule_search_locations is None):
        return None
    path = above.submodule_search_locations if above else None
    found = (finder.find_spec(module, path) for finder in sys.meta_path)
    try:
        return next((spec for spec in found if spec is not None), None)
    except KeyError:  # a folder without __init__.py, whose place is that of the package above it, which must be imported
        return importlib.util.find_spec(module)
