"""Nodes of a recipe: stages under names, with typed settings and wiring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from irpipe.pipeline.errors import RecipeError, StageError, did_you_mean
from irpipe.pipeline.settings import Config, default_config, groups_of, hashed_names, nested, settings_of
from irpipe.pipeline.stage import Stage, find_stage, registered, slot_of

RECIPE_FILE = "irpipe.toml"
# Reserved names in a node's table. stage: which stage it is, where its name is another. like: a node whose settings are its
# defaults. reads: which nodes it reads, by kind. grid: lists of values of some settings, with a node for each point.
STAGE, LIKE, WIRING, GRID = "stage", "like", "reads", "grid"
RESERVED = (STAGE, LIKE, WIRING, GRID)


@dataclass(frozen=True)
class Node:
    """A stage under a name in a recipe, with its settings and its upstream nodes.

    Attributes:
        upstream: the node behind each input: by kind, or by ``kind[node]`` where it reads several of a kind.
        knows_truth: whether it, or an ancestor, holds ground truth, which only evaluation stages may read.
    """

    name: str
    stage: Stage
    config: Config
    upstream: Mapping[str, str]
    knows_truth: bool


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: its name, its store, and one table of settings per node."""

    name: str
    root: Path
    store: Path
    tables: Mapping[str, Mapping[str, Any]]
    overridden: Sequence[str] = ()
    grids: Mapping[str, Sequence[str]] = field(default_factory=dict)  # names of the nodes of each grid

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
        own = self.tables[name].get(WIRING, {})
        if not isinstance(own, Mapping):
            raise RecipeError(f"[{name}.{WIRING}] must be a table of kind = node")
        like = self._like(name)
        nodes_by_kind = dict(self.wiring(like)) if like else {}
        for kind, value in own.items():
            names = [value] if isinstance(value, str) else value
            if not isinstance(names, list) or not names or not all(isinstance(entry, str) for entry in names):
                raise RecipeError(f"[{name}.{WIRING}] {kind} = {value!r} is neither a node nor a list of nodes")
            for entry in names:
                if entry not in self.tables and entry not in self.grids:
                    raise RecipeError(f"[{name}.{WIRING}] {kind}: there is no node {entry!r}{did_you_mean(entry, self.tables)}")
            nodes_by_kind[kind] = list(dict.fromkeys(node for entry in names for node in self.grids.get(entry, (entry,))))
        return nodes_by_kind

    def chain(self, target: str) -> list[Node]:
        """The target and everything upstream of it, each node after its inputs.

        Raises:
            RecipeError: the recipe lacks a node, has two for one kind, or has a cycle.
        """
        if target in self.grids:
            raise RecipeError(
                f"{target} is a grid of {len(self.grids[target])} nodes",
                fix=f"run one of them, such as {self.grids[target][0]!r}",
            )
        if target not in self.tables:
            fix = f"add a table [{target}] to {RECIPE_FILE}" if target in registered() else None
            raise RecipeError(f"the recipe {self.name!r} has no stage {target!r}{did_you_mean(target, self.tables)}", fix=fix)
        nodes = self.upstream(target)
        for setting in self.overridden:
            self._check_override(setting, target, nodes)
        return list(nodes.values())

    def upstream(self, target: str) -> Mapping[str, Node]:
        """The names of a node and of everything upstream of it, each after its inputs, without checking overrides."""
        nodes: dict[str, Node] = {}
        self._visit(target, nodes, ())
        return nodes

    def overrides_for(self, nodes: Iterable[str]) -> list[str]:
        """The overrides that have an effect on some nodes, by name."""
        names = list(nodes)
        return [item for item in self.overridden if any(self._reaches(item, name) for name in names)]

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
        return flat | _flattened(self.tables[name], stage)

    def _check_override(self, setting: str, target: str, nodes: Mapping[str, Node]) -> None:
        """A --set must have an effect on the target.

        Raises:
            RecipeError: it has none.
        """
        node, name = node_of(setting), field_of(setting)
        if setting in self.overrides_for(nodes):
            return
        node = self.grids.get(node, (node,))[0]
        settings = settings_of(self.stages[node].config)
        if name not in settings:
            raise RecipeError(f"{node} has no setting {name!r}{did_you_mean(name, settings)}")
        raise RecipeError(f"--set {setting} has no effect: {target} does not read {node}", fix="leave it out")

    # -- wiring -------------------------------------------------------------------------------------------------------

    def _visit(self, name: str, nodes: dict[str, Node], path: tuple[str, ...]) -> None:
        """Add a node after those it reads."""
        if name in path:
            raise RecipeError(f"the recipe {self.name!r} has a cycle: {' -> '.join((*path, name))}")
        if name in nodes:
            return
        stage, config = self.stages[name], self.config(name)
        kinds = stage.kinds_read(config, self.producers)
        self._check_wiring(name, {*kinds, *stage.reads_if_upstream})
        wiring = self.wiring(name)
        upstream: dict[str, str] = {}
        for kind, many in kinds.items():
            chosen = self._producers(name, kind, wiring.get(kind), many=many)
            upstream |= {slot_of(kind, node, many=many): node for node in chosen}
        for producer in upstream.values():
            self._visit(producer, nodes, (*path, name))
        ancestors = _ancestors(upstream.values(), nodes)
        for kind in stage.reads_if_upstream:
            if kind in wiring:
                upstream[kind] = self._producers(name, kind, wiring[kind], many=False)[0]
                self._visit(upstream[kind], nodes, (*path, name))
            elif candidates := [node for node in ancestors if self.stages[node].writes == kind]:
                upstream[kind] = self._only(name, kind, sorted(candidates))
        truths = [producer for producer in upstream.values() if nodes[producer].knows_truth]
        if truths and not stage.evaluation:
            raise RecipeError(
                f"{name} may not read {truths[0]}, which holds or uses ground truth: only evaluation stages may",
                fix=f"let {name} read another node, or declare it with evaluation=True if it neither trains nor selects",
            )
        nodes[name] = Node(name, stage, config, upstream, stage.truth or bool(truths))

    def _only(self, name: str, kind: str, candidates: Sequence[str]) -> str:
        """The one node upstream that writes a kind.

        Raises:
            RecipeError: there are several.
        """
        if len(candidates) > 1:
            raise RecipeError(
                f"{name} reads {kind!r}, which {' and '.join(candidates)} write, and it depends on both",
                fix=self._choose(name, kind, candidates[0]),
            )
        return candidates[0]

    def _choose(self, name: str, kind: str, node: str, *, many: bool = False) -> str:
        """How to name the node, or several, that a node reads."""
        table = name.partition("[")[0]  # the points of a grid are set together
        listed = f'["{node}", ...]' if many else f'"{node}"'
        return (
            f"name {'one or several' if many else 'one'}: --set {table}.{WIRING}.{kind}={node}, or in {RECIPE_FILE}:"
            f" [{table}.{WIRING}] {kind} = {listed}"
        )

    def _producers(self, name: str, kind: str, chosen: Sequence[str] | None, *, many: bool) -> Sequence[str]:
        """The nodes from which a node reads a kind: one, or several where it takes several.

        Raises:
            RecipeError: there is none, there are several and none was chosen, or one that was chosen writes another kind.
        """
        producers = self.producers.get(kind, ())
        if chosen is None and len(producers) == 1:
            return producers
        if chosen is None and not producers:
            raise RecipeError(
                f"{name} reads {kind!r}, and no stage of the recipe {self.name!r} writes it",
                fix=_instead(name, self.stages[name], kind) or _table_for(kind) or f"irpipe cite {self.stages[name].name}",
            )
        if chosen is None:
            raise RecipeError(
                f"{name} reads {kind!r}, which {' and '.join(producers)} write",
                fix=self._choose(name, kind, producers[0], many=many),
            )
        for node in chosen:
            writes = self.stages[node].writes
            if writes != kind:
                expected = " or ".join(producers) or None
                raise RecipeError(f"[{name}.{WIRING}] {kind} = {node!r}, which writes {writes!r}", expected=expected)
        if len(chosen) > 1 and not many:
            raise RecipeError(f"{name} reads one {kind!r}, and {' and '.join(chosen)} are named", fix="name one of them")
        return chosen

    def _check_wiring(self, name: str, kinds: Iterable[str]) -> None:
        """The kinds under `reads` in a node's own table must be kinds that it reads; those of its `like` node may be more."""
        own = self.tables[name].get(WIRING, {})
        for kind in own if isinstance(own, Mapping) else ():
            if kind not in kinds:
                raise RecipeError(f"[{name}.{WIRING}] names {kind!r}, which it does not read{did_you_mean(kind, kinds)}")


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


