"""Text in Markdown, YAML and TOML. Text from data is escaped and cannot become markup."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_SHOWN = 300  # characters of one value; the lineage's records hold it whole
_ACTIVE = re.compile(r"([\\`*_\[\]|~#$])")
_ENDS_CODE = set("`|<>&$\\")


def quoted(text: str) -> str:
    """A double-quoted string that YAML and TOML read alike: whatever is not printable is escaped."""
    return '"' + "".join(char if char.isprintable() and char not in '"\\' else f"\\U{ord(char):08X}" for char in text) + '"'


def flow(value: Any) -> str:
    """A JSON value as YAML, in one line."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(name)}: {flow(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(flow, value)) + "]"
    return json.dumps(value, allow_nan=False)


def front_matter(entries: Mapping[str, Any]) -> str:
    """The YAML at the start of a card: one line per entry and per item of a list."""
    lines = ["---"]
    for name, value in entries.items():
        if isinstance(value, list | tuple):
            lines += [f"{name}:", *(f"- {flow(item)}" for item in value)]
        else:
            lines.append(f"{name}: {flow(value)}")
    return "\n".join([*lines, "---"])


def toml(value: Any) -> str:
    """A JSON value as TOML, in one line. TOML has no null: there must be none."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{quoted(name)} = {toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value, allow_nan=False)


def plain(value: Any) -> str:
    """Any value as one line of Markdown without markup."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + " ..."
    printable = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return html.escape(_ACTIVE.sub(r"\\\1", printable), quote=False)


def code(value: Any) -> str:
    """A value as code, or `plain` where something in it could end the code."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    is_simple = text.isprintable() and not _ENDS_CODE & set(text) and text == text.strip() and text and len(text) <= _MOST_SHOWN
    return f"`{text}`" if is_simple else plain(value)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; its cells are Markdown already."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def fenced(language: str, text: str) -> str:
    """A block of code, fenced by more backticks than there are in it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def joined(*parts: str) -> str:
    """Blocks of Markdown, a blank line between two; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
