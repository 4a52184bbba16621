"""Which node reads which: the nodes behind a target, and everything in the recipe that keeps them from running."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from irpipe.pipeline.errors import IrpipeError, RecipeError, StageError, did_you_mean
from irpipe.pipeline.settings import Config, default_config, hashed_names, nested
from irpipe.pipeline.stage import Stage, find_stage, registered, slot_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from irpipe.pipeline.recipe import Recipe

RECIPE_FILE = "irpipe.toml"
WIRING = "reads"  # in a node's table: which nodes it reads, by kind; as a table of its own: for every node that does not say


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


@dataclass
class Wiring:
    """Nodes of a recipe as far as they are right, each after those it reads; and what is wrong, by node.

    A node is left out where it, or one that it reads, has a fault; the others are examined all the same, so that everything
    that is wrong is known at once.

    Attributes:
        nodes: by name.
        faults: (node, error).
        visited: every node that was looked at, as a set in order, each after those it reads.
        meant: the kinds for which the recipe's own table `reads` was asked.
    """

    recipe: Recipe
    nodes: dict[str, Node] = field(default_factory=dict)
    faults: list[tuple[str, IrpipeError]] = field(default_factory=list)
    visited: dict[str, None] = field(default_factory=dict)
    meant: set[str] = field(default_factory=set)

    def visit(self, name: str, path: tuple[str, ...] = ()) -> None:
        """Add a node after those it reads."""
        if name in path:
            self.faults.append((name, RecipeError(f"the recipe {self.recipe.name!r} has a cycle: {' -> '.join((*path, name))}")))
            return
        if name in self.visited:
            return
        stage, config = self.recipe.stages[name], self._config(name)
        upstream = self._upstream(name, stage, config or default_config(stage.config), report=config is not None)
        for producer in upstream.values():
            self.visit(producer, (*path, name))
        self.visited[name] = None
        if config is None or self._has_faults(name) or not all(producer in self.nodes for producer in upstream.values()):
            return
        try:
            upstream |= self._optional(name, stage, upstream, path)
            self.nodes[name] = self._node(name, stage, config, upstream)
        except IrpipeError as error:
            self.faults.append((name, error))

    def in_order(self, faults: Iterable[tuple[str, IrpipeError]]) -> list[tuple[str, IrpipeError]]:
        """Faults of nodes, each after those of the nodes that it reads: the order in which they are to be fixed."""
        place = {name: number for number, name in enumerate(self.visited)}
        return sorted(faults, key=lambda fault: place[fault[0]])

    def _has_faults(self, name: str) -> bool:
        return any(node == name for node, _ in self.faults)

    def _config(self, name: str) -> Config | None:
        """The settings of a node; None, and a fault, where they are wrong."""
        try:
            return self.recipe.config(name)
        except IrpipeError as error:
            self.faults.append((name, error))
            return None

    def _upstream(self, name: str, stage: Stage, config: Config, *, report: bool) -> dict[str, str]:
        """The nodes that a node reads, by the name of the input; those without a choice are faults.

        Args:
            report: whether a missing one is a fault: wrong settings say nothing of what would be read.
        """
        kinds = stage.kinds_read(config, self.recipe.producers)
        upstream: dict[str, str] = {}
        try:
            self._check_wiring(name, {*kinds, *stage.reads_if_upstream, *_could_read(stage, self.recipe)})
            wiring = self.recipe.wiring(name)
        except IrpipeError as error:
            self.faults.append((name, error))
            return upstream
        for kind, many in kinds.items():
            try:
                chosen = self._producers(name, kind, wiring.get(kind) or self._meant(kind), many=many)
            except IrpipeError as error:
                if report:
                    self.faults.append((name, error))
                continue
            upstream |= {slot_of(kind, node, many=many): node for node in chosen}
        return upstream

    def _optional(self, name: str, stage: Stage, upstream: Mapping[str, str], path: tuple[str, ...]) -> dict[str, str]:
        """The nodes of the kinds that a node reads if they are upstream of it, or if it names them."""
        wiring, found = self.recipe.wiring(name), {}
        ancestors = self._ancestors(upstream.values())
        for kind in stage.reads_if_upstream:
            if kind in wiring:
                found[kind] = self._producers(name, kind, wiring[kind], many=False)[0]
                self.visit(found[kind], (*path, name))
            elif candidates := sorted(node for node in ancestors if self.recipe.stages[node].writes == kind):
                found[kind] = self._only(name, kind, candidates)
        return found

    def _node(self, name: str, stage: Stage, config: Config, upstream: Mapping[str, str]) -> Node:
        """A node whose inputs are right.

        Raises:
            RecipeError: it may not read one of them.
        """
        truths = [producer for producer in upstream.values() if self.nodes[producer].knows_truth]
        if truths and not stage.evaluation:
            raise RecipeError(
                f"{name} may not read {truths[0]}, which holds or uses ground truth: only evaluation stages may",
                fix=f"let {name} read another node, or declare it with evaluation=True if it neither trains nor selects",
            )
        return Node(name, stage, config, upstream, stage.truth or bool(truths))

    def _ancestors(self, names: Iterable[str]) -> set[str]:
        """Nodes and everything upstream of them."""
        reached: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name not in reached:
                reached.add(name)
                pending.extend(self.nodes[name].upstream.values())
        return reached

    def _meant(self, kind: str) -> Sequence[str] | None:
        """The nodes that the recipe's own table `reads` means by a kind."""
        named = self.recipe.reads.get(kind)
        if named is not None:
            self.meant.add(kind)
        return named

    def _only(self, name: str, kind: str, candidates: Sequence[str]) -> str:
        """The one node upstream that writes a kind.

        Raises:
            RecipeError: there are several.
        """
        meant = [node for node in self._meant(kind) or () if node in candidates]
        if len(candidates) > 1 and len(meant) != 1:
            raise RecipeError(
                f"{name} reads {kind!r}, which {' and '.join(candidates)} write, and it depends on both",
                fix=_choose(name, kind, candidates[0]),
            )
        return (meant or candidates)[0]

    def _producers(self, name: str, kind: str, chosen: Sequence[str] | None, *, many: bool) -> Sequence[str]:
        """The nodes from which a node reads a kind: one, or several where it takes several.

        Raises:
            RecipeError: there is none, there are several and none was chosen, or one that was chosen writes another kind.
        """
        producers = self.recipe.producers.get(kind, ())
        if chosen is None and len(producers) == 1:
            return producers
        if chosen is None and not producers:
            stage = self.recipe.stages[name]
            raise RecipeError(
                f"{name} reads {kind!r}, and no stage of the recipe {self.recipe.name!r} writes it",
                fix=_instead(name, stage, kind) or _table_for(kind) or f"irpipe cite {stage.name}",
            )
        if chosen is None:
            for_all = "" if many else f"; for all that read it: --set {WIRING}.{kind}={producers[0]}"
            raise RecipeError(
                f"{name} reads {kind!r}, which {' and '.join(producers)} write",
                fix=_choose(name, kind, producers[0], many=many) + for_all,
            )
        for node in chosen:
            writes = self.recipe.stages[node].writes
            if writes != kind:
                expected = " or ".join(producers) or None
                raise RecipeError(f"[{name}.{WIRING}] {kind} = {node!r}, which writes {writes!r}", expected=expected)
        if len(chosen) > 1 and not many:
            raise RecipeError(f"{name} reads one {kind!r}, and {' and '.join(chosen)} are named", fix="name one of them")
        return chosen

    def _check_wiring(self, name: str, kinds: Iterable[str]) -> None:
        """The kinds under `reads` in a node's own table must be kinds that it can read; those of its `like` node may be more."""
        own = self.recipe.tables[name].get(WIRING, {})
        for kind in own if isinstance(own, dict) else ():
            if kind not in kinds:
                raise RecipeError(f"[{name}.{WIRING}] names {kind!r}, which it does not read{did_you_mean(kind, kinds)}")


def _could_read(stage: Stage, recipe: Recipe) -> Iterable[str]:
    """The kinds that a stage reads by its defaults: a setting may make one needless, and its choice is no fault then."""
    return stage.kinds_read(default_config(stage.config), recipe.producers)


def _table(node: str) -> str:
    """The table of a node; the points of a grid are set together."""
    return node.partition("[")[0]


def _choose(name: str, kind: str, node: str, *, many: bool = False) -> str:
    """How to name the node, or several, that a node reads."""
    listed = f'["{node}", ...]' if many else f'"{node}"'
    return (
        f"name {'one or several' if many else 'one'}: --set {_table(name)}.{WIRING}.{kind}={node}, or in {RECIPE_FILE}:"
        f" [{_table(name)}.{WIRING}] {kind} = {listed}"
    )


def _instead(node: str, stage: Stage, kind: str) -> str | None:
    """The option that gives a node a file instead of an artifact of a kind, if it has one."""
    for name in hashed_names(default_config(stage.config), ("external", "model")):
        if kind not in stage.kinds_read(default_config(stage.config, **nested({name: Path("FILE")}))):
            return f"--set {_table(node)}.{name}=FILE"
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