def _instead(node: str, stage: Stage, kind: str) -> str | None:
    """The option that gives a node a file instead of an artifact of a kind, if it has one."""
    for name in hashed_names(default_config(stage.config), ("external", "model")):
        if kind not in stage.kinds_read(default_config(stage.config, **nested({name: Path("FILE")}))):
            return f"--set {node.partition('[')[0]}.{name}=FILE"
    return None


def _table_for(kind: str) -> str | None:
    """The table to add for a stage that writes a kind, if an installed package has one."""
    for name in registered():
        try:
            if find_stage(name).writes == kind:
                return f"add a table [{name}] to {RECIPE_FILE}"
        except (RecipeError, StageError):
            continue  # another package's broken stage cannot help
    return None


def _ancestors(names: Iterable[str], nodes: Mapping[str, Node]) -> set[str]:
    """Nodes and everything upstream of them."""
    reached: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending.extend(nodes[name].upstream.values())
    return reached


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
        return f"{where}: {error['ctx']['error']}"
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


def node_of(override: str) -> str:
    """The node of `node.setting=value`."""
    return override.partition("=")[0].partition(".")[0].strip()


def field_of(override: str) -> str:
    """The setting of `node.setting=value`."""
    return override.partition("=")[0].partition(".")[2].strip()
