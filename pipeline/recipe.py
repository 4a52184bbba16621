"""irpipe.toml -> typed stage configs, and which stage makes what another reads."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from irpipe.pipeline.errors import RecipeError, did_you_mean
from irpipe.pipeline.stage import Config, Stage, find_stage, hashed_names, registered, trial_name

RECIPE_FILE = "irpipe.toml"
WIRING = "reads"  # a reserved name in a stage's table: [build-pairs.reads] images = "import-images"


@dataclass(frozen=True)
class Node:
    """A stage of a recipe with its settings and its upstream nodes, by the kind they provide.

    Attributes:
        name: the stage's, or of a trial: `stage[settings]`.
        knows_truth: whether it, or anything upstream, is the truth that no trained stage may see.
    """

    name: str
    stage: Stage
    config: Config
    upstream: Mapping[str, str]
    knows_truth: bool

    @property
    def is_trial(self) -> bool:
        """Whether it runs under other settings than the recipe's."""
        return self.name != self.stage.name


@dataclass(frozen=True)
class Recipe:
    """A recipe as read: its name, its store, and one table of settings per stage."""

    name: str
    root: Path
    store: Path
    tables: Mapping[str, Mapping[str, Any]]
    overridden: Sequence[str] = ()

    @cached_property
    def stages(self) -> Mapping[str, Stage]:
        """The declarations of the recipe's stages, in the recipe's order."""
        return {name: find_stage(name) for name in self.tables}

    @cached_property
    def producers(self) -> Mapping[str, tuple[str, ...]]:
        """The stages that write each kind."""
        kinds: dict[str, tuple[str, ...]] = {}
        for name, stage in self.stages.items():
            kinds[stage.writes] = (*kinds.get(stage.writes, ()), name)
        return kinds

    def config(self, name: str, laid_over: Mapping[str, Any] | None = None) -> Config:
        """The typed settings of one stage, with those of a trial laid over them."""
        settings = {key: value for key, value in self.tables[name].items() if key != WIRING and key not in self.idle(name)}
        settings |= laid_over or {}
        stage = self.stages[name]
        try:
            return stage.config.model_validate(settings)
        except ValidationError as error:
            raise RecipeError("\n".join(_explain(name, stage.config, item) for item in error.errors())) from None

    def idle(self, name: str) -> list[str]:
        """Settings of the recipe that a --set for the same stage leaves without effect: they stand aside."""
        overridden = {_field(override) for override in self.overridden if override.partition(".")[0].strip() == name}
        if not overridden:
            return []
        config = self.stages[name].config
        known = {key: value for key, value in self.tables[name].items() if key in config.model_fields}
        unused = config.model_construct(**known).unused()
        return [key for key in known if key in unused and key not in overridden]

    def chain(self, target: str) -> list[Node]:
        """The target and everything upstream of it, each after what it reads.

        Raises:
            RecipeError: the recipe lacks a stage, has two for one kind, or runs in a circle.
        """
        if target not in self.tables:
            fix = f"add a table [{target}] to {RECIPE_FILE}" if target in registered() else None
            raise RecipeError(f"the recipe {self.name!r} has no stage {target!r}{did_you_mean(target, self.tables)}", fix=fix)
        nodes: dict[str, Node] = {}
        self._visit(target, nodes, ())
        visited = {node.stage.name for node in nodes.values()}
        for setting in self.overridden:
            stage = setting.partition(".")[0].strip()
            if stage not in visited:
                name, known = _field(setting), self.stages[stage].config.model_fields
                if name not in known:
                    raise RecipeError(f"{stage} has no setting {name!r}{did_you_mean(name, known)}")
                raise RecipeError(f"--set {setting} has no effect: {target} does not read {stage}", fix="leave it out")
        return list(nodes.values())

    def _visit(self, name: str, nodes: dict[str, Node], path: tuple[str, ...], laid_over: Mapping[str, Any] | None = None) -> str:
        """Add a stage's node, or a trial's, after those it reads. Returns its name."""
        node_name = trial_name(name, laid_over) if laid_over else name
        if name in path:
            raise RecipeError(f"the recipe {self.name!r} runs in a circle: {' -> '.join((*path, name))}")
        if node_name in nodes:
            return node_name
        stage, config = self.stages[name], self.config(name, laid_over)
        self._check_wiring(stage)
        upstream = {kind: self._producer(stage, kind) for kind in stage.kinds_read(config)}
        for producer in upstream.values():
            self._visit(producer, nodes, (*path, name))
        if stage.trials is not None:
            tried = self._producer(stage, stage.trials.kind)
            for settings in stage.trials.of(config):
                upstream[trial_name(stage.trials.kind, settings)] = self._visit(tried, nodes, (*path, name), settings)
        ancestors = _ancestors(upstream.values(), nodes)
        for kind in stage.reads_if_upstream:
            if kind in self.tables[name].get(WIRING, {}):
                upstream[kind] = self._producer(stage, kind)
                self._visit(upstream[kind], nodes, (*path, name))
                continue
            at_hand = [producer for producer in self.producers.get(kind, ()) if producer in ancestors]
            if at_hand:
                upstream[kind] = at_hand[0]
        knowing = [producer for producer in upstream.values() if nodes[producer].knows_truth]
        if knowing and not stage.evaluation:
            raise RecipeError(
                f"{name} may not read {knowing[0]}, which holds or judges by the truth: only evaluations may",
                fix=f"let {name} read another stage, or declare it with evaluation=True if it trains and selects nothing",
            )
        nodes[node_name] = Node(node_name, stage, config, upstream, stage.truth or bool(knowing))
        return node_name

    def _producer(self, stage: Stage, kind: str) -> str:
        producers = self.producers.get(kind, ())
        chosen = self.tables[stage.name].get(WIRING, {}).get(kind)
        if chosen is None and len(producers) == 1:
            return producers[0]
        if chosen in producers:
            return str(chosen)
        if not producers:
            raise RecipeError(
                f"{stage.name} reads {kind!r}, and no stage of the recipe {self.name!r} writes it",
                fix=_instead(stage, kind) or f"irpipe cite {stage.name}",
            )
        raise RecipeError(
            f"{stage.name} reads {kind!r}, which {' and '.join(producers)} write",
            fix=f"name one: --set {stage.name}.{WIRING}.{kind}={producers[0]}, or in {RECIPE_FILE}:"
            f' [{stage.name}.{WIRING}] {kind} = "{producers[0]}"',
        )

    def _check_wiring(self, stage: Stage) -> None:
        wiring = self.tables[stage.name].get(WIRING, {})
        tried = (stage.trials.kind,) if stage.trials else ()
        kinds = (*stage.kinds_read(self.config(stage.name)), *stage.reads_if_upstream, *tried)
        if not isinstance(wiring, Mapping):
            raise RecipeError(f"[{stage.name}.{WIRING}] must be a table of kind = stage")
        for kind in wiring:
            if kind not in kinds:
                raise RecipeError(f"[{stage.name}.{WIRING}] names {kind!r}, which it does not read{did_you_mean(kind, kinds)}")


