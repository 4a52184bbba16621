"""Images that were chosen to be annotated, and by what."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table

SELECTED_IMAGES = Table(
    "selected_images",
    "The images that were chosen.",
    (
        Column("image_id", pa.uint64(), "Id of the image.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("prompt", pa.string(), "The text."),
        Column("split", pa.string(), "test for the one image of a test prompt; null: split-prompts cuts.", nullable=True),
    ),
)
IMAGE_ANSWERS = Table(
    "image_answers",
    "What a model, or a table of labels, says of all images, those that were not chosen too.",
    (
        Column("image_id", pa.uint64(), "Id of the image."),
        Column("attribute", pa.string(), "The question's name."),
        Column("answer", pa.string(), "One of its answers."),
        Column("share", pa.float32(), "How likely it is among the answers; null where it was a label.", nullable=True),
    ),
)
ATTRIBUTE_COUNTS = Table(
    "attribute_counts",
    "Images by their answers, before and after the choice.",
    (
        Column("answers", pa.string(), "An answer to each question.", distinct=True),
        Column("before", pa.int64(), "Images with these answers."),
        Column("chosen", pa.int64(), "Of them those that were chosen, without the test prompts'."),
        Column("test", pa.int64(), "Of them those of test prompts."),
    ),
)
