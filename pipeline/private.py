"""Records without what a publisher would not want published: host, user, command lines and absolute paths."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from irpipe.pipeline.manifest import Record

LEFT_OUT = "host, user, command lines, names of annotators, and of absolute paths all but the last part"
_WITHIN = "…/"  # in place of the folders of a path
# An absolute path: of POSIX (also a home's), a file: address, of Windows. Not the path of an address on the web.
_PATH = re.compile(r"(?<![\w.:/~-])(?:file://)?(?:~[\w.-]*)?(?:/[^\s/:;,'\"<>|()\[\]{}]+){2,}/?|\b[A-Za-z]:\\[^\s:;,'\"<>|]+")


def private(record: Record) -> Record:
    """A record that names nobody and no place; its results, settings, digests and versions stay."""
    secrets = _secrets(record)
    hidden: dict[str, Any] = {
        name: _hidden(getattr(record, name), secrets)
        for name in ("config", "external", "metrics", "packages", "numerics", "device")
    }
    return replace(record, host="", command=("irpipe", "run", record.node), **hidden)


def _secrets(record: Record) -> re.Pattern[str] | None:
    """The names of the host that made it and of who runs this, as whole words."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a user id without a name
        user = ""
    names = {record.host, record.host.partition(".")[0], user, os.environ.get("SUDO_USER", "")} - {"", "root", "localhost"}
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, longest_first))})(?![\w-])") if names else None


def _hidden(value: Any, secrets: re.Pattern[str] | None) -> Any:
    """A JSON value whose texts hold no absolute path and no secret."""
    if isinstance(value, Mapping):
        return {_hidden(name, secrets): _hidden(item, secrets) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(item, secrets) for item in value]
    if not isinstance(value, str):
        return value
    if Path(value).is_absolute() or value.startswith(("~", "file://")):
        shown = _WITHIN + Path(value).name  # a path as a whole, also one with spaces
    else:
        shown = _PATH.sub(lambda found: _WITHIN + re.split(r"[/\\]", found.group().rstrip("/\\"))[-1], value)
    return secrets.sub("…", shown) if secrets else shown
