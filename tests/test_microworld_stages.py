"""The micro world's stages: people who annotate, the truth that only evaluations see, and the weights that are shipped."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from irpipe.microworld.grammar import corrupt, describe, parse, sample_scene, split_of
from irpipe.microworld.oracle import judge
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.registry import MODELS, declared
from irpipe.pipeline.stage import Config, FilePath, Report, Rows, Stage, setting
from tests.conftest import REPOSITORY

WEIGHTS = REPOSITORY / "microworld" / "weights"
RECIPE = """recipe = "world"
[simulate-prompts]
count = 200
[embed-prompts]
embedder = "lexical"
[select-prompts]
method = "random"
count = 40
[import-images]
layout = "folder"
image_root = "images"
[simulate-annotations]
[load-annotations]
[split-prompts]
[build-pairs]
[oracle-truth]
"""


@pytest.fixture
def world(project, pool_renders):
    """A project whose images are renders, some damaged, some of another scene."""
    project.recipe(RECIPE)
    (project.root / "images").symlink_to(pool_renders)
    return project


def records(project):
    artifact = project.store.open(project.store.newest("world", "simulate-annotations").content_id)
    lines = artifact.file("annotations.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], json.loads(artifact.file("people.json").read_text(encoding="utf-8"))


class TestAnnotating:
    def test_what_people_hand_over_is_read_as_anybodys_annotations(self, world):
        done = world.last("build-pairs")
        assert done["metrics"]["pairs"] > 200
        loaded = world.store.newest("world", "load-annotations")
        assert loaded.rows == {"read": 80, "kept": 80, "rejected": 0}
        found, told = records(world)
        assert len(found) == 80 and len(told["people"]) == 8
        assert {record["annotator"] for record in found} <= {person["name"] for person in told["people"]}
        assert all(record["split"] == split_of(parse(record["prompt"])[0]) for record in found)
        splits = world.rows("SELECT split, count(*) AS n FROM prompt_splits GROUP BY split")
        assert {row["split"] for row in splits} == {"train", "validation", "test"}

    def test_the_bayes_bound_goes_with_the_noise(self, world):
        bounds = []
        for noise in (0.02, 0.1, 0.5):
            bounds.append(world.last("simulate-annotations", f"simulate-annotations.noise={noise}")["metrics"]["bayes_accuracy"])
            assert records(world)[1]["bayes_accuracy"] == pytest.approx(bounds[-1], abs=1e-4)
        assert 0.5 < bounds[2] < bounds[1] < bounds[0] < 1

    def test_the_bound_is_what_the_truth_reaches_on_the_pairs_that_come_out(self, world):
        """Seen from the other end: the oracle's order against the pairs of the artifact."""
        world.run("build-pairs", "simulate-annotations.annotators_per_prompt=8", "build-pairs.drop_labels=[]")
        bound = world.store.newest("world", "simulate-annotations").metrics["bayes_accuracy"]
        world.run("oracle-truth")
        truth = {row["image_id"]: row["utility"] for row in world.rows("SELECT image_id, utility FROM truth")}
        pairs = world.rows("SELECT better, worse FROM pairs")
        right = np.mean([truth[pair["better"]] > truth[pair["worse"]] for pair in pairs])
        assert len(pairs) > 1000 and right == pytest.approx(bound, abs=0.03)

    def test_contradictions_come_at_the_set_rate(self, world):
        shares = []
        for rate in (0.0, 0.5):
            world.run("load-annotations", f"simulate-annotations.contradiction_share={rate}")
            shares.append(world.store.newest("world", "load-annotations").metrics["contradictions"]["records"] / 80)
        assert shares[0] == 0 and shares[1] == pytest.approx(0.5, abs=0.2)

    def test_two_runs_and_other_seeds(self, world):
        one = world.last("simulate-annotations")["content_id"]
        assert world("run", "simulate-annotations", "--force", "--json").events[-1]["content_id"] == one
        assert world.last("simulate-annotations", "simulate-annotations.seed=1")["content_id"] != one

    def test_more_annotators_a_prompt_than_there_are(self, world):
        message = world.run("simulate-annotations", "simulate-annotations.annotators=1", status=2).err
        assert "annotators_per_prompt is above annotators" in message

    def test_more_images_than_the_slots_hold(self, world, pool_renders):
        (world.root / "images").unlink()
        shutil.copytree(pool_renders, world.root / "images")
        for folder in (world.root / "images").iterdir():
            for number in range(4, 12):
                shutil.copyfile(folder / "0.png", folder / f"{number}.png")
        done = world.last("simulate-annotations", "import-images.max_images=12")
        assert done["rows"] == {"read": 480, "kept": 400, "rejected": 80}
        assert done["metrics"]["rejected_for"] == {"more images than the slots hold": 80}

    def test_images_nobody_can_judge_are_refused_with_a_reason(self, world, pool_renders):
        """Images of another size, and a prompt that is not of this world."""
        (world.root / "images").unlink()
        shutil.copytree(pool_renders, world.root / "images")
        folders = sorted((world.root / "images").iterdir())
        for folder in folders:
            Image.new("RGB", (64, 64), "red").save(folder / "0.png")
        message = world.run("simulate-annotations", status=2).err
        assert "40 of 160 rows are bad" in message and "64 x 64 pixels" in message
        done = world.last("simulate-annotations", "simulate-annotations.max_rejected=0.5")
        assert done["rows"] == {"read": 160, "kept": 120, "rejected": 40}


