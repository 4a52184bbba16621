"""A store that a team shares, at any address: artifacts and records by content id and key, so that nothing is made twice.

irpipe-remote.json              makes it a remote: where other files lie without it, nothing is written or deleted
objects/ab/<content_id>.json    an artifact's manifest, written after its files
parts/ab/<content_id>.<n>       its smaller files, one behind the other in the manifest's order
parts/ab/<sha256>.<n>           a larger file, cut
keys/ab/<key>.json              a run's record, written after its artifact
roots/<recipe>/<store>.json     what a recipe of one store refers to; written by that store alone, before what it refers to

All but the roots is named by its content, so two who push at once write the same bytes, and no write needs a condition. (Two runs
of one key may differ in their last bits: then the later record stays, and both artifacts are whole.)
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from irpipe.pipeline.bucket import Bucket, Entry, check_url
from irpipe.pipeline.errors import DamageError, StoreError
from irpipe.pipeline.manifest import FileEntry, Manifest, Record, parse_manifest, parse_record, to_json

THREADS = 8  # that wait for the network
MARK = "irpipe-remote.json"
_FORMAT = {"format": "irpipe-remote", "version": 1}
_SMALL = 1 << 20  # bytes; smaller files are kept together
_PART = 32 << 20  # bytes that memory holds per thread
_MOST_JSON = 256 << 20  # bytes
_OURS = re.compile(r"(objects|keys|parts)/([0-9a-f]{2})/(\2[0-9a-f]{62})(?:\.json|\.\d+)")


@dataclass(frozen=True)
class Piece:
    """Some bytes of a file of an artifact; files of one content count once."""

    file: FileEntry
    start: int
    size: int


@dataclass(frozen=True)
class Part:
    """A file of the remote: pieces of an artifact's files, one behind the other."""

    path: str
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.size for piece in self.pieces)


def parts_of(manifest: Manifest) -> list[Part]:
    """How an artifact's files lie in a remote: smaller ones together, larger ones cut. The manifest alone decides."""
    contents = {file.sha256: file for file in manifest.files}.values()
    parts: list[Part] = []
    groups: list[list[Piece]] = [[]]
    for file in contents:
        if file.size < _SMALL:
            if sum(piece.size for piece in groups[-1]) + file.size > _PART:
                groups.append([])
            groups[-1].append(Piece(file, 0, file.size))
            continue
        for number, start in enumerate(range(0, file.size, _PART)):
            parts.append(Part(_part_path(file.sha256, number), (Piece(file, start, min(_PART, file.size - start)),)))
    shared = [Part(_part_path(manifest.content_id, number), tuple(group)) for number, group in enumerate(groups) if group]
    return [*shared, *parts]


def _part_path(name: str, number: int) -> str:
    return f"parts/{name[:2]}/{name}.{number}"


def object_path(content_id: str) -> str:
    """Where an artifact's manifest lies."""
    return f"objects/{content_id[:2]}/{content_id}.json"


def record_path(key: str) -> str:
    """Where a run's record lies."""
    return f"keys/{key[:2]}/{key}.json"


