"""Which stages would run, and why: keys looked up against the store."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from irpipe.pipeline.code import Parsed, code_digest
from irpipe.pipeline.commit import attempt
from irpipe.pipeline.errors import IrpipeError, combined
from irpipe.pipeline.external import Externals, resolve
from irpipe.pipeline.hashing import stage_key
from irpipe.pipeline.manifest import InputEntry, Record
from irpipe.pipeline.plugins import with_plugins
from irpipe.pipeline.progress import Watcher, duration
from irpipe.pipeline.recipe import Recipe
from irpipe.pipeline.requirements import to_download, unmet
from irpipe.pipeline.settings import (
    Config,
    default_config,
    given_names,
    hashed_config,
    nested,
    role_of,
    settings_of,
    shown_config,
    value_of,
)
from irpipe.pipeline.stage import Inputs, Stage, kind_in
from irpipe.pipeline.store import Store
from irpipe.pipeline.wiring import Node, Wiring


@dataclass(frozen=True)
class Step:
    """One node of a plan.

    Attributes:
        state: `reuse`, `run`, or `wait`: whether it runs depends on results upstream.
        key: what its run would be; None while an input is not made yet.
        record: the run that is reused.
        reasons: why it runs, field by field against the nearest earlier run.
        notes: further information (a replaced input, changed code, abandoned work).
        expected_seconds: how long the nearest earlier run took.
    """

    node: Node
    state: Literal["reuse", "run", "wait"]
    externals: Externals
    inputs: Mapping[str, InputEntry]
    key: str | None = None
    record: Record | None = None
    reasons: Sequence[str] = ()
    notes: Sequence[str] = ()
    expected_seconds: float | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def as_json(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {
            "stage": self.name,
            "state": self.state,
            "key": self.key,
            "reasons": list(self.reasons),
            "content_id": self.record.content_id if self.record else None,
            "notes": list(self.notes),
            "expected_seconds": self.expected_seconds,
        }

    @property
    def told_notes(self) -> str:
        """Its notes in brackets, to stand behind something; empty where there are none."""
        return f" ({'; '.join(self.notes)})" if self.notes else ""

    @property
    def lines(self) -> list[str]:
        """The step as lines of text."""
        time = f"  (about {duration(self.expected_seconds)})" if self.expected_seconds is not None else ""
        content = f" {self.record.content_id[:12]}" if self.record else ""
        first = f"{self.state:<6} {self.name}{content}{time if self.state != 'reuse' else ''}"
        return [first, *(f"         {line}" for line in (*self.reasons, *self.notes))]


@dataclass(frozen=True)
class Planner:
    """Examines the stages of one recipe against one store.

    Attributes:
        force: name of a node that runs although its result exists.
        strict_code: do not reuse results of other versions of the code.
        remember: whether digests of outside files may be remembered in the store.
        against_newest: compare with the recipe's newest result of a node, not with the most similar of all runs.
        most_bytes: outside files larger than this are not read if their digest is not remembered; that is an error.
    """

    recipe: Recipe
    store: Store
    watcher: Watcher
    force: str | None = None
    strict_code: bool = False
    remember: bool = False
    most_bytes: int | None = None
    against_newest: bool = False
    _by_stage: dict[str, list[Record]] = field(default_factory=dict)
    _externals: dict[str, Externals] = field(default_factory=dict)
    _parsed: Parsed = field(default_factory=dict)

    def plan(self, target: str) -> list[Step]:
        """Every node up to the target, in order of running. Writes nothing.

        Raises:
            IrpipeError: it cannot run: settings, wiring, files, packages or models that are missing or wrong, all at once.
        """
        wired = self.recipe.wire(target)
        steps, faults = self.steps(wired)
        if faults:
            raise combined(faults)
        return list(steps.values())

    def steps(self, wired: Wiring) -> tuple[dict[str, Step], list[tuple[str, IrpipeError]]]:
        """The steps of all nodes that can run, each after its inputs, and what keeps the others from it, by node."""
        entries: dict[str, InputEntry] = {}
        steps: dict[str, Step] = {}
        faults = list(wired.faults)
        for name, node in wired.nodes.items():
            try:
                step = self.examine(node, entries)
            except IrpipeError as error:
                faults.append((name, error))
                continue
            if step.record is not None:
                entries[name] = input_entry(node, step.record)
            elif missing := list(unmet(node, step.externals)):
                faults += [(name, error) for error in missing]
                continue
            steps[name] = step
        return steps, wired.in_order(faults)

    def examine(self, node: Node, entries: Mapping[str, InputEntry]) -> Step:
        """The step of one node, given the entries of its upstream nodes."""
        stage = node.stage
        externals = self.externals(node)
        inputs = {slot: entries[name] for slot, name in node.upstream.items() if name in entries}
        missing = [name for name in node.upstream.values() if name not in entries]
        notes = [*self._replaced(node), *(f"{model.shown} is downloaded first" for model in to_download(externals))]
        if missing:
            nearest = self._nearest(node, inputs, externals)
            reasons = list(_differences(node, nearest, inputs, externals)) if self.against_newest and nearest else []
            reasons.append(f"reads {' and '.join(missing)}, which must be made first")
            return Step(node, "wait", externals, inputs, None, None, reasons, notes, nearest.seconds if nearest else None)
        folders = [self.store.object_path(entry.content_id) for entry in inputs.values()]
        externals = with_plugins(stage, node.config, folders, externals)
        key = stage_key(
            stage.name,
            stage.version,
            hashed_config(node.config),
            {slot: entry.content_id for slot, entry in inputs.items()},
            externals.digests,
        )
        record = self.store.lookup(key)
        if record is not None and self.force != node.name:
            changed = self.code_changed(stage, record)
            if not (changed and self.strict_code):
                notes += ["its code changed since (--strict-code makes that count)"] if changed else []
                return Step(node, "reuse", externals, inputs, key, record, (), notes)
        nearest = self._nearest(node, inputs, externals)
        reasons = list(self._reasons(node, key, record, nearest, inputs, externals))
        notes += self._unfinished(node, key)
        return Step(node, "run", externals, inputs, key, None, reasons, notes, nearest.seconds if nearest else None)

    def externals(self, node: Node, *, again: bool = False) -> Externals:
        """The external inputs of a node; resolved once, unless `again`."""
        name = node.name
        if again or name not in self._externals:
            self._externals[name] = resolve(
                node.name,
                node.config,
                self.recipe.root,
                self.store,
                self.watcher,
                remember=self.remember,
                most_bytes=self.most_bytes,
            )
        return self._externals[name]

    def _replaced(self, node: Node) -> Iterator[str]:
        usual = node.stage.kinds_read(default_config(type(node.config)), self.recipe.producers)
        for name in self.recipe.idle(node.name):
            yield f"{node.name}.{name} of the recipe has no effect beside other settings"
        for kind in usual:
            producers = self.recipe.producers.get(kind, ())
            if producers and kind not in map(kind_in, node.upstream):
                yield f"{node.name}{_because(node.config, node.stage, kind)} makes {producers[0]} unnecessary"

    def code_changed(self, stage: Stage, record: Record) -> bool:
        """Whether the stage's code has changed since a run."""
        return code_digest(stage.package, self._parsed) != record.code_digest

    def _nearest(self, node: Node, inputs: Mapping[str, InputEntry], externals: Externals) -> Record | None:
        """The earlier run of the stage that differs least, the newest among equals."""
        name = node.stage.name
        if self.against_newest:
            return self.store.newest(self.recipe.name, node.name)
        if not self._by_stage:
            for record in self.store.records():
                self._by_stage.setdefault(record.stage, []).append(record)
        own = [record for record in self._by_stage.get(name, []) if record.node == node.name]
        earlier = own or [record for record in self._by_stage.get(name, []) if record.node not in self.recipe.tables]
        newest_first = sorted(earlier, key=lambda record: record.ended, reverse=True)
        return min(newest_first, key=lambda record: len(list(_differences(node, record, inputs, externals))), default=None)

    def _reasons(
        self,
        node: Node,
        key: str,
        record: Record | None,
        nearest: Record | None,
        inputs: Mapping[str, InputEntry],
        externals: Externals,
    ) -> Iterator[str]:
        if self.force == node.name:
            yield "forced"
        elif record is not None:
            yield "its code changed since (--strict-code)"
        elif nearest is None:
            yield "it never ran"
        elif nearest.key == key:
            yield "its artifact is damaged or was dropped"
        else:
            yield from _differences(node, nearest, inputs, externals)

    def _unfinished(self, node: Node, key: str) -> list[str]:
        """Notes on killed runs: work of this key is continued, work of other settings is not."""
        abandoned = 0
        for work in self.store.children("work"):
            unfinished = attempt(self.store, work.name)
            mine = unfinished is not None and (unfinished.node, unfinished.recipe) == (node.name, self.recipe.name)
            if mine and any(self.store.children("work", work.name, "scratch")):
                if work.name == key:
                    return ["continues where it was interrupted"]
                abandoned += 1
        return (
            [f"leaves {abandoned} unfinished run{'s' if abandoned > 1 else ''} of other settings: irpipe gc"] if abandoned else []
        )


