"""The work of `compare-generators`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from irpipe.microworld.pictures import NotOfThisWorldError, verdict_on
from irpipe.models.loading import pick_device
from irpipe.models.reward.base import only_reward_model
from irpipe.models.scorers.base import Scorer, score_pictures
from irpipe.models.scorers.make import load_reward_models, make_scorers
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.tuning.plots import draw_columns
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.comparison import COMPARISON, WORTHS, main_judge
from irpipe.schemas.generator import GeneratorCard
from irpipe.schemas.images import ImageShards, encoded_row
from irpipe.schemas.prompt_files import prompts_of
from irpipe.schemas.prompts import prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.schemas.splits import read_splits
from irpipe.stages.compare_generators import CompareGeneratorsConfig
from irpipe.stages.compare_generators.drawing import Images, Source, draw, sources_of, tell_cost
from irpipe.stages.compare_generators.table import BASE, COLUMNS, Worths, compare, differences, differences_text, table_4

_SIDE_BY_SIDE = 12


@dataclass(frozen=True)
class Made:
    """A generator's images.

    Attributes:
        pictures: (prompts * images_per_prompt, height, width, 3) uint8, a prompt's together.
        blackened: (the same,) whether a safety checker did.
        cost: images that had to be made.
    """

    pictures: NDArray[np.uint8]
    blackened: NDArray[np.bool_]
    cost: int


def run(config: CompareGeneratorsConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    prompts = read_prompts(config, inputs, context)
    generators = inputs.all("generator")
    cards: dict[str, GeneratorCard] = {node: check_base(node, artifact, context) for node, artifact in generators.items()}
    sources = sources_of(cards, {node: artifact.path for node, artifact in generators.items()}, config)
    reward_models = load_reward_models(inputs, context.models)
    if (config.best_of or config.score_guidance.scales) and config.reward_model is None:
        only_reward_model(inputs)
    tell_cost(config, sources, inputs, context)
    made = make_all(config, prompts, sources, inputs, context, reward_models)
    rejections = Rejections(0.2, "test prompts")
    kept = refuse_blackened(prompts, made, config.images_per_prompt, rejections)
    judges = make_scorers(config.scorers, context.models, reward_models, device=config.device, dtype="float32", seed=config.seed)
    worths = judge_all(judges, config, kept, made, context)
    rows = compare(worths, {name: of.cost for name, of in made.items()}, config.bootstrap, config.seed)
    rejections.check(len(prompts), len(kept))
    COMPARISON.write(out, {column.name: [row[column.name] for row in rows] for column in COMPARISON.columns})
    write_images(worths, kept, made, config.images_per_prompt, out)
    others = differences(worths, pairs_of(sources), config.bootstrap, config.seed)
    report = table_4(rows, len(kept), config) + differences_text(others)
    (out / "report.txt").write_text(report, encoding="utf-8")
    shown = list(kept.items())[:_SIDE_BY_SIDE]
    columns = [[of.pictures[place * config.images_per_prompt] for of in made.values()] for place, _ in shown]
    judge = main_judge(worths)
    scores = {judge: np.stack([worths[judge][name][: len(shown), 0] for name in made], axis=1)}
    draw_columns(columns, list(made), [text for _, (_, text) in shown], out / "side_by_side.png", scores)
    return Report(Rows(len(prompts), len(kept), rejections.write(out)), figures(rows, others))


def read_prompts(config: CompareGeneratorsConfig, inputs: Mapping[str, Artifact], context: Context) -> list[tuple[int, str]]:
    """Id and text of the evaluation prompts.

    Raises:
        InputError: there are none.
    """
    if config.prompts is not None:
        texts = dict.fromkeys(text.strip() for text in prompts_of(context.sources["prompts"][0]) if text.strip())
        found = [(prompt_id(text), text) for text in texts]
    else:
        found = list(read_splits(inputs["splits"])["test"].items())
    if len(found) < 2:
        raise InputError(
            f"there are {len(found)} evaluation prompts",
            where="prompts",
            expected="at least 2",
            fix="--set split-prompts.test_share=0.1, more selected prompts, or --set compare-generators.prompts=FILE",
        )
    return found


def check_base(node: str, artifact: Artifact, context: Context) -> GeneratorCard:
    """The card of a tuned generator.

    Raises:
        InputError: it was tuned from another model than the one it is held against.
    """
    card, base = GeneratorCard.read(artifact.path), context.models["model"][0]
    if card.revision != base.revision:
        raise InputError(
            f"{node} tuned {card.base}, and the base here is {base.name}",
            where=artifact.content_id[:12],
            fix=f"set compare-generators.model to what {node} was tuned from (irpipe show {node})",
        )
    return card


def make_all(
    config: CompareGeneratorsConfig,
    prompts: Sequence[tuple[int, str]],
    sources: Mapping[str, Source],
    inputs: Inputs,
    context: Context,
    reward_models: Mapping[str, Any],
) -> dict[str, Made]:
    """Every generator's images."""
    for name, source in sources.items():
        if source.negative_prompt and config.guidance_scale <= 1:
            context.say(f"  {name} has the negative prompt {source.negative_prompt!r}, which without guidance steers nothing")
    pools, others = draw(config, prompts, max(config.best_of, default=1), sources, inputs, context)
    count = len(prompts) * config.images_per_prompt
    made = {BASE: Made(*pools[0], count)}
    for n in config.best_of:
        made[f"best-of-{n}"] = best_of(pools[:n], prompts, config, next(iter(reward_models.values())))
    return made | {name: Made(*images, count) for name, images in others.items()}


