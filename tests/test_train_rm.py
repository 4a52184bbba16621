"""train-rm: the loss, what is frozen, the same result however it is cut and interrupted, and every way it can go wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from irpipe.models.imagereward import ImageReward
from irpipe.models.reward.start import init_reward_model
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.stage import Model
from irpipe.schemas.curves import series
from irpipe.schemas.pairs import PAIRS
from irpipe.stages.train_rm import TrainRmConfig
from irpipe.stages.train_rm.batches import augment
from irpipe.stages.train_rm.data import (
    PairRows,
    fewer_prompts,
    group,
    pack,
    read_pairs,
    share,
    steps_of_epoch,
)
from tests.paired import RECIPE

MICRO = Model("micro-blip", "0" * 40, shipped_folder("micro-blip"))


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(Path(result["path"]) / "model.safetensors")


def losses(result) -> np.ndarray:
    """Validation losses over the training.

    Weights are no measure of sameness: where a gradient is 0 but for rounding (the head's last bias), Adam goes a full step.
    """
    return np.array(list(curve(result, "validation", "loss").values()))


def curve(result, split: str, figure: str) -> dict[int, float]:
    """One figure of a training by step."""
    return series(pq.read_table(Path(result["path"]) / "curves.parquet").to_pylist(), split, figure)


def close(one, other) -> bool:
    return len(losses(one)) == len(losses(other)) and np.allclose(losses(one), losses(other), rtol=2e-3)


def rows_of(prompts, better, worse, **columns) -> PairRows:
    count = len(prompts)
    given = {
        "pair_id": np.arange(count, dtype=np.uint64),
        "prompt_id": np.array(prompts, dtype=np.uint64),
        "ranking_id": np.array(prompts, dtype=np.uint64) + 100,
        "better": np.array(better, dtype=np.uint64),
        "worse": np.array(worse, dtype=np.uint64),
        "weight": np.ones(count, dtype=np.float32),
        "split": np.array(["train"] * count),
    }
    return PairRows(**{**given, **columns})


class TestTraining:
    def test_it_learns_and_says_what_it_made(self, rm):
        done = rm.last("train-rm", "train-rm.epochs=6")
        metrics, folder = done["metrics"], Path(done["path"])
        assert metrics["head"] == "itm" and metrics["steps"] > 24
        assert {path.name for path in folder.iterdir()} >= {
            "config.json",
            "model.safetensors",
            "score_card.json",
            "tokenizer.json",
            "curves.parquet",
            "curves.png",
            "last",
        }
        validation = curve(done, "validation", "loss")
        assert 0 in validation and len(validation) == 1 + 6 * 4
        assert min(validation.values()) == pytest.approx(metrics["validation_loss"], abs=1e-5)
        training = list(curve(done, "train", "loss").values())
        assert np.mean(training[-5:]) < np.mean(training[:5]) - 0.03
        card = json.loads((folder / "score_card.json").read_text(encoding="utf-8"))
        assert card["trained_on"]["pairs"] == rm.store.newest("micro", "build-pairs").content_id
        assert card["trained_on"]["ties"] == "left out" and card["trained_on"]["label_source"] == "model"
        assert card["trained_on"]["started_from"]["name"] == "micro-blip"
        best, last_model = ImageReward.from_pretrained(folder), ImageReward.from_pretrained(folder / "last")
        assert any(not torch.equal(a, b) for a, b in zip(best.parameters(), last_model.parameters(), strict=True))

    def test_normalised_scores_have_mean_0_and_deviation_1_on_the_named_split(self, rm):
        rm.last("train-rm")
        rm.run("score-images", "score-images.split=validation", "score-images.scorers=['reward-model']")
        (row,) = rm.rows("SELECT avg(score) AS mean, stddev_pop(score) AS deviation FROM score_images.scores")
        assert abs(row["mean"]) < 0.05 and row["deviation"] == pytest.approx(1, abs=0.05)

    def test_the_loss_is_the_papers(self, rm):
        """-log sigmoid(better - worse), mean over pairs by weight; in float64 from the scores of the untrained model."""
        done = rm.last("train-rm", "train-rm.epochs=1", "build-pairs.weighting='prompt'", "train-rm.fit_scale=false")
        before = {figure: curve(done, "validation", figure)[0] for figure in ("loss", "accuracy")}
        model, _ = init_reward_model(MICRO, "auto", 1234)
        pairs = rm.rows("SELECT prompt_id, better, worse, weight FROM pairs WHERE split = 'validation'")
        images = {
            row["image_id"]: row["image"]["bytes"]
            for path in Path(rm.store.open(rm.store.newest("micro", "generate-images").content_id).path, "images").glob(
                "*.parquet"
            )
            for row in pq.read_table(path, partitioning=None).to_pylist()
        }
        prompts = {int(row["prompt_id"], 16): row["prompt"] for row in rm.rows("SELECT * FROM annotated_prompts")}
        pairs = [{**pair, **{name: int(pair[name], 16) for name in ("prompt_id", "better", "worse")}} for pair in pairs]
        from irpipe.models.pictures import decode

        scores = {}
        for pair in pairs:
            for end in ("better", "worse"):
                if pair[end] not in scores:
                    texts = model.encode_texts([prompts[pair["prompt_id"]]])
                    with torch.no_grad():
                        scores[pair[end]] = model(model.preprocess(decode(images[pair[end]]))[None], texts).item()
        gaps = np.array([scores[pair["better"]] - scores[pair["worse"]] for pair in pairs])
        weight = np.array([pair["weight"] for pair in pairs])
        assert len(set(weight.tolist())) > 1
        assert before["loss"] == pytest.approx((np.log1p(np.exp(-gaps)) * weight).sum() / weight.sum(), rel=1e-5)
        assert before["accuracy"] == pytest.approx(((gaps > 0) * weight).sum() / weight.sum(), rel=1e-6)

    def test_early_stop(self, rm):
        patient = ("train-rm.evaluation.patience=2", "train-rm.optimizer.learning_rate=0.01")
        done = rm.last("train-rm", "train-rm.epochs=30", *patient)
        validated = curve(done, "validation", "loss")
        steps = list(validated)
        assert min(steps, key=lambda step: validated[step]) == done["metrics"]["best_step"] == steps[-3]
        assert steps[-1] == done["metrics"]["steps"] < 100

    def test_the_average_is_what_is_validated_and_kept(self, rm):
        """With a decay of nearly 1 it stays near the first steps; the weights themselves go on."""
        plain = rm.last("train-rm")
        averaged = rm.last("train-rm", "train-rm.optimizer.ema_decay=0.999999")
        assert losses(averaged)[0] == pytest.approx(losses(plain)[0], rel=1e-5), "before the first step they are one"
        assert not np.allclose(losses(averaged), losses(plain), rtol=1e-4)
        model = ImageReward.from_pretrained(Path(averaged["path"]) / "last")
        assert model.card.mean != ImageReward.from_pretrained(Path(plain["path"]) / "last").card.mean

    def test_a_published_head_stays_at_ln_2_where_the_default_learns(self, rm):
        """The reason for the default: at the paper's learning rate the published head gets nowhere for thousands of steps."""
        losses_of = {}
        for head in ("published", "itm"):
            settings = (f"train-rm.head={head}", "train-rm.optimizer.learning_rate=1e-5", "train-rm.collapse_after=0")
            losses_of[head] = list(curve(rm.last("train-rm", *settings), "train", "loss").values())[-3:]
        assert np.mean(losses_of["published"]) == pytest.approx(math.log(2), abs=1e-3)
        assert np.mean(losses_of["itm"]) < math.log(2) - 5e-3

    def test_trackers(self, rm):
        pytest.importorskip("tensorboard")
        rm.last("train-rm", "train-rm.training.trackers=['tensorboard']", "train-rm.training.tracker_folder=runs")
        assert list((rm.root / "runs").rglob("events.out.tfevents.*"))


class TestTheSameHoweverItIsCut:
    def test_micro_batches_and_recomputed_activations(self, rm):
        """With dropout, stochastic depth and augmentation: noise is a prompt's own."""
        noisy = ("train-rm.random_shift=2", "train-rm.horizontal_flip=true", "train-rm.noise_std=0.1")
        whole = rm.last("train-rm", *noisy, "train-rm.training.micro_batch_size=512")
        assert close(
            whole, rm_again(rm, *noisy, "train-rm.training.micro_batch_size=8", "train-rm.training.checkpoint_activations=true")
        )
        assert not close(whole, rm_again(rm, *noisy, "train-rm.training.seed=5"))

    @pytest.mark.slow
    def test_two_processes_do_what_one_does(self, rm):
        one = rm.last("train-rm", "train-rm.epochs=1")
        command = [
            sys.executable,
            "-m",
            "irpipe.cli",
            "run",
            "train-rm",
            "--set",
            "train-rm.epochs=1",
            "--processes",
            "2",
        ]
        done = subprocess.run([*command, "--force", "--json"], cwd=rm.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        two = json.loads(done.stdout.splitlines()[-1])
        assert close(one, two)
        assert one["metrics"]["validation_loss"] == pytest.approx(two["metrics"]["validation_loss"], abs=1e-4)

    @pytest.mark.slow
    def test_under_torchrun(self, rm):
        one = rm.last("train-rm", "train-rm.epochs=1")
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
        command += ["-m", "irpipe.cli", "run", "train-rm", "--set", "train-rm.epochs=1", "--force", "--quiet"]
        done = subprocess.run(command, cwd=rm.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        again = {"path": done.stdout.strip().splitlines()[-1]}
        assert close(one, again)

    def test_other_stages_refuse_several_processes(self, rm):
        assert "work for one process" in rm("run", "build-pairs", "--processes", "2", status=2).err

    def test_a_failing_process_is_named(self, rm):
        settings = ["--set", "train-rm.training.device=cuda:7"]
        done = subprocess.run(
            [sys.executable, "-m", "irpipe.cli", "run", "train-rm", "--processes", "2", *settings],
            cwd=rm.root,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 2 and "cuda:7" in done.stderr and "Traceback" not in done.stderr

    def test_frozen_layers_stay_as_they_were(self, rm):
        trained = weights(rm.last("train-rm", "train-rm.freeze_rate=0.67", "train-rm.freeze='layers'"))
        untouched, _ = init_reward_model(MICRO, "auto", 0)
        first = dict(untouched.vision.encoder.layers[0].named_parameters())
        assert all(torch.equal(trained[f"vision.encoder.layers.0.{name}"], value) for name, value in first.items())


def rm_again(rm, *settings):
    flags = [part for setting in settings for part in ("--set", setting)]
    return rm("run", "train-rm", "--json", "--force", *flags).events[-1]


class TestInterrupted:
    def start(self, rm, *settings):
        flags = [part for setting in settings for part in ("--set", setting)]
        # A shell that runs its jobs in the background leaves Ctrl-C ignored for them, and so for us.
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        command = [sys.executable, "-c", code + "from irpipe.cli import main; main()", "run", "train-rm", *flags]
        return subprocess.Popen(command, cwd=rm.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def wait_for_checkpoint(self, rm, process):
        deadline = time.monotonic() + 120
        while not list((rm.root / "artifacts" / "work").glob("*/scratch/checkpoint.pt")):
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.02)

    @pytest.mark.parametrize("sign", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
    def test_goes_on_bit_by_bit(self, rm, sign):
        settings = (
            "train-rm.epochs=4",
            "train-rm.training.checkpoint_minutes=0",
            "train-rm.random_shift=2",
            "train-rm.freeze_rate=0.4",
            "train-rm.optimizer.ema_decay=0.9",
        )
        process = self.start(rm, *settings)
        self.wait_for_checkpoint(rm, process)
        process.send_signal(sign)
        process.wait()
        process.stderr.close()
        resumed = rm("run", "train-rm", "--json", *flags_of(*settings)).events
        assert any("goes on after step" in event.get("text", "") for event in resumed)
        whole = rm_again(rm, *settings)
        assert resumed[-1]["content_id"] == whole["content_id"]

    def test_an_interrupt_waits_for_the_end_of_its_step(self, rm, monkeypatch):
        from irpipe.models.training.loop import Trainer

        settings, real = ("train-rm.epochs=4", "train-rm.training.checkpoint_minutes=1000"), Trainer._learn

        def disturbed(self, step, parts):
            if step == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(self, step, parts)

        monkeypatch.setattr(Trainer, "_learn", disturbed)
        assert "what it had saved is kept" in rm.run("train-rm", *settings, status=130).err
        monkeypatch.undo()
        monkeypatch.chdir(rm.root)
        resumed = rm("run", "train-rm", "--json", *flags_of(*settings)).events
        assert any("goes on after step 6 of" in event.get("text", "") for event in resumed)
        assert resumed[-1]["content_id"] == rm_again(rm, *settings)["content_id"]

    @pytest.mark.slow
    def test_on_another_micro_batch_it_agrees_to_rounding_and_says_so(self, rm):
        settings = ("train-rm.epochs=4", "train-rm.training.checkpoint_minutes=0")
        process = self.start(rm, *settings)
        self.wait_for_checkpoint(rm, process)
        process.kill()
        process.wait()
        process.stderr.close()
        resumed = rm.last("train-rm", *settings, "train-rm.training.micro_batch_size=8")
        assert resumed["metrics"]["micro_batch_sizes"] == [64, 8]
        assert close(resumed, rm_again(rm, *settings))


def flags_of(*settings):
    return [part for setting in settings for part in ("--set", setting)]


class TestFaults:
    def test_a_zeroed_head_collapses(self, rm):
        model, _ = init_reward_model(MICRO, "auto", 0)
        for layer in model.head_layers:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        model.save_pretrained(rm.root / "zero")
        error = rm.run("train-rm", "train-rm.model=zero", "train-rm.collapse_after=5", status=2).err
        assert "collapsed" in error and "ln 2" in error and "head=itm" in error

    def test_weights_that_are_not_finite_are_known_at_once(self, rm):
        model, _ = init_reward_model(MICRO, "auto", 0)
        model.head[0].weight.data[0, 0] = float("nan")
        model.save_pretrained(rm.root / "broken")
        error = rm.run("train-rm", "train-rm.model=broken", status=2).err
        assert "not finite" in error and "last good state is kept" in error

    def test_a_run_that_diverges_later_keeps_its_checkpoint(self, rm, monkeypatch):
        from irpipe.stages.train_rm.objective import PairwiseObjective

        real = PairwiseObjective.loss

        def spoilt(self, step, part):
            loss, figures = real(self, step, part)
            return loss * (math.nan if step == 12 else 1), figures

        monkeypatch.setattr(PairwiseObjective, "loss", spoilt)
        error = rm.run("train-rm", "train-rm.training.checkpoint_minutes=0", status=2).err
        assert "not finite in step 13" in error
        (path,) = (rm.root / "artifacts" / "work").glob("*/scratch/checkpoint.pt")
        saved = torch.load(path, weights_only=True)
        assert saved["state"]["step"] == 12 and all(torch.isfinite(value).all() for value in saved["weights"].values())

    def test_pairs_of_other_images(self, rm, pool_renders):
        text = RECIPE + f'[import-images]\nlayout = "folder"\nimage_root = "{pool_renders}"\n'
        rm.recipe(text.replace("count = 120", "count = 2000").replace("count = 40", "count = 30"))
        wired = ("simulate-annotations.reads.images=generate-images", "oracle-truth.reads.images=generate-images")
        error = rm.run("train-rm", wired[0], "train-rm.reads.images=import-images", status=2).err
        assert "none of the" in error and "images missing" in error.replace("image missing", "images missing")

    def test_images_that_do_not_decode(self, rm, monkeypatch):
        """Their pairs are rejected with the reason; too many of them stop the run."""
        from irpipe.models import pictures

        real, seen = pictures.resize_and_crop, []

        def sometimes(image, size):
            seen.append(size)
            if len(seen) == 7:
                raise pictures.InputError("no image: cut off")
            return real(image, size)

        monkeypatch.setattr(pictures, "resize_and_crop", sometimes)
        done = rm.last("train-rm", "train-rm.epochs=1")
        lost = done["metrics"]["rejected_for"]["no image: cut off"]
        assert done["rows"]["rejected"] == lost > 0
        (row,) = rm.rows("SELECT count(*) AS n, count(DISTINCT image_id) AS images FROM train_rm.rejected")
        assert row == {"n": lost, "images": 1}
        monkeypatch.setattr(
            pictures, "resize_and_crop", lambda image, size: sometimes(image, size) if len(seen) % 2 else broken(image)
        )
        seen.clear()

        def broken(image):
            seen.append(0)
            raise pictures.InputError("no image: cut off")

        error = rm.run("train-rm", "train-rm.epochs=1", "train-rm.training.seed=2", status=2).err
        assert "unusable images" in error

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (("train-rm.model=micro-sentences",), "is a "),
            (("train-rm.model=micro-generator",), "holds no BLIP"),
            (("train-rm.head=kept",), "no reward head to keep"),
            (("train-rm.image_size=30",), "no multiple of the patch size"),
            (("train-rm.training.tracker_folder=x",), "training.tracker_folder has no effect: no trackers are given"),
            (("train-rm.freeze='layers'",), "freeze has no effect: freeze_rate is 0"),
            (("train-rm.training.device=cuda:9",), "cannot be used"),
        ],
    )
    def test_settings_that_cannot_be(self, rm, settings, told):
        assert told in rm.run("train-rm", *settings, status=2).err

    @pytest.mark.parametrize("count", [1, 3])
    def test_too_few_prompts_for_the_splits(self, rm, count):
        rm.recipe(RECIPE.replace("count = 40", f"count = {count}"))
        assert "a reward model needs one" in rm.run("train-rm", status=2).err

    def test_ties_make_no_pairs_to_train_on(self, rm):
        record = {"prompt": "a red circle", "images": ["a.png", "b.png"], "ranking": [1, 1], "ranking_id": "1", "annotator": "x"}
        path = rm.jsonl("ties.jsonl", [record])
        assert "'tie': 1" in rm.run("train-rm", f"load-annotations.path={path}", status=2).err

    def test_out_of_memory_says_which_settings_lower_it(self, rm, monkeypatch):
        def full(*_, **__):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        monkeypatch.setattr(ImageReward, "forward", full)
        error = rm.run("train-rm", status=2).err
        assert "out of memory" in error and "train-rm.training.micro_batch_size=" in error and "checkpoint_activations" in error

    def test_a_full_disk_is_known_before(self, rm, monkeypatch):
        from irpipe.models import pictures

        monkeypatch.setattr(pictures.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
        assert "do not fit on the disk" in rm.run("train-rm", status=2).err

    def test_a_tracker_that_is_not_installed(self, rm):
        assert "the tracker mlflow is not installed" in rm.run("train-rm", "train-rm.training.trackers=['mlflow']", status=2).err

    def test_half_precision_needs_a_gpu(self, rm):
        assert (
            "float16 needs a GPU"
            in rm.run("train-rm", "train-rm.training.dtype=float16", "train-rm.training.device=cpu", status=2).err
        )


class TestFreezing:
    def frozen(self, how, rate):
        model, _ = init_reward_model(MICRO, "auto", 0)
        model.freeze(rate, how)
        model.train()
        blocks = sum(not block.training for block in model.vision.encoder.layers)
        return blocks, {name for name, value in model.named_parameters() if not value.requires_grad}

    def test_exactly_the_published_parameters(self):
        """FACTS of the released code: whole lower layers, and one tensor of the next: norm1.weight and query.weight."""
        _, layers = self.frozen("layers", 0.67)
        blocks, published = self.frozen("published", 0.67)
        assert blocks == 2
        assert published - layers == {
            "vision.encoder.layers.2.layer_norm1.weight",
            "text.encoder.layer.2.attention.self.query.weight",
        }
        assert {name.split(".")[1] for name in layers} == {"embeddings", "encoder"}
        assert all(not name.startswith("head") for name in published)

    def test_the_published_sizes(self):
        """0.7 of 24 and 12: 16 and 8."""
        assert (int(24 * 0.7), int(12 * 0.7)) == (16, 8)

    @pytest.mark.parametrize("how", ["published", "layers"])
    def test_the_ends(self, how):
        assert self.frozen(how, 0.0) == (0, set())
        blocks, everything = self.frozen(how, 1.0)
        model, _ = init_reward_model(MICRO, "auto", 0)
        towers = {name for name, _ in model.named_parameters() if not name.startswith("head")}
        assert blocks == 3 and everything == towers


class TestData:
    @pytest.fixture
    def pairs(self):
        rng = np.random.default_rng(0)
        prompts = rng.integers(1, 40, 600)
        better, worse = prompts * 100 + rng.integers(0, 7, 600), prompts * 100 + rng.integers(7, 9, 600)
        return rows_of(prompts, better, worse, weight=rng.random(600).astype(np.float32))

    def test_groups_hold_every_pair_once_with_its_images(self, pairs):
        images = pairs.images
        groups = group(pairs, images)
        found = set()
        for number in range(len(groups)):
            rows = images[groups.image_rows[groups.image_starts[number] : groups.image_starts[number + 1]]]
            part = slice(groups.pair_starts[number], groups.pair_starts[number + 1])
            for better, worse, weight in zip(groups.better[part], groups.worse[part], groups.weights[part], strict=True):
                found.add((int(groups.prompts[number]), int(rows[better]), int(rows[worse]), float(weight)))
        columns = (pairs.prompt_id, pairs.better, pairs.worse, pairs.weight)
        assert found == {(int(p), int(b), int(w), float(x)) for p, b, w, x in zip(*columns, strict=True)}
        assert len(groups.better) == 600 and len(np.unique(groups.image_rows)) == len(images) == len(groups.image_rows)

    def test_a_prompt_of_very_many_images_is_cut_by_its_rankings(self):
        better, worse = np.arange(1000, 1060), np.arange(2000, 2060)
        pairs = rows_of([7] * 60, better, worse, ranking_id=np.repeat(np.arange(6, dtype=np.uint64), 10))
        groups = group(pairs, pairs.images)
        assert len(groups) == 6 and set(groups.image_counts.tolist()) == {20}

    def test_an_epoch_has_every_group_once_in_an_order_of_its_own(self, pairs):
        groups = group(pairs, pairs.images)
        first, again, second = (steps_of_epoch(groups, 64, 1, epoch) for epoch in (0, 0, 1))
        assert sorted(np.concatenate(first).tolist()) == list(range(len(groups)))
        assert [step.tolist() for step in first] == [step.tolist() for step in again] != [step.tolist() for step in second]
        sizes = [int(groups.pair_counts[step].sum()) for step in first]
        assert abs(np.mean(sizes[:-1]) - 64) < 8

    def test_sharing_and_packing_lose_nothing(self):
        sizes = {number: 1 + number % 9 for number in range(50)}
        parts = share(list(sizes), sizes, 3)
        assert sorted(chain.from_iterable(parts)) == list(sizes)
        loads = [sum(sizes[number] for number in part) for part in parts]
        assert max(loads) - min(loads) <= 9
        runs = list(pack(list(sizes), sizes, 20))
        assert list(chain.from_iterable(runs)) == list(sizes) and all(sum(sizes[n] for n in run) <= 20 for run in runs)
        assert list(pack([1, 2], {1: 50, 2: 60}, 20)) == [[1], [2]]

    def test_fewer_prompts_are_nested(self, pairs):
        ids = [set(fewer_prompts(pairs, most).prompt_id.tolist()) for most in (5, 10, 0)]
        assert len(ids[0]) == 5 and len(ids[1]) == 10 and ids[0] < ids[1] < ids[2]

    def test_only_the_asked_splits_are_read(self, tmp_path):
        names = ["train", "validation", "test"]
        row = {column.name: [1, 2, 3] for column in PAIRS.columns}
        row |= {"annotator": ["a"] * 3, "category": [None] * 3, "weight": [1.0] * 3, "split": names}
        PAIRS.write(tmp_path, {name: pa.array(values) for name, values in row.items()})
        read = read_pairs([tmp_path / "pairs.parquet"], ("train", "validation"))
        assert read.split.tolist() == names[:2]

    def test_augmentation_is_a_prompts_own(self):
        config = TrainRmConfig(model="x", random_shift=3, horizontal_flip=True, noise_std=0.2, freeze_rate=0.0)
        pixels = torch.rand(5, 3, 16, 16)
        whole = augment(pixels, [2, 3], [10, 11], [True, True], config)
        assert torch.equal(whole[2:], augment(pixels[2:], [3], [11], [True], config))
        still = augment(pixels, [5], [10], [True], TrainRmConfig(model="x", freeze_rate=0.0))
        assert torch.equal(still, pixels)

    def test_an_image_whose_text_names_a_side_is_not_flipped(self):
        config = TrainRmConfig(model="x", horizontal_flip=True, freeze_rate=0.0)
        pixels, seeds = torch.rand(20, 3, 8, 8), list(range(0, 40, 2))
        flipped = augment(pixels, [1] * 20, seeds, [True] * 20, config)
        which = [bool(torch.equal(one, other.flip(-1))) for one, other in zip(flipped, pixels, strict=True)]
        assert 4 < sum(which) < 16
        assert torch.equal(augment(pixels, [1] * 20, seeds, [False] * 20, config), pixels)
