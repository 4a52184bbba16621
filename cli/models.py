"""Commands that use a trained model without a recipe: score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irpipe.cli.common import JsonOption, find, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from irpipe.pipeline.stage import Model

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The scorer's model: a folder, a published ImageReward.pt, a shipped model's name, hub-id@revision, or, for"
        " reward models, an artifact's id or a stage such as train-rm.",
    ),
]


def score(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    prompt: Annotated[
        list[str], typer.Option("--prompt", metavar="TEXT", help="The prompt that the images are scored for. May be repeated.")
    ],
    model: ModelOption = None,
    scorer: Annotated[
        str,
        typer.Option(
            "--scorer", metavar="NAME", help="The scorer: reward-model, clip, blip, aesthetic, or one that a package declares."
        ),
    ] = "reward-model",
    aspect: Annotated[
        str | None,
        typer.Option("--aspect", metavar="NAME", help="Which score of a RAHF: plausibility, alignment, aesthetics or overall."),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="Where it runs: auto, cpu, cuda, mps.")] = "auto",
    json_: JsonOption = False,
) -> None:
    """Score images for a prompt with a reward model or another scorer. Higher is better, within one prompt.

    Example: irpipe score --model train-rm --prompt "a red circle" images/ --json
    """
    from irpipe.pipeline.errors import ModelError

    try:
        from irpipe.models.scorers.base import score_pictures  # noqa: F401 # whether the extra is installed
    except ModuleNotFoundError as error:
        raise ModelError(f"scoring needs the package {error.name}", fix="pip install 'irpipe[train]'") from None

    files = image_files(images)
    loaded_scorer = open_scorer(scorer, model, device, aspect)
    rows = [row for text in prompt for row in scored(loaded_scorer, text, files)]
    if json_:
        print_json({"scorer": scorer, "scores": rows, **_meaning(loaded_scorer.card)})
    else:
        rows.sort(key=lambda row: (prompt.index(row["prompt"]), row["rank"]))
        cells = [(row["rank"], f"{row['score']:.4f}", f"{row['raw']:.4f}", row["image"], row["prompt"]) for row in rows]
        print_table(("rank", "score", "raw", "image", "prompt"), cells)


def _meaning(card: Any) -> dict[str, Any]:
    """The meaning of normalised scores, from a scorer's card; empty without one."""
    names = ("mean", "std", "normalised_on", "meaning")
    return {name: getattr(card, name) for name in names} if card is not None else {}


def open_scorer(name: str, model: str | None, device: str, aspect: str | None = None) -> Any:
    """A scorer with a model.

    Raises:
        ModelError: it needs a model, and none was given; or it has no such aspect.
    """
    from irpipe.models.plugins import OWN_SCORERS
    from irpipe.models.reward.base import load_given, of_aspect
    from irpipe.models.scorers.make import REWARD_MODEL, make_scorers
    from irpipe.pipeline.errors import ModelError

    if model is None and name in OWN_SCORERS:
        raise ModelError(f"the scorer {name} needs a model", fix="--model FOLDER")
    models = [locate(model)] if model is not None else []
    if aspect is not None and name != REWARD_MODEL:
        raise ModelError(f"the scorer {name} has one score", fix="leave out --aspect")
    rewards = {REWARD_MODEL: of_aspect(load_given(models[0]), aspect)} if name == REWARD_MODEL else {}
    model_settings = dict.fromkeys(("clip_model", "blip_model", "aesthetic_model"), models)
    return make_scorers([name], model_settings, rewards, device=device, dtype="float32", seed=0)[name]


def locate(model: str) -> Model:
    """A model by a path, a shipped name, a hub id with its revision, an artifact's id or a node's name."""
    from irpipe.pipeline.external import shipped_folder
    from irpipe.pipeline.registry import MODELS, declared
    from irpipe.pipeline.stage import Model

    path = Path(model)
    if path.exists():
        return Model(model, "", path)
    if model in declared(MODELS):
        return Model(model, "", shipped_folder(model))
    name, at, revision = model.partition("@")
    if at:
        return Model(name, revision, None)
    if "/" in model:
        return Model(model, "", path)  # a path that does not exist: loading it raises the error
    _, store, record = find(model)
    return Model(record.node, record.content_id, store.object_path(record.content_id))


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Image files, those of folders by name.

    Raises:
        InputError: there is none.
    """
    from irpipe.pipeline.errors import InputError
    from irpipe.schemas.discovery import files_below

    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            images = files_below(path, _SUFFIXES)
            if not images:
                raise InputError(f"{path} holds no images", where=str(path), expected=", ".join(_SUFFIXES))
            files += images
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist", where=str(path))
    return files


def scored(scorer: Any, prompt: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Score, raw score and rank of every image for one prompt, in the order given.

    Raises:
        InputError: a file is no image.
    """
    import sys

    import numpy as np

    from irpipe.models.pictures import decode
    from irpipe.models.scorers.base import normalised_scores, score_pictures
    from irpipe.pipeline.errors import InputError
    from irpipe.pipeline.memory import memory_errors
    from irpipe.pipeline.progress import watcher_for

    raw: list[float] = []
    watcher = watcher_for(json_lines=False, quiet=not sys.stderr.isatty())
    with watcher.progress("scoring", len(files), "images") as bar:
        for start in range(0, len(files), 32):
            pictures = []
            for file in files[start : start + 32]:
                try:
                    pictures.append(np.asarray(decode(file.read_bytes()).convert("RGB")))
                except InputError as error:
                    raise InputError(error.what, where=str(file)) from None
            with memory_errors(f"{len(pictures)} images at a time", "--device cpu"):
                raw += score_pictures(scorer, [prompt] * len(pictures), pictures).tolist()
            bar.advance(len(pictures))
    scores = normalised_scores(scorer, np.array(raw)).tolist()
    order = sorted(range(len(files)), key=lambda index: -scores[index])
    ranks = {index: rank for rank, index in enumerate(order, 1)}
    return [
        {"image": str(file), "prompt": prompt, "score": scores[index], "raw": raw[index], "rank": ranks[index]}
        for index, file in enumerate(files)
    ]


COMMANDS = (score,)