def _instead(stage: Stage, kind: str) -> str | None:
    """The setting that makes a stage read a file of somebody's instead of a kind of artifact, if it has one."""
    for name in hashed_names(stage.config.model_construct(), ("external",)):
        if kind not in stage.kinds_read(stage.config.model_construct(None, **{name: Path("FILE")})):
            return f"--set {stage.name}.{name}=FILE"
    return None


def _ancestors(names: Any, nodes: Mapping[str, Node]) -> set[str]:
    found: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(nodes[name].upstream.values())
    return found


def _explain(stage: str, config: type[Config], error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else ""
    place = f"{stage}.{name}" if name else stage
    if error["type"] == "extra_forbidden":
        return f"{stage} has no setting {name!r}{did_you_mean(name, config.model_fields)}"
    if error["type"] == "value_error":
        return f"{place}: {error['ctx']['error']}"
    if error["type"] == "missing":
        return f"{place} must be given: --set {place}=..., or in {RECIPE_FILE}"
    if error["type"] == "tuple_type":
        return f"{place} = {error['input']!r}: should be a list, such as --set \"{place}=['{error['input']}']\""
    if error["type"] == "bool_type":
        return f"{place} = {error['input']!r}: should be true or false"
    message = error["msg"].replace("Input should be", "should be")
    return f"{place} = {error['input']!r}: {message}"


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with irpipe."""
    return sorted(entry.name.removesuffix(".toml") for entry in files("irpipe.recipes").iterdir() if entry.name.endswith(".toml"))


def shipped_recipe(name: str) -> str:
    """The text of a recipe that comes with irpipe."""
    if name not in shipped_recipes():
        raise RecipeError(f"there is no recipe {name!r}{did_you_mean(name, shipped_recipes())}")
    return files("irpipe.recipes").joinpath(f"{name}.toml").read_text(encoding="utf-8")


def load_recipe(root: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read irpipe.toml in a folder, with ``stage.field=value`` overrides laid over it.

    Raises:
        RecipeError: there is none, it is not TOML, or an override names nothing.
    """
    path = root / RECIPE_FILE
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"there is no {RECIPE_FILE} in {root}", fix="irpipe init") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{RECIPE_FILE} is not TOML: {error}", where=str(path)) from None
    tables = {name: dict(value) for name, value in document.items() if isinstance(value, dict)}
    plain = {name: value for name, value in document.items() if not isinstance(value, dict)}
    name, store = plain.pop("recipe", None), plain.pop("store", "artifacts")
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise RecipeError("the recipe has no name of letters, digits, - and _", where=str(path), expected='recipe = "micro"')
    if not isinstance(store, str):
        raise RecipeError(f"store = {store!r} is not a path", where=str(path))
    if plain:
        unknown = next(iter(plain))
        raise RecipeError(f"unknown setting {unknown!r}{did_you_mean(unknown, ['recipe', 'store'])}", where=str(path))
    for override in overrides:
        _override(tables, override)
    return Recipe(name=name, root=root, store=(root / store).resolve(), tables=tables, overridden=tuple(overrides))


def _field(override: str) -> str:
    """The field of `stage.field=value`."""
    return override.partition("=")[0].partition(".")[2].strip()


def _override(tables: dict[str, dict[str, Any]], override: str) -> None:
    setting, equals, text = override.partition("=")
    stage, dot, name = setting.strip().partition(".")
    if not (equals and dot and name):
        raise RecipeError(f"--set {override!r} is not of the form stage.field=value", expected="--set select-prompts.count=400")
    if stage not in tables:
        raise RecipeError(f"--set {override!r}: the recipe has no stage {stage!r}{did_you_mean(stage, tables)}")
    wiring, dot, kind = name.partition(".")
    if dot and wiring == WIRING:
        tables[stage][WIRING] = {**tables[stage].get(WIRING, {}), kind: _value(text.strip())}
    else:
        tables[stage][name] = _value(text.strip())


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none: paths and names need no quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
