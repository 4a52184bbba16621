"""Code of other packages that a run loads: distribution, version and files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import StageError
from irpipe.pipeline.external import Externals
from irpipe.pipeline.hashing import digest, file_digest
from irpipe.pipeline.registry import declared
from irpipe.pipeline.settings import Config
from irpipe.pipeline.stage import Stage

_OURS = "irpipe"  # our own code counts by the versions of stages


def with_plugins(stage: Stage, config: Config, folders: Sequence[Path], externals: Externals) -> Externals:
    """The external inputs of a stage, with the code of other packages that it loads.

    Args:
        folders: of the artifacts that it reads.
        externals: what its settings name.
    """
    if stage.plugins is None:
        return externals
    models = [model.folder for resolved in externals.models.values() for model in resolved if model.folder is not None]
    entries: dict[str, Any] = {}
    for group, names in stage.plugins(config, [*folders, *models]).items():
        points = declared(group)
        for name in names:
            if name in points and points[name].module.partition(".")[0] != _OURS:
                point = points[name]
                version = f"{point.dist.name} {point.dist.version}" if point.dist is not None else "no distribution"
                entries[f"{group}:{name}"] = {"given": version, "digest": _package_digest(point), "artifacts": []}
    digests = {name: [entry["given"], entry["digest"]] for name, entry in entries.items()}
    return replace(externals, digests=externals.digests | digests, entries=externals.entries | entries)


def _package_digest(point: EntryPoint) -> str:
    """Digest of all files of the package, or of the lone module, that holds an entry point.

    Raises:
        StageError: there is none.
    """
    spec = find_spec(point.module.partition(".")[0])
    paths = [Path(path) for path in (spec.submodule_search_locations or ())] if spec else []
    if spec is not None and spec.origin is not None and not paths:
        paths = [Path(spec.origin)]
    if not paths:
        raise StageError(f"{point.value} cannot be found", where=f"the entry point {point.name!r} of {point.group!r}")
    return digest([_files_digest(path) for path in paths])


@cache
def _files_digest(root: Path) -> str:
    """Digest of a file, or of a folder's files by name; compiled code is left out. Packages do not change under a process."""
    if root.is_file():
        return file_digest(root)
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return digest([[str(path.relative_to(root)), file_digest(path)] for path in paths])