class TestTruth:
    def test_it_is_what_the_oracle_says(self, world):
        done = world.last("oracle-truth")
        assert done["rows"] == {"read": 160, "kept": 160, "rejected": 0}
        found = world.rows(
            "SELECT t.*, prompt, image.path AS path FROM truth t JOIN images USING (image_id)"
            " JOIN selected_prompts s ON s.prompt_id = t.prompt_id LIMIT 20"
        )
        for row in found:
            with Image.open(world.root / "images" / row["path"]) as image:
                verdict = judge(row["prompt"], np.asarray(image, dtype=np.float64) / 255)
            assert row["utility"] == pytest.approx(verdict.utility, abs=1e-6)
            assert row["wrong_words"] == list(verdict.wrong_words)
            assert row["split"] == split_of(parse(row["prompt"])[0])

    @pytest.fixture
    def curious(self, install):
        """Stages of somebody's package: one that would learn from the truth, one that judges by it, one that reads the judge."""
        names = {"learns": "LEARNS", "judges": "JUDGES", "learns-later": "LEARNS_LATER", "smuggles": "SMUGGLES"}
        install({name: f"{__name__}:{attribute}" for name, attribute in names.items()})

    def test_only_evaluations_may_read_it(self, world, curious):
        world.recipe(RECIPE + "[learns]\n[judges]\n[learns-later]\n")
        for command in ("plan", "run"):
            assert "learns may not read oracle-truth" in world(command, "learns", status=2).err
            assert "learns-later may not read judges" in world(command, "learns-later", status=2).err
        world.run("judges")

    def test_nor_may_a_setting_smuggle_it_in(self, world, curious):
        world.recipe(RECIPE + "[judges]\n[smuggles]\n")
        world.run("judges")
        for stage in ("oracle-truth", "judges"):
            artifact = world.store.newest("world", stage).content_id
            inside = next((world.root / "artifacts" / "objects").glob(f"*/{artifact}"))
            for path in (artifact, artifact[:12], inside, next(inside.glob("*"))):
                message = world.run("smuggles", f"smuggles.path={path}", status=2).err
                assert "smuggles.path may not be made from ground truth" in message
        for path in (inside.parent, inside.parent.parent, world.root / "artifacts" / "refs"):
            assert "is a part of the store and no artifact" in world.run("smuggles", f"smuggles.path={path}", status=2).err
        (world.root / "mine").mkdir()
        (world.root / "mine" / "linked").symlink_to(inside)
        assert "leads into the store" in world.run("smuggles", "smuggles.path=mine", status=2).err
        world.run("smuggles", f"smuggles.path={world.store.newest('world', 'select-prompts').content_id}")
        judged = world.store.newest("world", "judges").content_id
        world.store.record_path(world.store.newest("world", "oracle-truth").key).unlink()
        told = world.run("smuggles", f"smuggles.path={judged}", status=2).err
        assert "smuggles.path may not be made from ground truth" in told, "a parent whose record is gone is still one"


class PathConfig(Config):
    path: FilePath = setting(role="external", meaning="Anything.")


def nothing(config, inputs, out, context):
    (out / "nothing.txt").write_text("nothing", encoding="utf-8")
    return Report(Rows(0, 0, 0))


NOTHING = f"{__name__}:nothing"
LEARNS = Stage(name="learns", version=1, reads=("truth",), writes="a", config=Config, run=NOTHING)
JUDGES = Stage(name="judges", version=1, reads=("truth",), writes="b", config=Config, run=NOTHING, evaluation=True)
LEARNS_LATER = Stage(name="learns-later", version=1, reads=("b",), writes="c", config=Config, run=NOTHING)
SMUGGLES = Stage(name="smuggles", version=1, writes="d", config=PathConfig, run=NOTHING)


