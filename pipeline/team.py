"""What a recipe shares with its team: which results a push sends and a pull brings, by the keys of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from irpipe.pipeline.errors import IrpipeError, RecipeError, StoreError, did_you_mean
from irpipe.pipeline.exchange import Moved, checked, pull, push
from irpipe.pipeline.lineage import with_ancestors
from irpipe.pipeline.manifest import InputEntry, Record
from irpipe.pipeline.plan import Planner, input_entry
from irpipe.pipeline.remote import Remote
from irpipe.pipeline.wiring import RECIPE_FILE, Wiring

_DIGITS = frozenset("0123456789abcdef")


@dataclass
class Sought:
    """The results that nodes stand for.

    Attributes:
        records: by node, those of the store and those that only the remote has, each after its inputs.
        absent: nodes whose result is in neither. unknown: nodes whose key cannot be told, with why.
    """

    records: dict[str, Record] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)


def open_remote(planner: Planner, url: str | None) -> Remote:
    """The remote of a command, or else the recipe's.

    Raises:
        RecipeError: neither names one.
    """
    address = url or planner.recipe.remote.url
    if address is None:
        raise RecipeError("no remote is named", fix=f'--remote URL, or in {RECIPE_FILE}: [remote] url = "s3://bucket/irpipe"')
    return Remote(address)


def push_results(planner: Planner, remote: Remote, names: Sequence[str], *, repair: bool = False) -> Moved:
    """Push the results of nodes and ids with all that they were made from; without names, of all nodes.

    Args:
        repair: also read what is there, and write again what is damaged.

    Raises:
        StoreError: a name has no result, or the remote cannot be written.
    """
    store, recipe = planner.store, planner.recipe
    newest = [record for node in recipe.tables if (record := store.newest(recipe.name, node))]
    chosen: list[Record] = []
    for name in names:
        node = _node(planner, name)
        record = store.newest(recipe.name, node) if node is not None else store.resolve(name)
        if record is None or not store.holds(record.content_id):
            raise StoreError(f"{name} has no artifact yet", fix=f"irpipe run {name}")
        chosen.append(record)
    if not chosen and not any(store.holds(record.content_id) for record in newest):
        raise StoreError("the recipe has no results yet", fix="irpipe run")
    of_nodes = {record.key for record in newest}
    sent = with_ancestors(store, chosen) if names else with_ancestors(store, newest)
    sent = [record for record in sent if store.holds(record.content_id)]
    pinned = [record for record in sent if record.key not in of_nodes] if names else []
    newest = with_ancestors(store, newest)
    return push(remote, store, recipe.name, newest, pinned, sent, planner.watcher, repair=repair)


def pull_results(planner: Planner, remote: Remote, names: Sequence[str], *, point: bool) -> tuple[Moved, Sought]:
    """Pull the results of nodes and ids with all that they were made from; without names, of all nodes that the remote has.

    Args:
        point: make them the recipe's newest results.

    Raises:
        StoreError: a named one is in neither store, or nothing is.
    """
    remote.check_begun()
    nodes = [_node(planner, name) for name in names]
    sought = seek(planner, remote, [node for node in nodes if node is not None] if names else list(planner.recipe.tables))
    missing = [node for node in nodes if node is not None and node not in sought.records]
    if missing:
        why = sought.unknown.get(missing[0], "nobody has pushed it with these settings and inputs")
        raise StoreError(f"{missing[0]} is not in the remote: {why}", where=remote.bucket.url, fix=f"irpipe run {missing[0]}")
    by_id = [remote.resolve(name) for name, node in zip(names, nodes, strict=True) if node is None]
    records = [*sought.records.values(), *(run for record in by_id for run in _behind(remote, record))]
    if not records:
        raise StoreError(
            "the remote has no result of this recipe's nodes", where=remote.bucket.url, fix="irpipe plan, and irpipe run"
        )
    moved = pull(remote, planner.store, records, planner.watcher)
    for node, record in sought.records.items() if point else ():
        planner.store.point(planner.recipe.name, node, record)
    return moved, sought


def seek(planner: Planner, remote: Remote, targets: Iterable[str]) -> Sought:
    """What some nodes and all upstream of them stand for: keys are known one after the other, each from its inputs' content."""
    sought, entries = Sought(), dict[str, InputEntry]()
    wired = Wiring(planner.recipe)
    for target in targets:
        wired.visit(target)
    sought.unknown |= {name: error.what for name, error in wired.faults}
    for name, node in wired.nodes.items():
        if any(upstream not in entries for upstream in node.upstream.values()):
            sought.unknown.setdefault(name, "what it reads is not known")
            continue
        try:
            step = planner.examine(node, entries)
        except IrpipeError as error:
            sought.unknown[name] = error.what
            continue
        record = step.record
        if record is None and step.key is not None and (found := remote.record(step.key)) is not None:
            there = planner.store.holds(found.content_id) or remote.manifest(found.content_id) is not None
            record = checked(remote, found) if there else None
        if record is None:
            sought.absent.append(name)
            continue
        sought.records[name], entries[name] = record, input_entry(node, record)
    return sought


def take(planner: Planner, remote: Remote, target: str) -> None:
    """Before a run: bring what the team has made of the target and of what it reads."""
    sought = seek(planner, remote, [target])
    there = {name: record for name, record in sought.records.items() if name != planner.force}
    lacking = [name for name, record in there.items() if not planner.store.holds(record.content_id)]
    if lacking:
        planner.watcher.say(f"taken from {remote.bucket.url}: {', '.join(lacking)}")
        pull(remote, planner.store, list(there.values()), planner.watcher)


def _node(planner: Planner, name: str) -> str | None:
    """The node of a name; None where it is the beginning of an id.

    Raises:
        StoreError: it is neither.
    """
    if name in planner.recipe.tables:
        return name
    if len(name) < 4 or not set(name) <= _DIGITS:
        raise StoreError(f"{name!r} is not an id, nor a stage of the recipe{did_you_mean(name, planner.recipe.tables)}")
    return None


def _behind(remote: Remote, record: Record) -> list[Record]:
    """A run of the remote and those that it was made from, as far as the remote has them."""
    found: dict[str, Record] = {}
    pending = [record]
    while pending:
        run = pending.pop()
        found[run.key] = checked(remote, run)
        inputs = (remote.record(entry.key) for entry in run.inputs.values() if entry.key not in found)
        pending += [known for known in inputs if known is not None]
    return list(found.values())
