"""Annotations in one canonical form, whatever file they came from.

Ranks: lower is better, equal is a tie, gaps mean nothing. Ratings: 0 worst to 1 best. One record is one source record
by one annotator; ranks of different records do not compare.
"""

from __future__ import annotations

import pyarrow as pa

from irpipe.pipeline.hashing import row_id
from irpipe.schemas.table import Column, Table

# ImageReward, appendix A.3 and B: per-image problems (stage 2) and prompt problems (stage 1).
PROBLEMS = (
    "repeated_generation",
    "body_problem",
    "too_blurred",
    "psychological_discomfort",
    "sexual",
    "violent",
    "defames_groups",
)
UNSAFE = ("sexual", "violent", "defames_groups", "personal_information")
SPLITS = ("train", "validation", "test")
RECORDS, CHOICES, PEOPLE = "annotations.jsonl", "preferences", "people.json"  # what an artifact of annotation files holds
ASPECTS = ("overall", "alignment", "fidelity")

_RANKING_ID = Column("ranking_id", pa.uint64(), "Id of the record: one source record by one annotator.")
_PROMPT_ID = Column("prompt_id", pa.uint64(), "Id of the prompt's text.")
_IMAGE_ID = Column("image_id", pa.uint64(), "Id of the image: of its prompt and the path it was given by.", distinct=True)

ANNOTATED_PROMPTS = Table(
    "annotated_prompts",
    "Prompts that somebody annotated.",
    (_PROMPT_ID, Column("prompt", pa.string(), "The text, cleaned.")),
)

ANNOTATION_IMAGES = Table(
    "annotation_images",
    "Images that somebody annotated.",
    (_IMAGE_ID, _PROMPT_ID, Column("path", pa.string(), "The path or name the source gives it by.")),
)

ANNOTATIONS = Table(
    "annotations",
    "One row per record.",
    (
        _RANKING_ID,
        _PROMPT_ID,
        Column("source_row", pa.int64(), "Where the record stands in the source, from 0."),
        Column("annotator", pa.string(), "Who made it, as the source names them.", nullable=True),
        Column("split", pa.string(), "train, validation or test, where the source says so.", nullable=True),
    ),
)

PROMPT_LABELS = Table(
    "prompt_labels",
    "What an annotator said of a prompt; one row per record that says anything.",
    (
        _RANKING_ID,
        _PROMPT_ID,
        Column("category", pa.string(), "What the prompt asks for (12 categories in ImageReward).", nullable=True),
        Column("intent_unclear", pa.bool_(), "Whether it is unclear what the prompt wants.", nullable=True),
        Column("unsafe", pa.list_(pa.string()), f"Which of {', '.join(UNSAFE)} the prompt is."),
    ),
)

RATINGS = Table(
    "ratings",
    "What an annotator said of an image; one row per rated image of a record.",
    (
        _RANKING_ID,
        _IMAGE_ID,
        *(Column(aspect, pa.float32(), f"{aspect} rating, 0 worst to 1 best.", nullable=True) for aspect in ASPECTS),
        Column("problems", pa.list_(pa.string()), f"Which of {', '.join(PROBLEMS)} it has."),
    ),
)

RANKINGS = Table(
    "rankings",
    "Raw votes: one row per ranked image of a record; the rows of a record stand together.",
    (
        _RANKING_ID,
        _PROMPT_ID,
        _IMAGE_ID,
        Column("rank", pa.int32(), "Lower is better; equal ranks tie; gaps mean nothing."),
        Column("annotator", pa.string(), "Who ranked, as the source names them.", nullable=True),
        Column("choice", pa.bool_(), "One image was chosen: equal ranks were not compared, rather than tied."),
    ),
)

CONTRADICTIONS = Table(
    "contradictions",
    "Pairs whose overall ratings say the opposite of their ranks. Reported, not repaired.",
    (
        _RANKING_ID,
        Column("better", pa.uint64(), "Image that the ranks put first.", distinct=True),
        Column("worse", pa.uint64(), "Image that the ranks put last.", distinct=True),
        Column("overall_better", pa.float32(), "Overall rating of the image that the ranks put first."),
        Column("overall_worse", pa.float32(), "Overall rating of the image that the ranks put last."),
    ),
)


def ranking_id(source: str, record: str, annotator: str | None) -> int:
    """Id of one source record by one annotator."""
    return row_id("ranking", source, record, annotator)


def image_id(prompt: int, path: str) -> int:
    """Id of an image from outside: of its prompt's id and the path it was given by."""
    return row_id("image", prompt, path)
