"""A reward model as a folder for `load_reward_model`, and a model card."""

from __future__ import annotations

from pathlib import Path

from irpipe.exports.cards import Origin, figures, write_card
from irpipe.exports.kinds import is_reward_model, kind_of, refuse
from irpipe.exports.markup import code, fenced, joined, plain, table
from irpipe.exports.weights import copy_weights
from irpipe.models.plugins import format_of
from irpipe.pipeline.export import new_folder, write_lineage
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.store import Artifact, Store
from irpipe.schemas.reward_model import ScoreCard

_CURVES = "curves.png"


def export_reward_model(store: Store, record: Record, folder: Path, *, hidden: bool = False) -> None:
    """Export the best model of a training with its tokenizer and score card, and a model card.

    Raises:
        StoreError: the artifact is no reward model, its weights are pickled, or the folder exists already.
    """
    if not is_reward_model(kind_of(record)):
        raise refuse(store, record, "reward-model")
    artifact = store.open(record.content_id)
    card = ScoreCard.read(artifact.path)
    with new_folder(folder) as draft:
        copy_weights(artifact, draft, {name: name for name in files_of(artifact)})
        origin = Origin.of(store, record, hidden=hidden)
        write_lineage(origin.runs, draft)
        parts = (summary(folder.name, format_of(artifact.path)), scores(card), training(card), curves(draft))
        write_card(
            draft,
            {"library_name": "irpipe", "tags": ["irpipe", "reward-model", "human-preference"]},
            parts,
            origin,
        )


def files_of(artifact: Artifact) -> list[str]:
    """The best model: files at the artifact's top that are no tables. `--to files` also copies the last model and the curves."""
    names = [file.path for file in artifact.manifest.files]
    return [name for name in names if "/" not in name and not name.endswith(".parquet")]


def summary(folder: str, format_name: str | None) -> str:
    """The head of the card: the model, and how to load it."""
    lines = [
        "from irpipe.models.reward import load_reward_model",
        "from irpipe.models.scorers.base import score_pictures",
        "from irpipe.models.scorers.reward import RewardModelScorer",
        "",
        f'scorer = RewardModelScorer(load_reward_model({folder!a}), "cpu", torch.float32)',
        "# higher is better: scores of images (height, width, 3) uint8, each for its prompt",
        'scores = score_pictures(scorer, ["a prompt"] * len(images), images, normalised=True)',
    ]
    return joined(
        "# A reward model of human preference",
        f"It scores how much people would prefer an image for a prompt. Its format is {code(format_name or 'unknown')}.",
        fenced("python", "\n".join(["import torch", "", *lines])),
        fenced("sh", f'irpipe score --model {folder} --prompt "a prompt" images/'),
    ).rstrip()


def scores(card: ScoreCard) -> str:
    """The part on the meaning and normalisation of scores."""
    difference = "Differences of raw scores are log odds that people prefer the one image to the other." if card.log_odds else ""
    return joined(
        "## What its scores mean",
        f"{plain(card.meaning[:1].upper() + card.meaning[1:])}. A score is the raw one less the mean, {card.mean:.6g}, by the"
        f" standard deviation, {card.std:.6g}, of raw scores over {plain(card.normalised_on)}. {difference}",
    ).rstrip()


def training(card: ScoreCard) -> str:
    """The part on accuracy, other metrics and training data."""
    return joined(
        "## Figures",
        "Accuracy is the share of pairs whose better image scores higher, on prompts of the validation split, by which the"
        " best step was chosen; `irpipe run evaluate-rm` measures it on the test split.",
        table(("figure", "value"), figures(dict(card.metrics))),
        "## What it was trained on",
        "Inputs by content id, and the training's other notes:",
        table(("", ""), [(plain(name), code(value)) for name, value in card.trained_on.items()]),
    ).rstrip()


def curves(folder: Path) -> str:
    """The plot of the training, if it exists."""
    return f"![The course of the training]({_CURVES})" if (folder / _CURVES).is_file() else ""
