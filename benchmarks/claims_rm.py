"""`make claims-rm`: what is claimed of reward models, measured in the micro world against the oracle. About an hour on two cores.

Every run is an artifact of one store, so that what was interrupted goes on and what is there is not made again:

    python -m benchmarks.claims_rm claims             # all of it
    python -m benchmarks.claims_rm claims --only size # one part: size, frozen, noise or ingredients

Prompts are held out from everything: the parts of the micro world are its grammar's, and neither generator nor BLIP ever saw a
scene of validation or test. Each figure is of the test split, with its Bayes bound beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from irpipe.pipeline.recipe import RECIPE_FILE
from irpipe.pipeline.recipe_file import shipped_recipe

PROMPTS, POOL = 2000, 10_000
SEEDS = (1, 2, 3)
SIZES = (200, 400, 800, 0)  # training prompts; 0 is all of them
NOISES = (0.05, 0.2)  # besides the recipe's 0.1
# Every prompt is ranked by all eight people: labels cost nothing here, and a step costs by the image, not by the pair.
SETTINGS = (
    "simulate-annotations.annotators_per_prompt=8",
    "train-rm.batch_pairs=1024",
    "train-rm.optimizer.learning_rate=1e-3",
    "train-rm.epochs=6",
    "train-rm.noise_std=0.1",
    "train-rm.optimizer.ema_decay=0.997",
    "train-rm.freeze_rate=0.0",
    "score-images.split=test",
    "score-images.scorers=['reward-model','random']",
)
INGREDIENTS_SIZE = "train-rm.max_prompts=400"
INGREDIENTS = {
    "everything": (),
    "head: random instead of itm": ("train-rm.head=random",),
    "head: as published": ("train-rm.head=published", "train-rm.collapse_after=0"),
    "head: itm, scale not fitted": ("train-rm.fit_scale=false",),
    "no augmentation": ("train-rm.random_shift=0", "train-rm.horizontal_flip=false", "train-rm.noise_std=0.0"),
    "no shift": ("train-rm.random_shift=0",),
    "no flip": ("train-rm.horizontal_flip=false",),
    "no noise": ("train-rm.noise_std=0.0",),
    "no EMA": ("train-rm.optimizer.ema_decay=0.0",),
    "two people per prompt": ("simulate-annotations.annotators_per_prompt=2", "train-rm.batch_pairs=256"),
    "lower layers frozen, 0.7 as published": ("train-rm.freeze_rate=0.7",),
    "the published learning rate, 1e-5": ("train-rm.optimizer.learning_rate=1e-5", "train-rm.collapse_after=0"),
}


def main() -> None:
    """Run what is missing, and write `claims.json`, `claims.md` and plots."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims_rm", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("size", "frozen", "noise", "ingredients"), action="append")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="annotated prompts, to try it with fewer")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="seeds of each point")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    prepare(given.folder, given.prompts)
    found = []
    for part, name, seed, settings in points(SEEDS[: given.seeds]):
        if given.only is None or part in given.only:
            found.append({"part": part, "name": name, "seed": seed, **measure(given.folder, seed, settings)})
            told = found[-1]
            print(f"{part:<12} {name:<40} seed {seed}: {told['accuracy']:.4f}, {told['share']:.0%} of the way", flush=True)
    (given.folder / "claims.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = "".join(
        table(part, [row for row in found if row["part"] == part]) for part in dict.fromkeys(row["part"] for row in found)
    )
    (given.folder / "claims.md").write_text(text, encoding="utf-8")
    draw(found, given.folder / "claims.png")
    print(text)


def prepare(folder: Path, prompts: int) -> None:
    """The micro recipe, with more prompts."""
    text = shipped_recipe("micro")
    for shipped, wanted in (("\ncount = 2000\n", f"\ncount = {POOL}\n"), ("\ncount = 300\n", f"\ncount = {prompts}\n")):
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, wanted)
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")


