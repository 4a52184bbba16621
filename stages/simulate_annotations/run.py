"""The work of `simulate-annotations`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.microworld.annotators import MOST_PER_SLOT, SLOTS, Annotator, Impression, annotate, best_accuracy, crowd
from irpipe.microworld.choices import choice_bounds, choice_probabilities
from irpipe.microworld.grammar import parse, split_of
from irpipe.microworld.pictures import NotOfThisWorldError, verdict_on
from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import PEOPLE, RECORDS
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.rejected import Rejections
from irpipe.stages.simulate_annotations import SimulateAnnotationsConfig
from irpipe.stages.simulate_annotations.choices import choices_of, groups_of, record_of, write_choices

Impressions = dict[str, Impression]
"""The impressions of a prompt's images, by their paths."""

_BOUND_RECORDS = 20_000  # drawn for the Bayes bound, whose standard error is then below .2 %


def run(config: SimulateAnnotationsConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    selected = SELECTED_PROMPTS.read(inputs["selected-prompts"].table("selected_prompts"), ["prompt_id", "prompt"])
    prompts = dict(zip(selected["prompt_id"].to_pylist(), selected["prompt"].to_pylist(), strict=True))
    images = ImageReader(inputs["images"].table("images"))
    rejections = Rejections(config.max_rejected, "images")
    impressions = impressions_of(images, prompts, rejections, context)
    rejections.check(len(images), len(images) - len(rejections))
    people = crowd(config.annotators, config.noise, config.lean, np.random.default_rng([config.seed, 0]))
    write = write_picks if config.records == "choices" else write_rankings
    records, bounds = write(config, impressions, prompts, people, out)
    people_file = {"people": [asdict(person) for person in people], **bounds}
    (out / PEOPLE).write_text(json.dumps(people_file, indent=1) + "\n", encoding="utf-8")
    rejected = rejections.write(out)
    metrics = {
        "prompts": len(impressions),
        "records": records,
        **{name: round(value, 4) for name, value in bounds.items() if isinstance(value, float)},
        "rejected_for": rejections.counts(),
    }
    return Report(Rows(len(images), len(images) - rejected, rejected), metrics)


def write_rankings(
    config: SimulateAnnotationsConfig,
    impressions: Mapping[int, Impressions],
    prompts: Mapping[int, str],
    people: Sequence[Annotator],
    out: Path,
) -> tuple[int, dict[str, float]]:
    """Rankings and ratings of every prompt's images. Returns how many records there are, and the bound."""
    records = 0
    with (out / RECORDS).open("w", encoding="utf-8") as file:
        for identity, seen in impressions.items():
            for record in campaign(config, identity, prompts[identity], seen, people):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                records += 1
    bound, pairs = bayes_bound(list(impressions.values()), people, config.seed)
    return records, {"bayes_accuracy": bound, "bayes_pairs": pairs}


def write_picks(
    config: SimulateAnnotationsConfig,
    impressions: Mapping[int, Impressions],
    prompts: Mapping[int, str],
    people: Sequence[Annotator],
    out: Path,
) -> tuple[int, dict[str, float]]:
    """What people picked of groups of every prompt's images. Returns how many records there are, and the bounds."""
    records: dict[str, list[dict[str, Any]]] = {}
    chances = []
    for identity, seen in impressions.items():
        groups = groups_of(config, identity, list(seen))
        chances += [choice_probabilities(people, [seen[path] for path in group]) for group in groups]
        for group, person, choice in choices_of(config, identity, groups, seen, people):
            split, record = record_of(sum(map(len, records.values())), prompts[identity], group, person, choice)
            records.setdefault(split, []).append(record)
    write_choices(records, out)
    return sum(map(len, records.values())), asdict(choice_bounds(chances))


def impressions_of(
    images: ImageReader, prompts: Mapping[int, str], rejections: Rejections, context: Context
) -> dict[int, Impressions]:
    """The impressions of every image, by prompt. A ranking takes at least two images and at most ten."""
    impressions: dict[int, Impressions] = {}
    last_rows: dict[int, int] = {}
    with context.progress("looking at images", len(images), "images") as bar:
        for row, image in enumerate(images.rows(["prompt_id", "image", "fault"])):
            bar.advance(1)
            identity, cell = image["prompt_id"], image["image"]
            if image["fault"] is not None:
                rejections.drop(row, image["fault"])  # the stage that made it has limited such images
                continue
            if len(impressions.get(identity, ())) == SLOTS * MOST_PER_SLOT:
                rejections.drop(row, "more images than the slots hold")
                continue
            try:
                verdict = verdict_on(prompts.get(identity), cell["bytes"])
            except NotOfThisWorldError as error:
                rejections.refuse(row, "nobody can judge it", str(error))
                continue
            impressions.setdefault(identity, {})[cell["path"]] = Impression.of(verdict)
            last_rows[identity] = row
    for identity in [identity for identity, images in impressions.items() if len(images) < 2]:
        rejections.drop(last_rows[identity], "the only image of its prompt")
        del impressions[identity]
    return impressions


def campaign(
    config: SimulateAnnotationsConfig, prompt_id: int, prompt: str, impressions: Impressions, people: Sequence[Annotator]
) -> Iterator[dict[str, Any]]:
    """Every annotator's record of one prompt. Draws depend on the seed and the prompt only, not on the order of prompts."""
    rng = np.random.default_rng([config.seed, row_id("campaign", prompt_id)])
    name, paths = show_row_id(prompt_id), sorted(impressions)
    unclear = bool(rng.random() < config.unclear_share)
    for person in rng.choice(len(people), config.annotators_per_prompt, replace=False).tolist():
        yield {
            "ranking_id": name,
            "prompt_id": name,
            "prompt": prompt,
            "annotator": people[person].name,
            "images": paths,
            **annotate(
                people[person], [impressions[path] for path in paths], bool(rng.random() < config.contradiction_share), rng
            ),
            "labels": {"category": "Abstract", "intent_unclear": unclear, "unsafe": []},
            "split": split_of(parse(prompt)[0]),
        }


def bayes_bound(impressions: Sequence[Impressions], people: Sequence[Annotator], seed: int) -> tuple[float, int]:
    """The highest possible accuracy on pairs with these annotators and images, and the number of drawn pairs."""
    draws = max(1, _BOUND_RECORDS // max(1, len(impressions)))
    return best_accuracy([list(images.values()) for images in impressions], people, draws, np.random.default_rng([seed, 1]))