class TestShippedModels:
    def test_the_weights_are_those_of_the_manifest_and_few(self):
        files = json.loads((WEIGHTS / "manifest.json").read_text(encoding="utf-8"))["files"]
        found = {path.relative_to(WEIGHTS).as_posix(): path.read_bytes() for path in WEIGHTS.rglob("*") if path.is_file()}
        del found["manifest.json"]
        assert found.keys() == files.keys()
        for name, data in found.items():
            assert files[name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}, name
            assert not name.endswith((".bin", ".pt", ".ckpt", ".pkl", ".py"))
        assert sum(map(len, found.values())) < 12_000_000

    def test_they_are_found_by_name(self):
        names = ("generator", "sentences", "blip", "clip", "judge", "rahf", "resnet")
        assert set(declared(MODELS)) == {f"micro-{name}" for name in names}
        assert shipped_folder("micro-clip").resolve() == WEIGHTS / "clip"

    def test_every_model_is_of_the_real_class_and_loads_without_a_word(self):
        from diffusers import DiffusionPipeline
        from safetensors.torch import load_file
        from sentence_transformers import SentenceTransformer
        from transformers import AutoTokenizer, BlipForImageTextRetrieval, CLIPModel

        pipeline = DiffusionPipeline.from_pretrained(WEIGHTS / "generator")
        assert type(pipeline).__name__ == "StableDiffusionPipeline"
        assert {name: type(part).__name__ for name, part in pipeline.components.items() if part is not None} == {
            "vae": "AutoencoderKL",
            "text_encoder": "CLIPTextModel",
            "tokenizer": "CLIPTokenizer",
            "unet": "UNet2DConditionModel",
            "scheduler": "DDPMScheduler",
        }
        assert len(pipeline.tokenizer("a large red circle on a dark background").input_ids) == 8 + 2, "a token a word"
        BlipForImageTextRetrieval.from_pretrained(WEIGHTS / "blip")
        assert AutoTokenizer.from_pretrained(WEIGHTS / "blip")("a red circle").input_ids[0] == 2, "[CLS] comes first"
        clip = CLIPModel.from_pretrained(WEIGHTS / "clip")
        assert load_file(WEIGHTS / "clip" / "aesthetic.safetensors")["weight"].shape == (1, clip.config.projection_dim)
        SentenceTransformer(str(WEIGHTS / "sentences"))

    def test_the_sentence_encoder_knows_paraphrases(self):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(WEIGHTS / "sentences"), model_kwargs={"dtype": "float32"})
        rng = np.random.default_rng(1)
        scenes = [sample_scene(rng, "validation") for _ in range(300)]
        plain = model.encode([describe(scene) for scene in scenes])
        told = model.encode([describe(scene, rng) for scene in scenes])
        wrong = model.encode([describe(corrupt(scene, rng), rng) for scene in scenes])
        same, one_word_off, stranger = ((plain * other).sum(axis=1) for other in (told, wrong, np.roll(told, 1, axis=0)))
        assert same.mean() > 0.9 > 0.8 > one_word_off.mean() > 0.5 > stranger.mean()
        assert (same > one_word_off).mean() > 0.95

    @pytest.mark.slow
    def test_the_build_is_reproducible(self, tmp_path):
        """The whole build at 1/500 of its length, twice."""
        manifests = []
        for name in "ab":
            command = [
                sys.executable,
                "-m",
                "irpipe.microworld.build",
                str(tmp_path / name),
                "--scale",
                "0.002",
                "--threads",
                "1",
            ]
            subprocess.run(command, check=True, capture_output=True)
            manifests.append(json.loads((tmp_path / name / "manifest.json").read_text(encoding="utf-8")))
        assert manifests[0] == manifests[1]
        assert len(manifests[0]["files"]) > 20


@pytest.mark.slow
def test_the_micro_recipe_as_shipped(project):
    """From nothing to pairs and to the truth, twice, with the shipped models: the same artifacts, and images worth judging."""
    (project.root / "irpipe.toml").unlink()
    project("init")
    few = ("select-prompts.count=24",)
    made = []
    for _ in range(2):
        project.run("build-pairs", *few)
        project.run("oracle-truth", *few)
        made.append({row["stage"]: row["content_id"] for row in project("status", "--json").json["stages"]})
        truth = project.store.newest("micro", "oracle-truth").metrics
        for path in [*(project.root / "artifacts").rglob("*"), project.root / "artifacts"]:
            path.chmod(0o755)
        shutil.move(project.root / "artifacts", project.root / f"artifacts-{len(made)}")
    assert made[0] == made[1]
    assert {name for name, content in made[0].items() if content} == {
        "simulate-prompts",
        "embed-prompts",
        "prompt-graph",
        "select-prompts",
        "generate-images",
        "simulate-annotations",
        "load-annotations",
        "split-prompts",
        "build-pairs",
        "oracle-truth",
    }
    assert 0.4 < truth["alignment"] < 0.9 and 0.4 < truth["fidelity"] < 0.95, "mediocre: neither hopeless nor done"
