"""The first hour with irpipe: what is missing is told at once, in the order to give it, and before anything has run."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from irpipe.models import classes
from irpipe.models.classes import TUNABLE, tunable_generator
from irpipe.models.tuning.denoiser import _CONDITIONING
from irpipe.pipeline import requirements
from irpipe.pipeline.errors import ModelError, RecipeError, combined, numbered
from irpipe.pipeline.requirements import missing_packages
from irpipe.pipeline.stage import Model

HUB = f"nobody/nothing@{'0' * 40}"


@pytest.fixture
def paper(project):
    """A project with the paper's recipe."""
    (project.root / "irpipe.toml").unlink()
    project("init", "--recipe", "imagereward")
    return project


def items(text: str) -> list[str]:
    """The first lines of a numbered list."""
    return re.findall(r"^ ?\d+\. (.*)$", text, re.MULTILINE)


class TestMissing:
    def test_status_lists_each_thing_once_in_the_order_to_give_it(self, paper):
        out = paper("status").out
        assert items(out) == [
            "embed-prompts reads 'prompt-pool', and no stage of the recipe 'imagereward' writes it",
            "load-annotations reads 'annotation-files', and no stage of the recipe 'imagereward' writes it",
            "import-images.image_root must be given: --set import-images.image_root=..., or in irpipe.toml",
            "refl reads 'captioned-images', and no stage of the recipe 'imagereward' writes it",
        ]
        assert "also:     raft, reward-weighted, filter-tune" in out
        assert paper("status", "--json").json["missing"][0].startswith(" 1. embed-prompts reads 'prompt-pool'")

    def test_nothing_of_it_is_cut_at_80_columns(self, paper):
        """On a real terminal of 80 columns."""
        here, there = pty.openpty()
        environment = {**os.environ, "COLUMNS": "80", "LINES": "40"}
        process = subprocess.Popen(
            [sys.executable, "-m", "irpipe.cli", "status"], stdout=there, stdin=there, env=environment, cwd=paper.root
        )
        os.close(there)
        read = b""
        while True:
            try:
                read += os.read(here, 65536)
            except OSError:
                break
        assert process.wait() == 0
        out = read.decode().replace("\r\n", "\n")
        table, _, missing = out.partition("missing or wrong")
        assert "…" not in out
        assert all(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) <= 80 for line in table.splitlines() if line[:1] in "┃│")
        assert "--set embed-prompts.path=FILE" in missing and "--set load-annotations.path=FILE" in missing

    @pytest.mark.parametrize("command", ["plan", "run"])
    def test_plan_and_run_name_everything_at_once(self, paper, command):
        error = paper(command, "refl", "--set", "refl.steps=0", "--set", "train-rm.epochs=0.5", status=2).err
        assert items(error) == [
            "load-annotations reads 'annotation-files', and no stage of the recipe 'imagereward' writes it",
            "embed-prompts reads 'prompt-pool', and no stage of the recipe 'imagereward' writes it",
            "train-rm.epochs = 0.5: should be a valid integer",
            "refl.steps = 0: should be greater than or equal to 1",
        ]
        assert error.startswith("error: 4 things keep it from running:")
        assert not (paper.root / "artifacts" / "objects").exists()

    def test_missing_files_are_among_them(self, paper):
        flags = ["load-annotations.path=none.json", "reads.images=import-images", "import-images.image_root=nowhere"]
        found = items(paper.run("train-rm", *flags, status=2).err)
        assert found == ["none.json does not exist", "nowhere does not exist"]

    def test_one_fault_is_told_as_it_is(self):
        fault = RecipeError("a", fix="b")
        assert combined([("x", fault)]) is fault
        assert items(str(combined([("x", fault), ("y", RecipeError("c"))]))) == ["a", "c"]
        assert numbered([("x", RecipeError("x lacks z")), ("y", RecipeError("y lacks z"))]) == [
            " 1. x lacks z\n     also:     y"
        ], "nodes that lack the same are told once"
        assert len(numbered([("x", RecipeError("x lacks z")), ("y", RecipeError("y lacks q"))])) == 2


