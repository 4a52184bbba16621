"""Reading irpipe.toml: overrides, grids and searches of nodes, and the recipes that come with irpipe."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import RecipeError, did_you_mean
from irpipe.pipeline.machines import EXECUTOR, REMOTE, ExecutorSettings, RemoteSettings, read_settings
from irpipe.pipeline.recipe import DEFAULT, GRID, LIKE, STAGE, Recipe, field_of, node_of, nodes_by_kind
from irpipe.pipeline.search import SEARCH, Point, Search, read_search
from irpipe.pipeline.wiring import RECIPE_FILE, WIRING
from irpipe.recipes import shipped_recipes

_LONGEST_NAME = 120  # names of files hold it, and the fault's text must be readable
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def shipped_recipe(name: str) -> str:
    """The text of a recipe that comes with irpipe."""
    if name not in shipped_recipes():
        raise RecipeError(f"there is no recipe {name!r}{did_you_mean(name, shipped_recipes())}")
    return files("irpipe.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(root: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read irpipe.toml in a folder, with ``node.setting=value`` overrides applied. Its searches have no trials yet: see
    `irpipe.pipeline.trials`.

    Raises:
        RecipeError: there is none, it is not TOML, or an override names nothing.
    """
    name, store, tables = _read(root / RECIPE_FILE)
    remote = read_settings(RemoteSettings, REMOTE, tables.pop(REMOTE, {}))
    executor = read_settings(ExecutorSettings, EXECUTOR, tables.pop(EXECUTOR, {}))
    tables.setdefault(WIRING, {})
    for override in overrides:
        _override(tables, override)
    recipe = Recipe(
        name, root, (root / store).resolve(), tables, tuple(overrides), source=tables, remote=remote, executor=executor
    )
    return with_points(recipe, {})


def with_points(recipe: Recipe, points: Mapping[str, Sequence[Point]]) -> Recipe:
    """The recipe as it was read, with a node for each point of its grids, and for the known points of its searches.

    Raises:
        RecipeError: a grid, a search or the recipe's wiring is wrong.
    """
    tables = {name: table for name, table in recipe.source.items() if name != WIRING}
    searches = {node: read_search(node, table[SEARCH]) for node, table in tables.items() if SEARCH in table}
    expanded, nodes = _expand(tables, searches, points)
    grids = {node: list(dict.fromkeys(names)) for node, names in nodes.items()}
    reads = nodes_by_kind(recipe.source[WIRING], WIRING, expanded, grids, needed=False)
    trials = {node: nodes[node] for node in searches}
    return replace(recipe, tables=expanded, grids=grids, reads=reads, searches=searches, trials=trials)


