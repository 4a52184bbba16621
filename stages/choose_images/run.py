"""The work of `choose-images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.tuning.choose import Chosen, best_and_worst, best_of_each, blindly, largest_alpha
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Context, Inputs, Report, Rows
from irpipe.schemas.chosen import CHOSEN_IMAGES, NON_PREFERRED, PREFERRED
from irpipe.schemas.rejected import Rejections
from irpipe.stages.choose_images import ChooseImagesConfig
from irpipe.stages.choose_images.read import ScoredImages, read_score_file, read_scored_images


@dataclass(frozen=True)
class Groups:
    """The prompts with enough images to choose from.

    Attributes:
        images: all of them.
        members: (images of the prompt,) indices into `images`, by prompt; scores: theirs.
        spread: the standard deviation of scores within a prompt, pooled over the prompts.
        temperature: what scores are divided by before the softmax.
    """

    images: ScoredImages
    members: list[NDArray[np.int64]]
    scores: list[NDArray[np.float64]]
    spread: float
    temperature: float

    def index(self, one: Chosen) -> int:
        """A chosen image's index among all."""
        return int(self.members[one.prompt][one.image])


def run(config: ChooseImagesConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    rejections = Rejections(config.max_rejected, "images" if config.path is None else "scores")
    if config.path is None:
        images = read_scored_images(config, inputs, rejections, context)
    else:
        images = read_score_file(context.sources["path"][0], rejections)
    groups = group(images, config)
    candidates = select(groups, config)
    chosen = without_some_bad(candidates, groups, config)
    if not chosen:
        raise nothing_chosen(groups, len(candidates), config)
    reject_others(candidates, chosen, groups, config, rejections)
    write_chosen(chosen, groups, out)
    rejected = rejections.write(out)
    metrics = figures(chosen, groups, config) | {"rejected_for": rejections.counts()}
    return Report(Rows(images.read, images.read - rejected, rejected), metrics)


def group(images: ScoredImages, config: ChooseImagesConfig) -> Groups:
    """Images by prompt, those prompts alone that have enough."""
    members = [one for one in images.members() if len(one) >= config.rule("min_images")]
    scores = [images.scores[one] for one in members]
    freedom = sum(len(row) - 1 for row in scores)
    spread = float(np.sqrt(sum(((row - row.mean()) ** 2).sum() for row in scores) / freedom)) if freedom else 0.0
    temperature = config.rule("temperature") or spread or 1.0
    return Groups(images, members, scores, spread, temperature)


def select(groups: Groups, config: ChooseImagesConfig) -> list[Chosen]:
    """The images that may be trained on."""
    if config.select == "best":
        return best_of_each(groups.scores, config.best, -np.inf if config.threshold is None else config.threshold)
    return best_and_worst(groups.scores, config.rule("alpha"), groups.temperature)


def without_some_bad(candidates: Sequence[Chosen], groups: Groups, config: ChooseImagesConfig) -> list[Chosen]:
    """The candidates but for some of the bad ones; `blindly` puts others of the same prompts in their places."""
    bad = [one for one in candidates if one.bad]
    share = config.rule("non_preferred_share")
    by_lot = sorted(bad, key=lambda one: row_id("non-preferred", config.seed, int(groups.images.rows[groups.index(one)])))
    left_out = set(by_lot[round(share * len(bad)) :])
    kept = [one for one in candidates if one not in left_out]
    return blindly(kept, groups.scores, config.seed) if config.select == "blindly" else kept


def nothing_chosen(groups: Groups, candidates: int, config: ChooseImagesConfig) -> StageError:
    """Why no image was chosen, and what would choose some.

    Args:
        candidates: how many stand out, all of which the lot left out.
    """
    what = f"none of {len(groups.images.rows):,} images was chosen"
    ours = "" if config.rules == "standardised" else "--set choose-images.rules=standardised "
    if not groups.members:
        most = int(np.bincount(groups.images.groups).max(initial=0))
        return StageError(
            f"{what}: no prompt has {config.rule('min_images')} of them, and none more than {most}",
            fix="more images per prompt" + (f", or {ours}--set choose-images.min_images={most}" if most > 1 else ""),
        )
    if candidates:
        return StageError(
            f"{what}: {candidates:,} stand out, all of them non-preferred, and non_preferred_share leaves none",
            fix="--set choose-images.non_preferred_share=1.0",
        )
    if config.select == "best":
        highest = max(float(row.max()) for row in groups.scores)
        return StageError(
            f"{what}: the highest score is {highest:.4g}, not above the threshold",
            fix=f"--set choose-images.threshold={highest - 0.01 * abs(highest):.6g}",
        )
    alpha = largest_alpha(groups.scores, groups.temperature)
    what = f"{what}: none stands out with alpha = {config.rule('alpha'):g}"
    if alpha <= 1:
        return StageError(f"{what}, and of no prompt do scores differ", fix="another choose-images.scorer")
    if ours:  # whose temperature is another: no alpha can be foretold
        return StageError(f"{what}, and some only below {alpha:.4g}", fix=ours.strip())
    return StageError(f"{what}, and some only below {alpha:.4g}", fix=f"--set choose-images.alpha={max(1.0, alpha * 0.99):.3g}")


def reject_others(
    candidates: Sequence[Chosen], chosen: Sequence[Chosen], groups: Groups, config: ChooseImagesConfig, rejections: Rejections
) -> None:
    """Drop every image that is not trained on, with the reason."""
    kept = {groups.index(one) for one in chosen}
    of_lot = {groups.index(one) for one in candidates} - kept if config.select != "blindly" else set()
    large = np.zeros(len(groups.images.rows), dtype=bool)
    large[np.concatenate(groups.members)] = True
    for index, row in enumerate(groups.images.lines.tolist()):
        if index in kept:
            continue
        few = f"fewer than {config.rule('min_images')} images of its prompt"
        rejections.drop(row, few if not large[index] else "left out by lot" if index in of_lot else "not chosen")


def write_chosen(chosen: Sequence[Chosen], groups: Groups, out: Path) -> None:
    """The table `chosen_images`."""
    images = groups.images
    indices = np.array([groups.index(one) for one in chosen])
    of_prompt = images.groups[indices]
    columns = {
        "source_row": images.rows[indices],
        "image_id": [None] * len(chosen) if images.image_ids is None else images.image_ids[indices],
        "prompt_id": images.prompt_ids[of_prompt],
        "prompt": [images.texts[prompt] for prompt in of_prompt.tolist()],
        "kind": [NON_PREFERRED if one.bad else PREFERRED for one in chosen],
        "score": images.scores[indices],
        "confidence": [one.confidence for one in chosen],
        "group_size": [len(groups.members[one.prompt]) for one in chosen],
    }
    CHOSEN_IMAGES.write(out, columns)


def figures(chosen: Sequence[Chosen], groups: Groups, config: ChooseImagesConfig) -> dict[str, Any]:
    """What was chosen of how much, and what its scores are beside the mean of the same prompts."""
    metrics: dict[str, Any] = {
        "prompts": len(groups.members),
        "images": int(sum(map(len, groups.members))),
        "spread_within_prompts": round(groups.spread, 4),
        "temperature": round(groups.temperature, 4),
        "annotated_prompts": "not known" if config.path else {"leave-out": "left out", "use": "used"}[config.annotated_prompts],
    }
    for kind, bad in ((PREFERRED, False), (NON_PREFERRED, True)):
        those = [one for one in chosen if one.bad == bad]
        metrics[kind] = len(those)
        metrics[f"share_of_prompts_{kind}"] = round(len({one.prompt for one in those}) / max(1, len(groups.members)), 4)
        if those:
            above = [groups.scores[one.prompt][one.image] - groups.scores[one.prompt].mean() for one in those]
            metrics[f"score_above_mean_{kind}"] = round(float(np.mean(above)), 4)
    return metrics
