"""Commands that make things: init, run, plan, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from irpipe.pipeline.cli.common import (
    JsonOption,
    SetOption,
    StageArgument,
    StrictOption,
    open_recipe,
    planner,
    print_json,
    print_table,
)
from irpipe.pipeline.progress import duration, size


def init(
    recipe: Annotated[str, typer.Option("--recipe", metavar="NAME", help="Which recipe to start from.")] = "micro",
) -> None:
    """Write irpipe.toml into the current folder.

    Example: irpipe init --recipe imagereward
    """
    from irpipe.pipeline.errors import RecipeError
    from irpipe.pipeline.recipe import RECIPE_FILE, shipped_recipe

    text = shipped_recipe(recipe)
    try:
        with Path(RECIPE_FILE).open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise RecipeError(
            f"{RECIPE_FILE} is here already", mend=f"edit it, or delete it and run irpipe init --recipe {recipe}"
        ) from None
    print(f"{RECIPE_FILE} written: the recipe {recipe!r}. Next: irpipe plan build-pairs")


def run(
    stage: StageArgument,
    set_: SetOption = None,
    only: Annotated[bool, typer.Option("--only", help="Run this stage alone; what it reads must be at hand.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Run this stage although its result is at hand.")] = False,
    strict_code: StrictOption = False,
    processes: Annotated[
        int, typer.Option("--processes", min=1, metavar="N", help="Processes that train together; one for each GPU, say.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the result only.")] = False,
    json_: Annotated[
        bool,
        typer.Option("--json", help="One JSON event a line; the last is 'done', with key, content_id and metrics, or 'failed'."),
    ] = False,
) -> None:
    """Make a stage's artifact: run what is missing upstream, reuse the rest, and say which and why.

    Example: irpipe run select-prompts --set select-prompts.count=400
    """
    from irpipe.pipeline.processes import rank, together
    from irpipe.pipeline.progress import Watcher, watcher_for
    from irpipe.pipeline.runner import Runner

    if rank():
        Runner(planner(set_, watcher=Watcher(), force=stage if force else None, strict=strict_code)).follow(stage)
        return
    watcher = watcher_for(json_lines=json_, quiet=quiet)
    arguments = ["run", stage, *(part for setting in set_ or () for part in ("--set", setting)), *(["--force"] if force else [])]
    arguments += ["--strict-code"] if strict_code else []
    try:
        runner = Runner(planner(set_, watcher=watcher, force=stage if force else None, strict=strict_code, remember=True))
        with together(processes, arguments):
            record = runner.run(stage, only=only)
    except BaseException as error:  # told and raised again: a program that reads the events must learn how it ended
        watcher.event("failed", stage=stage, error=str(error) or type(error).__name__)
        raise
    if json_:
        return
    for name, value in record.metrics.items():
        watcher.say(f"  {name}: {value}")
    print(runner.store.object_path(record.content_id))


def plan(stage: StageArgument, set_: SetOption = None, strict_code: StrictOption = False, json_: JsonOption = False) -> None:
    """Tell what `run` would run, why, and how long it took before. Writes nothing.

    Example: irpipe plan build-pairs --set select-prompts.count=500
    """
    from irpipe.pipeline.progress import watcher_for

    steps = planner(set_, watcher=watcher_for(json_lines=False, quiet=json_), strict=strict_code).plan(stage)
    if json_:
        print_json([
            {
                "stage": step.name, "state": step.state, "key": step.key, "reasons": list(step.reasons),
                "content_id": step.record.content_id if step.record else None, "notes": list(step.notes),
                "expected_seconds": step.expected_seconds,
            }
            for step in steps
        ])  # fmt: skip
        return
    for step in steps:
        time = f"  (about {duration(step.expected_seconds)})" if step.expected_seconds is not None else ""
        made = f" {step.record.content_id[:12]}" if step.record else ""
        print(f"{step.state:<6} {step.name}{made}{time if step.state != 'reuse' else ''}")
        for line in (*step.reasons, *step.notes):
            print(f"         {line}")


def status(json_: JsonOption = False) -> None:
    """Show what the recipe's stages have made so far.

    Example: irpipe status
    """
    from irpipe.pipeline.commit import attempt

    recipe, store = open_recipe()
    attempts: dict[object, tuple[bool, dict[str, object]]] = {}
    for path in sorted(store.root.glob("work/*/attempt.json")):
        found = attempt(store, path.parent.name)
        if found and found["recipe"] == recipe.name:
            latest = attempts.get(found["stage"])
            if latest is None or str(found["started"]) > str(latest[1]["started"]):
                attempts[found["stage"]] = (store.is_locked(path.parent.name), found)
    rows = []
    for name in recipe.stages:
        record = store.newest(recipe.name, name)
        there = record is not None and store.holds(record.content_id)
        state, error = "done" if there else "lost" if record else "not made", None
        running, found = attempts.get(name, (False, None))
        if found and (running or not record or str(found["started"]) > record.ended):
            state, error = ("running", None) if running else ("failed", found.get("error", "killed"))
        rows.append({
            "stage": name,
            "state": state,
            "error": error,
            "process": found["pid"] if found and running else None,
            "content_id": record.content_id if record else None,
            "size_bytes": store.open(record.content_id).manifest.size if record and there else None,
            "seconds": record.seconds if record else None,
            "ended": record.ended if record else None,
        })  # fmt: skip
    if json_:
        print_json({"recipe": recipe.name, "store": str(store.root), "stages": rows})
        return
    print(f"recipe {recipe.name}, store {store.root}")
    columns = ("stage", "state", "artifact", "size", "time", "ended")
    print_table(columns, [_status_row(row) for row in rows])


def _status_row(row: dict[str, Any]) -> tuple[Any, ...]:
    state = f"running (process {row['process']})" if row["process"] else row["state"]
    return (
        row["stage"],
        f"failed: {row['error']}" if row["error"] else state,
        row["content_id"] and row["content_id"][:12],
        size(row["size_bytes"]) if row["size_bytes"] is not None else None,
        duration(row["seconds"]) if row["seconds"] is not None else None,
        row["ended"],
    )


COMMANDS = (init, run, plan, status)
