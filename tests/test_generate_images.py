"""Images of prompts: each from its own noise, whatever the batch; several models; faults marked; kept through a kill."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from irpipe.pipeline.hashing import show_row_id
from irpipe.pipeline.stage import Context, Model
from irpipe.schemas.prompts import SELECTED_PROMPTS, prompt_id
from irpipe.stages.generate_images import GenerateImagesConfig
from irpipe.stages.generate_images.run import cut_shards, plan_jobs, run
from tests.pipelines import stable_diffusion, stable_diffusion_xl

RECIPE = """recipe = "small"
[embed-prompts]
path = "pool.txt"
embedder = "lexical"
[select-prompts]
method = "random"
count = 6
[generate-images]
models = ["tiny"]
num_steps = 2
dtype = "float32"
batch_size = 5
"""
PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square", "cross")]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A Stable Diffusion pipeline that loads in a moment."""
    return stable_diffusion(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def small(project, tiny):
    """A project with six prompts and the tiny model."""
    project.recipe(RECIPE)
    (project.root / "pool.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (project.root / "tiny").symlink_to(tiny)
    return project


def rows(project, columns="*"):
    return project.rows(f"SELECT {columns} FROM images ORDER BY image_id")


def pixels(project, done):
    """(n, h, w, 3) in the order of ids, and the ids."""
    found = {}
    for file in project.store.open(done["content_id"]).table("images"):
        for row in pq.read_table(file).to_pylist():
            found[row["image_id"]] = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
    ids = sorted(found)
    return np.stack([found[identity] for identity in ids]), ids


def test_images_of_every_prompt_with_all_that_made_them(small):
    done = small.last("generate-images")
    assert done["metrics"]["images"] == done["rows"]["kept"] == done["rows"]["read"]
    made = rows(small, "prompt_id, image.path AS path, width, height, format, generator, revision, seed, settings, fault")
    per_prompt = {}
    for row in made:
        per_prompt.setdefault(row["prompt_id"], []).append(row)
    assert len(per_prompt) == 6 and all(4 <= len(images) <= 9 for images in per_prompt.values())
    assert len({len(images) for images in per_prompt.values()}) > 1, "the number is drawn"
    assert len({row["seed"] for row in made}) == len({row["path"] for row in made}) == len(made)
    assert {(row["width"], row["height"], row["format"], row["fault"]) for row in made} == {(16, 16, "PNG", None)}
    assert {row["generator"] for row in made} == {f"folder:{made[0]['revision'][:12]}"}
    settings = json.loads(made[0]["settings"])
    assert settings["num_steps"] == 2 and settings["scheduler"] == "PNDMScheduler" and settings["guidance_scale"] == 7.5
    with Image.open(small.store.open(done["content_id"]).file("sheets/0.png")) as sheet:
        assert sheet.width > 4 * 128


def test_an_image_is_what_diffusers_makes_of_its_prompt_and_seed(small, tiny):
    """Anyone can make an image again from its row alone."""
    from diffusers import StableDiffusionPipeline

    small.last("generate-images", "generate-images.negative_prompt=blue")
    pipeline = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    texts = {prompt_id(text): text for text in PROMPTS}
    files = small.store.open(small.store.newest("small", "generate-images").content_id).table("images")
    for row in pq.read_table(files[0]).to_pylist()[:6]:
        made = pipeline(
            texts[row["prompt_id"]],
            negative_prompt="blue",
            num_inference_steps=2,
            generator=torch.Generator("cpu").manual_seed(row["seed"]),
            output_type="np",
        ).images[0]
        ours = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
        assert np.abs(ours - np.rint(made * 255)).max() <= 2


@pytest.mark.parametrize("scheduler", ["own", "ddpm", "euler-ancestral"])
@pytest.mark.slow
def test_pixels_do_not_depend_on_batches_shards_or_processes(small, scheduler):
    """Also with samplers that draw noise at every step."""
    one, ids = pixels(small, small.last("generate-images", f"generate-images.scheduler={scheduler}"))
    for settings in (("batch_size=1",), ("batch_size=64", "shard_size=1"), ("shard_size=7", "num_processes=2")):
        flags = [f"generate-images.{setting}" for setting in (f"scheduler={scheduler}", *settings)]
        other, same_ids = pixels(small, small.last("generate-images", *flags))
        assert ids == same_ids
        assert np.abs(one - other).max() <= 2, settings


def test_two_runs_give_the_same_bytes(small):
    one = small.last("generate-images")["content_id"]
    assert small("run", "generate-images", "--force", "--json").events[-1]["content_id"] == one
    assert small.last("generate-images", "generate-images.seed=1")["content_id"] != one


def test_several_models_share_a_prompts_images_evenly(small, tmp_path):
    stable_diffusion(tmp_path / "other", seed=7)
    flags = (
        f"generate-images.models=['tiny', '{tmp_path}/other']",
        "generate-images.min_images=4",
        "generate-images.max_images=4",
    )
    done = small.last("generate-images", *flags)
    counts = small.rows("SELECT prompt_id, generator, count(*) AS n FROM images GROUP BY ALL")
    assert len(counts) == 12 and {row["n"] for row in counts} == {2}
    assert list(done["metrics"]["images_by_model"].values()) == [12, 12]
    assert (
        done["content_id"]
        == small("run", "generate-images", "--force", "--json", *[part for flag in flags for part in ("--set", flag)]).events[-1][
            "content_id"
        ]
    )


def test_stable_diffusion_xl_runs_through_the_same_code(small, tmp_path):
    stable_diffusion_xl(tmp_path / "xl")
    flags = (f"generate-images.models=['{tmp_path}/xl']", "generate-images.max_images=4")
    done = small.last("generate-images", *flags)
    one, ids = pixels(small, done)
    other, same_ids = pixels(small, small.last("generate-images", *flags, "generate-images.batch_size=3"))
    assert ids == same_ids and len(ids) == 24 and np.abs(one - other).max() <= 2

    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "xl", add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    texts = {prompt_id(text): text for text in PROMPTS}
    for row in pq.read_table(small.store.open(done["content_id"]).table("images")[0]).to_pylist()[:3]:
        seeded = torch.Generator("cpu").manual_seed(row["seed"])
        made = pipeline(
            texts[row["prompt_id"]], num_inference_steps=2, guidance_scale=7.5, generator=seeded, output_type="np"
        ).images[0]
        assert np.abs(one[ids.index(row["image_id"])] - np.rint(made * 255)).max() <= 2, "as diffusers guides it"
    small.last(
        "generate-images", *flags, "generate-images.guidance_scale=1.0", "generate-images.width=24", "generate-images.height=16"
    )
    assert {(row["width"], row["height"]) for row in rows(small, "width, height")} == {(24, 16)}


@pytest.mark.parametrize(
    ("made", "fault"),
    [({"blackens": True}, "blackened"), ({"vae_bias": float("nan")}, "not finite"), ({"vae_bias": 0.3}, "constant")],
)
def test_images_nobody_should_judge_are_marked_and_counted(small, tmp_path, made, fault):
    """A mix of a good model and one whose images all have the fault: the run goes on while not too many have it."""
    stable_diffusion(tmp_path / "bad", **made)
    flags = (f"generate-images.models=['tiny', '{tmp_path}/bad']", "generate-images.max_images=4")
    done = small.last("generate-images", *flags)
    assert done["rows"] == {"read": 24, "kept": 12, "rejected": 12}
    assert done["metrics"]["rejected_for"] == {fault: 12}
    assert sorted(str(row["fault"]) for row in rows(small, "fault")) == ["None"] * 12 + [fault] * 12
    assert small.rows("SELECT DISTINCT reason FROM generate_images.rejected") == [{"reason": fault}]
    alone = small.run("generate-images", f"generate-images.models=['{tmp_path}/bad']", status=2).err
    assert "none of" in alone and fault in alone


def test_a_safety_checker_can_be_left_out(small, tmp_path):
    stable_diffusion(tmp_path / "bad", blackens=True)
    flags = (f"generate-images.models=['{tmp_path}/bad']", "generate-images.safety_checker=false")
    assert small.last("generate-images", *flags)["metrics"]["rejected_for"] == {}


def test_prompts_over_the_encoders_length_are_cut_counted_and_listed(small):
    long = "a red circle " + "on a dark background " * 10
    (small.root / "pool.txt").write_text("\n".join([*PROMPTS[:-1], long]) + "\n", encoding="utf-8")
    assert "1 prompts were cut" in small.run("generate-images").err
    (row,) = small.rows("SELECT * FROM overlong_prompts")
    assert row["prompt_id"] == show_row_id(prompt_id(long)) and row["tokens"] == 3 + 40 + 2
    kept = long.split()[:30]
    assert row["lost"].split() == long.split()[30:] and len(kept) == 30, "30 words, and a token at each end, are taken"


def test_an_empty_prompt_makes_no_images(tmp_path, context, tiny):
    prompts = [{"prompt_id": 1, "prompt": "a red circle"}, {"prompt_id": 2, "prompt": "  "}]
    table = tmp_path / "selected"
    SELECTED_PROMPTS.write(
        table,
        {
            "pick": [0, 1],
            "prompt_id": [1, 2],
            "prompt": [row["prompt"] for row in prompts],
            "source_row": [0, 1],
            "vote_score": [None, None],
            "set": [None, None],
        },
    )
    artifact = SimpleNamespace(table=lambda name: [table / f"{name}.parquet"])
    config = GenerateImagesConfig(models=("tiny",), num_steps=1, dtype="float32")
    here = Context(context.work, context.progress, context.say, {}, {"models": (Model("tiny", "0", tiny),)})
    out = tmp_path / "out"
    out.mkdir()
    report = run(config, {"selected-prompts": artifact}, out, here)
    jobs = plan_jobs(config, prompts, 1)
    assert report.metrics["rejected_for"] == {"empty prompt": sum(job.prompt_id == 2 for job in jobs)}
    assert report.rows.kept == sum(job.prompt_id == 1 for job in jobs)


def test_shards_are_of_whole_prompts_and_one_model():
    prompts = [{"prompt_id": number, "prompt": str(number)} for number in range(50)]
    jobs = plan_jobs(GenerateImagesConfig(models=("a", "b")), prompts, 2)
    shards = cut_shards(jobs, 32)
    assert sorted(job.row for shard in shards for job in shard.jobs) == list(range(len(jobs)))
    for shard in shards:
        assert {job.model for job in shard.jobs} == {shard.model}
    for model in (0, 1):
        seen = [{job.prompt_id for job in shard.jobs} for shard in shards if shard.model == model]
        assert len(set.union(*seen)) == sum(map(len, seen)), "no prompt is encoded twice"


class TestModelsThatCannotBeUsed:
    def test_weights_that_are_unmet(self, small, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = small.run("generate-images", "generate-images.models=['nobody/nothing@" + "0" * 40 + "']", status=2).err
        assert "nobody/nothing cannot be loaded" in message
        assert "hf download nobody/nothing --revision 000" in message and "local folder" in message

    def test_an_unknown_shipped_model(self, small):
        message = small.run("generate-images", "generate-images.models=['micro-generater']", status=2).err
        assert "did you mean 'micro-generator'?" in message

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("StableDiffusionImg2ImgPipeline", "takes image"),
            ("StableVideoDiffusionPipeline", "takes image"),
            ("MyOwnPipeline", "is not a text-to-image pipeline"),
        ],
    )
    def test_a_pipeline_of_another_kind(self, small, name, message):
        (small.root / "wrong").mkdir()
        (small.root / "wrong" / "model_index.json").write_text(json.dumps({"_class_name": name}), encoding="utf-8")
        told = small.run("generate-images", "generate-images.models=['wrong']", status=2).err
        assert f"is a {name}, which {message}" in told and "StableDiffusionPipeline" in told

    def test_a_folder_that_is_no_pipeline(self, small):
        (small.root / "wrong").mkdir()
        (small.root / "wrong" / "notes.txt").write_text("hello", encoding="utf-8")
        message = small.run("generate-images", "generate-images.models=['wrong']", status=2).err
        assert "cannot be loaded" in message and "model_index.json" in message

    @pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model", "text_encoder/model"])
    def test_truncated_weights(self, small, tmp_path, part):
        folder = stable_diffusion(tmp_path / "cut")
        weights = folder / f"{part}.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        assert "cannot be loaded" in small.run("generate-images", f"generate-images.models=['{folder}']", status=2).err

    def test_pickled_weights_are_not_read(self, small, tmp_path):
        folder = stable_diffusion(tmp_path / "pickled")
        (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
        assert "cannot be loaded" in small.run("generate-images", f"generate-images.models=['{folder}']", status=2).err

    @pytest.mark.slow
    def test_a_licence_that_must_be_accepted(self, small):
        """The hub's own answer to that, from a server of our own."""

        class Gate(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(403)
                self.send_header("X-Error-Code", "GatedRepo")
                self.send_header("X-Error-Message", "Access to model some/model is restricted.")
                self.end_headers()

            do_HEAD = do_GET  # noqa: N815

            def log_message(self, *arguments):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Gate)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        model = "generate-images.models=['some/model@" + "1" * 40 + "']"
        command = [sys.executable, "-m", "irpipe.cli", "run", "generate-images", "--set", model]
        env = {
            **os.environ,
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(small.root),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        done = subprocess.run(command, check=False, cwd=small.root, capture_output=True, text=True, env=env, timeout=300)
        server.shutdown()
        server.server_close()
        assert done.returncode == 2
        assert "only to those who accept its licence" in done.stderr and "hf auth login" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        ),
    ],
)
def test_out_of_memory_says_which_setting_helps(small, monkeypatch, error):
    def forward(*arguments, **settings):
        raise error

    monkeypatch.setattr("diffusers.UNet2DConditionModel.forward", forward)
    message = small.run("generate-images", status=2).err
    assert "out of memory with the settings of generate-images" in message and "--set generate-images.batch_size=" in message