def best_of(
    pools: Sequence[Images],
    prompts: Sequence[tuple[int, str]],
    config: CompareGeneratorsConfig,
    reward: Any,
) -> Made:
    """For each image the best of n by the reward model."""
    texts = [text for _, text in prompts for _ in range(config.images_per_prompt)]
    judge = RewardModelScorer(reward, pick_device(config.device), torch.float32)
    scores = np.stack([score_pictures(judge, texts, list(pictures)) for pictures, _ in pools])
    scores[np.stack([black for _, black in pools])] = -np.inf
    chosen = scores.argmax(axis=0)
    places = np.arange(len(chosen))
    pictures, black = np.stack([one for one, _ in pools]), np.stack([one for _, one in pools])
    return Made(pictures[chosen, places], black[chosen, places], len(chosen) * len(pools))


def refuse_blackened(
    prompts: Sequence[tuple[int, str]], made: Mapping[str, Made], each: int, rejections: Rejections
) -> dict[int, tuple[int, str]]:
    """Prompts by place, but for those of which some generator's image was blackened: all are compared on the same."""
    kept = {}
    for place, (identity, text) in enumerate(prompts):
        guilty = [name for name, of in made.items() if of.blackened[place * each : (place + 1) * each].any()]
        if guilty:
            rejections.refuse(place, "blackened", f"{guilty[0]}, {show_row_id(identity)}")
        else:
            kept[place] = (identity, text)
    return kept


def judge_all(
    judges: Mapping[str, Scorer],
    config: CompareGeneratorsConfig,
    kept: Mapping[int, tuple[int, str]],
    made: Mapping[str, Made],
    context: Context,
) -> Worths:
    """What every judge says, (prompts, images_per_prompt), by judge and generator."""
    each = config.images_per_prompt
    rows = [place * each + turn for place in kept for turn in range(each)]
    texts = [text for _, text in kept.values() for _ in range(each)]
    names = [*judges, *(COLUMNS if config.truth else ())]
    worths: Worths = {name: {} for name in names}
    with context.progress("judging", len(rows) * len(made) * len(judges), "images") as bar:
        for generator, of in made.items():
            pictures = list(of.pictures[rows])
            for name, judge in judges.items():
                worths[name][generator] = score_pictures(judge, texts, pictures, normalised=True).reshape(-1, each)
                bar.advance(len(rows))
            if config.truth:
                truth = np.array([truth_of(text, picture) for text, picture in zip(texts, pictures, strict=True)])
                for column, name in enumerate(COLUMNS):
                    worths[name][generator] = truth[:, column].reshape(-1, each)
    return worths


def truth_of(prompt: str, picture: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Utility, alignment and fidelity.

    Raises:
        InputError: the prompt or the picture is not of the micro world.
    """
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    try:
        verdict = verdict_on(prompt, buffer.getvalue())
    except NotOfThisWorldError as error:
        raise InputError(f"the oracle has no verdict: {error}", fix="--set compare-generators.truth=false") from None
    return verdict.utility, verdict.alignment, verdict.fidelity


def write_images(worths: Worths, kept: Mapping[int, tuple[int, str]], made: Mapping[str, Made], each: int, out: Path) -> None:
    """The tables `images` and `worths`."""
    ids: dict[str, list[int]] = {}
    with ImageShards(out) as shards:
        for generator, of in made.items():
            for place, (identity, _) in kept.items():
                for turn in range(each):
                    path = f"{show_row_id(identity)}/{generator}-{turn}.png"
                    row = encoded_row(of.pictures[place * each + turn], identity, path, generator=generator)
                    ids.setdefault(generator, []).append(row["image_id"])
                    shards.append(row)
    columns: dict[str, list[Any]] = {column.name: [] for column in WORTHS.columns}
    for judge, by_generator in worths.items():
        for generator, found in by_generator.items():
            columns["judge"] += [judge] * found.size
            columns["generator"] += [generator] * found.size
            columns["prompt_id"] += [identity for identity, _ in kept.values() for _ in range(each)]
            columns["turn"] += list(range(each)) * len(kept)
            columns["image_id"] += ids[generator]
            columns["worth"] += found.ravel().tolist()
    WORTHS.write(out, columns)


def pairs_of(sources: Mapping[str, Source]) -> list[tuple[str, str]]:
    """Which rows tell what a negative prompt does: with it over without, over the base with it, and marked over not marked."""
    marked = [name for name in sources if f"{BASE}-as-{name}" in sources]
    return [
        pair
        for name in marked
        for pair in ((name, f"{name}-plain"), (name, f"{BASE}-as-{name}"), (f"{name}-marked", f"{name}-plain"))
    ]


def figures(rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What people want to see first: gains over the base, and over other rows, with their intervals."""
    more = {
        f"{row['judge']} of {row['generator']} over {row['other']}": (
            f"{row['gain']:+.4f} ({row['low']:+.4f} to {row['high']:+.4f})"
        )
        for row in others
    }
    return more | {
        f"{row['judge']} of {row['generator']}": f"{row['gain']:+.4f} ({row['gain_low']:+.4f} to {row['gain_high']:+.4f})"
        for row in rows
        if row["generator"] != BASE
    }
