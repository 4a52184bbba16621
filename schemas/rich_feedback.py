"""Rich feedback on images (RichHF): points on what is wrong, misaligned words of the prompt, and four scores.

Raw, as each annotator gave it, and aggregated over the annotators of an image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa

from irpipe.schemas.images import ImageTable
from irpipe.schemas.table import Column, Table

ASPECTS = ("plausibility", "alignment", "aesthetics", "overall")
KINDS = ("implausibility", "misalignment")
MISALIGNED_SUFFIX = "_0"
RAW_RECORDS = "rich_feedback.jsonl"  # raw answers in our own format, as a stage writes them

_TOKEN = re.compile(r'[^,.?!":; ]+')
_UID = Column("uid", pa.string(), "The image: its id in 16 hex digits, or the source's own name for it.")
_ANNOTATOR = Column("annotator", pa.string(), "Who, as the source names them.")
_WORDS = pa.list_(
    pa.struct(
        [
            pa.field("word", pa.string(), nullable=False),
            pa.field("misaligned", pa.bool_(), nullable=False),
            pa.field("share", pa.float32()),
        ]
    )
)


def _score(name: str) -> Column:
    return Column(name, pa.float32(), f"{name}: from 0, the worst, to 1; mean of (Likert - 1) / 4.", nullable=True)


RICH_FEEDBACK = Table(
    "rich_feedback",
    "What the annotators of an image said of it together.",
    (
        _UID,
        Column("image_id", pa.uint64(), "Id of the image, where it is known.", nullable=True, distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text, where it is known.", nullable=True),
        Column("prompt", pa.string(), "The text, where it is known.", nullable=True),
        *map(_score, ASPECTS),
        Column(
            "words",
            _WORDS,
            "The prompt's tokens in order, whether the majority calls each misaligned, and the share of votes for that (null"
            " where the source has the majority alone). Null while the prompt is not known.",
            nullable=True,
        ),
        Column("labels", pa.list_(pa.bool_()), "Whether each token is misaligned, also without the prompt.", nullable=True),
        Column("annotators", pa.int32(), "How many people; null where the source does not say.", nullable=True),
        Column("split", pa.string(), "train, validation or test, where the source has splits.", nullable=True),
    ),
)


HEATMAPS = ImageTable(
    "heatmaps",
    "Where an image is implausible, and where it does not fit its prompt.",
    (
        _UID,
        Column("kind", pa.string(), "implausibility or misalignment."),
        Column(
            "image",
            pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
            "Encoded, one channel of 8 bits: 255 is where all annotators marked a point within a 20th of the image's height.",
        ),
    ),
)
RICH_POINTS = Table(
    "rich_points",
    "Raw points: one row per point that an annotator set.",
    (
        _UID,
        _ANNOTATOR,
        Column("kind", pa.string(), "implausibility or misalignment."),
        Column("x", pa.float32(), "From the left, as a share of the width."),
        Column("y", pa.float32(), "From the top, as a share of the height."),
    ),
)
RICH_WORDS = Table(
    "rich_words",
    "Raw words: one row per token that an annotator called misaligned.",
    (
        _UID,
        _ANNOTATOR,
        Column("place", pa.int32(), "Which of the prompt's tokens, from 0."),
        Column("word", pa.string(), "The token."),
    ),
)
RICH_RATINGS = Table(
    "rich_ratings",
    "Raw scores: one row per annotator and image.",
    (
        _UID,
        _ANNOTATOR,
        *(
            Column(name, pa.float32(), f"{name} on the Likert scale, 1 to 5; null if not rated.", nullable=True)
            for name in ASPECTS
        ),
    ),
)


def token_spans(prompt: str) -> list[tuple[int, int]]:
    """Begin and end, in characters, of the prompt's tokens: what is between any of ``, . ? ! " : ;`` and spaces.

    Source: the released rule of RichHF (match_label_to_token.py). Hyphens, apostrophes, brackets, line ends are part of tokens.
    """
    return [match.span() for match in _TOKEN.finditer(prompt)]


def prompt_tokens(prompt: str) -> list[str]:
    """The tokens that labels are about; see `token_spans`."""
    return [prompt[begin:end] for begin, end in token_spans(prompt)]


def labelled_text(tokens: Sequence[str], misaligned: Sequence[bool]) -> str:
    """The published target of the sequence head: tokens with ``_0`` behind misaligned ones, between single spaces."""
    pairs = zip(tokens, misaligned, strict=True)
    return " ".join(token + MISALIGNED_SUFFIX if wrong else token for token, wrong in pairs)


def labels_of_text(text: str) -> list[bool]:
    """What the published text says of each of its words; see `unrepresentable` for what it loses."""
    return [word.endswith(MISALIGNED_SUFFIX) for word in text.split()]


def unrepresentable(tokens: Sequence[str]) -> list[str]:
    """Tokens that the published text cannot hold: with white space inside, or ``_0`` at their own end."""
    return [token for token in tokens if token.split() != [token] or token.endswith(MISALIGNED_SUFFIX)]
