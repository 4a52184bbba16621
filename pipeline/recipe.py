"""Tables of a recipe: stages under names, with typed settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from irpipe.pipeline.errors import RecipeError, combined, did_you_mean
from irpipe.pipeline.machines import ExecutorSettings, RemoteSettings
from irpipe.pipeline.search import SEARCH, Search
from irpipe.pipeline.settings import Config, default_config, groups_of, nested, settings_of
from irpipe.pipeline.stage import Stage, find_stage, registered
from irpipe.pipeline.wiring import RECIPE_FILE, WIRING, Node, Wiring

__all__ = ["RECIPE_FILE", "Node", "Recipe", "field_of", "node_of"]

# Reserved names in a node's table. stage: which stage it is, where its name is another. like: a node whose settings are its
# defaults. reads: which nodes it reads, by kind. grid: lists of values of some settings, with a node for each point. search:
# spans of values of some settings, of which a sampler draws the points.
STAGE, LIKE, GRID = "stage", "like", "grid"
RESERVED = (STAGE, LIKE, WIRING, GRID, SEARCH)


class _Default:
    """In place of a value: the setting's default, whatever the recipe, or a node it is like, says."""

    def __repr__(self) -> str:
        return "default"


DEFAULT = _Default()


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: its name, its store, and one table of settings per node.

    Attributes:
        overridden: what `--set` gave.
        grids: names of the nodes of each grid, and of the known trials of each search.
        reads: the nodes that are meant by a kind, for every node that names none itself.
        searches: the searches by name. trials: the nodes of their trials in the order of drawing; two may be one node.
        pending: for each search that is not finished the node of its next trial.
        source: the tables as they were read, with overrides, before grids and searches became nodes.
        remote, executor: the tables of these names, which are no nodes.
    """

    name: str
    root: Path
    store: Path
    tables: Mapping[str, Mapping[str, Any]]
    overridden: Sequence[str] = ()
    grids: Mapping[str, Sequence[str]] = field(default_factory=dict)
    reads: Mapping[str, Sequence[str]] = field(default_factory=dict)
    searches: Mapping[str, Search] = field(default_factory=dict)
    trials: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pending: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    remote: RemoteSettings = field(default_factory=RemoteSettings)
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)

    @cached_property
    def stages(self) -> Mapping[str, Stage]:
        """The stage of each node, in the recipe's order."""
        return {name: find_stage(self._stage_name(name)) for name in self.tables}

    @cached_property
    def producers(self) -> Mapping[str, tuple[str, ...]]:
        """The nodes that write each kind, in the recipe's order; those of grids are read only where they are named."""
        of_grids = {node for nodes in self.grids.values() for node in nodes}
        kinds: dict[str, tuple[str, ...]] = {}
        for name, stage in self.stages.items():
            if name in of_grids:
                continue
            kinds[stage.writes] = (*kinds.get(stage.writes, ()), name)
        return kinds

    def config(self, name: str) -> Config:
        """The typed settings of a node.

        Raises:
            RecipeError: a setting is unknown, of a wrong type, out of range or without effect.
        """
        idle = self.idle(name)
        settings = nested({key: value for key, value in self._flat(name).items() if key not in idle})
        stage = self.stages[name]
        try:
            return stage.config.model_validate(settings)
        except ValidationError as error:
            raise RecipeError("\n".join(_explain(name, stage.config, item) for item in error.errors())) from None

    def idle(self, name: str) -> list[str]:
        """Inherited settings that are left out because other settings leave them without effect: those of `like` nodes, and
        those of the recipe beside a --set for the same node."""
        overridden = {field_of(override) for override in self.overridden if node_of(override) == name}
        firm = overridden or set(_flattened(self.tables[name], self.stages[name]))
        flat = self._flat(name)
        if flat.keys() <= firm:
            return []
        config = self.stages[name].config
        unused = default_config(config, **nested({key: flat[key] for key in settings_of(config) if key in flat})).unused()
        return [key for key in flat if key in unused and key not in firm]

    def wiring(self, name: str) -> Mapping[str, Sequence[str]]:
        """The nodes that the recipe names for a node to read, by kind; its own names over those of its `like` node.

        Raises:
            RecipeError: it is no table, or names what is no node.
        """
        like = self._like(name)
        inherited = self.wiring(like) if like else {}
        return {**inherited, **nodes_by_kind(self.tables[name].get(WIRING, {}), f"{name}.{WIRING}", self.tables, self.grids)}

    def chain(self, target: str) -> list[Node]:
        """The target and everything upstream of it, each node after its inputs.

        Raises:
            RecipeError: the recipe lacks a node, has two for one kind, or has a cycle; all that is wrong at once.
        """
        wired = self.wire(target)
        if wired.faults:
            raise combined(wired.in_order(wired.faults))
        return list(wired.nodes.values())

    def next_trial(self, target: str) -> str | None:
        """The node that must be run before the target's own run can be known: the next trial of a search that it reads.

        Raises:
            RecipeError: see `chain`.
        """
        if not self.pending:
            return None
        read = {node.name for node in self.chain(target)} - {target}
        return next((node for node in self.pending.values() if node in read), None)

    def wire(self, target: str) -> Wiring:
        """The target and everything upstream of it, as far as the recipe is right, and what is wrong with the rest.

        Raises:
            RecipeError: there is no such node, or an override of a node that it does not read.
        """
        if target in self.grids and not self.grids[target]:
            raise _no_trials(target)
        if target in self.grids:
            raise RecipeError(
                f"{target} is a {SEARCH if target in self.searches else GRID} of {len(self.grids[target])} nodes",
                fix=f"run one of them, such as {self.grids[target][0]!r}",
            )
        if target not in self.tables:
            fix = f"add a table [{target}] to {RECIPE_FILE}" if target in registered() else None
            raise RecipeError(f"the recipe {self.name!r} has no stage {target!r}{did_you_mean(target, self.tables)}", fix=fix)
        wired = Wiring(self)
        wired.visit(target)
        for setting in self.overridden:
            self._check_override(setting, target, wired)
        return wired

    def overrides_for(self, wired: Wiring) -> list[str]:
        """The overrides that have an effect on some nodes."""
        return [
            item
            for item in self.overridden
            if (node_of(item) == WIRING and field_of(item) in wired.meant)
            or any(self._reaches(item, name) for name in wired.visited)
        ]

    def _reaches(self, override: str, name: str) -> bool:
        """Whether an override is of a node's own table, or of one it is like without its own value."""
        table, setting = node_of(override), field_of(override)
        for node in (name, *self._models(name)):
            if node == table or node in self.grids.get(table, ()):
                return True
            if setting in _flattened(self.tables[node], self.stages[node]):
                return False
        return False

    # -- settings -----------------------------------------------------------------------------------------------------

    def _like(self, name: str) -> str | None:
        """The node in a node's `like`.

        Raises:
            RecipeError: there is none of that name.
        """
        like = self.tables[name].get(LIKE)
        if like is None:
            return None
        if not isinstance(like, str) or like not in self.tables:
            raise RecipeError(f"[{name}] {LIKE} = {like!r}: there is no such node{did_you_mean(str(like), self.tables)}")
        return like

    def _models(self, name: str) -> Iterator[str]:
        """The chain of `like` nodes of a node, the nearest first.

        Raises:
            RecipeError: they have a cycle.
        """
        path = [name]
        while (like := self._like(path[-1])) is not None:
            if like in path:
                raise RecipeError(f"the recipe {self.name!r} has a cycle: {f' is {LIKE} '.join((*path, like))}")
            path.append(like)
            yield like

    def _stage_name(self, name: str) -> str:
        for node in (name, *self._models(name)):
            stage = self.tables[node].get(STAGE)
            if stage is not None:
                if not isinstance(stage, str):
                    raise RecipeError(f"[{node}] {STAGE} = {stage!r} is no stage's name")
                return stage
            last = node
        return last

    def _flat(self, name: str) -> dict[str, Any]:
        """Settings by name: of those that a node is like, as far as its stage has them, and over them its own."""
        stage = self.stages[name]
        flat: dict[str, Any] = {}
        for node in reversed(list(self._models(name))):
            inherited = _flattened(self.tables[node], self.stages[node])
            same = self.stages[node].name == stage.name
            flat |= {key: value for key, value in inherited.items() if same or key in settings_of(stage.config)}
        flat |= _flattened(self.tables[name], stage)
        return {key: value for key, value in flat.items() if value is not DEFAULT}

    def _check_override(self, setting: str, target: str, wired: Wiring) -> None:
        """A --set must have an effect on the target.

        Raises:
            RecipeError: it has none.
        """
        node, name = node_of(setting), field_of(setting)
        if setting in self.overrides_for(wired):
            return
        if node == WIRING:
            raise RecipeError(f"--set {setting} has no effect: no node up to {target} reads {name!r} without naming it")
        node = next(iter(self.grids.get(node, ())), node)
        settings = settings_of(self.stages[node].config)
        if name not in settings:
            raise RecipeError(f"{node} has no setting {name!r}{did_you_mean(name, settings)}")
        kind = self.stages[node].writes
        instead = f"--set {WIRING}.{kind}={node}, or leave it out" if len(self.producers.get(kind, ())) > 1 else "leave it out"
        raise RecipeError(f"--set {setting} has no effect: {target} does not read {node}", fix=instead)


