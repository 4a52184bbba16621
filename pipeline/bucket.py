"""Files at an address: a folder, a bucket of S3 or Google, or whatever fsspec knows; every write is whole or not there.

pyarrow's own file systems, which irpipe has already, speak S3 with its credentials, retries and uploads in parts. Nothing here
needs conditional writes: see `irpipe.pipeline.remote`.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from irpipe.pipeline.errors import InputError, StoreError

_OPTIONS = ("endpoint_override", "scheme", "region")  # of an address of S3
_ATTEMPTS, _CONNECT_SECONDS = 4, 5.0
_DRAFT = ".draft-"
# Servers that are not Amazon's refuse the checksums that its newer libraries send unasked.
_PLAIN_CHECKSUMS = {"AWS_REQUEST_CHECKSUM_CALCULATION": "when_required", "AWS_RESPONSE_CHECKSUM_VALIDATION": "when_required"}
_DENIED = re.compile(
    r"ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY|CREDENTIALS|HTTP response code 40[13]", re.IGNORECASE
)
_UNREACHED = re.compile(r"NETWORK_CONNECTION|curlCode|timed? ?out|name resolution|connection", re.IGNORECASE)
_MOST_TOLD = 300  # characters


@dataclass(frozen=True)
class Entry:
    """A file: its path below the bucket's root, its size in bytes, and when it was written, in seconds by the bucket's clock."""

    path: str
    size: int
    written: float


class Bucket:
    """Files below an address. Paths are relative, with `/`.

    Raises:
        InputError: the address is of no known kind, or holds credentials.
    """

    def __init__(self, url: str) -> None:
        self.url = shown_url(url)
        with self._errors(""):
            self._files, self._root, self._whole_writes = _open(url)

    def read(self, path: str, most: int) -> bytes | None:
        """A small file's bytes, or None where there is none.

        Raises:
            StoreError: it is larger than `most`, or cannot be read.
        """
        known = self.entry(path)
        if known is None:
            return None
        if known.size > most:
            raise StoreError(f"{path} has {known.size:,} bytes", where=self.url, expected=f"at most {most:,}")
        with self._errors(path), self._files.open_input_stream(self._at(path)) as stream:
            data: bytes = stream.read(most + 1)
            return data

    def write(self, path: str, data: bytes) -> None:
        """Write a file of a size that memory holds: it appears whole, in place of what was there."""
        with self._errors(path):
            target = self._at(path)
            if self._whole_writes:
                with self._files.open_output_stream(target) as stream:
                    stream.write(data)
                return
            self._files.create_dir(target.rpartition("/")[0])
            draft = f"{target}{_DRAFT}{uuid.uuid4().hex}"
            with self._files.open_output_stream(draft) as stream:
                stream.write(data)
            self._files.move(draft, target)

    def entry(self, path: str) -> Entry | None:
        """What is known of a file, or None where there is none."""
        from pyarrow.fs import FileType

        with self._errors(path):
            known = self._files.get_file_info(self._at(path))
        return self._entry(known) if known.type == FileType.File else None

    def entries(self, folder: str = "") -> list[Entry]:
        """All files below a folder, in the order of paths; drafts that somebody may be writing are left out."""
        from pyarrow.fs import FileSelector, FileType

        with self._errors(folder):
            found = self._files.get_file_info(FileSelector(self._at(folder), allow_not_found=True, recursive=True))
        files = (self._entry(known) for known in found if known.type == FileType.File)
        return sorted((entry for entry in files if _DRAFT not in entry.path), key=lambda entry: entry.path)

    def is_empty(self) -> bool:
        """Whether nothing at all lies there but drafts; True where there is not even a folder."""
        from pyarrow.fs import FileSelector

        with self._errors(""):
            found = self._files.get_file_info(FileSelector(self._at(""), allow_not_found=True))
        return all(_DRAFT in known.path for known in found)

    def delete(self, path: str) -> None:
        """Delete a file; nothing where there is none."""
        with self._errors(path):
            try:
                self._files.delete_file(self._at(path))
            except FileNotFoundError:
                return

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}".strip("/") if not self._root.startswith("/") else f"{self._root}/{path}".rstrip("/")

    def _entry(self, known: Any) -> Entry:
        below = known.path.lstrip("/").removeprefix(self._root.lstrip("/")).lstrip("/")
        return Entry(below, known.size, known.mtime.timestamp() if known.mtime is not None else 0.0)

    @contextmanager
    def _errors(self, path: str) -> Iterator[None]:
        """The errors of a file system as ours; no credentials stand in them."""
        try:
            yield
        except (InputError, StoreError):
            raise
        except OSError as error:
            if error.errno is not None and error.filename is not None:
                raise  # of a file of this machine, not of the bucket
            raise self._explained(path, error) from None
        except ValueError as error:  # pyarrow's ArrowInvalid
            raise self._explained(path, error) from None

    def _explained(self, path: str, error: Exception) -> StoreError:
        text = " ".join(str(error).split())[:_MOST_TOLD]
        what = f"{path or 'it'} cannot be read or written: {text}"
        if _DENIED.search(text):
            return StoreError(
                what, where=self.url, fix="credentials that may: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws"
            )
        if _UNREACHED.search(text):
            return StoreError(what, where=self.url, fix="check the address and the network, then the same command: it goes on")
        return StoreError(what, where=self.url, fix="the same command goes on once this is mended")


def shown_url(url: str) -> str:
    """An address without user, password and options, as it may be printed and kept."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def check_url(url: str) -> None:
    """Refuse an address with credentials in it: recipes, records and logs are read by others.

    Raises:
        InputError: it has a user or a password, or an option that is not known.
    """
    parts = urlsplit(url)
    if parts.username or parts.password or "@" in parts.netloc:
        raise InputError(
            "the remote's address holds credentials, which others would read in recipes and logs",
            where=shown_url(url),
            fix="leave them out, and give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws",
        )
    unknown = [name for name, _ in parse_qsl(parts.query) if name not in _OPTIONS]
    if unknown:
        raise InputError(f"the remote's address has the option {unknown[0]!r}", expected=", ".join(_OPTIONS))


