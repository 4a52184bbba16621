"""The trials of a recipe's searches, as far as the store knows their results."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from typing import Any

from irpipe.pipeline.errors import IrpipeError, RecipeError, TrainingError, did_you_mean
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.plan import Planner
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.recipe import Recipe, nodes_by_kind
from irpipe.pipeline.recipe_file import with_points
from irpipe.pipeline.requirements import missing_packages
from irpipe.pipeline.search import SEARCH, Point, Trial, next_point
from irpipe.pipeline.store import Store
from irpipe.pipeline.wiring import WIRING


def with_trials(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with a node for each known trial of its searches, and for the next one where there are more to come.

    Cost: a plan per trial. Without Optuna a search has no nodes, and what reads it cannot run.

    Raises:
        RecipeError: a trial has no such figure; or the recipe's [reads] name a search, and Optuna is missing.
    """
    if not recipe.searches:
        return recipe
    if missing_packages(SEARCH):
        nodes_by_kind(recipe.source[WIRING], WIRING, recipe.tables, recipe.grids)
        return recipe
    points: dict[str, list[Point]] = {name: [] for name in recipe.searches}
    trials: dict[str, list[Trial]] = {name: [] for name in recipe.searches}
    changed = True
    while changed:  # what one search knows may be what another one reads
        changed = False
        for name, search in recipe.searches.items():
            while len(trials[name]) < search.trials:
                if len(points[name]) == len(trials[name]):
                    points[name].append(next_point(search, trials[name]))
                    recipe, changed = with_points(recipe, points), True
                record = _record(Planner(recipe, store, Watcher()), recipe.trials[name][len(trials[name])])
                if record is None:
                    break
                trials[name].append((points[name][len(trials[name])], _figure(name, search.figure, record)))
                changed = True
    pending = {name: recipe.trials[name][-1] for name, search in recipe.searches.items() if len(trials[name]) < search.trials}
    return replace(recipe, pending=pending)


def announced(recipe: Recipe, trial: str) -> str:
    """Which trial of which search is run next, in a line."""
    search = _search_of(recipe, trial)
    return f"{search}: trial {len(recipe.trials[search])} of {recipe.searches[search].trials}: {trial}"


@contextmanager
def naming_the_search(recipe: Recipe, trial: str) -> Iterator[None]:
    """A training that fails within says that the search cannot go on without it.

    Raises:
        TrainingError: it failed.
    """
    try:
        yield
    except TrainingError as error:
        search = _search_of(recipe, trial)
        raise TrainingError(
            f"a trial of the search {search} failed, and the next one depends on it: {error.what}",
            fix=f"narrow [{search}.{SEARCH}.space], so that its trainings do not diverge; {error.fix or ''}",
        ) from None


def _search_of(recipe: Recipe, trial: str) -> str:
    return next(name for name, node in recipe.pending.items() if node == trial)


def _record(planner: Planner, node: str) -> Record | None:
    """The record of a node's present settings; None also where it cannot run, which its run will tell."""
    try:
        return planner.plan(node)[-1].record
    except IrpipeError:
        return None


def _figure(name: str, figure: str, record: Record) -> float:
    """A figure of a trial's record, `table.figure` for one in a table.

    Raises:
        RecipeError: there is none of that name, or it is no number.
    """
    metrics: Any = dict(record.metrics)
    try:
        value = float(reduce(lambda table, part: table[part], figure.split("."), metrics))
        if not math.isfinite(value):
            raise ValueError(value)
        return value
    except (KeyError, TypeError, ValueError):
        raise RecipeError(
            f"[{name}.{SEARCH}] figure = {figure!r}: {record.node} has no such number{did_you_mean(figure, metrics)}"
        ) from None