def _flattened(table: Mapping[str, Any], stage: Stage) -> dict[str, Any]:
    """The settings in a node's table by name, those of its groups as ``group.setting``."""
    groups = groups_of(stage.config)
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if key in groups and isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": inner_value for inner, inner_value in value.items()}
        elif key not in RESERVED:
            flat[key] = value
    return flat


def _explain(node: str, config: type[Config], error: Any) -> str:
    """One of pydantic's errors as a message about the recipe."""
    name = ".".join(str(part) for part in error["loc"] if isinstance(part, str))
    where = f"{node}.{name}" if name else node
    if error["type"] == "extra_forbidden":
        outer, _, inner = name.rpartition(".")
        settings = groups_of(config)[outer].model_fields if outer in groups_of(config) else config.model_fields
        namesakes = [name for name in settings_of(config) if name.rpartition(".")[2] == inner]
        hint = f"; did you mean {namesakes[0]!r}?" if namesakes else did_you_mean(inner, settings)
        return f"{node}{'.' + outer if outer else ''} has no setting {inner!r}{hint}"
    if error["type"] == "value_error":
        return "\n".join(f"{where}: {line}" for line in str(error["ctx"]["error"]).splitlines())
    if error["type"] == "missing":
        return f"{where} must be given: --set {where}=..., or in {RECIPE_FILE}"
    if error["type"] == "tuple_type":
        return f"{where} = {error['input']!r}: should be a list, such as --set \"{where}=['{error['input']}']\""
    if error["type"] == "bool_type":
        return f"{where} = {error['input']!r}: should be true or false"
    if error["type"] == "model_type":
        return f"{where} = {error['input']!r}: is a table of settings: {', '.join(groups_of(config)[name].model_fields)}"
    message = error["msg"].replace("Input should be", "should be")
    return f"{where} = {error['input']!r}: {message}"


