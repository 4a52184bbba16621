"""The state of every stage of a recipe: done, out of date and why, running and its progress, failed and the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from irpipe.pipeline.commit import attempt
from irpipe.pipeline.errors import IrpipeError, UnreadError
from irpipe.pipeline.journal import last_progress
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.plan import Planner, Step
from irpipe.pipeline.store import Store
from irpipe.pipeline.wiring import Wiring

MOST_BYTES = 100_000_000  # of outside files that are read only to tell whether they changed
State = Literal["done", "stale", "not made", "running", "failed", "interrupted", "lost", "cannot run", "waits", "unread"]
INTERRUPTIONS = ("interrupted", "killed")


@dataclass(frozen=True)
class Standing:
    """One node of a recipe.

    Attributes:
        state: done: the result under the present irpipe.toml exists. stale: there is a result of other settings or inputs. lost:
            its result is no longer in the store. cannot run: its own settings, or what it reads, are wrong. waits: those of a
            node upstream are. unread: it reads large files that no run has read as they are now.
        why: the reasons for that, or the error.
        faults: what has to be mended before it can run.
        record: the run whose result exists, else the newest one, whatever its settings.
        process: the process that runs it; progress: the last progress in its log.
    """

    node: str
    state: State
    why: Sequence[str]
    record: Record | None
    process: int | None = None
    progress: Mapping[str, Any] | None = None
    faults: Sequence[IrpipeError] = ()


def survey(planner: Planner) -> list[Standing]:
    """Every stage of the recipe, in its order. Writes nothing, and reads no large file.

    Cost: a few look-ups per stage, whatever the number of runs.
    """
    planner = Planner(planner.recipe, planner.store, planner.watcher, most_bytes=MOST_BYTES, against_newest=True)
    wired = Wiring(planner.recipe)
    for name in planner.recipe.stages:
        wired.visit(name)
    steps, faults = planner.steps(wired)
    attempts = _attempts(planner.store, planner.recipe.name)
    own: dict[str, list[IrpipeError]] = {}
    for name, fault in faults:
        own.setdefault(name, []).append(fault)
    return [_standing(planner, name, steps.get(name), own.get(name, []), attempts) for name in planner.recipe.stages]


@dataclass(frozen=True)
class _Attempt:
    """A run that is not finished."""

    key: str
    started: str
    process: int
    error: str


def _attempts(store: Store, recipe: str) -> dict[str, _Attempt]:
    """The latest unfinished run of each node of a recipe."""
    latest: dict[str, _Attempt] = {}
    for work in store.children("work"):
        unfinished = attempt(store, work.name)
        if unfinished is None or unfinished.recipe != recipe:
            continue
        node = unfinished.node
        if node not in latest or unfinished.started > latest[node].started:
            latest[node] = _Attempt(work.name, unfinished.started, unfinished.pid, unfinished.error)
    return latest


def _standing(
    planner: Planner, name: str, step: Step | None, faults: Sequence[IrpipeError], attempts: Mapping[str, _Attempt]
) -> Standing:
    store = planner.store
    record = store.newest(planner.recipe.name, name)
    if name in attempts and store.is_locked(attempts[name].key):
        running = attempts[name]
        return Standing(name, "running", (), record, running.process, last_progress(store.log_path(running.key)))
    if step is not None and step.state == "reuse":
        assert step.record is not None
        newer = record is not None and record.key != step.record.key
        return Standing(name, "done", ("its newest result is of other settings",) if newer else (), step.record)
    ended = attempts.get(name)
    if ended is not None and (record is None or ended.started > record.ended):
        note = ("with other settings",) if step is not None and step.key not in (None, ended.key) else ()
        return Standing(name, "interrupted" if ended.error in INTERRUPTIONS else "failed", (ended.error, *note), record)
    if step is None and not faults:
        return Standing(name, "waits", ("a stage that it reads cannot run",), record)
    if step is None:
        state: State = "unread" if all(isinstance(fault, UnreadError) for fault in faults) else "cannot run"
        why = tuple(line for fault in faults for line in (fault.what, *((f"fix: {fault.fix}",) if fault.fix else ())))
        return Standing(name, state, why, record, faults=faults if state == "cannot run" else ())
    if record is None and store.ref_path(planner.recipe.name, name).exists():
        return Standing(name, "lost", ("its record cannot be read: damaged, or another version's",), None)
    if record is None:
        return Standing(name, "not made", (), None)
    if not store.holds(record.content_id):
        return Standing(name, "lost", ("its artifact is damaged or was dropped",), record)
    return Standing(name, "stale", tuple(step.reasons), record)


def log_key(store: Store, recipe: str, node: str) -> str | None:
    """The key of a node's latest run, finished or not."""
    record, unfinished = store.newest(recipe, node), _attempts(store, recipe).get(node)
    if unfinished is not None and (record is None or unfinished.started > record.ended):
        return unfinished.key
    return record.key if record is not None else None
