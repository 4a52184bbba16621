"""Messages of a chat as DiscordChatExporter writes them (its layouts of 2022 and 2026), one after the other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import ijson
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from irpipe.models.pictures import decode
from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import files_below

# What the bot is asked, and what it quotes: everything between the first and the last quotation mark is the prompt.
_COMMAND = re.compile(r'!dream\s+"(?P<prompt>.*)"(?P<options>[^"]*)', re.DOTALL)
_COUNT = re.compile(r"(?:^|\s)-n\s*(\d+)")
_SEEDS = re.compile(r"\[([\d,\s]+)\]")
_KINDS = ("Default", "Reply")  # of messages that people and bots write; all others are the system's
_MOST_BYTES = 100_000_000  # of an attachment
_THUMBNAIL = 16


@dataclass(frozen=True)
class Media:
    """An attachment.

    Attributes:
        path: as the export gives it, from the folder of all its files; or an address, if it was not downloaded.
        name, size: the name and the bytes that the sender's file had.
        file: the downloaded file; None if it is not there.
    """

    path: str
    name: str
    size: int
    file: Path | None

    @cached_property
    def digest(self) -> str | None:
        """Of its bytes."""
        return None if self.file is None else hashlib.sha256(self.file.read_bytes()).hexdigest()

    def picture(self) -> Image.Image | None:
        """The picture; None if it is not there, or does not decode."""
        try:
            return None if self.file is None else decode(self.file.read_bytes()).convert("RGB")
        except InputError:
            return None

    @cached_property
    def pixels(self) -> str | None:
        """The digest of its pixels: the same however they were encoded without loss."""
        picture = self.picture()
        return None if picture is None else hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()

    @cached_property
    def thumbnail(self) -> NDArray[np.float64] | None:
        """(16, 16, 3) from 0 to 255: nearly the same however the picture was encoded."""
        picture = self.picture()
        if picture is None:
            return None
        return np.asarray(picture.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX), dtype=np.float64)


@dataclass(frozen=True)
class Message:
    """A message.

    Attributes:
        number: its place among all messages of the export.
        prompt: what it asks the bot for, or quotes; None where it does neither.
        asked: how many images it asks for, or says were made; 0 where it does not say.
        reference: the message that it answers.
        mention: the user that it mentions first.
        sent, edited: when.
    """

    number: int
    identity: str
    kind: str
    user: str
    name: str
    is_bot: bool
    content: str
    media: tuple[Media, ...]
    reference: str | None
    mention: str | None
    sent: datetime
    edited: datetime | None

    @property
    def is_systems(self) -> bool:
        """Whether the system wrote it: somebody joined, something was pinned, or of a kind that is not known."""
        return self.kind not in _KINDS and not (self.is_bot and self.media)

    @cached_property
    def _command(self) -> re.Match[str] | None:
        return _COMMAND.search(self.content)

    @property
    def prompt(self) -> str | None:
        found = self._command
        return found["prompt"] if found and found["prompt"].strip() else None

    @property
    def asked(self) -> int:
        found = self._command
        rest = found["options"] if found else ""
        seeds, count = _SEEDS.search(rest), _COUNT.search(rest)
        return max(len(seeds[1].split(",")) if seeds else 0, int(count[1]) if count else 0)


def read_messages(path: Path) -> Iterator[Message]:
    """All messages of an export: a file, or a folder of its parts in the order of their first messages.

    Downloaded attachments, in folders that end with `_Files`, are no parts, whatever they hold.

    Raises:
        InputError: there is no export, it is cut off, or of another kind.
    """
    root = path if path.is_dir() else path.parent
    files = [file for file in files_below(root, (".json",)) if _is_part(file, root)] if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no export", where="load-annotations.path", expected="JSON of DiscordChatExporter")
    number = 0
    for file in sorted(files, key=_first_message) if len(files) > 1 else files:
        for item in _items(file):
            yield _message(item, number, file, root)
            number += 1


def _is_part(file: Path, root: Path) -> bool:
    return not any(folder.endswith("_Files") for folder in file.relative_to(root).parts[:-1])


def _first_message(file: Path) -> tuple[int, str]:
    """The id of a file's first message, which grows with time."""
    return int(_message(next(_items(file)), 0, file, file.parent).identity), file.name


def _items(file: Path) -> Iterator[Mapping[str, Any]]:
    """The messages in a file, each as JSON; memory holds one."""
    count = 0
    with file.open("rb") as stream:
        try:
            for item in ijson.items(stream, "messages.item"):
                count += 1
                yield item
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise InputError(
                f"{file.name} is no whole JSON after {count:,} messages: {str(error).splitlines()[0]}"[:200],
                where=str(file),
                fix="export the channel again",
            ) from None
    if not count:
        raise InputError(f"{file.name} has no messages", where=str(file), expected="JSON of DiscordChatExporter, with messages")


def _message(item: Any, number: int, file: Path, root: Path) -> Message:
    """A message of its JSON.

    Raises:
        InputError: it has not the fields of one.
    """
    try:
        author, reference, mentions = item["author"], item.get("reference") or {}, item.get("mentions") or []
        folder = PurePosixPath(file.parent.relative_to(root).as_posix())
        forwarded = reference.get("type", "Default") == "Forward"
        return Message(
            number=number,
            identity=str(int(item["id"])),
            kind=str(item["type"]),
            user=str(author["id"]),
            name=str(author["name"]),
            is_bot=bool(author.get("isBot", False)),
            content=str(item.get("content") or ""),
            media=tuple(_media(attachment, folder, root) for attachment in item.get("attachments") or []),
            reference=None if forwarded or reference.get("messageId") is None else str(reference["messageId"]),
            mention=str(mentions[0]["id"]) if mentions else None,
            sent=datetime.fromisoformat(item["timestamp"]),
            edited=datetime.fromisoformat(item["timestampEdited"]) if item.get("timestampEdited") else None,
        )
    except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise InputError(
            f"message {number} of {file.name} is none of DiscordChatExporter: {type(error).__name__} {error}"[:200],
            where=str(file),
            expected="id, type, timestamp, content, author, attachments",
        ) from None


def _media(attachment: Mapping[str, Any], folder: PurePosixPath, root: Path) -> Media:
    """An attachment, and its file where it lies below the export's folder."""
    url = str(attachment["url"])
    name, size = str(attachment["fileName"]), int(attachment["fileSizeBytes"])
    if "://" in url:
        return Media(url, name, size, None)
    path = str(folder / url)
    native = url.replace("\\", "/")  # an export of Windows
    for spelled in dict.fromkeys(str(folder / way) for way in (url, unquote(url), native, unquote(native))):
        file = _downloaded(root, spelled)
        if file is not None:
            return Media(spelled, name, size, file)
    return Media(path, name, size, None)


def _downloaded(root: Path, path: str) -> Path | None:
    """A file below a folder; None where there is none, or no disk can have one of that name."""
    try:
        file = (root / path).resolve()
        there = file.is_relative_to(root.resolve()) and file.is_file() and file.stat().st_size <= _MOST_BYTES
    except (OSError, ValueError):  # a name that is too long, or holds what no name can
        return None
    return file if there else None
