"""The work of `select-images`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.images import IMAGES, ImageReader, ImageShards
from irpipe.schemas.prompts import normalise
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.selected_images import ATTRIBUTE_COUNTS, IMAGE_ANSWERS, SELECTED_IMAGES
from irpipe.schemas.splits import prompts_table
from irpipe.stages.select_images import SelectImagesConfig
from irpipe.stages.select_images.answers import Answers, ask, read_labels
from irpipe.stages.select_images.questions import Kind, questions_of, quotas, weights_of


def run(config: SelectImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    reader, questions = ImageReader(inputs["images"].table("images")), questions_of(config.questions)
    if config.labels is None:
        answers, faults, strangers = *ask(config, reader, context), 0
    else:
        answers, faults, strangers = read_labels(context.sources["labels"][0], questions, reader)
    table = prompts_table(inputs)
    prompts = dict(zip(table["prompt_id"].to_pylist(), table["prompt"].to_pylist(), strict=True))
    prompt_of, unusable = read_images(reader, prompts)
    faults |= unusable
    rejections = Rejections(config.max_rejected, "images")
    for number, image in enumerate(reader.ids.tolist()):
        if image in faults:
            rejections.refuse(number, faults[image])
    rejections.check(len(reader), len(reader) - len(rejections))
    weights = weights_of(questions)
    kind_of = {image: tuple(answer for answer, _ in answers[image]) for image in prompt_of if image not in faults}
    text_of = {image: normalise(prompts[prompt_of[image]]) for image, kind in kind_of.items() if weights[kind]}
    test = test_images(text_of, config.test_prompts, config.seed)
    tested = {text_of[image] for image in test}
    pool = {image: kind_of[image] for image, text in text_of.items() if text not in tested}
    chosen = balanced(pool, weights, config.count, config.seed)
    if len(chosen) < config.count:
        context.say(f"  {config.count:,} images were asked for, and {len(chosen):,} can be chosen")
    for number, image in enumerate(reader.ids.tolist()):
        if image in kind_of and image not in chosen and image not in test:
            rejections.drop(number, why_not(image, text_of, tested))
    write(reader, prompt_of, prompts, test, chosen, out)
    names = [question.name for question in questions]
    write_answers(answers, names, out)
    write_counts(kind_of, names, test, chosen, out)
    rows = Rows(len(reader), len(chosen) + len(test), rejections.write(out))
    metrics = {"chosen": len(chosen), "test": len(test), "prompts": len({prompt_of[image] for image in chosen})}
    return Report(rows, metrics | {"labels_of_no_image": strangers, "rejected_for": rejections.counts()})


def read_images(reader: ImageReader, prompts: Container[int]) -> tuple[dict[int, int], dict[int, str]]:
    """The prompt of each image, and why some cannot be used, by id."""
    prompt_of: dict[int, int] = {}
    faults: dict[int, str] = {}
    for row in reader.rows(["prompt_id", "fault"]):
        prompt_of[row["image_id"]] = row["prompt_id"]
        if row["fault"] is not None or row["prompt_id"] not in prompts:
            faults[row["image_id"]] = row["fault"] or "its prompt is not known"
    return prompt_of, faults


def why_not(image: int, text_of: Mapping[int, str], tested: Container[str]) -> str:
    """Why a good image was not chosen."""
    if image not in text_of:
        return "its kind has the weight 0"
    return "another image of a test prompt" if text_of[image] in tested else "enough of its kind"


def test_images(text_of: Mapping[int, str], count: int, seed: int) -> set[int]:
    """One image of each of so many prompts, drawn by lot.

    Args:
        text_of: the normalised text of each image's prompt: prompts that are equal share a split.

    Raises:
        InputError: that leaves no prompt to choose images of.
    """
    texts = sorted(set(text_of.values()), key=lambda text: row_id("test prompt", seed, text))
    if count >= len(texts):
        raise InputError(
            f"{count:,} test prompts leave none of {len(texts):,} prompts to choose images of",
            fix=f"--set select-images.test_prompts={len(texts) // 10}",
        )
    wanted = set(texts[:count])
    first: dict[str, int] = {}
    for image in in_order(text_of, seed):
        if text_of[image] in wanted:
            first.setdefault(text_of[image], image)
    return set(first.values())


def balanced(kind_of: Mapping[int, Kind], weights: Mapping[Kind, float], count: int, seed: int) -> set[int]:
    """Images of each kind, in the ratio of their weights as far as there are so many, drawn by lot."""
    available = Counter(kind_of.values())
    left = quotas({kind: available[kind] for kind in weights if available[kind]}, weights, count)
    chosen = set()
    for image in in_order(kind_of, seed):
        if left[kind_of[image]]:
            left[kind_of[image]] -= 1
            chosen.add(image)
    return chosen


def in_order(images: Mapping[int, object], seed: int) -> list[int]:
    """Images in an order that is drawn by lot, and depends on nothing but their ids."""
    return sorted(images, key=lambda image: row_id("image to annotate", seed, image))


def write(
    reader: ImageReader,
    prompt_of: Mapping[int, int],
    prompts: Mapping[int, str],
    test: set[int],
    chosen: set[int],
    out: Path,
) -> None:
    """The tables `images` and `selected_images`, in the order of the images that were read."""
    kept = [image for image in reader.ids.tolist() if image in test or image in chosen]
    with ImageShards(out) as images:
        for row in reader.rows([column.name for column in IMAGES.columns], kept):
            images.append(dict(row))
    SELECTED_IMAGES.write(
        out,
        {
            "image_id": kept,
            "prompt_id": [prompt_of[image] for image in kept],
            "prompt": [prompts[prompt_of[image]] for image in kept],
            "split": ["test" if image in test else None for image in kept],
        },
    )


def write_answers(answers: Answers, names: Sequence[str], out: Path) -> None:
    """The table `image_answers`."""
    rows = [(image, name, *told) for image, of_image in answers.items() for name, told in zip(names, of_image, strict=True)]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in IMAGE_ANSWERS.columns]
    IMAGE_ANSWERS.write(out, {column.name: values for column, values in zip(IMAGE_ANSWERS.columns, columns, strict=True)})


def write_counts(kind_of: Mapping[int, Kind], names: Sequence[str], test: set[int], chosen: set[int], out: Path) -> None:
    """The table `attribute_counts`, and the same as text."""
    before, after, of_test = (Counter(kind_of[image] for image in some) for some in (kind_of, chosen, test))
    kinds = sorted(before)
    columns: dict[str, list[Any]] = {
        "answers": [", ".join(f"{name}: {answer}" for name, answer in zip(names, kind, strict=True)) for kind in kinds],
        "before": [before[kind] for kind in kinds],
        "chosen": [after[kind] for kind in kinds],
        "test": [of_test[kind] for kind in kinds],
    }
    ATTRIBUTE_COUNTS.write(out, columns)
    width = max(map(len, columns["answers"]))
    lines = [f"{'images':<{width}}{'before':>9}{'chosen':>9}{'test':>9}\n"]
    lines += [f"{text:<{width}}{one:>9,}{two:>9,}{three:>9,}\n" for text, one, two, three in zip(*columns.values(), strict=True)]
    (out / "report.txt").write_text("".join(lines), encoding="utf-8")
