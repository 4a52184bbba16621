"""What workers on other machines get: values whose paths go by what they mean, not by where they lie on the driver's machine."""

from __future__ import annotations

import io
import os
import pickle
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpipe.pipeline.environment import packages
from irpipe.pipeline.errors import InputError, StageError
from irpipe.pipeline.exchange import bring
from irpipe.pipeline.external import Memory
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import Remote
from irpipe.pipeline.store import Store

NODE_STORE = "IRPIPE_NODE_STORE"  # where a machine keeps what it has got from the remote
_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Home:
    """What a worker must know of the run that it works for.

    Attributes:
        store: the driver's; probe: a file in it, and what it holds, by which a machine sees whether that folder is shared.
        share: see `ExecutorSettings`.
        versions: of Python and packages, which must be the same.
        digests: of files and folders outside the store, by path.
    """

    store: str
    probe: tuple[str, str]
    share: str
    remote: str | None
    versions: Mapping[str, str]
    digests: Mapping[str, str]


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, meaning: Callable[[Any], tuple[str, ...] | None]) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self._meaning = meaning

    def persistent_id(self, value: Any) -> tuple[str, ...] | None:
        """What a path means, in place of the path."""
        return self._meaning(value)


class _Unpickler(pickle.Unpickler):  # of our own driver's bytes, through the cluster
    def __init__(self, buffer: io.BytesIO, here: Callable[[tuple[str, ...]], Path]) -> None:
        super().__init__(buffer)
        self._here = here

    def persistent_load(self, meaning: tuple[str, ...]) -> Path:
        """The path here."""
        return self._here(meaning)


class Parcel:
    """Pickles what a worker needs so that another machine finds the files: paths go by what they mean.

    Attributes:
        objects: content ids of the artifacts that were named; digests: of outside files and folders by path.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.objects: set[str] = set()
        self.digests: dict[str, str] = {}

    def pack(self, value: Any) -> bytes:
        """A value as bytes."""
        buffer = io.BytesIO()
        _Pickler(buffer, self._meaning).dump(value)
        return buffer.getvalue()

    def _meaning(self, value: Any) -> tuple[str, ...] | None:
        if not isinstance(value, Path):
            return None
        path = value.absolute()
        if path.is_relative_to(self._store.root):
            parts = path.relative_to(self._store.root).parts
            if len(parts) >= 3 and parts[0] == "objects":
                self.objects.add(parts[2])
                return ("object", parts[2], *parts[3:])
            return ("store", *parts)
        if path.is_relative_to(_PACKAGE):
            return ("package", *path.relative_to(_PACKAGE).parts)
        if str(path) not in self.digests and path.exists():
            memory = Memory(self._store.root / "digests.sqlite", Watcher(), remember=True)
            self.digests[str(path)] = memory.digest(path, str(path))
        return ("outside", str(path))


@dataclass
class Desk:
    """Where an actor works: it turns paths by meaning into those of its machine.

    Attributes:
        shared: whether the driver's store lies here under the same path; store: this machine's own.
    """

    home: Home
    shared: bool
    store: Store

    @classmethod
    def at(cls, home: Home) -> Desk:
        """The desk of this machine.

        Raises:
            StageError: packages differ, or there is no way to what the worker reads.
        """
        _check_versions(home.versions)
        file, token = home.probe
        seen = Path(file).exists() and Path(file).read_text(encoding="utf-8") == token
        if home.share == "folder" and not seen:
            raise StageError(
                f"the machine {platform.node()} does not see the store's folder",
                where=home.store,
                fix='mount it everywhere at the same path, or [executor] share = "remote"',
            )
        shared = seen and home.share != "remote"
        if not shared and home.remote is None:
            raise StageError(
                f"the machine {platform.node()} sees neither the store's folder nor a remote",
                where=home.store,
                fix='mount the folder everywhere at the same path, or name a remote: [remote] url = "s3://bucket/irpipe"',
            )
        return cls(home, shared, Store(node_store()))

    def unpack(self, data: bytes) -> Any:
        """A value from bytes of `Parcel`.

        Raises:
            InputError: a file from outside is not here, or has other content.
        """
        return _Unpickler(io.BytesIO(data), self._here).load()

    def _here(self, meaning: tuple[str, ...]) -> Path:
        kind, *parts = meaning
        if kind == "package":
            return _PACKAGE.joinpath(*parts)
        if kind == "outside":
            return self._outside(Path(parts[0]))
        if self.shared:
            return Path(self.home.store).joinpath(*(("objects", parts[0][:2]) if kind == "object" else ()), *parts)
        if kind == "store":
            raise StageError(
                "this stage reads what it keeps in the store's work folder, which is not on this machine",
                where="/".join(parts),
                fix="mount the store's folder everywhere at the same path, or leave out the executor ray",
            )
        assert self.home.remote is not None
        with self.store.in_use():
            bring(Remote(self.home.remote), self.store, [parts[0]], Watcher())
        return self.store.object_path(parts[0]).joinpath(*parts[1:])

    def _outside(self, path: Path) -> Path:
        wanted = self.home.digests.get(str(path))
        if wanted is None:
            return path
        if not path.exists():
            raise InputError(
                f"the machine {platform.node()} lacks {path}", fix="put it there, or into a folder that all machines mount"
            )
        found = Memory(self.store.root / "digests.sqlite", Watcher(), remember=True).digest(path, str(path))
        if found != wanted:
            raise InputError(f"{path} has other content on the machine {platform.node()}", fix="copy it there again")
        return path


def node_store() -> Path:
    """Where this machine keeps what it got from a remote."""
    given = os.environ.get(NODE_STORE)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(given or Path(cache, "irpipe", "node-store")).resolve()


def versions() -> dict[str, str]:
    """Of what computes."""
    return {"python": ".".join(platform.python_version_tuple()[:2]), **packages()}


def _check_versions(wanted: Mapping[str, str]) -> None:
    """Other versions may compute other bytes under one key.

    Raises:
        StageError: some differ.
    """
    found = versions()
    other = [
        f"{name} {found.get(name, 'missing')}, not {version}" for name, version in wanted.items() if found.get(name) != version
    ]
    if other:
        raise StageError(
            f"the machine {platform.node()} has other packages than the driver: {'; '.join(other[:5])}",
            fix="install the same on all machines, such as with constraints.txt",
        )