class Remote:
    """A remote by its address; nothing is asked before something is read or written.

    Raises:
        InputError: the address holds credentials.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        self.url = url

    @cached_property
    def bucket(self) -> Bucket:
        """Its files.

        Raises:
            StoreError: they are another tool's, or cannot be reached.
        """
        bucket = Bucket(self.url)
        mark = bucket.read(MARK, 1000)
        if mark is None and not bucket.is_empty() and (mark := bucket.read(MARK, 1000)) is None:  # not even meanwhile
            raise StoreError(
                "there are files that are not irpipe's: nothing was written or deleted",
                where=bucket.url,
                fix=f"name an empty place, such as {bucket.url.rstrip('/')}/irpipe",
            )
        if mark is not None and mark != to_json(_FORMAT).encode():
            raise StoreError("it is a remote of another release of irpipe, or of another tool", where=bucket.url)
        return bucket

    def check_begun(self) -> None:
        """Refuse to read where nobody has pushed.

        Raises:
            StoreError: there is no remote.
        """
        if self.bucket.entry(MARK) is None:
            raise StoreError(
                "there is no remote yet", where=self.bucket.url, fix=f"check the address, or irpipe push --remote {self.url}"
            )

    def begin(self) -> None:
        """Make an empty place a remote.

        Raises:
            StoreError: it may not be written, or is another tool's.
        """
        if self.bucket.entry(MARK) is None:
            self.clock()

    def clock(self) -> float:
        """The time at the remote, whose clock may be another than this machine's: its mark is written again for it."""
        self.bucket.write(MARK, to_json(_FORMAT).encode())
        entry = self.bucket.entry(MARK)
        if entry is None:
            raise StoreError(f"{MARK} was written and is not there", where=self.bucket.url)
        return entry.written

    def record(self, key: str) -> Record | None:
        """A run's record, or None where there is none.

        Raises:
            DamageError: what lies there is not that record.
        """
        path = record_path(key)
        record: Record | None = self._document(path, parse_record)
        if record is not None and record.key != key:
            raise self._damaged(path, "it is another run's record")
        return record

    def manifest(self, content_id: str) -> Manifest | None:
        """An artifact's manifest, or None where there is none.

        Raises:
            DamageError: what lies there is not that manifest.
        """
        path = object_path(content_id)
        manifest: Manifest | None = self._document(path, parse_manifest)
        if manifest is not None and (manifest.content_id != content_id or not manifest.is_whole):
            raise self._damaged(path, "it is another artifact's manifest")
        return manifest

    def part(self, part: Part) -> bytes:
        """The bytes of a part.

        Raises:
            DamageError: it is missing, or has another size.
        """
        data = self.bucket.read(part.path, 2 * _PART)
        if data is None:
            raise self._damaged(part.path, "it is missing")
        if len(data) != part.size:
            raise self._damaged(part.path, f"it has {len(data):,} of {part.size:,} bytes")
        return data

    def resolve(self, prefix: str) -> Record:
        """The run whose key or content id starts with some digits.

        Raises:
            StoreError: none does, or those of several artifacts do.
        """
        keys = [entry.path.rpartition("/")[2].removesuffix(".json") for entry in self.bucket.entries(f"keys/{prefix[:2]}")]
        found = [self.record(key) for key in keys if key.startswith(prefix)]
        if not found:
            every = [entry.path.rpartition("/")[2].removesuffix(".json") for entry in self.bucket.entries("keys")]
            with ThreadPoolExecutor(THREADS) as pool:
                found = [record for record in pool.map(self.record, every) if record and record.content_id.startswith(prefix)]
        records = [record for record in found if record is not None]
        if len({record.content_id for record in records}) != 1:
            what = "several artifacts have" if records else "nothing has"
            raise StoreError(
                f"{what} an id that starts with {prefix!r}", where=self.bucket.url, fix="give more digits, or a node"
            )
        return max(records, key=lambda record: record.ended)

    def _document(self, path: str, parse: Callable[[str, str], Any]) -> Any:
        """What a JSON file says, or None where there is none."""
        data = self.bucket.read(path, _MOST_JSON)
        try:
            return None if data is None else parse(data.decode(), path)
        except (DamageError, UnicodeDecodeError) as error:
            raise self._damaged(path, error.what if isinstance(error, DamageError) else "it is no text") from None

    def _damaged(self, path: str, what: str) -> DamageError:
        return DamageError(
            f"{path} of the remote is damaged: {what}",
            where=self.bucket.url,
            fix="irpipe verify --remote names all damage; irpipe push --repair, from a store that has it, sends it again",
        )

    def files(self) -> list[tuple[str, str, Entry]]:
        """The files that are named as a remote's are: their folder, the id in their name, and what is known of them."""
        matches = [(_OURS.fullmatch(entry.path), entry) for entry in self.bucket.entries()]
        return [(match[1], match[3], entry) for match, entry in matches if match]
