"""Commands that run stages and show their progress: init, run, plan, status, log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irpipe.cli.common import (
    JsonOption,
    SetOption,
    StageArgument,
    StrictOption,
    open_recipe,
    planner,
    print_json,
    print_table,
)
from irpipe.pipeline.progress import duration, local_time, size, tick_line
from irpipe.pipeline.text import visible
from irpipe.recipes import shipped_recipes

if TYPE_CHECKING:
    from irpipe.pipeline.plan import Planner
    from irpipe.pipeline.progress import Watcher
    from irpipe.pipeline.remote import Remote
    from irpipe.pipeline.status import Standing
    from irpipe.pipeline.store import Store

_FOLLOW_SECONDS = 0.5
_LONGEST_LINE = 2000  # characters


ProcessesOption = Annotated[
    int, typer.Option("--processes", min=1, metavar="N", help="Processes that train together, for example one per GPU.")
]
EventsOption = Annotated[
    bool,
    typer.Option("--json", help="One JSON event per line; the last: 'done', with key, content_id and metrics, or 'failed'."),
]
ExecutorOption = Annotated[
    str | None,
    typer.Option("--executor", metavar="NAME", help="Where shards are made: inline, processes, ray, or a package's own."),
]
AddressOption = Annotated[
    str | None, typer.Option("--address", metavar="ADDRESS", help="Of the cluster; auto: the one this machine is part of.")
]
PushOption = Annotated[bool, typer.Option("--push", help="Push the result to the recipe's remote afterwards.")]
NoRemoteOption = Annotated[bool, typer.Option("--no-remote", help="Leave the recipe's remote alone.")]


def init(
    name: Annotated[str | None, typer.Argument(hidden=True)] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help=f"Which recipe to start from: {', '.join(shipped_recipes())}.")
    ] = "micro",
) -> None:
    """Write irpipe.toml into the current folder.

    Example: irpipe init --recipe imagereward
    """
    from irpipe.pipeline.errors import RecipeError
    from irpipe.pipeline.recipe_file import shipped_recipe
    from irpipe.pipeline.wiring import RECIPE_FILE

    if name is not None:
        raise RecipeError("init takes the name of a recipe as an option", fix=f"irpipe init --recipe {name}")
    text = shipped_recipe(recipe)
    try:
        with Path(RECIPE_FILE).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(
            f"{RECIPE_FILE} is here already", fix=f"edit it, or delete it and run irpipe init --recipe {recipe}"
        ) from None
    print(f"{RECIPE_FILE} written: the recipe {recipe!r}. Next: irpipe status, and irpipe plan build-pairs")


def run(
    stage: StageArgument,
    set_: SetOption = None,
    only: Annotated[bool, typer.Option("--only", help="Run this stage alone; the artifacts that it reads must exist.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run this stage although its result exists.")] = False,
    strict_code: StrictOption = False,
    processes: ProcessesOption = 1,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    push: PushOption = False,
    no_remote: NoRemoteOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False,
    json_: EventsOption = False,
) -> None:
    """Make a stage's artifact: run the missing stages upstream, reuse the others, and say which and why.

    Example: irpipe run select-prompts --set select-prompts.count=400
    """
    from irpipe.pipeline.processes import rank, together
    from irpipe.pipeline.progress import Watcher, watcher_for
    from irpipe.pipeline.runner import Runner

    forced = stage if force else None
    if rank():
        Runner(planner(set_, watcher=Watcher(), force=forced, strict=strict_code)).follow(stage)
        return
    watcher = watcher_for(json_lines=json_, quiet=quiet)
    with _telling_a_failure(watcher, stage):
        examiner = planner(set_, watcher=watcher, force=forced, strict=strict_code, remember=True)
        examiner = on_machines(examiner, executor, address)
        remote = remote_of(examiner, push=push, no_remote=no_remote)
        runner = Runner(examiner, remote, push or examiner.recipe.remote.push)
        with together(processes, None, arguments_of(stage, set_, force=force, strict_code=strict_code)):
            record = runner.run(stage, only=only)
    if not json_:
        for name, value in record.metrics.items():
            watcher.say(f"  {name}: {value}")
        print(runner.store.object_path(record.content_id))


@contextmanager
def _telling_a_failure(watcher: Watcher, stage: str) -> Iterator[None]:
    """An error is an event as well, and raised again: a program that reads the events must learn how it ended."""
    try:
        yield
    except BaseException as error:
        watcher.event("failed", stage=stage, error=str(error) or type(error).__name__)
        raise


def arguments_of(stage: str, settings: list[str] | None, *, force: bool, strict_code: bool) -> list[str]:
    """The command line of another process of the same run."""
    flags = [flag for flag, given in (("--force", force), ("--strict-code", strict_code)) if given]
    return ["run", stage, *(part for setting in settings or () for part in ("--set", setting)), *flags]


def on_machines(examiner: Planner, executor: str | None, address: str | None) -> Planner:
    """A planner whose recipe makes shards where the command says."""
    from dataclasses import replace

    given = {name: value for name, value in (("name", executor), ("address", address)) if value is not None}
    settings = examiner.recipe.executor.model_copy(update=given)
    return replace(examiner, recipe=replace(examiner.recipe, executor=settings))


def remote_of(examiner: Planner, *, push: bool, no_remote: bool) -> Remote | None:
    """The recipe's remote, unless it is to be left alone.

    Raises:
        RecipeError: results are to be pushed, and the recipe names none.
    """
    from irpipe.pipeline.errors import RecipeError
    from irpipe.pipeline.team import open_remote

    if push and no_remote:
        raise RecipeError("--push and --no-remote contradict each other", fix="leave one of them out")
    if no_remote or (examiner.recipe.remote.url is None and not push):
        return None
    return open_remote(examiner, None)


def plan(stage: StageArgument, set_: SetOption = None, strict_code: StrictOption = False, json_: JsonOption = False) -> None:
    """Show which stages `run` would run, why, and how long they took before. Writes nothing.

    Example: irpipe plan build-pairs --set select-prompts.count=500
    """
    from irpipe.pipeline.progress import watcher_for

    steps = planner(set_, watcher=watcher_for(json_lines=False, quiet=json_), strict=strict_code).plan(stage)
    if json_:
        print_json([step.as_json for step in steps])
        return
    for step in steps:
        print("\n".join(step.lines))


def status(json_: JsonOption = False) -> None:
    """Show the state of every stage: done, out of date (and why), running (and its progress), failed (and the error).

    Example: irpipe status
    """
    from irpipe.pipeline.errors import numbered
    from irpipe.pipeline.progress import Watcher
    from irpipe.pipeline.status import survey

    examiner = planner(None, watcher=Watcher())
    recipe, store = examiner.recipe, examiner.store
    standings = survey(examiner)
    faults = numbered([(standing.node, fault) for standing in standings for fault in standing.faults])
    rows = [_status_json(standing, store) for standing in standings]
    if json_:
        print_json({"recipe": recipe.name, "store": str(store.root), "stages": rows, "missing": faults})
        return
    print(f"recipe {recipe.name}, store {store.root}")
    print_table(("stage", "state", "artifact", "size", "time", "ended"), [_status_row(row) for row in rows])
    for standing in standings:
        if standing.why and standing.state not in ("cannot run", "waits"):
            print(visible(f"{standing.node}: {standing.state}: {'; '.join(standing.why)}", _LONGEST_LINE))
    if faults:
        print("\nmissing or wrong, in the order to give it:")
        print("\n".join(visible(line, _LONGEST_LINE) for item in faults for line in item.splitlines()))


def _status_json(standing: Standing, store: Store) -> dict[str, Any]:
    record = standing.record
    return {
        "stage": standing.node,
        "state": standing.state,
        "error": " ".join(standing.why) if standing.state in ("failed", "interrupted", "cannot run", "unread") else None,
        "why": list(standing.why),
        "process": standing.process,
        "progress": standing.progress,
        "content_id": record.content_id if record else None,
        "size_bytes": store.open(record.content_id).manifest.size if record and store.holds(record.content_id) else None,
        "seconds": record.seconds if record else None,
        "ended": record.ended if record else None,
    }


def _status_row(row: dict[str, Any]) -> tuple[Any, ...]:
    state = row["state"]
    if row["process"]:
        fields = row["progress"] or {}
        line = tick_line(**{name: value for name, value in fields.items() if name not in ("time", "event")}) if fields else ""
        state = f"running (process {row['process']}){f': {line}' if line else ''}"
    return (
        row["stage"],
        visible(state),
        row["content_id"] and row["content_id"][:12],
        size(row["size_bytes"]) if row["size_bytes"] is not None else None,
        duration(row["seconds"]) if row["seconds"] is not None else None,
        local_time(row["ended"]) if row["ended"] else None,
    )


def log(
    stage: StageArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Keep printing until the run ends.")] = False,
    json_: JsonOption = False,
) -> None:
    """Print the log of a stage's latest run, running, failed or finished, with the time of each line.

    Example: irpipe log train-rm -f
    """
    import json
    import time

    from irpipe.pipeline.errors import StoreError
    from irpipe.pipeline.journal import as_line, latest_run, read_journal
    from irpipe.pipeline.status import log_key

    recipe, store = open_recipe()
    recipe.chain(stage)  # an unknown stage is an error that names the nearest one
    key = log_key(store, recipe.name, stage)
    if key is None or not store.log_path(key).exists():
        raise StoreError(f"{stage} has no log", fix=f"irpipe run {stage}" if key is None else f"irpipe run {stage} --force")
    position, running, printed = 0, True, False
    while running:
        running = follow and store.is_locked(key)  # asked before the read: what is written until then is read
        lines, position = read_journal(store.log_path(key), position)
        for line in lines if printed else latest_run(lines):
            print(json.dumps(line, ensure_ascii=False) if json_ else as_line(line), flush=True)
        printed = True
        if running:
            time.sleep(_FOLLOW_SECONDS)


COMMANDS = (init, run, plan, status, log)