class TestOnePlace:
    def readers(self, paper, *flags):
        """Which images score-images reads."""
        text = (paper.root / "irpipe.toml").read_text()
        paper.jsonl("a.jsonl", [{"prompt": "a", "images": ["0.png", "1.png"], "ranking": [1, 2]}])
        (paper.root / "pictures").mkdir(exist_ok=True)
        (paper.root / "pictures" / "0.png").write_bytes(b"x")
        (paper.root / "pool.txt").write_text("a\nb\n")
        paper.recipe(text.replace("[embed-prompts]", '[embed-prompts]\npath = "pool.txt"\nembedder = "lexical"'))
        given = ["load-annotations.path=a.jsonl", *flags]
        steps = paper("plan", "score-images", "--json", *(part for flag in given for part in ("--set", flag))).json
        paper.recipe(text)
        return {step["stage"] for step in steps} & {"generate-images", "import-images"}

    def test_it_says_which_images_are_meant_for_every_stage(self, paper):
        assert self.readers(paper) == {"generate-images"}
        assert self.readers(paper, "reads.images=import-images", "import-images.image_root=pictures") == {"import-images"}

    def test_a_stage_may_say_otherwise(self, paper):
        flags = ("score-images.reads.images=import-images", "import-images.image_root=pictures")
        assert self.readers(paper, *flags) == {"generate-images", "import-images"}, "train-rm still reads the others"

    @pytest.mark.parametrize(
        ("flag", "message"),
        [
            ("reads.images=generate-image", "[reads] images: there is no node 'generate-image'; did you mean 'generate-images'?"),
            ("reads.images=train-rm", "images = 'train-rm', which writes 'reward-model'"),
            ("reads.scores=score-images", "--set reads.scores=score-images has no effect"),
        ],
    )
    def test_a_wrong_one(self, paper, flag, message):
        assert message in paper("plan", "train-rm", "--set", flag, status=2).err

    def test_a_setting_of_the_node_that_is_not_meant_says_how_to_mean_it(self, paper):
        error = paper("plan", "train-rm", "--set", "import-images.image_root=pictures", status=2).err
        assert "train-rm does not read import-images" in error and "fix:      --set reads.images=import-images, or leave" in error

    def test_a_choice_that_another_setting_makes_needless_is_no_error(self, paper):
        """refl.reward_model names a model: which node's reward model is meant does not matter then."""
        text = (paper.root / "irpipe.toml").read_text().replace("[refl]", '[refl]\nreads.reward-model = "train-rm"\n')
        paper.recipe(text)
        error = paper("plan", "refl", "--set", "refl.reward_model=micro-judge", status=2).err
        assert "reads" in error and "which it does not read" not in error
        paper.recipe(text.replace('reads.reward-model = "train-rm"', 'reads.reward-modle = "train-rm"'))
        assert "names 'reward-modle', which it does not read; did you mean 'reward-model'?" in paper("plan", "refl", status=2).err


class TestSettings:
    def test_all_faults_of_a_table_each_with_what_helps(self, project):
        flags = ["generate-images.min_images=9", "generate-images.max_images=4", "generate-images.negative_prompt=ugly"]
        error = project("plan", "generate-images", *(part for flag in flags for part in ("--set", flag)), status=2).err
        assert error.splitlines() == [
            "error: generate-images: negative_prompt has no effect: guidance_scale is 1 or less; leave one of them out",
            "generate-images: min_images is above max_images",
        ]

    def test_a_default_by_hand_undoes_what_the_recipe_says(self, project):
        project.recipe('recipe = "x"\n[simulate-prompts]\ncount = 7\n[few]\nlike = "simulate-prompts"\nseed = 3\n')

        def config(stage, *flags):
            project.run(stage, *flags)
            return project.store.newest("x", stage).config, project.store.newest("x", stage).given

        first, given = config("simulate-prompts")
        assert first["count"] == 7 and "count" in given
        usual, given = config("simulate-prompts", "simulate-prompts.count=default")
        assert usual["count"] == 2000 and "count" not in given
        inherited, given = config("few", "few.count=default", "few.seed=default")
        assert (inherited["count"], inherited["seed"], list(given)) == (2000, 0, [])

    def test_a_file_that_the_recipe_names_is_undone_as_well(self, project):
        project.recipe('recipe = "x"\n[simulate-prompts]\n[embed-prompts]\nembedder = "lexical"\npath = "none.txt"\n')
        assert "none.txt does not exist" in project("plan", "embed-prompts", status=2).err
        assert "simulate-prompts" in project("plan", "embed-prompts", "--set", "embed-prompts.path=default").out


