"""Tables as a folder for `datasets.load_dataset(FOLDER, TABLE)`: a configuration per table, Parquet by split, a dataset card."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from keyword import iskeyword
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import irpipe.schemas
from irpipe.exports.cards import Origin, write_card
from irpipe.exports.files import Numbered, SplitFiles
from irpipe.exports.kinds import has_rows, kind_of, refuse
from irpipe.exports.markup import code, fenced, joined, plain, table
from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.export import LINEAGE, new_folder, write_lineage
from irpipe.pipeline.manifest import Record, TableEntry
from irpipe.pipeline.stage import find_stage
from irpipe.pipeline.store import Artifact, Store
from irpipe.schemas.annotations import SPLITS
from irpipe.schemas.rejected import REJECTED
from irpipe.schemas.splits import PROMPT_SPLITS
from irpipe.schemas.table import Table

# The one split of a table without splits. It is not called train: it need not be training data.
WHOLE, UNASSIGNED = "full", "unassigned"
_MOST_LISTED = 50  # files
_RESERVED = {"all"}  # `datasets` uses it for all splits together
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_NO_TABLE = TableEntry((), 0, {})

Splitter = Callable[[Any], Iterator[tuple[str, Any]]]


@dataclass(frozen=True)
class Exported:
    """A table as it was written.

    Attributes:
        name: of the table; `config`: of its configuration and folder.
        schema: of the files.
        rows: by split.
    """

    name: str
    config: str
    schema: Any
    rows: Mapping[str, int]


def export_dataset(store: Store, record: Record, folder: Path, *, hidden: bool = False) -> None:
    """Export an artifact's tables, each as a configuration, and a dataset card.

    Rows are split by the column `split`, or by their prompt's split where the artifact has those. Dictionary columns become
    plain ones, which every reader reads alike. Memory holds one row group and every prompt's split.

    Args:
        hidden: leave out what `irpipe.pipeline.private` says, and number the annotators in place of their names.

    Raises:
        StoreError: there are no tables with rows, or the folder exists already.
    """
    artifact = store.open(record.content_id)
    if not has_rows(artifact):
        raise refuse(store, record, "hf-dataset")
    with new_folder(folder) as draft:
        configs, annotators = config_names(artifact.manifest.tables), Numbered() if hidden else None
        by_prompt = prompt_splitter(artifact)
        exported = [
            write_table(
                name,
                configs[name],
                artifact.table(name),
                draft,
                splitter(artifact.manifest.tables[name].columns, by_prompt),
                annotators,
            )
            for name in artifact.manifest.tables
        ]
        origin = Origin.of(store, record, hidden=hidden)
        write_lineage(origin.runs, draft)
        parts = (
            summary(exported, origin.record, folder.name),
            tables(exported),
            rejections(artifact),
            leads(store, origin),
            left_out(artifact),
        )
        write_card(draft, front(exported, record), parts, origin)


def config_names(names: Iterable[str]) -> dict[str, str]:
    """The configuration of each table: its name without characters that have a meaning in paths, patterns and YAML."""
    configs: dict[str, str] = {LINEAGE: LINEAGE}  # the folder beside them
    for name in names:
        configs[name] = _unique(re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "table", configs.values())
    return configs


def _unique(name: str, names: Iterable[str]) -> str:
    """The name, with the first number that makes it unique if it is taken."""
    taken, number, free = set(names), 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def prompt_splitter(artifact: Artifact) -> Splitter | None:
    """A splitter by prompt, if the artifact holds the prompts' splits."""
    columns = artifact.manifest.tables.get(PROMPT_SPLITS.name, _NO_TABLE).columns
    if columns.get("prompt_id") != "uint64" or not _is_text(columns.get("split", "")):
        return None
    prompts = PROMPT_SPLITS.read(artifact.table(PROMPT_SPLITS.name), ["prompt_id", "split"])
    ids, splits = prompts["prompt_id"].combine_chunks(), _undictionaried(prompts["split"].combine_chunks())

    def split(rows: Any) -> Iterator[tuple[str, Any]]:
        return _parts(rows, splits.take(pc.index_in(rows["prompt_id"].combine_chunks(), value_set=ids)))

    return split


def splitter(columns: Mapping[str, str], by_prompt: Splitter | None) -> Splitter:
    """How a table's rows are split: by its own column, by the prompt's, or not at all."""
    if _is_text(columns.get("split", "")):
        return _by_column
    if by_prompt is not None and columns.get("prompt_id") == "uint64":
        return by_prompt
    return _not_at_all


def _is_text(kind: str) -> bool:
    """Whether a type, as a manifest names it, is text."""
    return kind.startswith(("string", "dictionary<values=string"))


def _by_column(rows: Any) -> Iterator[tuple[str, Any]]:
    return _parts(rows, rows["split"].combine_chunks())


