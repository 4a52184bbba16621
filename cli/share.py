"""Commands that share results: push, pull and fetch with a team, publish with everybody."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from irpipe.cli.common import IdArgument, JsonOption, find, planner, print_json, print_table

if TYPE_CHECKING:
    from irpipe.pipeline.exchange import Moved
    from irpipe.pipeline.team import Sought

NamesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NODE|ID]...", help="Stages of the recipe, or first digits of ids; none: all that the recipe refers to."
    ),
]
RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="URL", help="file:///folder, s3://bucket/path, ... Without it: the recipe's [remote]."),
]


def push(
    names: NamesArgument = None,
    remote: RemoteOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Also read what is there already, and send again what is damaged.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Upload results, with all that they were made from, to a store that a team shares. What is there already is not sent again.

    Example: irpipe push train-rm --remote s3://bucket/irpipe
    """
    from irpipe.pipeline.progress import watcher_for
    from irpipe.pipeline.store import disk_errors
    from irpipe.pipeline.team import open_remote, push_results

    examiner = planner(None, watcher=watcher_for(json_lines=False, quiet=json_))
    with disk_errors(examiner.store.root), examiner.store.in_use():
        there = open_remote(examiner, remote)
        _tell("pushed", push_results(examiner, there, names or (), repair=repair), there.bucket.url, json_)


def pull(names: NamesArgument = None, remote: RemoteOption = None, json_: JsonOption = False) -> None:
    """Bring results that somebody pushed, and make them the newest of their stages. Every byte is checked.

    Example: irpipe pull --remote s3://bucket/irpipe
    """
    _bring(names, remote, json_, point=True)


def fetch(names: NamesArgument = None, remote: RemoteOption = None, json_: JsonOption = False) -> None:
    """As pull, but the newest result of each stage stays what it is: the artifacts are in the store, under their ids.

    Example: irpipe fetch 3f9ab2c1
    """
    _bring(names, remote, json_, point=False)


def _bring(names: list[str] | None, remote: str | None, json_: bool, *, point: bool) -> None:
    from irpipe.pipeline.progress import watcher_for
    from irpipe.pipeline.store import disk_errors
    from irpipe.pipeline.team import open_remote, pull_results

    examiner = planner(None, watcher=watcher_for(json_lines=False, quiet=json_), remember=True)
    with disk_errors(examiner.store.root), examiner.store.in_use():
        there = open_remote(examiner, remote)
        moved, sought = pull_results(examiner, there, names or (), point=point)
    _tell("pulled" if point else "fetched", moved, there.bucket.url, json_, sought)


def _tell(done: str, moved: Moved, url: str, json_: bool, sought: Sought | None = None) -> None:
    """Say what was moved, and which nodes have no result there."""
    from irpipe.pipeline.progress import size

    absent = sought.absent if sought is not None else []
    unknown = sought.unknown if sought is not None else {}
    if json_:
        counts = {"artifacts": moved.artifacts, "records": moved.records, "bytes": moved.bytes}
        print_json({"remote": url, **counts, "absent": absent, "unknown": unknown})
        return
    for name in absent:
        print(f"{name}: not in the remote")
    for name, why in unknown.items():
        print(f"{name}: {why.splitlines()[0]}")
    print(f"{done} {moved.artifacts:,} artifacts and {moved.records:,} records, {size(moved.bytes)}: {url}")


class PublishKind(StrEnum):
    hf_dataset = "hf-dataset"
    diffusers = "diffusers"
    reward_model = "reward-model"


def publish(
    identifier: IdArgument,
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="A repository of the Hugging Face Hub; made if it is not there.")
    ],
    to: Annotated[PublishKind, typer.Option("--to", help="As of irpipe export.")] = PublishKind.hf_dataset,
    yes: Annotated[bool, typer.Option("--yes", help="Upload what is listed.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see a repository that this makes.")] = False,
    json_: JsonOption = False,
) -> None:
    """List what would be uploaded to the Hugging Face Hub, and upload it with --yes. Names of people and places are left out.

    Example: irpipe publish build-pairs me/my-pairs
    """
    from irpipe.exports.publish import publish as upload
    from irpipe.pipeline.progress import size
    from irpipe.pipeline.store import disk_errors

    _, store, record = find(identifier)
    with disk_errors(store.root), store.in_use():
        published = upload(store, record, repo, to, upload=yes, public=public)
    if json_:
        print_json({"page": published.page, "uploaded": yes, "files": published.files})
        return
    print_table(("file", "size"), [(name, size(bytes_)) for name, bytes_ in published.files.items()])
    total = size(sum(published.files.values()))
    print(f"uploaded {total}: {published.page}" if yes else f"would upload {total} to {published.page}; --yes uploads it")


COMMANDS = (push, pull, fetch, publish)
