"""Write the pages made from code (commands, settings, tables, README.md's tree); with --check, fail if one is out of date."""

from __future__ import annotations

import ast
import html
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import irpipe.schemas
from irpipe.pipeline.registry import STAGES
from irpipe.pipeline.settings import groups_of, role_of, settings_of, source_of
from irpipe.pipeline.stage import Config, Stage, find_stage, registered
from irpipe.schemas.table import Table
from irpipe.stages import ORDER

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
# Folders in the tree of README.md, which stands between these comments.
TREE = ("stages", "models", "views", "report", "exports", "schemas", "cli", "pipeline", "microworld", "recipes")
TREE_START, TREE_END = "<!-- the tree, printed by docs/generate.py -->", "<!-- the end of the tree -->"
PARTS = ("Reads", "Writes", "Paper", "Deviates", "Cost")
REJECTED = "rejected"  # written by many stages, in a few shapes

KINDS = {"boolean": "true, false", "integer": "integer", "number": "number", "string": "text"}
LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "above",
    "maximum": "at most",
    "exclusiveMaximum": "below",
    "multipleOf": "a multiple of",
}

SETTINGS_HEAD = f"""# Settings

Every setting of every stage, from the stages' own declarations; `irpipe cite STAGE` prints them as well. A setting is given in
`irpipe.toml` under its stage's table, or laid over that by `--set STAGE.SETTING=VALUE`. An unknown setting is an error, and so is
one that has no effect beside the others. `--set STAGE.SETTING=default` undoes what the recipe says.

The role says how a setting counts towards the identity of a run ([Identity](hashing.md)):

| role | counts towards the key |
|---|---|
| `result` | by its value |
| `execution` | not at all: it changes where and how fast a run goes, not what comes out |
| `neutral` | unless it has its default: it was added after a release |
| `external` | by the content of the files it names |
| `model` | by the model's revision, or the content of its folder |

*Source* says where a default comes from. An empty one means that it is our own choice. Stages of other packages are listed by
`irpipe cite` alone; these are those of the group `{STAGES}` that come with irpipe.
"""

TABLES_HEAD = """# Tables

Every table that a stage writes, from the schemas' own declarations. They are Parquet files in the artifact's folder; each
column's meaning is in its metadata, under `doc`, and here.

``` { .bash }
irpipe sql "SHOW ALL TABLES"
irpipe sql "SELECT reason, count(*) FROM embed_prompts.rejected GROUP BY reason"
```

A table's name alone means the newest table of that name; with its stage's, `-` written `_`, it is that stage's newest. An id
(`uint64`) is shown as 16 hex digits, which `irpipe trace` takes, and is written `row_id('0a1b2c3d4e5f6071')` in a query. A column
is never null unless its type says so.
"""


def commands() -> str:
    """The command line, as Typer tells it."""
    command = [sys.executable, "-m", "typer", "irpipe.cli.commands", "utils", "docs", "--name", "irpipe"]
    return html.unescape(subprocess.run(command, check=True, capture_output=True, text=True).stdout).rstrip() + "\n"


def settings() -> str:
    """Every stage with its settings."""
    return SETTINGS_HEAD + "".join(f"\n{_stage(stage)}" for stage in _stages())


def _stages() -> list[Stage]:
    """Our stages, in the order data flows."""
    ours = {name for name, point in registered().items() if point.value.startswith("irpipe.stages.")}
    assert set(ORDER) == ours, sorted(set(ORDER) ^ ours)
    return [find_stage(name) for name in ORDER]


def _stage(stage: Stage) -> str:
    summary, parts = _docstring_parts(stage)
    lines = [f"## {stage.name}", "", _prose(summary), ""]
    lines += [f"- **{part}:** {_prose(parts[part])}" for part in PARTS if part in parts]
    shapes = _shapes(stage.config)
    rows = [_setting(stage.config, name, shapes[name]) for name in settings_of(stage.config)]
    return "\n".join([*lines, "", *_grid(("setting", "default", "meaning", "values", "source", "role"), rows)]) + "\n"


def _shapes(config: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of every setting by name, those of groups as ``group.setting``."""
    shapes: dict[str, Any] = dict(config.model_json_schema().get("properties", {}))
    for outer, kind in groups_of(config).items():
        shapes |= {f"{outer}.{inner}": shape for inner, shape in _shapes(kind).items()}
    return shapes


def _docstring_parts(stage: Stage) -> tuple[str, dict[str, str]]:
    """The summary of a stage's docstring, and each of its parts."""
    doc = inspect.cleandoc(importlib.import_module(stage.package).__doc__ or "")
    first, *rest = re.split(rf"^({'|'.join(PARTS)}): ", doc, flags=re.MULTILINE)
    return _joined(first), {part: _joined(text) for part, text in zip(rest[::2], rest[1::2], strict=True)}


def _joined(text: str) -> str:
    return " ".join(text.split())


def _setting(config: type[Config], name: str, shape: Mapping[str, Any]) -> tuple[str, ...]:
    field = settings_of(config)[name]
    default = "*must be given*" if field.is_required() else _default(field.default)
    meaning, source = _prose(field.description or ""), _prose(source_of(config, name) or "")
    return f"`{name}`", default, meaning, _values(shape), source, role_of(config, name)


def _values(shape: Mapping[str, Any]) -> str:
    """What a setting may be, of its JSON schema."""
    if "anyOf" in shape:
        return " or ".join(_values(choice) for choice in shape["anyOf"] if choice.get("type") != "null")
    if "enum" in shape:
        return ", ".join(f"`{choice}`" for choice in shape["enum"])
    if "const" in shape:
        return f"`{shape['const']}`"
    if shape.get("type") == "array":
        items = shape.get("items") or shape["prefixItems"][0]
        return f"list: {_values(items)}"
    limits = [f"{sign} {_number(shape[name])}" for name, sign in LIMITS.items() if name in shape]
    return ", ".join([KINDS[shape["type"]] if shape.get("format") != "path" else "path", *limits])


def _default(value: Any) -> str:
    """A default as one would write it into irpipe.toml."""
    return "*unset*" if value is None or value == () else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else str(value)


def tables() -> str:
    """Every table with its columns, those of one module together."""
    writers = _writers()
    order = {stage.name: index for index, stage in enumerate(_stages())}
    modules = [(module, _declared(module)) for module in _modules()]
    with_tables = [(module, declared) for module, declared in modules if declared]

    def key(entry: tuple[str, Sequence[tuple[str, Table]]]) -> tuple[bool, int, str]:
        module, declared = entry
        stages = [stage for _, table in declared if table.name != REJECTED for stage in writers.get(table.name, ())]
        return not stages, min((order[stage] for stage in stages), default=0), module

    parts = [TABLES_HEAD]
    for module, declared in sorted(with_tables, key=key):
        title = module.replace("_", " ").capitalize()
        parts.append(f"\n## {title}\n\n{_prose(_joined(_doc(module)))}\n")
        parts += [_table(table, _written_by(constant, table, writers)) for constant, table in declared]
    return "".join(parts)


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(irpipe.schemas.__path__))


