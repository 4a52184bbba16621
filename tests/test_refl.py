"""The stage `refl`: what it writes, every fault of the list, interruptions, several processes."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from irpipe.models.generators import Sampling
from irpipe.models.pictures import decode
from irpipe.models.training.loop import Trainer
from irpipe.models.tuning.evaluation import GeneratorEvaluator
from irpipe.models.tuning.reward_gradient import RewardGradients
from irpipe.models.tuning.tuned import load_tuned
from irpipe.pipeline.stage import Model
from irpipe.schemas.generator import GeneratorCard
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective
from tests.paired import RECIPE
from tests.pipelines import stable_diffusion

PROMPT = "a red circle"
MICRO = Model("micro-generator", "r", Path(__file__).parents[1] / "microworld" / "weights" / "generator")


class TestStage:
    def test_writes_what_plain_diffusers_loads(self, world):
        from diffusers import StableDiffusionPipeline

        done = world.last("refl", "refl.evaluation.early_stopping=log")
        folder = Path(done["path"])
        card = GeneratorCard.read(folder)
        assert (card.base, card.trained, card.steps) == ("micro-generator", "lora", 4)
        assert card.trained_on["reward-model"] == world.store.newest("micro", "train-rm").content_id
        plain = StableDiffusionPipeline.from_pretrained(MICRO.folder, dtype=torch.float32)
        plain.set_progress_bar_config(disable=True)

        def drawn():
            return plain([PROMPT], num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)).images

        before = drawn()
        plain.load_lora_weights(folder / "lora")
        after = drawn()
        assert np.abs(after - before).max() > 1e-3
        sampling = Sampling(3, 7.5, "own", None, None, "", "float32", False)
        ours = load_tuned(MICRO, folder, card, sampling, "cpu")
        images, _ = ours.sample(ours.encode([PROMPT], 1), [0], [0])
        np.testing.assert_allclose(images, after, atol=1e-4)
        rows = world.rows("SELECT DISTINCT generator FROM refl.images ORDER BY generator")
        assert [row["generator"] for row in rows] == ["refl step 0", "refl step 2", "refl step 4"]
        figures = world.rows("SELECT DISTINCT figure FROM refl.curves WHERE split = 'validation'")
        assert {"reward", "held_out", "similarity", "denoising_loss", "brightness", "diversity", "reward_error"} <= {
            row["figure"] for row in figures
        }
        assert (folder / "before_after.png").is_file() and (folder / "curves.png").is_file()
        assert world.run("refl", "refl.evaluation.early_stopping=log").err.count("reused") > 5

    def test_a_whole_network_is_a_pipeline_of_its_own(self, world):
        from diffusers import StableDiffusionPipeline

        laid = ("refl.trainable=unet", "refl.optimizer.learning_rate=1e-4", "refl.steps=2", "refl.evaluation.early_stopping=log")
        text = RECIPE.replace("lora.rank = 4\n", "", 1)
        world.recipe(text)
        folder = Path(world.last("refl", *laid)["path"])
        tuned = StableDiffusionPipeline.from_pretrained(folder / "pipeline", dtype=torch.float32).unet.state_dict()
        base = StableDiffusionPipeline.from_pretrained(MICRO.folder, dtype=torch.float32).unet.state_dict()
        assert any(not torch.equal(tuned[name], base[name]) for name in base)
        for path in folder.rglob("*.json"):
            text = path.read_text(encoding="utf-8")
            assert str(MICRO.folder) not in text and "_name_or_path" not in text, "the same tuning has the same id elsewhere"

    @pytest.mark.parametrize(
        "setting", ["refl.training.dtype=bfloat16", "refl.training.checkpoint_activations=true", "refl.updates=sequential"]
    )
    def test_other_ways_to_get_there(self, world, setting):
        assert world.last("refl", setting, "refl.steps=2")["metrics"]["steps"] == 2

    def test_more_images_of_a_held_out_prompt_are_judged_and_two_are_kept(self, world):
        judged = "SELECT value FROM refl.curves WHERE step = 0 AND figure IN ('reward', 'held_out') ORDER BY figure"
        two, judged_by_two = self.first_images(world.last("refl", "refl.steps=1")), world.rows(judged)
        more = world.last("refl", "refl.steps=1", "refl.evaluation.images=4")
        four, judged_by_four = self.first_images(more), world.rows(judged)
        assert two and list(two) == list(four)
        for image, picture in two.items():
            assert np.abs(picture - four[image]).max() <= 1, "a batch of another size rounds another way"
        assert len(judged_by_two) == 2
        assert all(one != other for one, other in zip(judged_by_two, judged_by_four, strict=True))

    def first_images(self, done):
        """Images before the first step, by image and seed."""
        rows = pq.read_table(Path(done["path"]) / "images").to_pylist()
        return {
            (row["image_id"], row["seed"]): np.asarray(decode(row["image"]["bytes"])).astype(int)
            for row in rows
            if row["generator"] == "refl step 0"
        }

    def test_recomputed_activations_are_the_same_training(self, world):
        plain = world.last("refl", "refl.steps=2")
        first = world.rows("SELECT * FROM refl.curves WHERE split = 'train' ORDER BY step, figure")
        key = plain["key"]
        (world.root / "artifacts" / "keys" / key[:2] / f"{key}.json").unlink()
        world.last("refl", "refl.steps=2", "refl.training.checkpoint_activations=true", "refl.training.micro_batch_size=2")
        second = world.rows("SELECT * FROM refl.curves WHERE split = 'train' ORDER BY step, figure")
        for one, other in zip(first, second, strict=True):
            assert other["value"] == pytest.approx(one["value"], rel=1e-3, abs=1e-5), one

    def test_guidance_and_another_size(self, world):
        laid = (
            "refl.guidance_scale=2.0",
            "refl.evaluation.guidance_scale=2.0",
            "refl.width=40",
            "refl.height=48",
            "refl.steps=2",
        )
        done = world.last("refl", *laid)
        sizes = world.rows("SELECT DISTINCT width, height FROM refl.images")
        assert sizes == [{"width": 40, "height": 48}] and done["metrics"]["steps"] == 2

    def test_without_the_pretraining_loss_is_told(self, world):
        text = RECIPE.replace("pretraining.batch_size = 4\n", "pretraining.weight = 0.0\n", 1).replace(
            'updates = "together"\n', "", 1
        )
        world.recipe(text)
        done = world.run("refl", "refl.steps=2")
        assert "without the pre-training loss" in done.err
        record = world.store.newest("micro", "refl")
        assert record.metrics["pretraining_loss"] == "off" and record.config["pretraining.weight"] == 0

    def test_training_prompts_are_of_the_train_split_alone(self, world):
        done = world.last("refl", "refl.steps=2")
        splits = world.rows("SELECT split, count(*) AS n FROM prompt_splits GROUP BY split")
        counts = {row["split"]: row["n"] for row in splits}
        assert done["metrics"]["prompts"] == counts["train"]
        reasons = world.rows("SELECT reason, count(*) AS n FROM refl.rejected GROUP BY reason")
        assert {row["reason"]: row["n"] for row in reasons} == {
            "only evaluated on": counts["validation"],
            "kept for evaluation": counts["test"],
        }

    def test_evaluation_prompts_among_the_training_prompts(self, world):
        (row,) = world.rows("SELECT prompt FROM prompt_splits WHERE split = 'train' LIMIT 1")
        (world.root / "evaluation.txt").write_text(row["prompt"].upper() + "\n")
        told = world.run("refl", "refl.exclude=['evaluation.txt']", status=2).err
        assert "1 evaluation prompts are among the" in told and "select-prompts.exclude" in told

        (world.root / "captions.txt").write_text("\n".join(row["prompt"] for row in world.rows("SELECT prompt FROM captions")))
        told = world.run("refl", "refl.exclude=['captions.txt']", status=2).err
        assert "evaluation prompts are" in told

    def test_the_trained_reward_is_no_held_out_scorer(self, world):
        folder = world.store.open(world.store.newest("micro", "train-rm").content_id).path
        told = world.run("refl", f"refl.evaluation.held_out_model={folder}", status=2).err
        assert "the held-out scorer is the reward model that is tuned for" in told

    def test_images_that_a_safety_checker_blackened_are_excluded_and_counted(self, world, tmp_path):
        folder = stable_diffusion(tmp_path / "sd", blackens=True)
        laid = (f"refl.model={folder}", "refl.steps=2", "refl.evaluation.early_stopping=log")
        done = world.last("refl", *laid)
        assert done["metrics"]["blackened_share"] == 1.0
        rows = world.rows("SELECT value FROM refl.curves WHERE figure = 'gradient_norm'")
        quiet = world.rows("SELECT value FROM refl.curves WHERE figure = 'pretraining_loss'")
        assert len(rows) == 2 and all(row["value"] > 0 for row in quiet)

    def test_a_loss_that_is_not_finite_keeps_the_last_good_state(self, world, monkeypatch):
        plain, calls = RewardGradients.at, []

        def spoilt(self, *given):
            reward = plain(self, *given)
            calls.append(1)
            if len(calls) > 4:  # the check before the first step, and three steps
                reward.losses[0] = float("nan")
            return reward

        monkeypatch.setattr(RewardGradients, "at", spoilt)
        told = world.run("refl", status=2).err
        assert "reward_loss is not finite in step 4" in told and "the last good state is kept" in told
        monkeypatch.undo()
        monkeypatch.chdir(world.root)
        assert "goes on after step 2 of 4" in world.run("refl").err

    def test_out_of_memory_says_which_setting_helps(self, world, monkeypatch):
        def full(self, *given):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

        monkeypatch.setattr(ReflObjective, "check_gradient", lambda self, parameters: None)
        monkeypatch.setattr(RewardGradients, "at", full)
        told = world.run("refl", status=2).err
        assert "out of memory with the settings of refl" in told and "--set refl.training.micro_batch_size=" in told

    def test_changed_settings_are_a_new_key_and_the_abandoned_work_is_named(self, world, monkeypatch):
        plain = Trainer._step

        def killed(self, parts):
            if self.state.step == 3:
                raise KeyboardInterrupt
            plain(self, parts)

        monkeypatch.setattr(Trainer, "_step", killed)
        world.run("refl", status=130)
        monkeypatch.undo()
        monkeypatch.chdir(world.root)
        assert (
            "leaves 1 unfinished run of other settings" in world("plan", "refl", "--set", "refl.optimizer.learning_rate=2e-3").out
        )


def disturbed(real, number):
    """A function whose n-th call begins with a SIGTERM to its own process."""
    calls = itertools.count(1)

    def call(*given):
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)

    return call


class TestInterrupted:
    @pytest.mark.slow
    def test_ctrl_c_and_sigterm_keep_every_whole_step(self, world, monkeypatch):
        """Four times on the way: while rollouts are sampled, within a step, in the middle of an evaluation, and after it."""
        laid = (
            "refl.steps=5",
            "refl.evaluation.every=2",
            "refl.optimizer.ema_decay=0.9",
            "refl.training.checkpoint_minutes=1000",
        )
        whole = world.last("refl", *laid)
        (world.root / "artifacts" / "keys" / whole["key"][:2] / f"{whole['key']}.json").unlink()
        told = []
        for owner, name, number in (
            (ReflObjective, "prepare", 2),
            (Trainer, "_learn", 1),
            (GeneratorEvaluator, "evaluate", 1),
            (Trainer, "_mind", 1),
        ):
            with monkeypatch.context() as patched:
                patched.setattr(owner, name, disturbed(getattr(owner, name), number))
                told.append(world.run("refl", *laid, status=130).err)
        told.append(world.run("refl", *laid).err)
        assert all("what it had saved is kept" in one for one in told[:4])
        went_on = [re.findall("goes on after step (.) of 5", one) for one in told]
        assert went_on == [[], ["1"], ["2"], ["2"], ["2"]]
        assert world.store.newest("micro", "refl").content_id == whole["content_id"]

    @pytest.mark.parametrize(
        "settings",
        [
            pytest.param((), marks=pytest.mark.slow),
            ("refl.refresh_every=3", "refl.rollouts=5"),
            pytest.param(("refl.evaluation.every=2", "refl.optimizer.ema_decay=0.9"), marks=pytest.mark.slow),
        ],
    )
    def test_killed_and_resumed_has_the_same_weights(self, world, settings):
        laid = ("refl.steps=8", "refl.training.checkpoint_minutes=0", *(settings or ("refl.evaluation.every=100",)))
        whole = world.last("refl", *laid)
        path = world.root / "artifacts" / "keys" / whole["key"][:2] / f"{whole['key']}.json"
        path.unlink()
        flags = [part for setting in laid for part in ("--set", setting)]
        command = [sys.executable, "-m", "irpipe.cli", "run", "refl", *flags]
        process = subprocess.Popen(command, cwd=world.root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        reached = 0
        while reached < 4 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.02)
            found = list((world.root / "artifacts" / "work").rglob("checkpoint.pt"))
            if found:
                reached = torch.load(found[0], weights_only=True)["state"]["step"]
        assert reached >= 4
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stderr.close()
        again = world.run("refl", *laid)
        assert "goes on after step" in again.err
        assert world.store.newest("micro", "refl").content_id == whole["content_id"]


class TestProcesses:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("node", "laid"),
        [
            ("refl", ("refl.steps=2", "refl.evaluation.every=100")),
            (
                "refl",
                (
                    "refl.steps=2",
                    "refl.evaluation.every=1",
                    "refl.refresh_every=2",
                    "refl.rollouts=5",
                    "refl.training.sample_batch_size=2",
                ),
            ),
            ("raft", ("raft.steps=3", "raft.evaluation.every=1", "raft.training.sample_batch_size=3")),
        ],
    )
    def test_two_processes_agree_with_one(self, world, node, laid):
        one = world.last(node, *laid)
        curves = f"SELECT * FROM {node}.curves ORDER BY split, step, figure"
        first = world.rows(curves)
        path = world.root / "artifacts" / "keys" / one["key"][:2] / f"{one['key']}.json"
        path.unlink()
        flags = [part for setting in laid for part in ("--set", setting)]
        command = [sys.executable, "-m", "irpipe.cli", "run", node, "--processes", "2", *flags]
        subprocess.run(
            command, cwd=world.root, check=True, capture_output=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        second = world.rows(curves)
        assert [(row["split"], row["step"], row["figure"]) for row in second] == [
            (row["split"], row["step"], row["figure"]) for row in first
        ]
        for this, other in zip(first, second, strict=True):
            # A pixel that rounds otherwise in a batch of another size moves the standard error of a small difference most.
            rel = 2e-2 if this["figure"].endswith("_error") else 2e-3
            assert other["value"] == pytest.approx(this["value"], rel=rel, abs=1e-5), this


def test_declared_defaults_are_the_papers():
    config = ReflConfig()
    assert (config.num_steps, config.first_late_step, config.last_late_step) == (40, 30, 39)
    assert (config.optimizer.learning_rate, config.reward_weight, config.batch_size, config.steps) == (1e-5, 1e-3, 64, 100)
    assert (config.phi, config.margin, config.refresh_every, config.pretraining.weight) == ("margin", 2.0, 1, 1.0)