def _not_at_all(rows: Any) -> Iterator[tuple[str, Any]]:
    if len(rows):
        yield WHOLE, rows


def _parts(rows: Any, splits: Any) -> Iterator[tuple[str, Any]]:
    """Rows by their entry in `splits`, in their order; a null is `UNASSIGNED`."""
    names = pc.fill_null(splits, UNASSIGNED)
    for name in pc.unique(names).to_pylist():
        yield name, rows.filter(pc.equal(names, name))


def write_table(
    name: str, config: str, files: Sequence[Path], out: Path, split: Splitter, annotators: Numbered | None = None
) -> Exported:
    """Write a table to `CONFIG/SPLIT-NUMBER.parquet`, a new number after each 5 GB. Splits without rows have no file."""
    rows: Counter[str] = Counter()
    split_names: dict[str, str] = {}
    schema = exported_schema(pq.read_schema(files[0]))
    with ExitStack() as stack:
        writers: dict[str, SplitFiles] = {}
        for file in files:
            for shown in row_groups(file, schema):
                for split_value, part in split(shown if annotators is None else annotators(shown)):
                    if split_value not in split_names:
                        split_names[split_value] = split_name(split_value, split_names.values())
                    folder_name = split_names[split_value]
                    if folder_name not in writers:
                        writers[folder_name] = stack.enter_context(SplitFiles(out / config, folder_name, schema))
                    writers[folder_name].write(part)
                    rows[folder_name] += len(part)
    order = [*SPLITS, *sorted(rows.keys() - {*SPLITS, UNASSIGNED}), UNASSIGNED]
    return Exported(name, config, schema, {folder_name: rows[folder_name] for folder_name in order if rows[folder_name]})


def row_groups(file: Path, schema: Any) -> Iterator[Any]:
    """The rows of a file under a schema of `exported_schema`, one row group at a time."""
    with pq.ParquetFile(file) as parquet:
        for group in range(parquet.num_row_groups):
            yield as_exported(parquet.read_row_group(group), schema)


def split_name(value: str, taken: Iterable[str]) -> str:
    """A name of a split that `datasets` accepts: letters, digits and _, unique, and no reserved word."""
    name = re.sub(r"\W+", "_", value, flags=re.ASCII).strip("_") or UNASSIGNED
    return _unique(f"{name}_" if name in _RESERVED else name, taken)


def exported_schema(schema: Any) -> Any:
    """A schema in the plainest types: values instead of dictionaries, bytes of any number instead of a fixed one.

    Every column may be null: only then `datasets` uses a file's metadata on images.
    """
    fields = [pa.field(field.name, _exported_type(field.type), True, field.metadata) for field in schema]
    metadata = {key: value for key, value in (schema.metadata or {}).items() if key == b"huggingface"}
    return pa.schema(fields, metadata or None)


def _exported_type(kind: Any) -> Any:
    if pa.types.is_dictionary(kind):
        return _exported_type(kind.value_type)
    return pa.binary() if pa.types.is_fixed_size_binary(kind) else kind