def points(seeds: Sequence[int]) -> Iterator[tuple[str, str, int, tuple[str, ...]]]:
    """Part, name, seed and settings of every run."""
    for seed in seeds:
        for size in SIZES:
            yield "size", str(size or "all"), seed, (f"train-rm.max_prompts={size}",) if size else ()
    for seed in seeds:
        yield "frozen", "all", seed, ("train-rm.freeze_rate=0.7",)
    for seed in seeds[:1]:
        for noise in NOISES:
            yield "noise", str(noise), seed, (f"simulate-annotations.noise={noise}",)
    for name, settings in INGREDIENTS.items():
        for seed in seeds if name == "everything" else seeds[:1]:
            yield "ingredients", name, seed, (INGREDIENTS_SIZE, *settings)


def measure(folder: Path, seed: int, settings: Sequence[str]) -> dict[str, Any]:
    """Train and evaluate under some settings."""
    laid = (*SETTINGS, *settings, f"train-rm.training.seed={seed}")
    flags = [part for setting in laid for part in ("--set", setting)]
    events = irpipe(folder, "run", "evaluate-rm", "--json", *flags)
    done = json.loads(events.splitlines()[-1])
    metrics = done["metrics"]
    scorers = pq.read_table(Path(done["path"]) / "scorers.parquet").to_pylist()
    picks = pq.read_table(Path(done["path"]) / "best_of.parquet").to_pylist()
    (row,) = (row for row in scorers if row["scorer"] == "reward-model" and row["figure"] == "accuracy")
    return {
        "accuracy": row["value"],
        "low": row["low"],
        "high": row["high"],
        "pairs": row["count"],
        "bound": metrics["bayes_bound"],
        "share": metrics["share_of_the_way"],
        "others": {name.removeprefix("accuracy_"): value for name, value in metrics.items() if name.startswith("accuracy_")},
        "best_of": {f"{pick['scorer']} {pick['n']}": pick["utility"] for pick in picks},
    }


def irpipe(folder: Path, *arguments: str) -> str:
    """What a command printed."""
    command = [sys.executable, "-m", "irpipe.cli", *arguments]
    return subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout


def table(part: str, rows: Sequence[dict[str, Any]]) -> str:
    """A part as Markdown: means over seeds, and the spread over seeds."""
    text = f"\n{part}\n\n| {part} | accuracy | seeds from, to | Bayes bound | of the way | seeds |\n|---|---|---|---|---|---|\n"
    for name in dict.fromkeys(row["name"] for row in rows):
        of = [row for row in rows if row["name"] == name]
        accuracy = [row["accuracy"] for row in of]
        text += (
            f"| {name} | {np.mean(accuracy):.4f} | {min(accuracy):.4f}, {max(accuracy):.4f}"
            f" | {np.mean([row['bound'] for row in of]):.4f}"
            f" | {np.mean([row['share'] for row in of]):.0%} | {len(of)} |\n"
        )
    first = rows[-1]
    interval = f"{first['low']:.3f} to {first['high']:.3f}"
    return text + f"\n{first['pairs']:,} test pairs; one run's 95 % interval over prompts is about {interval}.\n"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy over training prompts and over label noise, with the bound."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, part in zip(figure.subplots(1, 2), ("size", "noise"), strict=True):
        of = [row for row in rows if row["part"] == part or (part == "noise" and row["name"] == "all")]
        names = sorted({"0.1" if part == "noise" and row["name"] == "all" else row["name"] for row in of}, key=_order)
        for place, name in enumerate(names):
            found = [row for row in of if name in (row["name"], "0.1" if row["name"] == "all" and part == "noise" else None)]
            axis.plot([place] * len(found), [row["accuracy"] for row in found], "o", color="#1b6ca8")
            axis.plot(place, np.mean([row["bound"] for row in found]), "_", color="#b0413e", markersize=20)
        axis.set_xticks(range(len(names)), names)
        axis.set(xlabel="training prompts" if part == "size" else "noise of annotators", ylabel="accuracy on test pairs")
        axis.set_title("each seed, and the Bayes bound (red)")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _order(name: str) -> float:
    return float("inf") if name == "all" else float(name)


if __name__ == "__main__":
    main()
