"""What is fuzzed: each target writes a valid input into a folder, and reads whatever then lies there."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import irpipe.microworld
from irpipe.models.reward.start import init_reward_model
from irpipe.models.scorers.base import score_pictures
from irpipe.models.scorers.baselines import ClipScorer
from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.recipe_file import load_recipe
from irpipe.pipeline.stage import Model
from irpipe.schemas.annotations import image_id
from irpipe.schemas.prompt_files import prompts_of
from irpipe.schemas.prompts import prompt_id
from irpipe.schemas.rejected import Rejections
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.readers import read_prompts
from irpipe.stages.embed_prompts.vectors import open_given, sentence_encoder
from irpipe.stages.import_images import ImportImagesConfig
from irpipe.stages.import_images.layouts import LAYOUTS
from irpipe.stages.import_images.selection import existing_images
from irpipe.stages.import_images.shards import checked
from irpipe.stages.import_images.sources import Zips, cells_of, fetch
from irpipe.stages.load_annotations.check import BadRecordError, check
from irpipe.stages.load_annotations.readers import read_records
from tests.fuzz import feedback, mutations, remotes

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green") for shape in ("circle", "square", "star")]
Rows = Mapping[Any, Any]
"""What came out of each row that was kept, by its number."""


@dataclass(frozen=True)
class Target:
    """An input and its reader.

    Attributes:
        file: the name of the file that is changed; make: its valid bytes.
        read: reads the folder.
        structure: changes one record of the file and says which; None: only bytes are changed.
        rows_of: the rows of the file that a kept row was made of.
    """

    file: str
    make: Callable[[], bytes]
    read: Callable[[Path], Rows]
    structure: Callable[..., tuple[bytes, set[int]]] | None = None
    beside: Callable[[Path], None] = lambda _: None


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number * 20, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(columns: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


# -- annotations ------------------------------------------------------------------------------------------------------


def annotations(kind: str, file: str) -> Callable[[Path], Rows]:
    def read(folder: Path) -> Rows:
        kept = {}
        for raw in read_records(folder / file, kind, lambda _: None):
            try:
                record = check(raw, higher_is_better=False, scale=(1.0, 7.0))
            except BadRecordError:
                continue
            rows = range(record.row, max(raw.last_row, record.row) + 1)
            kept[(tuple(rows), record.record, record.annotator)] = (record.prompt, tuple(record.images), tuple(record.ranks))
        return kept

    return read


def own_records() -> bytes:
    records = [
        {
            "ranking_id": f"r{number}",
            "prompt": prompt,
            "annotator": "ann" if number % 2 else None,
            "images": ["a.png", "b.png", "c.png"],
            "ranking": [1, 2, 2],
            "overall": [7, 3.5, None],
            "problems": [[], ["body_problem"], []],
            "labels": {"category": "Animals", "intent_unclear": False, "unsafe": []},
        }
        for number, prompt in enumerate(PROMPTS)
    ]
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def own_csv() -> bytes:
    lines = ["ranking_id,prompt,annotator,image,rank,overall,category,intent_unclear,split"]
    for number, prompt in enumerate(PROMPTS):
        lines += [
            f'r{number},"{prompt}, painted",ann,{image}.png,{image + 1},{image + 2},Animals,false,train' for image in range(3)
        ]
    return ("\n".join(lines) + "\n").encode()


def own_table() -> bytes:
    """Our records as Parquet."""
    rows = [json.loads(line) for line in own_records().splitlines()]
    names = ("ranking_id", "prompt", "annotator", "images", "ranking")
    return parquet({name: [row[name] for row in rows] for name in names})


def pairs_csv() -> bytes:
    lines = ["prompt,image_a,image_b,winner,annotator"]
    lines += [f'"{prompt}, painted",{number}a.png,{number}b.png,{"ab"[number % 2]},9.0' for number, prompt in enumerate(PROMPTS)]
    return ("\n".join(lines) + "\n").encode()


def listed(make: Callable[[int, str], dict[str, Any]]) -> Callable[[], bytes]:
    return lambda: json.dumps([make(number, prompt) for number, prompt in enumerate(PROMPTS)]).encode()


def imagerewarddb() -> bytes:
    rows = [(number, prompt, image) for number, prompt in enumerate(PROMPTS) for image in range(3)]
    return parquet(
        {
            "image_path": [f"images/{number}/{image}.png" for number, _, image in rows],
            "prompt_id": [f"p{number}" for number, _, _ in rows],
            "prompt": [prompt for _, prompt, _ in rows],
            "classification": ["Animals"] * len(rows),
            "rank": [image + 1 for _, _, image in rows],
            "overall_rating": [float(image + 1) for _, _, image in rows],
            "image_text_alignment_rating": [float(image + 1) for _, _, image in rows],
            "fidelity_rating": [float(image + 1) for _, _, image in rows],
            "image_amount_in_total": [3] * len(rows),
        }
    )


def pickapic() -> bytes:
    count = len(PROMPTS)
    return parquet(
        {
            "caption": PROMPTS,
            "image_0_uid": [f"a{number}" for number in range(count)],
            "image_1_uid": [f"b{number}" for number in range(count)],
            "label_0": [1.0] * count,
            "label_1": [0.0] * count,
            "has_label": [True] * count,
            "ranking_id": list(range(count)),
            "user_id": [9.0] * count,
        }
    )


# -- prompts ----------------------------------------------------------------------------------------------------------


def prompts(file: str, vectors: bool = False) -> Callable[[Path], Rows]:
    def read(folder: Path) -> Rows:
        rejections = Rejections(1.0, file)
        if vectors:
            return {0: open_given(folder / file, len(PROMPTS)).shape}
        rows = list(read_prompts(EmbedPromptsConfig(path=Path(file)), folder / file, rejections))
        numbers = [row.number for row in rows]
        assert numbers == list(range(len(rows))), "every row is told once, in order"
        return {((row.number,),): row.text for row in rows if row.text}

    return read


def npy() -> bytes:
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).normal(size=(len(PROMPTS), 4)).astype(np.float32))
    return out.getvalue()


# -- images -----------------------------------------------------------------------------------------------------------


def images(layout: str, root: str) -> Callable[[Path], Rows]:
    texts = {prompt_id(prompt): prompt for prompt in PROMPTS}

    def read(folder: Path) -> Rows:
        rejections, path = Rejections(1.0, root), folder / root
        if layout == "annotated":
            names = [f"{number}.png" for number in range(len(PROMPTS))]
            cells = cells_of(path, set(names)) if path.is_dir() or path.suffix == ".parquet" else {}
            locations: list[Any] = [cells[name][0] if name in cells else name for name in names]
            locations = [one for one in locations if not (isinstance(one, str) and path.suffix == ".parquet")]
        else:
            config = ImportImagesConfig(image_root=path, layout=layout)  # type: ignore[arg-type]
            with Watcher().progress("listing", None, "images") as bar:
                found = existing_images(LAYOUTS[layout](path), texts, config, rejections, bar)
            locations = list(dict.fromkeys(image.location for image in found.values()))
            assert all(image.image_id == image_id(image.prompt_id, image.path) for image in found.values())
        results = checked(fetch(path, locations, 1 << 20, Zips()), 1 << 20)
        return {location: result.digest for location, result in zip(locations, results, strict=True) if result.fault is None}

    return read


def zipped(names: Callable[[int, str], str], listing: str = "") -> Callable[[], bytes]:
    def make() -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for number, prompt in enumerate(PROMPTS):
                archive.writestr(names(number, prompt), picture(number))
            if listing:
                told = {f"{number}.png": {"p": prompt, "se": number, "c": 7.0} for number, prompt in enumerate(PROMPTS)}
                archive.writestr(listing, json.dumps(told))
        return out.getvalue()

    return make


def embedded() -> bytes:
    cells = [{"bytes": picture(number), "path": f"{number}.png"} for number in range(len(PROMPTS))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return parquet({"image": pa.array(cells, kind), "prompt": PROMPTS})


def a_table(ending: str) -> Callable[[], bytes]:
    rows = [{"prompt": prompt, "path": f"{number}.png"} for number, prompt in enumerate(PROMPTS)]
    if ending == "jsonl":
        return lambda: "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == "csv":
        return ("prompt,path\n" + "".join(f"{row['prompt']},{row['path']}\n" for row in rows)).encode
    return lambda: parquet({name: [row[name] for row in rows] for name in ("prompt", "path")})


def with_images(folder: Path) -> None:
    for number in range(len(PROMPTS)):
        (folder / f"{number}.png").write_bytes(picture(number))


def excluded(file: str) -> Callable[[Path], Rows]:
    return lambda folder: {"prompts": tuple(prompts_of(folder / file))}


def recipe(folder: Path) -> Rows:
    loaded = load_recipe(folder)
    return {name: str(loaded.tables[name]) for name in loaded.tables}


RECIPE = b"""recipe = "mine"
store = "artifacts"
[simulate-prompts]
count = 200
[embed-prompts]
embedder = "lexical"
[prompt-graph]
k = 50
[select-prompts]
count = 20
[train-rm]
model = "micro-blip"
optimizer.learning_rate = 1e-3
grid.training.seed = [1, 2]
"""

# -- models -----------------------------------------------------------------------------------------------------------


def shipped(name: str) -> Path:
    return Path(irpipe.microworld.__file__).parent / "weights" / name


def model(name: str, file: str, load: Callable[[Model], Any]) -> Target:
    """A shipped model of which one file is changed: it comes in whole, or not at all."""
    folder = shipped(name)

    def beside(into: Path) -> None:
        shutil.copytree(folder, into, dirs_exist_ok=True)

    def read(folder: Path) -> Rows:
        load(Model(name, "r", folder))
        return {((0,),): name}

    structure = mutations.document_changed if file.endswith(".json") else None
    return Target(file, (folder / file).read_bytes, read, structure, beside)


def clip(model: Model) -> None:
    score_pictures(ClipScorer(model, "cpu", torch.float32), [PROMPTS[0]], [np.zeros((32, 32, 3), np.uint8)])


def blip(model: Model) -> None:
    init_reward_model(model, "auto", 0)


def sentences(model: Model) -> None:
    sentence_encoder(EmbedPromptsConfig(device="cpu"), model)


def remote(kind: str) -> Target:
    """A file of a remote; what else is there is whole."""
    structure = None if kind == "part" else mutations.document_changed
    return Target("changed", partial(remotes.first_of, kind), partial(remotes.read, kind), structure)


TARGETS = {
    "jsonl": Target("a.jsonl", own_records, annotations("jsonl", "a.jsonl"), mutations.json_changed),
    "csv": Target("a.csv", own_csv, annotations("csv", "a.csv"), mutations.csv_changed),
    "own parquet": Target("a.parquet", own_table, annotations("parquet", "a.parquet"), mutations.parquet_changed),
    "pairs": Target("a.csv", pairs_csv, annotations("pairs", "a.csv"), mutations.csv_changed),
    "imagereward-json": Target(
        "a.json",
        listed(lambda n, p: {"id": n, "prompt": p, "generations": ["a", "b"], "ranking": [1, 2]}),
        annotations("imagereward-json", "a.json"),
        mutations.json_changed,
    ),
    "hps-json": Target(
        "a.json",
        listed(lambda n, p: {"id": n, "prompt": p, "file_path": ["a", "b"], "human_preference": 1, "user_hash": "u"}),
        annotations("hps-json", "a.json"),
        mutations.json_changed,
    ),
    "hpdv2-train": Target(
        "a.json",
        listed(lambda n, p: {"prompt": p, "file_path": ["a", "b"], "human_preference": [1, 0], "user_hash": n}),
        annotations("hpdv2-json", "a.json"),
        mutations.json_changed,
    ),
    "hpdv2-test": Target(
        "a.json",
        listed(
            lambda n, p: {
                "prompt": p,
                "image_path": ["a", "b"],
                "rank": [1.5, 2.5],
                "raw_annotations": [{"rank": [1, 2], "user_hash": "u"}] if n % 2 else [],
            }
        ),
        annotations("hpdv2-json", "a.json"),
        mutations.json_changed,
    ),
    "imagerewarddb": Target("a.parquet", imagerewarddb, annotations("imagerewarddb", "a.parquet"), mutations.parquet_changed),
    "pickapic": Target("a.parquet", pickapic, annotations("pickapic", "a.parquet"), mutations.parquet_changed),
    "prompts jsonl": Target("p.jsonl", a_table("jsonl"), prompts("p.jsonl"), mutations.json_changed),
    "prompts csv": Target("p.csv", a_table("csv"), prompts("p.csv"), mutations.csv_changed),
    "prompts parquet": Target("p.parquet", a_table("parquet"), prompts("p.parquet"), mutations.parquet_changed),
    "prompts text": Target("p.txt", lambda: "\n".join(PROMPTS).encode(), prompts("p.txt")),
    "vectors": Target("v.npy", npy, prompts("v.npy", vectors=True)),
    "excluded jsonl": Target("p.jsonl", a_table("jsonl"), excluded("p.jsonl")),
    "excluded parquet": Target("p.parquet", a_table("parquet"), excluded("p.parquet")),
    "images zip": Target("r.zip", zipped(lambda n, _: f"{n}.png"), images("annotated", "r.zip")),
    "images parquet": Target("r.parquet", embedded, images("annotated", "r.parquet")),
    "folder zip": Target("r.zip", zipped(lambda n, p: f"{show_row_id(prompt_id(p))}/{n}.png"), images("folder", "r.zip")),
    "parquet": Target("r.parquet", embedded, images("parquet", "r.parquet")),
    "diffusiondb zip": Target("part-000001.zip", zipped(lambda n, _: f"{n}.png", "part-000001.json"), images("diffusiondb", ".")),
    "table jsonl": Target("t.jsonl", a_table("jsonl"), images("table", "."), beside=with_images),
    "table csv": Target("t.csv", a_table("csv"), images("table", "."), beside=with_images),
    "table parquet": Target("t.parquet", a_table("parquet"), images("table", "."), beside=with_images),
    "discord": Target("x.json", feedback.chat, feedback.choices, mutations.document_changed, feedback.media),
    "rich jsonl": Target("a.jsonl", feedback.own, feedback.own_answers, mutations.json_changed),
    "label-studio": Target("a.json", feedback.label_studio, feedback.studio_answers, mutations.json_changed),
    "richhf-tfrecord": Target("a.tfrecord", feedback.tfrecord, feedback.published("richhf-tfrecord", "a.tfrecord")),
    "richhf-parquet": Target(
        "a.parquet", feedback.mirror, feedback.published("richhf-parquet", "a.parquet"), mutations.parquet_changed
    ),
    "recipe": Target("irpipe.toml", lambda: RECIPE, recipe),
    **{f"clip {file}": model("clip", file, clip) for file in ("config.json", "tokenizer.json", "tokenizer_config.json")},
    "clip preprocessor_config.json": model("clip", "preprocessor_config.json", clip),
    "clip model.safetensors": model("clip", "model.safetensors", clip),
    "blip config.json": model("blip", "config.json", blip),
    "blip preprocessor_config.json": model("blip", "preprocessor_config.json", blip),
    "sentences config.json": model("sentences", "config.json", sentences),
    **{f"remote {kind}": remote(kind) for kind in remotes.FOLDERS},
}
