"""Writing the page of a recipe, or of one artifact."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from irpipe.pipeline.errors import InputError, StoreError
from irpipe.pipeline.lineage import lineage
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.plan import Planner
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.status import Standing, survey
from irpipe.pipeline.store import write_durably

REFRESH_SECONDS = 10


def write_report(planner: Planner, focus: Record | None, out: Path, watcher: Watcher, *, watch: bool = False) -> int:
    """Write the page of a recipe's newest runs, or of one run and its ancestors. Returns its size in bytes.

    Args:
        watch: rewrite it every few seconds, until no stage of the recipe runs.

    Raises:
        StoreError: there is nothing to report yet.
    """
    try:
        from irpipe.report.page import make_page
    except ModuleNotFoundError as error:
        raise StoreError(f"reports need the package {error.name}", fix="pip install 'irpipe[report]'") from None

    if out.is_dir():
        raise InputError(f"{out} is a folder", fix=f"--out {out / 'report.html'}")
    first = True
    while True:
        standings = [] if focus and not watch else survey(planner)
        going_on = watch and any(standing.state == "running" for standing in standings)
        records = runs_of(planner, standings, focus)
        if not records and not going_on:
            raise StoreError(f"the recipe {planner.recipe.name!r} has no results yet", fix=f"irpipe run {standings[-1].node}")
        with watcher.progress("reporting", len(records), "runs") as bar:
            text = make_page(
                planner.store,
                planner.recipe.name,
                records,
                [] if focus else standings,
                bar,
                REFRESH_SECONDS if going_on else 0,
                f"{focus.node} {focus.content_id[:12]}" if focus else "",
            )
        write_durably(out, text)
        if not going_on:
            if watch and first:
                watcher.say("nothing runs: the page is written once")
            return len(text.encode())
        first = False
        time.sleep(REFRESH_SECONDS)


def runs_of(planner: Planner, standings: Sequence[Standing], focus: Record | None) -> list[Record]:
    """The runs of a page, each after its inputs."""
    if focus is not None:
        return [*lineage(planner.store, focus).ancestors, focus]
    return [standing.record for standing in standings if standing.record is not None]