class TestBeforeHoursOfWork:
    def flux(self, project, name="FluxPipeline"):
        folder = project.root / "flux"
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))

    def test_a_generator_of_another_class_is_refused_by_its_index(self, project):
        self.flux(project)
        error = project("plan", "refl", "--set", "refl.model=flux", status=2).err
        assert "refl.model: flux is a FluxPipeline, which cannot be tuned" in error
        assert "expected: one of StableDiffusionPipeline, StableDiffusionXLPipeline" in error
        assert "flux is a FluxPipeline" in project.run("refl", "refl.model=flux", status=2).err
        assert not (project.root / "artifacts" / "objects").exists(), "and nothing has run"

    def test_the_classes_are_those_that_tuning_knows(self):
        assert set(TUNABLE) == set(_CONDITIONING)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"_class_name": 3}', "[" * 100_000])
    def test_a_broken_index(self, tmp_path, text):
        (tmp_path / "model_index.json").write_text(text)
        with pytest.raises(ModelError):
            tunable_generator(Model("x", "", tmp_path, "refl.model", "x"))

    def test_a_stage_without_its_packages(self, project, monkeypatch):
        missing_packages.cache_clear()
        monkeypatch.setattr(requirements, "_is_installed", lambda name: name != "peft")
        try:
            error = project("plan", "refl", status=2).err
            assert "refl needs packages that are not installed: peft" in error and "pip install 'irpipe[tune]'" in error
            assert project("plan", "train-rm").status == 0
        finally:
            missing_packages.cache_clear()

    def test_every_extra_that_a_stage_names_exists(self):
        for extra in ("embed", "generate", "train", "tune", "report"):
            assert missing_packages(extra) == ()
        assert missing_packages(None) == ()

    def test_a_model_that_cannot_be_had_is_told_before_anything_runs(self, project, monkeypatch):
        monkeypatch.setattr(requirements, "_reaches_hub", lambda _: False)
        flags = ["embed-prompts.embedder=sentence-transformers", f"embed-prompts.model={HUB}", "embed-prompts.dtype=float32"]
        flags.append(f"generate-images.models=['{HUB}']")
        out = project("plan", "generate-images", *(part for flag in flags for part in ("--set", flag))).out
        assert out.count("nobody/nothing is downloaded first") == 2
        error = project.run("generate-images", *flags, status=2).err
        assert [line.partition(":")[0] for line in items(error)] == ["embed-prompts.model", "generate-images.models"]
        assert "hf download nobody/nothing" in error and "--set generate-images.models=FOLDER" in error
        assert not (project.root / "artifacts" / "objects").exists()

    def test_one_that_was_downloaded_is_at_hand(self, tmp_path, monkeypatch):
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        model = Model("nobody/nothing", "0" * 40, None, "refl.model", HUB)
        assert requirements.folder_of(model) is None and classes.generator(model) is None
        snapshot = tmp_path / "models--nobody--nothing" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        assert requirements.folder_of(model) == snapshot
        with pytest.raises(ModelError, match="FluxPipeline"):
            tunable_generator(model)


class TestOpening:
    def test_report_and_show_open_what_they_made(self, project, monkeypatch):
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
        project.run("select-prompts", "simulate-prompts.count=60", "select-prompts.count=10")
        project("report", "--open")
        assert opened.pop() == (project.root / "report.html").resolve().as_uri() and not opened
        out = project("show", "select-prompts", "--open").out
        assert opened and all(address.startswith("file://") and address.endswith(".png") for address in opened)
        assert all(address.removeprefix("file://") in out for address in opened)

    def test_where_nothing_opens_files(self, project, monkeypatch):
        monkeypatch.setattr("webbrowser.open", lambda _: False)
        project.run("simulate-prompts")
        assert "nothing here opens report.html" in project("report", "--open", status=2).err
        assert (project.root / "report.html").is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["typer", "irpipe.cli.commands", "irpipe.pipeline.status"])
