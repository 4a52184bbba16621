"""The state of every stage of a recipe: done, out of date and why, running and its progress, failed and the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from irpipe.pipeline.commit import attempt
from irpipe.pipeline.errors import IrpipeError, UnreadError
from irpipe.pipeline.journal import last_progress
from irpipe.pipeline.manifest import InputEntry, Record
from irpipe.pipeline.plan import Planner, Step, input_entry
from irpipe.pipeline.store import Store

MOST_BYTES = 100_000_000  # of outside files that are read only to tell whether they changed
State = Literal["done", "stale", "not made", "running", "failed", "interrupted", "lost", "cannot run", "unread"]
INTERRUPTIONS = ("interrupted", "killed")


@dataclass(frozen=True)
class Standing:
    """One node of a recipe.

    Attributes:
        state: done: the result under the present irpipe.toml exists. stale: there is a result of other settings or inputs. lost:
            its result is no longer in the store. cannot run: its settings or what it reads are wrong. unread: it reads large
            files that no run has read as they are now.
        why: the reasons for that, or the error.
        record: the run whose result exists, else the newest one, whatever its settings.
        process: the process that runs it; progress: the last progress in its log.
    """

    node: str
    state: State
    why: Sequence[str]
    record: Record | None
    process: int | None = None
    progress: Mapping[str, Any] | None = None


def survey(planner: Planner) -> list[Standing]:
    """Every stage of the recipe, in its order. Writes nothing, and reads no large file.

    Cost: a few look-ups per stage, whatever the number of runs.
    """
    planner = Planner(planner.recipe, planner.store, planner.watcher, most_bytes=MOST_BYTES, against_newest=True)
    steps, errors = _steps(planner)
    attempts = _attempts(planner.store, planner.recipe.name)
    return [_standing(planner, name, steps.get(name), errors.get(name), attempts) for name in planner.recipe.stages]


def _steps(planner: Planner) -> tuple[dict[str, Step], dict[str, IrpipeError]]:
    """The plan of every stage that has one, and the errors of the others."""
    steps: dict[str, Step] = {}
    errors: dict[str, IrpipeError] = {}
    entries: dict[str, InputEntry] = {}
    for name in planner.recipe.stages:
        try:
            for node in planner.recipe.chain(name):
                if node.name in steps or node.name in errors:
                    continue
                try:
                    step = steps[node.name] = planner.examine(node, entries)
                except IrpipeError as error:
                    errors[node.name] = error
                    continue
                if step.record is not None:
                    entries[node.name] = input_entry(node, step.record)
        except IrpipeError as error:
            errors[name] = error
    return steps, errors


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
    planner: Planner, name: str, step: Step | None, error: IrpipeError | None, attempts: Mapping[str, _Attempt]
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
    if step is None:
        return Standing(name, "unread" if isinstance(error, UnreadError) else "cannot run", _why(error), record)
    if record is None and store.ref_path(planner.recipe.name, name).exists():
        return Standing(name, "lost", ("its record cannot be read: damaged, or another version's",), None)
    if record is None:
        return Standing(name, "not made", (), None)
    if not store.holds(record.content_id):
        return Standing(name, "lost", ("its artifact is damaged or was dropped",), record)
    return Standing(name, "stale", tuple(step.reasons), record)


def _why(error: IrpipeError | None) -> Sequence[str]:
    assert error is not None
    return (error.what, *((f"fix: {error.fix}",) if error.fix else ()))


def log_key(store: Store, recipe: str, node: str) -> str | None:
    """The key of a node's latest run, finished or not."""
    record, unfinished = store.newest(recipe, node), _attempts(store, recipe).get(node)
    if unfinished is not None and (record is None or unfinished.started > record.ended):
        return unfinished.key
    return record.key if record is not None else None
