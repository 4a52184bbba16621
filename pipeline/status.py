"""How every stage of a recipe stands: made, out of date and why, being made and how far, failed and with what error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from irpipe.pipeline.commit import attempt
from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.journal import last_progress
from irpipe.pipeline.manifest import InputEntry, Record
from irpipe.pipeline.plan import Planner, Step
from irpipe.pipeline.store import Store

State = Literal["done", "stale", "not made", "running", "failed", "interrupted", "lost", "cannot run"]
INTERRUPTIONS = ("interrupted", "killed")


@dataclass(frozen=True)
class Standing:
    """One stage of a recipe.

    Attributes:
        state: done: as irpipe.toml stands, its result is at hand. stale: there is a result of other settings or inputs. lost:
            its result is no longer in the store. cannot run: its settings or what it reads are wrong.
        why: the reasons for that, or the error.
        record: its newest run, whatever the settings.
        process: the process that runs it; progress: how far that is, as the log has it.
    """

    stage: str
    state: State
    why: Sequence[str]
    record: Record | None
    process: int | None = None
    progress: Mapping[str, Any] | None = None


def survey(planner: Planner) -> list[Standing]:
    """Every stage of the recipe, in its order. Writes nothing.

    Cost: one look-up a stage, and one read of every record where some stage is out of date.
    """
    steps, errors = _steps(planner)
    attempts = _attempts(planner.store, planner.recipe.name)
    return [_standing(planner, name, steps.get(name), errors.get(name), attempts.get(name)) for name in planner.recipe.stages]


def _steps(planner: Planner) -> tuple[dict[str, Step], dict[str, str]]:
    """The plan of every stage that has one, and what is wrong with the others."""
    steps: dict[str, Step] = {}
    errors: dict[str, str] = {}
    made: dict[str, InputEntry] = {}
    for name in planner.recipe.stages:
        try:
            for node in planner.recipe.chain(name):
                if node.name in steps or node.name in errors:
                    continue
                try:
                    step = steps[node.name] = planner.examine(node, made)
                except IrpipeError as error:
                    errors[node.name] = error.what
                    continue
                if step.record is not None:
                    made[node.name] = InputEntry(node.stage.name, step.record.key, step.record.content_id)
        except IrpipeError as error:
            errors[name] = error.what
    return steps, errors


def _attempts(store: Store, recipe: str) -> dict[object, tuple[str, dict[str, object]]]:
    """The latest unfinished run of each stage, by its key."""
    latest: dict[object, tuple[str, dict[str, object]]] = {}
    for path in sorted(store.root.glob("work/*/attempt.json")):
        found = attempt(store, path.parent.name)
        if found and found["recipe"] == recipe:
            known = latest.get(found["stage"])
            if known is None or str(found["started"]) > str(known[1]["started"]):
                latest[found["stage"]] = (path.parent.name, found)
    return latest


def _standing(
    planner: Planner, name: str, step: Step | None, error: str | None, unfinished: tuple[str, dict[str, object]] | None
) -> Standing:
    store = planner.store
    record = store.newest(planner.recipe.name, name)
    if unfinished is not None:
        key, found = unfinished
        if store.is_locked(key):
            return Standing(name, "running", (), record, int(str(found["pid"])), last_progress(store.log_path(key)))
        if record is None or str(found["started"]) > record.ended:
            ended = str(found.get("error", "killed"))
            return Standing(name, "interrupted" if ended in INTERRUPTIONS else "failed", (ended,), record)
    if step is None:
        return Standing(name, "cannot run", (error or "",), record)
    if step.state == "reuse":
        assert step.record is not None
        other = record is not None and record.key != step.record.key
        return Standing(name, "done", ("its newest result is of other settings",) if other else (), record or step.record)
    if record is None and store.ref_path(planner.recipe.name, name).exists():
        return Standing(name, "lost", ("its record cannot be read: damaged, or another version's",), None)
    if record is None:
        return Standing(name, "not made", (), None)
    return Standing(name, "stale" if store.holds(record.content_id) else "lost", tuple(step.reasons), record)


def log_key(store: Store, recipe: str, stage: str) -> str | None:
    """The key of a stage's latest run, finished or not."""
    record, unfinished = store.newest(recipe, stage), _attempts(store, recipe).get(stage)
    if unfinished is not None and (record is None or str(unfinished[1]["started"]) > record.ended):
        return unfinished[0]
    return record.key if record is not None else None