def test_an_interrupt_while_the_command_starts(project, number, module):
    """Raised in the middle of an import."""
    code = f"""
import builtins, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
real = builtins.__import__
def importing(name, *args, **more):
    if name.startswith({module!r}) and not importing.done:
        importing.done = True
        os.kill(os.getpid(), {int(number)})
    return real(name, *args, **more)
importing.done = False
builtins.__import__ = importing
from irpipe.cli import main
sys.argv = ["irpipe", "status"]
main()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=project.root, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (130, False), done.stderr
    assert "interrupted" in done.stderr


def test_going_on_is_only_offered_where_it_can_help(project):
    (project.root / "empty.csv").write_text("prompt\n\n")
    error = project.run("embed-prompts", "embed-prompts.path=empty.csv", status=2).err
    assert "log: irpipe log embed-prompts" in error and "go on" not in error


class TestNewest:
    """A trial with --set is newer than what irpipe.toml stands for: said where it matters."""

    def test_what_is_shown_and_exported_is_told_apart(self, project):
        usual = project.last("simulate-prompts")["content_id"][:12]
        trial = project.last("simulate-prompts", "simulate-prompts.count=50")["content_id"][:12]
        note = f"simulate-prompts: the newest, {trial}, is of other settings than irpipe.toml's, {usual}"
        assert note in project("show", "simulate-prompts").err
        assert note in project("export", "simulate-prompts", "out").err
        project.run("simulate-prompts")
        assert "the newest" not in project("show", "simulate-prompts").err

    def test_gc_says_what_is_the_recipes_own(self, project):
        project.run("simulate-prompts")
        project.run("simulate-prompts", "simulate-prompts.count=50")
        assert "irpipe.toml's, but a newer result is of a --set" in project("gc").out
        project.run("simulate-prompts")
        assert "irpipe.toml's" not in project("gc").out

    def test_reasons_are_those_of_the_nodes_own_last_run(self, project):
        project.recipe('recipe = "x"\n[simulate-prompts]\ncount = 9\n[more]\nstage = "simulate-prompts"\ncount = 10\n')
        project.run("simulate-prompts")
        assert "it never ran" in project("plan", "more").out
        project.run("more")
        out = project("plan", "more", "--set", "more.count=11").out
        assert "more.count 10 -> 11" in out


class TestModelsOfAnotherKind:
    @pytest.mark.parametrize(
        ("stage", "setting"),
        [
            ("train-rm", "train-rm.model"),
            ("refl", "refl.reward_model"),
            ("refl", "refl.evaluation.held_out_model"),
            ("refl", "refl.evaluation.similarity_model"),
            ("score-images", "score-images.clip_model"),
        ],
    )
    def test_a_generator_where_a_scorer_is_meant(self, project, stage, setting):
        error = project("plan", stage, "--set", f"{setting}=micro-generator", status=2).err
        assert f"{setting}: micro-generator holds no BLIP, nor another model that scores images" in error

    @pytest.mark.parametrize("name", ["../models/none", "./none", "ImageReward.pt"])
    def test_a_path_that_is_not_there(self, project, name):
        error = project("plan", "refl", "--set", f"refl.model={name}", status=2).err
        assert f"refl.model = {name!r} does not exist" in error and "commit" not in error

    def test_a_list_of_pictures_is_no_data_set_by_itself(self, tmp_path):
        from irpipe.models.tuning.caption_files import local_captions
        from irpipe.pipeline.errors import InputError

        (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}\n')
        with pytest.raises(InputError, match="name the folder that holds it"):
            local_captions(tmp_path / "metadata.jsonl", 10)


class TestColumns:
    @pytest.mark.parametrize("ending", ["csv", "jsonl"])
    @pytest.mark.parametrize(("name", "shown"), [("Prompt", "Prompt"), ("words", "NAME")])
    def test_the_fix_names_the_column_of_prompts(self, project, ending, name, shown):
        text = f"{name}\na\nb\n" if ending == "csv" else json.dumps({name: "a"}) + "\n"
        (project.root / f"pool.{ending}").write_text(text)
        error = project.run("embed-prompts", f"embed-prompts.path=pool.{ending}", status=2).err
        assert f"fix:      --set embed-prompts.prompt_column={shown}" in error
        if shown == name and ending == "csv":
            project.run("embed-prompts", "embed-prompts.path=pool.csv", "embed-prompts.prompt_column=Prompt")

    def test_the_fix_names_the_column_of_annotations(self, project):
        (project.root / "a.csv").write_text("caption,image,rank\na,0.png,1\na,1.png,2\n")
        error = project.run("load-annotations", "load-annotations.path=a.csv", status=2).err
        assert "--set load-annotations.columns.prompt=NAME" in error
