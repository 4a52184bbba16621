"""`make claims-refl`: what is claimed of ReFL, measured in the micro world against the oracle. About 75 minutes on two cores.

Every run is an artifact of one store, which `make claims-rm` shares: what was interrupted goes on, and nothing is made twice.

    python -m benchmarks.claims_refl claims               # all of it
    python -m benchmarks.claims_refl claims --only main   # one part: main, controls, rivals, failing or hacking

Everything was chosen by looking at the validation split; the figures are of the test split, whose scenes neither generator, BLIP
nor reward model ever saw. Noise is the same for all generators, and gains are paired with the base's.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from benchmarks.claims_rm import PROMPTS, prepare
from irpipe.microworld import oracle as irpipe_world
from irpipe.microworld.pictures import verdict_on
from irpipe.pipeline.hashing import row_id
from irpipe.pipeline.stage import Model
from irpipe.pipeline.store import Artifact, Store
from irpipe.schemas.generator import GeneratorCard
from irpipe.schemas.images import ImageReader
from irpipe.schemas.prompts import SELECTED_PROMPTS
from irpipe.schemas.splits import PROMPT_SPLITS

REWARD_MODEL = (
    "simulate-annotations.annotators_per_prompt=8",
    "train-rm.batch_pairs=1024",
    "train-rm.optimizer.learning_rate=1e-3",
    "train-rm.epochs=6",
    "train-rm.noise_std=0.1",
    "train-rm.optimizer.ema_decay=0.997",
    "train-rm.freeze_rate=0.7",
    "train-rm.training.seed=1",
)
TURNS = 2  # images of each test prompt
ASPECTS = ("utility", "alignment", "fidelity")
EVALUATION = ("evaluation.every=10", "evaluation.prompts=32", "evaluation.images=2", "evaluation.kept_images=32")
POOL = ("steps=120", "pool_prompts=120", "images_per_prompt=8", *EVALUATION)  # 960 images, as many as ReFL's rollouts
REFL = ("steps=80", "refresh_every=80", "rollouts=960", *EVALUATION)
# Batch 2 at a high learning rate, no accumulation, no pre-training loss, nothing clipped, no EMA, no stop rule: 400 rollouts.
FAILING = {
    "optimizer.learning_rate": "1e-4",
    "batch_size": "2",
    "training.micro_batch_size": "2",
    "pretraining.weight": "0.0",
    "clip_reward_gradient": "none",
    "optimizer.max_grad_norm": "0.0",
    "optimizer.ema_decay": "0.0",
    "noise_samples": "0",
    "refresh_every": "1",
    "optimizer.warmup_steps": "0",
    "evaluation.early_stopping": "log",
    "steps": "200",
    "evaluation.every": "50",
    "evaluation.prompts": "32",
    "evaluation.images": "2",
    "evaluation.kept_images": "32",
}
MENDED: Mapping[str, Mapping[str, str]] = {
    "batch 2, lr 1e-4, nothing else": {},
    "... lr 3e-5": {"optimizer.learning_rate": "3e-5"},
    "... with the pre-training loss": {"pretraining.weight": "2.0", "pretraining.batch_size": "4"},
    "... accumulated to 32": {"batch_size": "32", "steps": "13", "evaluation.every": "5"},
    "... reward gradients clipped": {"clip_reward_gradient": "median"},
    "... gradients clipped": {"optimizer.max_grad_norm": "1.0"},
    "... LoRA": {"trainable": "lora", "lora.layers": "attention+convolutions", "optimizer.learning_rate": "1e-3"},
    "... the stop rule": {"evaluation.early_stopping": "stop", "evaluation.every": "10"},
}


@dataclass(frozen=True)
class Run:
    """One tuning: its part of the claims, its name, the stage and the settings of it, and seeds."""

    part: str
    name: str
    stage: str
    settings: tuple[str, ...]
    seed: int = 1
    others: tuple[str, ...] = ()

    @property
    def flags(self) -> list[str]:
        own = dict(one.split("=", 1) for one in (*self.settings, f"training.seed={self.seed}"))  # the last of a name counts
        laid = (*REWARD_MODEL, *self.others, *(f"{self.stage}.{name}={value}" for name, value in own.items()))
        return [part for setting in laid for part in ("--set", setting)]


def runs() -> list[Run]:
    """Every run, the ones that decide first."""
    small = ("training.micro_batch_size=2",)
    clean = ("simulate-captions.wrong_captions=0.0", "simulate-captions.damaged=0.0")
    found = [Run("main", "refl, micro-batches of 2", "refl", (*REFL, *small), seed) for seed in (1, 2, 3)]
    found += [
        Run("controls", "the pre-training loss alone", "refl", (*REFL, "reward_weight=1e-9")),
        Run("controls", "no pre-training loss", "refl", (*REFL, "pretraining.weight=0.0", "evaluation.early_stopping=log")),
        Run("controls", "rollouts new in every step, as published", "refl", ("steps=30", "refresh_every=1", *EVALUATION)),
        Run("controls", "the paper's lambda of 0.001", "refl", (*REFL, "reward_weight=1e-3")),
        Run("controls", "the image's own reward, no noisy copies", "refl", (*REFL, "noise_samples=0")),
        Run("controls", "reward gradients not clipped", "refl", (*REFL, "clip_reward_gradient=none")),
        Run("controls", "clean captioned images", "refl", REFL, others=clean),
        Run(
            "controls", "clean captioned images, the pre-training loss alone", "refl", (*REFL, "reward_weight=1e-9"), others=clean
        ),
        Run("rivals", "raft, one pool", "raft", POOL),
        Run("rivals", "raft, three pools", "raft", (*POOL, "pool_prompts=40", "pool_every=40")),
        Run("rivals", "reward-weighted", "reward-weighted", POOL),
        Run("rivals", "reward-weighted within prompts", "reward-weighted", (*POOL, "scale=prompt")),
        Run("rivals", "filter-tune", "filter-tune", POOL),
    ]
    hacked = (*REFL, "pretraining.weight=0.0", "optimizer.learning_rate=1e-4", "evaluation.every=5")
    found += [
        Run("hacking", "let on", "refl", (*hacked, "evaluation.early_stopping=log")),
        Run("hacking", "stopped by the rule", "refl", hacked),
    ]
    for name, change in MENDED.items():
        found.append(Run("failing", name, "refl", tuple(f"{key}={value}" for key, value in {**FAILING, **change}.items())))
    return found


def main() -> None:
    """Run what is missing, and write `refl.json` and `refl.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims_refl", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=("main", "controls", "rivals", "failing", "hacking"), action="append")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="annotated prompts, to try it with fewer")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, of one thread each")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    prepare(given.folder, given.prompts)
    wanted = [run for run in runs() if given.only is None or run.part in given.only]
    reward = irpipe(given.folder, "train-rm", [part for one in REWARD_MODEL for part in ("--set", one)], threads=2)
    base = judge_base(given.folder)
    with ThreadPoolExecutor(given.jobs) as pool:
        found = list(pool.map(lambda run: measure(given.folder, run, base), wanted))
    picks = best_of(given.folder, Path(reward["path"]), base)
    (given.folder / "refl.json").write_text(json.dumps(found + picks, indent=1) + "\n", encoding="utf-8")
    text = "".join(
        table(part, [row for row in found + picks if row["part"] == part]) for part in dict.fromkeys(r.part for r in wanted)
    )
    means = ", ".join(f"{aspect} {value:.4f}" for aspect, value in zip(ASPECTS, base.mean(axis=(0, 1)), strict=True))
    text = f"{len(base)} test prompts, {TURNS} images each; the base: {means}\n{text}"
    hacked = {row["name"]: row for row in found if row["part"] == "hacking"}
    if len(hacked) == 2:
        text += trajectory(given.folder, *hacked.values())
    (given.folder / "refl.md").write_text(text, encoding="utf-8")
    print(text)


def irpipe(folder: Path, target: str, flags: Sequence[str], threads: int = 1) -> dict[str, Any]:
    """Run a stage; what it says last."""
    command = [sys.executable, "-m", "irpipe.cli", "run", target, "--json", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    told = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    last: dict[str, Any] = json.loads(told.splitlines()[-1])
    return last


def measure(folder: Path, run: Run, base: NDArray[np.float64]) -> dict[str, Any]:
    """Tune, and judge what came of it."""
    done = irpipe(folder, run.stage, run.flags)
    worth = judged(folder, done["content_id"])
    gain = worth - base
    row = {
        "part": run.part,
        "name": run.name,
        "seed": run.seed,
        "content_id": done["content_id"],
        "gain": gain.tolist(),
        "path": done["path"],
        "key": done["key"],
        "metrics": done["metrics"],
        "seconds": Store(folder / "artifacts").record(done["key"]).seconds,
    }
    means = ", ".join(f"{aspect} {value:+.4f}" for aspect, value in zip(ASPECTS, gain.mean(axis=(0, 1)), strict=True))
    print(f"{run.part:<10} {run.name:<46} seed {run.seed}: {means}", flush=True)
    return row


def judged(folder: Path, content_id: str) -> NDArray[np.float64]:
    """The oracle's verdicts on a tuned generator's test images, (prompts, turns, aspects); made once."""
    path = folder / "judged" / f"{content_id}.npy"
    if not path.is_file():
        _child(folder, content_id)
    found: NDArray[np.float64] = np.load(path)
    return found


def judge_base(folder: Path) -> NDArray[np.float64]:
    return judged(folder, "base")


def _child(folder: Path, content_id: str) -> None:
    """Draw and judge in a process of one thread: pools of threads do not share cores well."""
    command = [sys.executable, "-c", f"from benchmarks.claims_refl import draw; draw({str(folder)!r}, {content_id!r})"]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def draw(folder_name: str, content_id: str) -> None:
    """Draw every test prompt's images from the same noise, and ask the oracle."""
    from irpipe.models.generators import Sampling, load
    from irpipe.models.tuning.tuned import load_tuned

    folder = Path(folder_name)
    store = Store(folder / "artifacts")
    prompts = test_prompts(store)
    weights = Path(irpipe_world.__file__).parent / "weights" / "generator"
    base = Model("micro-generator", "shipped", weights)
    sampling = Sampling(40, 1.0, "own", None, None, "", "float32", False)
    if content_id == "base":
        generator = load(base, sampling, "cpu")
    else:
        path = store.open(content_id).path
        generator = load_tuned(base, path, GeneratorCard.read(path), sampling, "cpu")
    order = [(row, turn) for row in range(len(prompts)) for turn in range(TURNS * (4 if content_id == "base" else 1))]
    encodings = generator.encode([text for _, text in prompts], 64)
    verdicts, pictures = [], []
    for start in range(0, len(order), 64):
        part = order[start : start + 64]
        images, _ = generator.sample(
            encodings, [row for row, _ in part], [row_id("claims", prompts[row][0], turn) for row, turn in part]
        )
        for (row, _), image in zip(part, images, strict=True):
            picture = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
            verdicts.append(verdict_of(prompts[row][1], picture))
            pictures.append(picture)
    found = np.array(verdicts).reshape(len(prompts), -1, 3)
    (folder / "judged").mkdir(exist_ok=True)
    if content_id == "base":  # turns beyond the first ones are for best-of-n
        np.savez(folder / "judged" / "pool.npz", worth=found, pictures=np.stack(pictures).reshape(*found.shape[:2], 32, 32, 3))
        found = found[:, :TURNS]
    np.save(folder / "judged" / f"{content_id}.npy", found)


def verdict_of(prompt: str, picture: NDArray[np.uint8]) -> tuple[float, float, float]:
    """Utility, alignment, fidelity."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    verdict = verdict_on(prompt, buffer.getvalue())
    return verdict.utility, verdict.alignment, verdict.fidelity


def test_prompts(store: Store) -> list[tuple[int, str]]:
    """Id and text of the test split."""
    chosen, splits = (newest(store, stage) for stage in ("select-prompts", "build-pairs"))
    known = PROMPT_SPLITS.read(splits.table("prompt_splits"), ["prompt_id", "split"]).to_pylist()
    test = {row["prompt_id"] for row in known if row["split"] == "test"}
    rows = SELECTED_PROMPTS.read(chosen.table("selected_prompts"), ["prompt_id", "prompt"]).to_pylist()
    return [(row["prompt_id"], row["prompt"]) for row in rows if row["prompt_id"] in test]


def newest(store: Store, stage: str) -> Artifact:
    record = store.newest("micro", stage)
    assert record is not None
    return store.open(record.content_id)


def best_of(folder: Path, reward: Path, base: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Rows of best-of-n by the same reward model, for each of the first images."""
    from irpipe.models.imagereward import ImageReward
    from irpipe.models.scorers.base import score_pictures
    from irpipe.models.scorers.reward import RewardModelScorer

    store = Store(folder / "artifacts")
    with np.load(folder / "judged" / "pool.npz") as pool:
        worth, pictures = pool["worth"], pool["pictures"]
    import torch

    judge = RewardModelScorer(ImageReward.from_pretrained(reward), "cpu", torch.float32)
    texts = [text for _, text in test_prompts(store) for _ in range(worth.shape[1])]
    scores = score_pictures(judge, texts, list(pictures.reshape(-1, 32, 32, 3))).reshape(worth.shape[:2])
    rows = []
    for n in (2, 4):
        found = np.empty_like(base)
        for turn in range(TURNS):
            places = [turn, *range(TURNS + turn * (n - 1), TURNS + (turn + 1) * (n - 1))]
            chosen = scores[:, places].argmax(axis=1)
            found[:, turn] = worth[:, places][np.arange(len(worth)), chosen]
        rows.append(
            {
                "part": "rivals",
                "name": f"best of {n}, at {n} times the cost",
                "seed": 0,
                "gain": (found - base).tolist(),
                "metrics": {},
            }
        )
    return rows


def interval(gains: NDArray[np.float64], draws: int = 4000) -> tuple[float, float]:
    """95 % interval of a mean gain, (seeds, prompts), by bootstrap over prompts and seeds."""
    rng = np.random.default_rng(0)
    seeds, prompts = gains.shape
    means = np.empty(draws)
    for one in range(draws):
        part = gains[rng.integers(0, seeds, seeds)]
        means[one] = part[:, rng.integers(0, prompts, prompts)].mean()
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def table(part: str, rows: Sequence[dict[str, Any]]) -> str:
    """A part as Markdown: gains over the base with their intervals."""
    text = (
        f"\n{part}\n\n| {part} | utility | 95 % | alignment | 95 % | fidelity | kept step | stopped | seeds |\n"
        + "|---" * 9
        + "|\n"
    )
    for name in dict.fromkeys(row["name"] for row in rows):
        of = [row for row in rows if row["name"] == name]
        gains = np.array([row["gain"] for row in of]).mean(axis=2)  # (seeds, prompts, aspects)
        means = gains.mean(axis=(0, 1))
        spans = [interval(gains[..., aspect]) for aspect in range(2)]
        kept = ", ".join(str(row["metrics"].get("kept_step", "")) for row in of)
        stopped = "; ".join(dict.fromkeys(str(row["metrics"].get("stopped_for", ""))[:60] for row in of))
        text += (
            f"| {name} | {means[0]:+.4f} | {spans[0][0]:+.4f}, {spans[0][1]:+.4f} | {means[1]:+.4f} | {spans[1][0]:+.4f},"
            f" {spans[1][1]:+.4f} | {means[2]:+.4f} | {kept} | {stopped} | {len(of)} |\n"
        )
    return text


def trajectory(folder: Path, on: dict[str, Any], stopped: dict[str, Any]) -> str:
    """The hacked run, look by look, against the oracle on the looks' own prompts; and where the rule kept it."""
    store = Store(folder / "artifacts")
    artifact = store.open(on["content_id"])
    texts = {
        row["prompt_id"]: row["prompt"]
        for row in SELECTED_PROMPTS.read(
            newest(store, "select-prompts").table("selected_prompts"), ["prompt_id", "prompt"]
        ).to_pylist()
    }
    worth: dict[int, list[float]] = {}
    for row in ImageReader(artifact.table("images")).rows(["prompt_id", "image", "generator"]):
        step = int(row["generator"].rsplit(" ", 1)[1])
        worth.setdefault(step, []).append(verdict_on(texts[row["prompt_id"]], row["image"]["bytes"]).utility)
    oracle = {step: float(np.mean(values)) for step, values in worth.items()}
    monitors = pq.read_table(artifact.table("monitors")[0]).to_pylist()
    measures = {(row["step"], row["measure"]): row["value"] for row in monitors}
    kept = stopped["metrics"]["kept_step"]
    peak, start = max(oracle.values()), oracle[0]
    share = (oracle[kept] - start) / max(peak - start, 1e-9)
    names = ("reward", "held_out", "similarity", "denoising_loss", "saturation")
    text = f"\nhacking, look by look (validation prompts)\n\n| step | oracle | {' | '.join(names)} |\n" + "|---" * 7 + "|\n"
    for step, value in sorted(oracle.items()):
        shown = [measures[step, name] for name in names]
        mark = " kept by the rule" if step == kept else ""
        text += f"| {step}{mark} | {value:.4f} | " + " | ".join(f"{one:.4f}" for one in shown) + " |\n"
    why = stopped["metrics"]["stopped_for"] or "nothing tripped it"
    return (
        text
        + f"\nIt ended at step {stopped['metrics']['steps']} ({why}) and kept {kept}: {share:.0%} of the oracle's peak gain.\n"
    )


if __name__ == "__main__":
    main()
