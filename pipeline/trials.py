"""The trials of a recipe's searches, as far as the store knows their results."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from typing import Any

from irpipe.pipeline.errors import IrpipeError, RecipeError, did_you_mean
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.plan import Planner
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.recipe import Recipe
from irpipe.pipeline.recipe_file import load_recipe
from irpipe.pipeline.requirements import missing_packages
from irpipe.pipeline.search import SEARCH, Point, Trial, next_point
from irpipe.pipeline.store import Store


def with_trials(recipe: Recipe, store: Store) -> Recipe:
    """The recipe with a node for each known trial of its searches, and for the next one where there are more to come.

    Cost: a plan per trial. Without Optuna a search has no nodes, and what reads it cannot run.

    Raises:
        RecipeError: a trial has no such figure.
    """
    if not recipe.searches or missing_packages(SEARCH):
        return recipe
    points: dict[str, list[Point]] = {}
    pending: dict[str, str] = {}
    for name, search in recipe.searches.items():
        trials: list[Trial] = []
        points[name] = []
        while len(trials) < search.trials:
            points[name].append(next_point(search, trials))
            recipe = load_recipe(recipe.root, recipe.overridden, points)
            node = recipe.trials[name][-1]
            record = _record(Planner(recipe, store, Watcher()), node)
            if record is None:
                pending[name] = node
                break
            trials.append((points[name][-1], _figure(name, search.figure, record)))
    return replace(recipe, pending=pending)


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
        return float(reduce(lambda table, part: table[part], figure.split("."), metrics))
    except (KeyError, TypeError, ValueError):
        raise RecipeError(
            f"[{name}.{SEARCH}] figure = {figure!r}: {record.node} has no such number{did_you_mean(figure, metrics)}"
        ) from None