def _read(path: Path) -> tuple[str, str, dict[str, dict[str, Any]]]:
    """The recipe's name, its store, and its tables, from irpipe.toml.

    Raises:
        RecipeError: see `load_recipe`.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no {RECIPE_FILE} in {path.parent}", fix="irpipe init") from None
    except (ValueError, RecursionError) as error:  # tomllib's own error, no UTF-8, a date that is none, too deep
        raise RecipeError(f"{RECIPE_FILE} is not TOML: {error}"[:300], where=str(path)) from None
    tables = {name: dict(value) for name, value in document.items() if isinstance(value, dict)}
    plain = {name: value for name, value in document.items() if not isinstance(value, dict)}
    name, store = plain.pop("recipe", None), plain.pop("store", "artifacts")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise RecipeError("the recipe has no name of letters, digits, - and _", where=str(path), expected='recipe = "micro"')
    if not isinstance(store, str) or not store or "\0" in store:
        raise RecipeError(f"store = {store!r} is not a path", where=str(path))
    if store.startswith("~"):
        raise RecipeError(
            f"store = {store!r}: ~ is a name for a folder only in a shell", where=str(path), fix="write the path out"
        )
    if plain:
        unknown = next(iter(plain))
        raise RecipeError(f"unknown setting {unknown!r}{did_you_mean(unknown, ['recipe', 'store'])}", where=str(path))
    for node in tables:
        if not _NAME.fullmatch(node):
            raise RecipeError(f"[{node}] is no name for a node", where=str(path), expected="letters, digits, - and _")
    return name, store, tables


def _expand(
    tables: Mapping[str, Mapping[str, Any]], searches: Mapping[str, Search], known: Mapping[str, Sequence[Point]]
) -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """Tables with a node for each point of every grid and search, in place of it; and the names of its nodes, point by point.

    Raises:
        RecipeError: a grid is no table of lists.
    """
    expanded: dict[str, dict[str, Any]] = {}
    nodes: dict[str, list[str]] = {}
    for name, table in tables.items():
        if GRID not in table and name not in searches:
            expanded[name] = dict(table)
            continue
        if GRID in table and name in searches:
            raise RecipeError(f"[{name}] has both {GRID} and {SEARCH}", fix="a node of its own for each")
        how = SEARCH if name in searches else GRID
        _check_axes(name, how, table, searches[name].space if name in searches else _axes(table[GRID]))
        points = known.get(name, ()) if name in searches else _points(name, _axes(table[GRID]))
        nodes[name] = []
        for settings in points:
            node = _name_of(name, how, settings)
            nodes[name].append(node)
            expanded[node] = _with({key: value for key, value in table.items() if key != how}, settings)
            if LIKE not in table:
                expanded[node].setdefault(STAGE, name)
    return expanded, nodes


def _points(name: str, axes: Mapping[str, Sequence[Any]]) -> list[Point]:
    """The points of a grid.

    Raises:
        RecipeError: two of them have one name.
    """
    points = [dict(zip(axes, point, strict=True)) for point in product(*axes.values())]
    names = [_name_of(name, GRID, point) for point in points]
    for node in names:
        if names.count(node) > 1:
            raise RecipeError(f"[{name}.{GRID}] gives two nodes the name {node!r}", fix="leave one of the values out")
    return list(points)


def _name_of(name: str, how: str, settings: Point) -> str:
    node = f"{name}[{', '.join(f'{key}={value}' for key, value in settings.items())}]".replace("/", ":")
    if len(node) > _LONGEST_NAME:
        raise RecipeError(f"[{name}.{how}] gives a node a name of {len(node)} letters", expected=f"at most {_LONGEST_NAME}")
    return node


def _check_axes(name: str, how: str, table: Mapping[str, Any], axes: Mapping[str, Any]) -> None:
    """The settings of a grid or search must be lists, and given by it alone."""
    if how == GRID and (not axes or not all(isinstance(values, list) and values for values in axes.values())):
        raise RecipeError(f"[{name}.{GRID}] must be a table of lists", expected="learning_rate = [1e-5, 2e-5]")
    for axis in axes:
        if _holds(table, axis):
            fix = f"--set {name}.{GRID}.{axis}=[...] replaces its values" if how == GRID else "leave out one of them"
            raise RecipeError(f"[{name}] {axis} is given both by itself and by {how}", fix=fix)


def _holds(table: Mapping[str, Any], axis: str) -> bool:
    """Whether a table has a setting, by name or in its group."""
    outer, _, inner = axis.partition(".")
    return axis in table if not inner else inner in (table.get(outer) or ())


def _axes(grid: Any) -> dict[str, Any]:
    """The lists of a grid by the names of their settings, those of groups as ``group.setting``."""
    axes: dict[str, Any] = {}
    for name, values in grid.items() if isinstance(grid, dict) else ():
        axes |= {f"{name}.{inner}": points for inner, points in values.items()} if isinstance(values, dict) else {name: values}
    return axes


def _with(table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A table with some settings replaced, those of groups by ``group.setting``."""
    laid = dict(table)
    for name, value in settings.items():
        outer, dot, inner = name.partition(".")
        within = laid.get(outer, {})
        laid[outer] = {**(within if isinstance(within, dict) else {}), inner: value} if dot else value
    return laid


def _override(tables: dict[str, dict[str, Any]], override: str) -> None:
    node, name, equals = node_of(override), field_of(override), "=" in override
    if not (equals and name):
        raise RecipeError(f"--set {override!r} is not of the form stage.field=value", expected="--set select-prompts.count=400")
    if node not in tables:
        raise RecipeError(f"--set {override!r}: the recipe has no stage {node!r}{did_you_mean(node, tables)}")
    tables[node] = _with(tables[node], {name: _value(override.partition("=")[2].strip())})


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: paths and names need no quotes.

    ``default`` without quotes is the setting's default, whatever the recipe says.
    """
    if text == repr(DEFAULT):
        return DEFAULT
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