@pytest.mark.parametrize("device", ["cuda", "banana"])
def test_a_device_that_is_not_there(small, device):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    assert (
        f"the device '{device}' cannot be used" in small.run("generate-images", f"generate-images.device={device}", status=2).err
    )


def test_a_size_that_no_autoencoder_has(small):
    assert "multiple of 8" in small.run("generate-images", "generate-images.width=12", status=2).err


def test_settings_that_fight(small):
    assert (
        "min_images is above max_images"
        in small.run("generate-images", "generate-images.min_images=9", "generate-images.max_images=4", status=2).err
    )
    flags = ("generate-images.guidance_scale=1.0", "generate-images.negative_prompt=blue")
    assert "negative_prompt has no effect" in small.run("generate-images", *flags, status=2).err


def scratch_of(project):
    (work,) = (path for path in (project.root / "artifacts" / "work").iterdir() if (path / "scratch").exists())
    return work / "scratch" / "generating"


def start_and_kill(project, flags, ready):
    """Run in a process of its own and kill it as soon as `ready(scratch)`; True if it was killed in time."""
    command = [sys.executable, "-m", "irpipe.cli", "run", "generate-images", "--quiet"]
    command += [part for flag in flags for part in ("--set", flag)]
    process = subprocess.Popen(command, cwd=project.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        found = list((project.root / "artifacts" / "work").glob("*/scratch/generating"))
        if found and ready(found[0]):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    return False


SLOW = ("generate-images.num_steps=20", "generate-images.shard_size=6", "generate-images.batch_size=2")


def test_a_kill_costs_at_most_the_shard_in_hand(small):
    small.run("select-prompts")
    whole = small.last("generate-images", *SLOW)["content_id"]
    for path in (small.root / "artifacts").rglob("*"):
        path.chmod(0o755)
    shutil.rmtree(small.root / "artifacts")
    small.run("select-prompts")
    assert start_and_kill(small, SLOW, lambda work: (work / "00001.sha256").exists() and any(work.glob("*.draft-*")))
    whole_shards = [path.with_suffix("") for path in scratch_of(small).glob("*.sha256")]
    kept = {f"{path.name}.parquet": (path / "images.parquet").stat().st_ino for path in whole_shards}
    assert len(kept) >= 2
    done = small.last("generate-images", *SLOW)
    assert done["content_id"] == whole, "as if nothing had happened"
    files = {path.name: path.stat().st_ino for path in small.store.open(done["content_id"]).table("images")}
    assert {name: files[name] for name in kept} == kept, "finished shards were not made again"


@pytest.mark.slow
def test_a_shard_with_a_flipped_byte_is_made_again(small):
    small.run("select-prompts")
    assert start_and_kill(small, SLOW, lambda work: (work / "00001.sha256").exists())
    (scratch_of(small) / "00001.sha256").write_text("", encoding="utf-8")  # as a power loss may leave it
    shard = scratch_of(small) / "00000" / "images.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    inode = shard.stat().st_ino
    done = small.last("generate-images", *SLOW)
    assert not list((small.root / "artifacts" / "work").glob("*/scratch"))
    first = small.store.open(done["content_id"]).table("images")[0]
    assert first.stat().st_ino != inode and first.read_bytes() != bytes(data)
    assert small("verify").status == 0


def test_an_error_in_one_of_several_processes_ends_the_run(small, tmp_path):
    folder = stable_diffusion(tmp_path / "cut")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    flags = (f"generate-images.models=['{folder}']", "generate-images.num_processes=2", "generate-images.shard_size=6")
    assert "cannot be loaded" in small.run("generate-images", *flags, status=2).err


def test_paths_lead_annotations_back_to_generated_images(small):
    """What people say of an image's path is about that image: ids agree without a table between them."""
    small.run("generate-images")
    row = rows(small, "image_id, prompt_id, image.path AS path")[0]
    text = next(text for text in PROMPTS if show_row_id(prompt_id(text)) == row["prompt_id"])
    path = small.jsonl("mine.jsonl", [{"prompt": text, "images": [row["path"], "other.png"], "ranking": [1, 2]}])
    small.recipe(RECIPE + "[load-annotations]\n")
    small.run("load-annotations", f"load-annotations.path={path}")
    ids = {found["path"]: found["image_id"] for found in small.rows("SELECT path, image_id FROM annotation_images")}
    assert ids[row["path"]] == row["image_id"]
    assert row["path"].startswith(row["prompt_id"])


def test_a_model_tells_loaders_where_it_is():
    assert Model("a/b", "c" * 40, None).location == {"pretrained_model_name_or_path": "a/b", "revision": "c" * 40}