def nodes_by_kind(
    table: Any, where: str, tables: Mapping[str, Any], grids: Mapping[str, Sequence[str]], *, needed: bool = True
) -> dict[str, list[str]]:
    """The nodes in a table of kind = node or kind = [nodes]; a grid's name stands for its nodes.

    Args:
        needed: whether a search without trials is an error. Otherwise it is left out, as a recipe is before its trials are known.

    Raises:
        RecipeError: it is no such table, or names what is no node.
    """
    if not isinstance(table, Mapping):
        raise RecipeError(f"[{where}] must be a table of kind = node")
    named: dict[str, list[str]] = {}
    for kind, value in table.items():
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names or not all(isinstance(entry, str) for entry in names):
            raise RecipeError(f"[{where}] {kind} = {value!r} is neither a node nor a list of nodes")
        for entry in names:
            if entry not in tables and entry not in grids:
                raise RecipeError(f"[{where}] {kind}: there is no node {entry!r}{did_you_mean(entry, tables)}")
            if needed and entry not in tables and not grids[entry]:
                raise _no_trials(entry)
        named[kind] = list(dict.fromkeys(node for entry in names for node in grids.get(entry, (entry,))))
    return named


def _no_trials(search: str) -> RecipeError:
    return RecipeError(
        f"{search} is a search, and needs a package that is not installed: optuna", fix="pip install 'irpipe[search]'"
    )


def node_of(override: str) -> str:
    """The node of `node.setting=value`."""
    return override.partition("=")[0].partition(".")[0].strip()


def field_of(override: str) -> str:
    """The setting of `node.setting=value`."""
    return override.partition("=")[0].partition(".")[2].strip()
