"""Simulated choices, in the files of HPS v1: which of 4, 3 or 2 images of a prompt somebody picked."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.microworld.annotators import Annotator, Impression
from irpipe.microworld.choices import group_sizes, pick
from irpipe.microworld.grammar import parse, split_of
from irpipe.pipeline.hashing import row_id
from irpipe.schemas.annotations import CHOICES, SPLITS
from irpipe.stages.simulate_annotations import SimulateAnnotationsConfig


def groups_of(config: SimulateAnnotationsConfig, prompt_id: int, paths: Sequence[str]) -> list[list[str]]:
    """The groups that a prompt's images are shown in. Draws depend on the seed and the prompt only."""
    rng = np.random.default_rng([config.seed, row_id("groups", prompt_id)])
    order = [sorted(paths)[place] for place in rng.permutation(len(paths))]
    groups, start = [], 0
    for size in group_sizes(len(order), rng):
        groups.append(order[start : start + size])
        start += size
    return groups


def choices_of(
    config: SimulateAnnotationsConfig,
    prompt_id: int,
    groups: Sequence[Sequence[str]],
    impressions: Mapping[str, Impression],
    people: Sequence[Annotator],
) -> Iterator[tuple[Sequence[str], str, int]]:
    """Who picked which image of each group: the group, the person, and the index of the image."""
    rng = np.random.default_rng([config.seed, row_id("choices", prompt_id)])
    for group in groups:
        for person in rng.choice(len(people), config.annotators_per_prompt, replace=False).tolist():
            yield group, people[person].name, pick(people[person], [impressions[path] for path in group], rng)


def write_choices(records: Mapping[str, Sequence[dict[str, Any]]], out: Path) -> None:
    """HPS's files, `preferences/preference_train.json` and so on, of records by split."""
    (out / CHOICES).mkdir()
    for split in (split for split in SPLITS if records.get(split)):
        path = out / CHOICES / f"preference_{split}.json"
        path.write_text(json.dumps(records[split], ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def record_of(number: int, prompt: str, group: Sequence[str], person: str, choice: int) -> tuple[str, dict[str, Any]]:
    """A record of HPS's files, and the split it belongs to."""
    record = {
        "human_preference": choice,
        "prompt": prompt,
        "id": number,
        "file_path": list(group),
        "user_hash": person,
        "contain_name": False,
    }
    return split_of(parse(prompt)[0]), record
