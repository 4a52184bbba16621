"""Commands for the store: export, verify, gc."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from irpipe.cli.common import IdArgument, JsonOption, find, open_recipe, planner, print_json, print_table


class ExportKind(StrEnum):
    files = "files"
    hf_dataset = "hf-dataset"
    diffusers = "diffusers"
    reward_model = "reward-model"


def export(
    identifier: IdArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that does not exist yet.")],
    to: Annotated[
        ExportKind,
        typer.Option(
            "--to",
            help="files: the artifact's files, unchanged. hf-dataset: its tables, for datasets.load_dataset."
            " diffusers: a tuned generator, for load_lora_weights or from_pretrained."
            " reward-model: for ImageReward.from_pretrained. All but files come with a card.",
        ),
    ] = ExportKind.files,
    private: Annotated[
        bool, typer.Option("--private", help="Leave host, user, command lines and absolute paths out of lineage and card.")
    ] = False,
) -> None:
    """Copy an artifact out of the store, with the records of all its ancestors.

    Example: irpipe export build-pairs my-pairs --to hf-dataset
    """
    from irpipe.exports import EXPORTERS
    from irpipe.pipeline.store import disk_errors

    _, store, record = find(identifier)
    with disk_errors(store.root), store.in_use():
        EXPORTERS[to](store, record, folder, hidden=private)
    print(folder)


def verify(
    rerun: Annotated[bool, typer.Option("--rerun", help="Also repeat every newest run and compare the results.")] = False,
    remote: Annotated[str | None, typer.Option("--remote", metavar="URL", help="Read this remote whole instead.")] = None,
    json_: JsonOption = False,
) -> None:
    """Hash every artifact again. Damaged ones are listed and moved aside; the next run makes them again.

    Example: irpipe verify
    """
    from dataclasses import asdict

    if remote is not None:
        _verify_remote(remote, json_)
        return

    from irpipe.pipeline import verify as engine
    from irpipe.pipeline.progress import watcher_for
    from irpipe.pipeline.store import disk_errors

    watcher = watcher_for(json_lines=False, quiet=json_)
    recipe, store = open_recipe()
    with disk_errors(store.root), store.alone():
        checked, faults = engine.verify(store, watcher)
        if not json_:
            for fault in faults:
                print(f"damaged: {' '.join(fault.stages) or 'no known stage'} {fault.name[:12]}: {fault.what}")
        records = [record for name in recipe.tables if rerun and (record := store.newest(recipe.name, name))]
        reruns = [engine.rerun(store, record, recipe.root, watcher) for record in records if store.holds(record.content_id)]
    differ = [run for run in reruns if run.differs]
    if json_:
        print_json({"checked": checked, "damaged": [asdict(fault) for fault in faults], "rerun": [asdict(run) for run in reruns]})
    else:
        for run in reruns:
            print(run)
        otherwise = f", {len(differ)} gave another result" if rerun else ""
        print(f"{checked} artifacts checked, {len(faults)} damaged{otherwise}")
    if faults or differ:
        raise typer.Exit(1)


def _verify_remote(url: str, json_: bool) -> None:
    """Read a remote whole and tell what is damaged."""
    from irpipe.pipeline.progress import watcher_for
    from irpipe.pipeline.remote import Remote
    from irpipe.pipeline.remote_upkeep import verify_remote

    checked, faults = verify_remote(Remote(url), watcher_for(json_lines=False, quiet=json_))
    if json_:
        print_json({"checked": checked, "damaged": [{"name": name, "what": what} for name, what in faults]})
    else:
        for name, what in faults:
            print(f"damaged: {name}: {what}")
        print(f"{checked} artifacts checked, {len(faults)} damaged")
    if faults:
        raise typer.Exit(1)


def gc(
    yes: Annotated[bool, typer.Option("--yes", help="Delete what is listed.")] = False,
    remote: Annotated[
        str | None, typer.Option("--remote", metavar="URL", help="Of this remote: what no recipe of any store refers to.")
    ] = None,
    grace: Annotated[
        float, typer.Option("--grace", min=0.0, metavar="DAYS", help="Of a remote, what was written in these days stays.")
    ] = 14.0,
    json_: JsonOption = False,
) -> None:
    """List artifacts and work that no recipe's newest results need, and delete them with --yes.

    Example: irpipe gc --yes
    """
    if remote is not None:
        _collect_remote(remote, grace, yes, json_)
        return
    from irpipe.pipeline.collect import drop, garbage
    from irpipe.pipeline.progress import Watcher, size
    from irpipe.pipeline.status import survey
    from irpipe.pipeline.store import disk_errors

    examiner = planner(None, watcher=Watcher())
    store = examiner.store
    with disk_errors(store.root), store.alone():
        present = [standing.record for standing in survey(examiner) if standing.state == "done" and standing.record is not None]
        items = list(garbage(store, present))
        if yes:
            drop(store, items)
    if json_:
        print_json([{"name": item.name, "size": item.size, "why": item.why, "path": str(item.path)} for item in items])
        return
    if items:
        print_table(("name", "size", "why"), [(item.name, size(item.size), item.why) for item in items])
    total = size(sum(item.size for item in items))
    print(f"deleted {total}" if yes else f"would delete {total}; --yes deletes it" if items else "nothing to delete")


def _collect_remote(url: str, days: float, yes: bool, json_: bool) -> None:
    """List what a remote's roots do not need, and delete it if asked."""
    from irpipe.pipeline.progress import size, watcher_for
    from irpipe.pipeline.remote import Remote
    from irpipe.pipeline.remote_upkeep import collect, drop

    there = Remote(url)
    entries = collect(there, days * 86_400, watcher_for(json_lines=False, quiet=json_))
    total = size(drop(there, entries) if yes else sum(entry.size for entry in entries))
    if json_:
        print_json([{"name": entry.path, "size": entry.size} for entry in entries])
        return
    if entries:
        print_table(("name", "size"), [(entry.path, size(entry.size)) for entry in entries])
    print(f"deleted {total}" if yes else f"would delete {total}; --yes deletes it" if entries else "nothing to delete")


COMMANDS = (export, verify, gc)
