"""Choices from a chat with an image bot, as HPS gathered them (section 3).

Somebody asks for a prompt; the bot answers with several images; the same person sends one of them back with the same prompt, to
have it refined. The image sent back is their choice among the answer's. The paper's grammar was never published: this is our
reading of it. Pictures are known by their content, since names repeat and pictures are re-encoded.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from irpipe.pipeline.errors import InputError
from irpipe.stages.load_annotations.chat import Media, Message, read_messages
from irpipe.stages.load_annotations.raw import RawRecord

WINDOW = 50_000  # messages, after which an answer is forgotten: memory does not grow with the export
MOST_DIFFERENCE = 8.0  # mean difference of thumbnails, of 255, of a picture and its re-encoding
LEAST_FACTOR = 3.0  # by which the other images of the answer must be further away

Ambiguous = Literal["default", "accept", "reject"]
How = Literal["bytes", "pixels", "near", "name"]
_DOUBTFUL: dict[How, str] = {"near": "re-encoded", "name": "known by its name and size alone"}


@dataclass(frozen=True)
class ChatOptions:
    """How choices are read.

    Attributes:
        bot: the name of the bot whose answers count.
        ambiguous: default: doubtful choices count, and two choices of one answer do not. accept: of two the first counts. reject:
            no doubtful one does.
        salt: users are hashed with it; None: they are numbered.
        most_per_user: choices of one user; 0: all.
    """

    bot: str
    ambiguous: Ambiguous = "default"
    salt: bytes | None = None
    most_per_user: int = 0


@dataclass
class Pick:
    """A message that sends an image of an answer back: which one, what is doubtful, and whether the bot refined it."""

    message: Message
    index: int
    doubts: list[str]
    refined: bool = False


@dataclass
class Answer:
    """A bot's images of a prompt.

    Attributes:
        user: whom it answers.
        fault: why no choice of its images counts.
        doubts: what is not certain about it.
    """

    message: Message
    prompt: str
    user: str | None
    fault: str = ""
    doubts: list[str] = field(default_factory=list)
    picks: list[Pick] = field(default_factory=list)


def records(path: Path, options: ChatOptions) -> Iterator[RawRecord]:
    """A record for every image that somebody sent: a choice, or dropped with the reason; and for every message of the system.

    Cost: every attachment of an answer is read once, and again where a picture is not found by its bytes; memory O(`WINDOW`).

    Raises:
        InputError: there is no export, or no answer of the bot in it.
    """
    chat = Chat(options)
    for message in read_messages(path):
        yield from chat.take(message)
    yield from chat.end()
    if chat.bots and options.bot not in chat.bots:
        often = ", ".join(repr(name) for name, _ in chat.bots.most_common(3))
        raise InputError(
            f"no answer is of the bot {options.bot!r}",
            where=str(path),
            expected=f"one of the bots that sent images of a prompt: {often}",
            fix=f"--set load-annotations.bot={chat.bots.most_common(1)[0][0]}",
        )


def normalised(prompt: str) -> str:
    """A prompt without case and runs of white space."""
    return " ".join(prompt.lower().split())


class Chat:
    """What is remembered of a chat while it is read."""

    def __init__(self, options: ChatOptions) -> None:
        self._options = options
        self._answers: deque[Answer] = deque()
        self._by_digest: dict[str, list[tuple[Answer, int]]] = defaultdict(list)
        self._by_request: dict[tuple[str, str], list[Answer]] = defaultdict(list)  # by user and normalised prompt
        self._requests: dict[str, Message] = {}  # of people, by id, the oldest first
        self._latest: dict[tuple[str, str], str] = {}
        self._picks: dict[str, Pick] = {}  # by id of the message
        self._users: dict[str, str] = {}
        self._choices: Counter[str] = Counter()
        self.bots: Counter[str] = Counter()  # that sent images of a prompt, and how often

    def take(self, message: Message) -> Iterator[RawRecord]:
        """The next message. Yields what is known by now."""
        while self._answers and self._answers[0].message.number < message.number - WINDOW:
            yield from self._forget(self._answers.popleft())
        self._forget_requests(message.number - WINDOW)
        if message.is_systems:
            yield dropped(message, "system message")
        elif message.is_bot:
            self._take_answer(message)
        else:
            if message.media:
                yield from self._take_picture(message)
            if message.prompt is not None:
                self._requests[message.identity] = message
                self._latest[message.user, normalised(message.prompt)] = message.identity

    def end(self) -> Iterator[RawRecord]:
        """There are no more messages."""
        for answer in self._answers:
            yield from self._records_of(answer)

    # -- answers ------------------------------------------------------------------------------------------------------

    def _take_answer(self, message: Message) -> None:
        prompt = message.prompt
        if prompt is None or not message.media:
            return
        self.bots[message.name] += 1
        named = message.reference or (self._latest.get((message.mention, normalised(prompt))) if message.mention else None)
        request = self._requests.get(named or "")
        if named in self._picks:
            self._picks[named].refined = True
        answer = Answer(message, prompt, request.user if request else message.mention)
        answer.fault = self._fault_of(message, request)
        if message.reference is None:
            answer.doubts.append("the answer names no request")
        elif request is None:
            answer.doubts.append("the request is not in the export")
        if request is not None and request.edited is not None and request.edited > message.sent:
            answer.doubts.append("the request was edited after the answer")
        self._answers.append(answer)
        self._by_request[answer.user or "", normalised(prompt)].append(answer)
        for index, media in enumerate(message.media):
            if media.digest is not None:
                self._by_digest[media.digest].append((answer, index))

    def _fault_of(self, message: Message, request: Message | None) -> str:
        """Why no choice of an answer's images counts; empty if it does."""
        if message.name != self._options.bot:
            return "the answer is another bot's"
        if request is not None and request.media:
            return "its images were made from an image"
        if any(media.name.startswith("SPOILER_") for media in message.media):
            return "the answer is marked as not safe for work"
        if len(message.media) == 1:
            return "one collage of several images" if message.asked > 1 else "one image is no choice"
        return ""

    # -- choices ------------------------------------------------------------------------------------------------------

    def _take_picture(self, message: Message) -> Iterator[RawRecord]:
        """A picture that somebody sent: a pick of an answer's image, or dropped."""
        prompt = message.prompt
        if not message.content.strip():
            yield dropped(message, "no prompt with the image")
        elif prompt is None:
            yield dropped(message, "not a command")
        elif len(message.media) > 1:
            yield dropped(message, "several images sent back at once")
        elif (found := self._find(message.user, prompt, message.media[0])) is None:
            own = self._by_request.get((message.user, normalised(prompt)))
            missing = message.media[0].file is None
            none = "the image is not in the export" if missing else "the image is none of the answer's"
            yield dropped(message, none if own else "an image-conditioned request")
        else:
            answer, index, how = found
            if answer.user != message.user:
                yield dropped(message, "sent back by somebody else")
            elif normalised(answer.prompt) != normalised(prompt):
                yield dropped(message, "sent back with another prompt")
            elif answer.fault:
                yield dropped(message, answer.fault)
            else:
                doubts = [_DOUBTFUL[how]] if how in _DOUBTFUL else []
                doubts += ["its prompt differs in case or spaces"] if answer.prompt != prompt else []
                self._picks[message.identity] = pick = Pick(message, index, doubts)
                answer.picks.append(pick)

    def _find(self, user: str, prompt: str, media: Media) -> tuple[Answer, int, How] | None:
        """The answer that holds an image, its index there, and how it was known: by content, at last by name and size."""
        own = self._by_request.get((user, normalised(prompt)), [])
        hits = self._by_digest.get(media.digest, []) if media.digest is not None else []
        if hits:
            of_own = [hit for hit in hits if any(hit[0] is answer for answer in own)]
            return (*(of_own or hits)[-1], "bytes")
        candidates = [(answer, index, other) for answer in reversed(own) for index, other in enumerate(answer.message.media)]
        for answer, index, other in candidates:
            if media.pixels is not None and media.pixels == other.pixels:
                return answer, index, "pixels"
        for answer in reversed(own):
            if (near := nearest(media, answer.message.media)) is not None:
                return answer, near, "near"
        for answer, index, other in candidates:
            if (media.file is None or other.file is None) and (media.name, media.size) == (other.name, other.size):
                return answer, index, "name"
        return None

    # -- records ------------------------------------------------------------------------------------------------------

    def _records_of(self, answer: Answer) -> Iterator[RawRecord]:
        """The records of an answer's picks, when no more can come."""
        chosen = {pick.index for pick in answer.picks}
        for place, pick in enumerate(answer.picks):
            doubts = answer.doubts + pick.doubts + ([] if pick.refined else ["the bot refined nothing"])
            if len(chosen) > 1 and self._options.ambiguous != "accept":
                yield dropped(pick.message, "two images of one answer were sent back")
            elif place:
                yield dropped(pick.message, "the same answer was chosen from before")
            elif doubts and self._options.ambiguous == "reject":
                yield dropped(pick.message, "doubtful", ", ".join(doubts))
            else:
                yield self._choice(answer, pick)

    def _choice(self, answer: Answer, pick: Pick) -> RawRecord:
        user, most = self._name_of(pick.message.user), self._options.most_per_user
        self._choices[user] += 1
        if most and self._choices[user] > most:
            return dropped(pick.message, f"more than {most} choices of one user")
        ranks = [1 if index == pick.index else 2 for index in range(len(answer.message.media))]
        record = RawRecord(pick.message.number, pick.message.identity, answer.prompt, user)
        record.images, record.ranks = [media.path for media in answer.message.media], ranks
        record.oriented = record.choice = True
        return record

    def _name_of(self, user: str) -> str:
        """Another name for a user, who cannot be known by it."""
        salt = self._options.salt
        if salt is not None:
            return hashlib.sha256(salt + user.encode()).hexdigest()[:16]
        return self._users.setdefault(user, f"user-{len(self._users)}")

    # -- forgetting ---------------------------------------------------------------------------------------------------

    def _forget(self, answer: Answer) -> Iterator[RawRecord]:
        yield from self._records_of(answer)
        for pick in answer.picks:
            self._picks.pop(pick.message.identity, None)
        for index, media in enumerate(answer.message.media):
            if media.digest is not None:
                self._by_digest[media.digest].remove((answer, index))
                if not self._by_digest[media.digest]:
                    del self._by_digest[media.digest]
        key = answer.user or "", normalised(answer.prompt)
        self._by_request[key].remove(answer)
        if not self._by_request[key]:
            del self._by_request[key]

    def _forget_requests(self, before: int) -> None:
        while self._requests and (oldest := next(iter(self._requests.values()))).number < before:
            del self._requests[oldest.identity]
            key = oldest.user, normalised(oldest.prompt or "")
            if self._latest.get(key) == oldest.identity:
                del self._latest[key]


def nearest(media: Media, others: tuple[Media, ...]) -> int | None:
    """The image that a re-encoded one was made from: near it, and all others far; None where that is not clear."""
    thumbnails = [other.thumbnail for other in others]
    if media.thumbnail is None or any(thumbnail is None for thumbnail in thumbnails):
        return None
    distances = [float(np.abs(media.thumbnail - thumbnail).mean()) for thumbnail in thumbnails if thumbnail is not None]
    order = np.argsort(distances)
    least, second = distances[order[0]], distances[order[1]] if len(order) > 1 else np.inf
    return int(order[0]) if least <= MOST_DIFFERENCE and second >= LEAST_FACTOR * max(least, 1.0) else None


def dropped(message: Message, reason: str, detail: str = "") -> RawRecord:
    """A message that is no choice, and why."""
    text = f"message {message.identity}" + (f": {detail}" if detail else "")
    return RawRecord(message.number, message.identity, dropped=(reason, text))
