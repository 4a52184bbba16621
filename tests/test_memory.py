"""Memory: what runs out of it says what to set, wherever that happens; what lowers it does."""

from __future__ import annotations

import errno
import io
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from benchmarks.memory import TINY, of_update
from benchmarks.presets import PRESETS, RECOMPUTED
from irpipe.models.loading import device_errors, load_errors
from irpipe.models.pictures import decode
from irpipe.models.reward import load_reward_model
from irpipe.models.scorers.baselines import ClipScorer
from irpipe.models.scorers.reward import RewardModelScorer
from irpipe.models.tuning.evaluation import HELD_OUT, REWARD, SIMILARITY, GeneratorEvaluator
from irpipe.models.tuning.session import make_scorers
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.memory import is_out_of_memory, memory_errors, smaller
from irpipe.pipeline.processes import _failure
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.settings import default_config, settings_of
from irpipe.pipeline.stage import Context, Model, find_stage, registered
from irpipe.stages.generate_images import GenerateImagesConfig
from irpipe.stages.import_images.shards import check
from irpipe.stages.import_images.sources import Fetched
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective
from irpipe.stages.score_images import ScoreImagesConfig
from tests.conftest import REPOSITORY
from tests.paired import RECIPE

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
# It takes CLIP's gradient of one image at a time.
WITHOUT = {"evaluate-rahf"}
MEASURES = (REWARD, HELD_OUT, SIMILARITY)
MICRO = {name: Model(name, "0" * 40, shipped_folder(name)) for name in ("micro-blip", "micro-clip")}


def full(*_, **__):
    raise FULL


RAN_OUT = [
    FULL,
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: 8 bytes"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", RAN_OUT)
def test_what_says_that_memory_ran_out(error):
    assert is_out_of_memory(error)
    with pytest.raises(StageError, match="out of memory with 8 images") as caught, memory_errors("8 images", "less"):
        raise error
    assert caught.value.fix == "less"


def test_other_errors_pass():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("8 images", "less"):
        raise RuntimeError("mat1 and mat2 shapes")


@pytest.mark.parametrize("error", RAN_OUT)
def test_it_is_no_fault_of_a_model_or_a_device(error):
    with pytest.raises(type(error)), load_errors(MICRO["micro-blip"], "the BLIP", "a BLIP"):
        raise error
    if isinstance(error, RuntimeError):
        with pytest.raises(type(error)), device_errors("cuda"):
            raise error