def _open(url: str) -> tuple[Any, str, bool]:
    """The file system of an address, its root there, and whether a write appears only when it is whole.

    Raises:
        InputError: see `Bucket`.
    """
    from pyarrow import fs

    check_url(url)
    parts = urlsplit(url)
    root = (parts.netloc + parts.path).rstrip("/")
    if parts.scheme in ("", "file"):
        if parts.scheme == "file" and parts.netloc not in ("", "localhost"):
            raise InputError(f"{url}: a folder of this machine has three slashes", expected=f"file:///{root}")
        return fs.LocalFileSystem(), str(Path(parts.path).resolve()), False
    if parts.scheme == "s3":
        for name, value in _PLAIN_CHECKSUMS.items():
            os.environ.setdefault(name, value)
        options = dict(parse_qsl(parts.query))
        retries = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
        return fs.S3FileSystem(connect_timeout=_CONNECT_SECONDS, retry_strategy=retries, **options), root, True
    if parts.scheme == "gs":
        return fs.GcsFileSystem(), root, True
    return _by_fsspec(url, parts.scheme)


def _by_fsspec(url: str, scheme: str) -> tuple[Any, str, bool]:
    """Any other address, by the packages that fsspec knows.

    Raises:
        InputError: none is installed for it.
    """
    from pyarrow import fs

    try:
        import fsspec

        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(
            f"there is nothing here for addresses of {scheme!r}: {error}",
            expected="file:///path, s3://bucket/path, gs://bucket/path, or one that fsspec knows",
            fix="install fsspec and the package that it names for them",
        ) from None
    return fs.PyFileSystem(fs.FSSpecHandler(files)), root.rstrip("/"), False
