"""Commands that use a trained model without a recipe: score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from irpipe.cli.common import JsonOption, find, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def score(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files, or folders of them.")],
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A folder that train-rm wrote, a published ImageReward.pt, an artifact's id, or train-rm.",
        ),
    ],
    prompt: Annotated[
        list[str], typer.Option("--prompt", metavar="TEXT", help="What the images should show. May be given often.")
    ],
    device: Annotated[str, typer.Option("--device", help="Where it runs: auto, cpu, cuda, mps.")] = "auto",
    json_: JsonOption = False,
) -> None:
    """Score images for a prompt with a reward model: higher is better; scores of different prompts do not compare.

    Example: irpipe score --model train-rm --prompt "a red circle" images/ --json
    """
    from irpipe.pipeline.errors import ModelError

    try:
        from irpipe.models.imagereward import ImageReward
        from irpipe.models.loading import device_errors, pick_device
    except ModuleNotFoundError as error:
        raise ModelError(f"scoring needs the package {error.name}", fix="pip install 'irpipe[train]'") from None

    files = image_files(images)
    judge = ImageReward.from_pretrained(locate(model))
    with device_errors(pick_device(device)):
        judge.to(pick_device(device))
    rows = [row for text in prompt for row in scored(judge, text, files)]
    if json_:
        card = judge.card
        print_json(
            {"scores": rows, "mean": card.mean, "std": card.std, "normalised_on": card.normalised_on, "meaning": card.meaning}
        )
        return
    print_table(
        ("rank", "score", "raw", "image", "prompt"),
        [
            (row["rank"], f"{row['score']:.4f}", f"{row['raw']:.4f}", row["image"], row["prompt"])
            for row in sorted(rows, key=lambda row: (prompt.index(row["prompt"]), row["rank"]))
        ],
    )


def locate(model: str) -> Path:
    """The files of a model that a person names by a path, an id or a stage."""
    path = Path(model)
    if path.exists() or "/" in model:
        return path
    _, store, record = find(model)
    return store.object_path(record.content_id)


def image_files(given: Sequence[Path]) -> list[Path]:
    """Image files, those of folders by name.

    Raises:
        InputError: there is none.
    """
    from irpipe.pipeline.errors import InputError

    files: list[Path] = []
    for path in given:
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in _SUFFIXES)
            if not found:
                raise InputError(f"{path} holds no images", where=str(path), expected=", ".join(_SUFFIXES))
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise InputError(f"{path} does not exist", where=str(path))
    return files


def scored(judge: Any, prompt: str, files: Sequence[Path]) -> list[dict[str, Any]]:
    """Score, raw score and rank of every image for one prompt, in the order given.

    Raises:
        InputError: a file is no image.
    """
    import sys

    from irpipe.models.pictures import decode
    from irpipe.pipeline.errors import InputError
    from irpipe.pipeline.progress import watcher_for

    scores: list[float] = []
    watcher = watcher_for(json_lines=False, quiet=not sys.stderr.isatty())
    with watcher.progress("scoring", len(files), "images") as bar:
        for start in range(0, len(files), 32):
            pictures = []
            for file in files[start : start + 32]:
                try:
                    pictures.append(decode(file.read_bytes()))
                except InputError as error:
                    raise InputError(error.what, where=str(file)) from None
            scores += judge.score(prompt, pictures)
            bar.advance(len(pictures))
    order = sorted(range(len(files)), key=lambda place: -scores[place])
    ranks = {place: rank for rank, place in enumerate(order, 1)}
    return [
        {
            "image": str(file),
            "prompt": prompt,
            "score": scores[place],
            "raw": scores[place] * judge.card.std + judge.card.mean,
            "rank": ranks[place],
        }
        for place, file in enumerate(files)
    ]


COMMANDS = (score,)
