"""The parts that all cards share: settings, rows, lineage, reproduction and licences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpipe.exports.markup import code, fenced, front_matter, joined, plain, table
from irpipe.exports.reproduction import recipe_of
from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.export import LINEAGE, origin_of
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.private import LEFT_OUT
from irpipe.pipeline.stage import find_stage, registered
from irpipe.pipeline.store import Store
from irpipe.pipeline.wiring import RECIPE_FILE

CARD = "README.md"
_DIGEST = re.compile(r"[0-9a-f]{40,64}")


@dataclass(frozen=True)
class Origin:
    """A run and its ancestors, upstream first; `hidden`: without what names people and places."""

    record: Record
    ancestors: tuple[Record, ...]
    hidden: bool = False

    @classmethod
    def of(cls, store: Store, record: Record, *, hidden: bool = False) -> Origin:
        *ancestors, last = origin_of(store, record, hidden=hidden)
        return cls(last, tuple(ancestors), hidden)

    @property
    def runs(self) -> tuple[Record, ...]:
        return (*self.ancestors, self.record)


def write_card(folder: Path, entries: dict[str, Any], parts: Sequence[str], origin: Origin) -> None:
    """Write README.md: front matter, the exporter's own parts, and the parts that all cards share."""
    common = (how_made(origin.record), truth(origin), licence(origin), reproduce(origin), ancestry(origin))
    text = joined(front_matter(entries), *parts, *common)
    (folder / CARD).write_text(text, encoding="utf-8", errors="backslashreplace")


def how_made(record: Record) -> str:
    """The part on how it was made: stage, ids, rows, and the given settings."""
    counts = record.rows
    rows = [
        (
            code(name),
            code(record.config[name]),
            code(_digests(record.external[name]["digest"])) if name in record.external else "",
        )
        for name in record.given
    ]
    settings = joined(
        f"The given settings; others had this version's defaults, which {code(f'irpipe cite {record.stage}')} explains:",
        table(("setting", "value", "digest or revision of the file or model"), rows),
    )
    return joined(
        "## How it was made",
        f"By the stage {code(record.stage)} (version {record.stage_version}) of"
        f" irpipe {plain(record.packages.get('irpipe', ''))}, under the recipe {code(record.recipe)}.",
        f"- key (stage, settings and inputs): {code(record.key)}\n"
        f"- content id (of the artifact's files): {code(record.content_id)}\n"
        f"- rows: {counts['read']:,} read, {counts['kept']:,} kept, {counts['rejected']:,} rejected",
        settings if rows else "No setting was given: all had this version's defaults.",
    ).rstrip()


def _digests(entry: Any) -> str:
    """The digests and revisions in the entry of an external setting, also of nested ones."""
    if isinstance(entry, list):
        return ", ".join(text for item in entry if (text := _digests(item)))
    return entry if isinstance(entry, str) and _DIGEST.fullmatch(entry) else ""


def truth(origin: Origin) -> str:
    """A warning on artifacts that hold, or were made from, ground truth."""
    if not any(_knows_truth(run.stage) for run in origin.runs):
        return ""
    return joined(
        "## For evaluation only",
        "This holds, or was made from, the ground truth of a simulated world. Do not train or select with it.",
    ).rstrip()


def _knows_truth(stage: str) -> bool:
    try:
        return stage in registered() and find_stage(stage).truth
    except IrpipeError:
        return False  # another package's stage that cannot be loaded says nothing


def licence(origin: Origin) -> str:
    """The part on licences: those of everything from outside apply, irpipe adds none."""
    outside = [
        (code(run.stage), code(name), code(entry["given"]), code(_digests(entry["digest"])))
        for run in origin.runs
        for name, entry in sorted(run.external.items())
    ]
    return joined(
        "## Licence",
        "irpipe adds no terms of its own. The licences of the inputs apply, of models as of data."
        + (" External inputs:" if outside else " There are no external inputs: the data were simulated."),
        table(("stage", "setting", "given as", "digest or revision"), outside) if outside else "",
    ).rstrip()


def reproduce(origin: Origin) -> str:
    """The part on reproduction: the recipe and the command."""
    return joined(
        "## How to reproduce it",
        f"With irpipe {plain(origin.record.packages.get('irpipe', ''))}, in a folder with this `{RECIPE_FILE}`"
        " (paths are relative to it):",
        fenced("toml", recipe_of(origin.runs)),
        fenced("sh", f"irpipe run {shlex.quote(origin.record.node)}"),
    ).rstrip()


def ancestry(origin: Origin) -> str:
    """The part on lineage: every ancestor, by both ids."""
    rows = [(code(run.stage), str(run.stage_version), code(run.key), code(run.content_id)) for run in origin.runs]
    return joined(
        "## Lineage",
        f"Upstream first; the last one is this. `{LINEAGE}/` holds the record of each: all settings, inputs, packages and"
        f" metrics, {f'and time; left out were: {LEFT_OUT}' if origin.hidden else 'host, time and command'}.",
        table(("stage", "version", "key", "content id"), rows),
    ).rstrip()


def figures(values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Metrics as rows of a table: name and value."""
    return ((code(name), code(value)) for name, value in values.items())