def _doc(module: str) -> str:
    return importlib.import_module(f"irpipe.schemas.{module}").__doc__ or ""


def _declared(module: str) -> list[tuple[str, Table]]:
    """The tables that a module of schemas declares, in its order, with the names of the constants."""
    loaded = importlib.import_module(f"irpipe.schemas.{module}")
    assigned = {
        target.id
        for node in ast.parse(Path(str(loaded.__file__)).read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    return [(name, value) for name, value in vars(loaded).items() if name in assigned and isinstance(value, Table)]


def _writers() -> dict[str, list[str]]:
    """Which stages say, under Writes, that they write each table."""
    parts = {stage.name: _docstring_parts(stage)[1].get("Writes", "") for stage in _stages()}
    writers: dict[str, list[str]] = {}
    for name, text in parts.items():
        same = re.search(r"what `([\w-]+)` writes", text)
        for table in re.findall(r"`(\w+)`", parts[same[1]] if same else text):
            writers.setdefault(table, []).append(name)
    return writers


def _written_by(constant: str, table: Table, writers: dict[str, list[str]]) -> list[str]:
    if table.name != REJECTED:
        return writers.get(table.name, [])
    names = []
    for stage in _stages():
        used = _rejects(stage)
        if (constant in used) if used - {"REJECTED"} else constant == "REJECTED" and (used or stage.name in writers[REJECTED]):
            names.append(stage.name)
    return names


def _rejects(stage: Stage) -> set[str]:
    """The tables of rejected rows that a stage's code names, by their constants."""
    folder = Path(str(importlib.import_module(stage.package).__file__)).parent
    code = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    return {"REJECTED" if name == "Rejections" else name for name in re.findall(r"\b(?:REJECTED_\w+|Rejections)\b", code)}


def _table(table: Table, stages: Sequence[str]) -> str:
    rows = [
        (f"`{column.name}`", f"{_kind(column.type)}{', or null' if column.nullable else ''}", _prose(column.doc))
        for column in table.columns
    ]
    written_by = f" Written by {', '.join(f'[{stage}](settings.md#{stage})' for stage in stages)}." if stages else ""
    head = ["", f"### {table.name}", "", f"{_prose(table.doc)}{written_by}", ""]
    return "\n".join([*head, *_grid(("column", "type", "meaning"), rows), ""])


def _kind(kind: Any) -> str:
    """An Arrow type in words that fit a cell."""
    return _prose(str(kind).replace("<element: ", " of ").replace("<item: ", " of ").replace(">", "").replace("<", " of "))


def _prose(text: str) -> str:
    """Text as Markdown shows it: nothing of it is HTML, and `|` does not end a cell."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("*", "\\*")


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def readme() -> str:
    """README.md with the present tree."""
    before, rest = README.read_text(encoding="utf-8").split(TREE_START)
    return f"{before}{TREE_START}\n{tree()}\n{TREE_END}{rest.split(TREE_END)[1]}"


def tree() -> str:
    """Every folder and its modules, with the first lines of their docstrings, as an indented block."""
    entries: list[tuple[str, str]] = []
    for folder in TREE:
        entries.append((f"{folder}/", _first_line(README.parent / folder / "__init__.py")))
        entries += [(f"  {path.stem}{'/' if path.is_dir() else '.py'}", _first_line(path)) for path in _members(folder)]
    return "\n" + "".join(f"    {name:<24}{line}".rstrip() + "\n" for name, line in entries)


def _members(folder: str) -> list[Path]:
    """Modules and packages of a folder: stages in the order of data, others by name."""
    if folder == "stages":
        return [README.parent / folder / name.replace("-", "_") for name in ORDER]
    paths = [path for path in (README.parent / folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return sorted(path for path in paths if not path.name.startswith("__"))


def _first_line(path: Path) -> str:
    """The first sentence in the first line of a module's docstring, without its full stop."""
    file = path / "__init__.py" if path.is_dir() else path
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0].partition(". ")[0].removesuffix(".")


PAGES: dict[Path, Callable[[], str]] = {
    DOCS / "cli.md": commands,
    DOCS / "settings.md": settings,
    DOCS / "tables.md": tables,
    README: readme,
}


def main() -> int:
    stale = []
    for path, make in PAGES.items():
        text = make()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(path.name)
    if stale:
        print(f"out of date: {', '.join(stale)}; make docs", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