def test_it_is_no_fault_of_a_picture(monkeypatch):
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "PNG")

    def load(_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(MemoryError):
        decode(data.getvalue())
    with pytest.raises(MemoryError):
        check(Fetched("a.png", data.getvalue()), 1000)


def test_settings_that_need_less():
    assert smaller("draw", default_config(GenerateImagesConfig, batch_size=8)) == ["--set draw.batch_size=4"]
    assert smaller("draw[seed=1]", default_config(GenerateImagesConfig, batch_size=8)) == ["--set draw.batch_size=4"]
    assert smaller("score-images", default_config(ScoreImagesConfig, batch_size=1, dtype="bfloat16")) == []
    training = {"micro_batch_size": 2, "sample_batch_size": 4, "checkpoint_activations": True}
    names = ["training.micro_batch_size=1", "training.sample_batch_size=2"]
    assert smaller("refl", default_config(ReflConfig, training=training)) == [f"--set refl.{name}" for name in names]


def test_what_leaves_the_result_as_it_is_comes_first():
    flags = smaller("raft", default_config(ReflConfig, trainable="unet", training={"dtype": "float32", "micro_batch_size": 1}))
    assert flags == [
        "--set raft.training.checkpoint_activations=true",
        "--set raft.training.sample_batch_size=8",
        "--set raft.trainable=lora",
        "--set raft.training.dtype=bfloat16",
    ]


def test_every_stage_that_runs_on_a_device_has_such_a_setting():
    stages = {name: find_stage(name).config for name in registered()}
    stages = {name: config for name, config in stages.items() if any(one.endswith("device") for one in settings_of(config))}
    assert len(stages) > 10
    without = {name for name, config in stages.items() if not smaller(name, default_config(config))}
    assert without == WITHOUT


class TestReFL:
    @pytest.fixture
    def world(self, project):
        project.recipe(RECIPE)
        project.run("train-rm")
        return project

    @pytest.mark.parametrize("place", ["session.load_trainee", "session.read_captioned", "reward_gradient.reward_loss"])
    def test_running_out_anywhere_names_what_needs_less(self, world, monkeypatch, place):
        monkeypatch.setattr(f"irpipe.models.tuning.{place}", full)
        error = world.run("refl", status=2).err
        assert "out of memory" in error and "refl.training.micro_batch_size=" in error
        assert "refl.training.checkpoint_activations=true" in error and "Traceback" not in error

    def test_the_check_of_the_gradient_needs_no_more_than_a_step(self, world, monkeypatch):
        sizes = []
        inner, check = ReflObjective._predicted_x0, ReflObjective.check_gradient

        def counted(self, latents, timesteps, prompts):
            sizes.append(len(prompts))
            return inner(self, latents, timesteps, prompts)

        def checked(self, parameters):
            with monkeypatch.context() as patched:
                patched.setattr(ReflObjective, "_predicted_x0", counted)
                check(self, parameters)

        monkeypatch.setattr(ReflObjective, "check_gradient", checked)
        world.run("refl", "refl.steps=1", "refl.training.micro_batch_size=1")
        assert sizes == [1]

    def test_scorers_that_only_evaluate_leave_the_device_after_each_evaluation(self, world, monkeypatch):
        moves = []
        for kind in (RewardModelScorer, ClipScorer):
            monkeypatch.setattr(kind, "to", lambda self, device: moves.append(type(self)))
        world.run("refl", "refl.steps=2")
        assert moves == 2 * [RewardModelScorer, RewardModelScorer, ClipScorer, ClipScorer]

    def test_one_scorer_is_on_the_device_at_a_time(self):
        moves = []
        scorers = {name: SimpleNamespace(to=lambda device, name=name: moves.append((name, device.type))) for name in MEASURES}
        evaluator = SimpleNamespace(scorers=scorers, accelerator=SimpleNamespace(device=torch.device("cuda")))
        for name in (REWARD, HELD_OUT):
            with GeneratorEvaluator._on_device(evaluator, name) as scorer:
                assert scorer is scorers[name]
                moves.append("scores")
        with pytest.raises(ZeroDivisionError), GeneratorEvaluator._on_device(evaluator, SIMILARITY):
            raise ZeroDivisionError
        there_and_back = [[(name, "cuda"), (name, "cpu")] for name in (HELD_OUT, SIMILARITY)]
        assert moves == ["scores", there_and_back[0][0], "scores", there_and_back[0][1], *there_and_back[1]]

    def test_scorers_that_only_evaluate_are_loaded_beside_the_device(self, world, tmp_path):
        """`meta` stands for a GPU: what was loaded there would have no values."""
        models = {"evaluation.held_out_model": MICRO["micro-blip"], "evaluation.similarity_model": MICRO["micro-clip"]}
        context = Context(tmp_path, Watcher().progress, print, {}, {name: (model,) for name, model in models.items()})
        reward = load_reward_model(shipped_folder("micro-judge"))
        scorers = make_scorers("refl", reward, ReflConfig(model="none"), context, "meta")
        assert reward.device.type == "meta"
        assert scorers[HELD_OUT].model.device.type == scorers[SIMILARITY].clip.device.type == "cpu"


def test_what_another_process_says_is_handed_on():
    """Else the advice would be to run the same command again, which fails again."""
    others = [SimpleNamespace(poll=lambda: None), SimpleNamespace(poll=lambda: 2)]
    fix = "--set refl.training.micro_batch_size=1"
    errors = io.StringIO(f"error: out of memory with 2 samples\n  fix:      {fix}\n")
    assert _failure(others, errors) == ("process 2 of 3 failed: out of memory with 2 samples", fix)
    assert _failure(others, io.StringIO("Killed"))[1] == "the same command goes on"


def test_presets_are_those_of_the_docs():
    tuning = (REPOSITORY / "docs" / "refl.md").read_text(encoding="utf-8")
    page = (REPOSITORY / "docs" / "howto" / "one-gpu.md").read_text(encoding="utf-8").replace("\\\n", " ")
    for preset in PRESETS:
        if preset.node == "refl":
            (row,) = (
                line for line in tuning.splitlines() if line.startswith("|") and f" {preset.card} " in line and "GB" in line
            )
            assert " ".join(preset.settings[:-1]) in row and preset.settings[-1] == RECOMPUTED and RECOMPUTED in tuning
        else:
            name = {"draw": "generate-images"}.get(preset.node, preset.node)
            assert all(f"--set {name}.{setting}" in page for setting in preset.settings), preset


def test_recomputing_lowers_the_peak_of_a_backward_pass():
    """Counted with tensors without values. The tiny decoder's share is smaller than the real one's."""
    held, recomputed = of_update(TINY, "lora", 2, recomputed=True)
    same, kept = of_update(TINY, "lora", 2, recomputed=False)
    assert held == same
    assert recomputed - held < 0.4 * (kept - held)