def _because(config: Config, stage: Stage, kind: str) -> str:
    """The setting, `.name`, that alone makes a stage read no artifact of a kind; empty where several settings do."""
    for name in given_names(config):
        if kind not in stage.kinds_read(default_config(type(config), **nested({name: value_of(config, name)}))):
            return f".{name}"
    return ""


def input_entry(node: Node, record: Record) -> InputEntry:
    """The entry of an input in a run's record."""
    return InputEntry(node.stage.name, node.name, record.key, record.content_id)


def open_inputs(store: Store, entries: Mapping[str, InputEntry]) -> Inputs:
    """The artifacts that a run reads."""
    return Inputs({slot: (entry.node, store.open(entry.content_id)) for slot, entry in entries.items()})


def _differences(node: Node, record: Record, inputs: Mapping[str, InputEntry], externals: Externals) -> Iterator[str]:
    stage, config = node.stage, shown_config(node.config)
    if stage.version != record.stage_version:
        yield f"{stage.name} version {record.stage_version} -> {stage.version}"
    for name in sorted(set(config) | set(record.config)):
        role = role_of(stage.config, name) if name in settings_of(stage.config) else "result"
        if role in ("result", "neutral") and config.get(name) != record.config.get(name):
            yield f"{node.name}.{name} {_show(record.config.get(name))} -> {_show(config.get(name))}"
    for name in sorted(set(externals.entries) | set(record.external)):
        before, now = record.external.get(name, {}), externals.entries.get(name, {})
        if before.get("digest") == now.get("digest"):
            continue
        if before.get("given") == now.get("given"):
            yield f"{node.name}.{name} {_show(now['given'])}: the content changed"
        else:
            yield f"{node.name}.{name} {_show(before.get('given'))} -> {_show(now.get('given'))}"
    for slot in sorted(set(node.upstream) | set(record.inputs)):
        if slot not in node.upstream:
            yield f"no longer reads {slot}"
        elif slot not in record.inputs:
            yield f"now reads {slot} from {node.upstream[slot]}"
        elif slot in inputs and inputs[slot].content_id != record.inputs[slot].content_id:
            yield f"{slot} changed: {record.inputs[slot].content_id[:12]} -> {inputs[slot].content_id[:12]}"


def _show(value: Any) -> str:
    return "unset" if value is None else str(value)