def as_exported(rows: Any, schema: Any) -> Any:
    """Rows under a schema of `exported_schema`."""
    columns = [_undictionaried(rows[field.name].combine_chunks()).cast(field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _undictionaried(values: Any) -> Any:
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def front(exported: Sequence[Exported], record: Record) -> dict[str, Any]:
    """The card's front matter. Tables without rows have no configuration: `datasets` cannot load them."""
    loadable = [item for item in exported if item.rows]
    try:
        main = kind_of(record).replace("-", "_")
    except IrpipeError:
        main = ""  # the stage's package is not installed: the main table is not known
    return {
        "pretty_name": f"{record.stage} of {record.recipe}",
        "tags": ["irpipe", "human-preference", "text-to-image"],
        "configs": [
            {"config_name": item.config}
            | ({"default": True} if item.name == main or len(loadable) == 1 else {})
            | {"data_files": [{"split": name, "path": f"{item.config}/{name}-*.parquet"} for name in item.rows]}
            for item in loadable
        ],
    }


def summary(exported: Sequence[Exported], record: Record, folder: str) -> str:
    """The head of the card: tables and splits at a glance, and how to load them."""
    splits = [*SPLITS, *sorted({name for item in exported for name in item.rows} - {*SPLITS})]
    columns = [name for name in splits if any(name in item.rows for item in exported)]
    counts = [
        (code(item.config), *(f"{item.rows[name]:,}" if name in item.rows else "" for name in columns)) for item in exported
    ]
    loads = [f"{_variable(item.config)} = load_dataset({folder!a}, {item.config!a})" for item in exported if item.rows]
    full_note = f" A table without splits is one, {code(WHOLE)}." if any(WHOLE in item.rows for item in exported) else ""
    unassigned_note = f" {code(UNASSIGNED)}: rows of no split." if any(UNASSIGNED in item.rows for item in exported) else ""
    empty_note = " A table without rows has no configuration." if any(not item.rows for item in exported) else ""
    return joined(
        f"# {plain(record.stage)}",
        f"The tables of an artifact of irpipe: {plain(_first_line(record.stage))}",
        f"Rows of each table by split.{full_note}{unassigned_note}{empty_note}",
        table(("table", *map(code, columns)), counts),
        fenced("python", "\n".join(["from datasets import load_dataset", "", *loads])),
    ).rstrip()


def _variable(config: str) -> str:
    """A configuration's name as a Python identifier."""
    name = config.replace("-", "_")
    return name if name.isidentifier() and not iskeyword(name) else f"table_{name}"


def _first_line(stage: str) -> str:
    """The first line of a stage's docstring."""
    try:
        module = importlib.import_module(find_stage(stage).package)
    except (IrpipeError, ImportError):
        return f"what {stage} wrote."
    return (module.__doc__ or f"what {stage} wrote.").strip().partition("\n")[0]


def tables(exported: Sequence[Exported]) -> str:
    """The part on tables: each with its columns, types and meanings."""
    parts = ["## Tables"]
    for item in exported:
        rows = [(code(field.name), code(_type_name(field.type)), plain(_meaning(field))) for field in item.schema]
        parts += [f"### {plain(item.name)}", plain(_table_doc(item)), table(("column", "type", "meaning"), rows)]
    ids = "Ids are 64 bits of a hash, which irpipe shows as 16 hex digits; equal ids mean the same thing in every table."
    return joined(*parts, ids).rstrip()


def _type_name(kind: Any) -> str:
    return "Image" if kind == _IMAGE else str(kind)


def _meaning(field: Any) -> str:
    """The meaning of a column, from the file's schema."""
    doc: bytes = (field.metadata or {}).get(b"doc", b"")
    return doc.decode("utf-8", "replace")


def _table_doc(item: Exported) -> str:
    """The meaning of a table with this name and these columns, from our schemas; empty for another package's."""
    for declared in known_tables():
        if declared.name == item.name and [column.name for column in declared.columns] == item.schema.names:
            return declared.doc
    return ""


def known_tables() -> Iterator[Table]:
    """Every table that irpipe's schemas declare. Several share a name, such as `rejected`, and differ in columns."""
    for module in pkgutil.iter_modules(irpipe.schemas.__path__, "irpipe.schemas."):
        yield from (value for value in vars(importlib.import_module(module.name)).values() if isinstance(value, Table))


def rejections(artifact: Artifact) -> str:
    """The part on rejected rows, by reason."""
    if "reason" not in artifact.manifest.tables.get(REJECTED.name, _NO_TABLE).columns:
        return ""
    counts: Counter[str] = Counter()
    for file in artifact.table(REJECTED.name):
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(columns=["reason"]):
                for entry in pc.value_counts(_undictionaried(batch["reason"])).to_pylist():
                    counts[str(entry["values"])] += entry["counts"]
    rows = [(plain(reason), f"{count:,}") for reason, count in sorted(counts.items())]
    return joined("## Rejected", table(("reason", "rows"), rows) if rows else "Nothing was rejected.").rstrip()


def leads(store: Store, origin: Origin) -> str:
    """The part on ids: the ancestors that hold the images and texts, where they still exist."""
    rows = []
    for run in origin.ancestors:
        tables = store.open(run.content_id).manifest.tables if store.holds(run.content_id) else {}
        for name, entry in tables.items():
            if {"image_id", "image"} <= entry.columns.keys():
                rows.append(("images, by `image_id`", code(run.stage), code(name), code(run.content_id[:12])))
            if {"prompt_id", "prompt"} <= entry.columns.keys():
                rows.append(("texts, by `prompt_id`", code(run.stage), code(name), code(run.content_id[:12])))
    if not rows:
        return ""
    return joined(
        "## What ids lead to",
        "In artifacts that this one was made from; `irpipe export ID FOLDER --to hf-dataset` brings them into the same form.",
        table(("what", "stage", "table", "id"), rows),
    ).rstrip()


def left_out(artifact: Artifact) -> str:
    """The part on files of the artifact that are no tables."""
    parts = {part for entry in artifact.manifest.tables.values() for part in entry.files}
    files = [file for file in artifact.manifest.files if file.path not in parts]
    if not files:
        return ""
    rows = [(code(file.path), f"{file.size:,}", code(file.sha256)) for file in files[:_MOST_LISTED]]
    rows += [(f"{len(files) - _MOST_LISTED:,} more", "", "")] if len(files) > _MOST_LISTED else []
    return joined(
        "## Left out",
        "Files of the artifact that are no tables; `--to files` copies them too.",
        table(("file", "bytes", "SHA-256"), rows),
    ).rstrip()
