"""Searches: grids whose next point depends on the results of the earlier ones.

`[NODE.search]` in a recipe draws settings by a tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011; Optuna's). Every
trial is a node and an artifact like any other. A trial's settings are a function of the search's seed and of the earlier trials'
figures alone, which lie in the store: so an interrupted search goes on where it was, and nothing but the store remembers it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from irpipe.pipeline.errors import RecipeError, did_you_mean

SEARCH = "search"
_DIGITS = 3  # of drawn numbers: a name that can be read, and what is between does not matter
Point = Mapping[str, Any]
Trial = tuple[Point, float]


class Span(BaseModel):
    """Numbers between two others, both included; whole ones where both ends are."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    low: int | float
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _check(self) -> Span:
        if not self.low < self.high:
            raise ValueError("low must be below high")
        if self.log and self.low <= 0:
            raise ValueError("low must be above 0 with log = true")
        return self

    @property
    def is_whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)


Values = Annotated[list[str | int | float | bool], Field(min_length=1)]


class Search(BaseModel):
    """The table `search` of a node.

    Attributes:
        trials: how many points are tried.
        figure: a figure of the node's record (`irpipe show --json`); those of a table in it by `table.figure`.
        direction: whether the lowest or the highest figure is best.
        random_trials: so many first points are drawn without a look at results (Optuna's default).
        space: for each setting, a list of values, or `{low, high, log}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    trials: Annotated[int, Field(ge=1)]
    figure: str = "validation_loss"
    direction: Literal["minimize", "maximize"] = "minimize"
    random_trials: Annotated[int, Field(ge=1)] = 10
    seed: Annotated[int, Field(ge=0)] = 0
    space: Annotated[dict[str, Span | Values], Field(min_length=1)]


def read_search(name: str, table: Any) -> Search:
    """The search of a node.

    Raises:
        RecipeError: a setting is unknown or wrong; all faults at once.
    """
    table = table if isinstance(table, dict) else {}
    try:
        return Search.model_validate({**table, "space": _flat(table.get("space"))})
    except ValidationError as error:
        raise RecipeError("\n".join(dict.fromkeys(_line(name, fault) for fault in error.errors()))) from None


def _flat(space: Any) -> dict[str, Any]:
    """A space by the names of its settings, those of groups as ``group.setting``."""
    flat: dict[str, Any] = {}
    for name, value in space.items() if isinstance(space, dict) else ():
        is_group = isinstance(value, dict) and not value.keys() & Span.model_fields.keys()
        flat |= {f"{name}.{inner}": points for inner, points in value.items()} if is_group else {name: value}
    return flat


def _line(name: str, fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    if path[0] == "space" and len(path) > 1:
        return f"[{name}.{SEARCH}.space] {path[1]}: a list of values or {{ low = ..., high = ..., log = true }}: {fault['msg']}"
    if fault["type"] == "extra_forbidden":
        return f"[{name}.{SEARCH}] has no setting {path[0]!r}{did_you_mean(path[0], Search.model_fields)}"
    if fault["type"] == "missing" or path[0] == "space":
        return f"[{name}.{SEARCH}] must give {path[0]}"
    return f"[{name}.{SEARCH}] {path[0]} = {fault['input']!r}: {fault['msg']}"


def next_point(search: Search, trials: Sequence[Trial]) -> dict[str, Any]:
    """The settings of the next trial, given the earlier ones and their figures."""
    import optuna

    space = {name: _distribution(values) for name, values in search.space.items()}
    sampler = optuna.samplers.TPESampler(n_startup_trials=search.random_trials, seed=_seed(search.seed, len(trials)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction=search.direction, sampler=sampler)
    for point, figure in trials:
        study.add_trial(optuna.trial.create_trial(params=dict(point), distributions=space, value=figure))
    return {name: _rounded(search.space[name], value) for name, value in study.ask(space).params.items()}


def _distribution(values: Span | list[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(values, Span):
        return CategoricalDistribution(values)
    if values.is_whole:
        return IntDistribution(int(values.low), int(values.high), log=values.log)
    return FloatDistribution(float(values.low), float(values.high), log=values.log)


def _rounded(values: Span | list[Any], value: Any) -> Any:
    if not isinstance(values, Span) or values.is_whole:
        return value
    return min(max(float(f"{value:.{_DIGITS}g}"), values.low), values.high)


def _seed(seed: int, trial: int) -> int:
    """A seed of its own for each trial, so that a search that goes on draws what an uninterrupted one would."""
    return int.from_bytes(hashlib.sha256(f"{seed},{trial}".encode()).digest()[:4])
