"""The house: packages, layers, start-up, and the command line's surface."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from irpipe.cli import app
from irpipe.pipeline.registry import STAGES
from irpipe.pipeline.settings import role_of, settings_of
from irpipe.pipeline.stage import Stage, find_stage, registered
from irpipe.stages import ORDER
from tests import house_counts
from tests.conftest import REPOSITORY

PYPROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(PYPROJECT)
FOLDERS = ("cli", "exports", "microworld", "models", "pipeline", "recipes", "report", "schemas", "stages", "views")
OURS = sorted(PROJECT["project"]["entry-points"][STAGES])
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_MOST_FUNCTIONS = 400, 40, 25
LEAST_SHAPES = 0.8
HEAVY = ("torch", "pandas", "pyarrow", "duckdb", "sklearn", "scipy", "numpy", "faiss", "PIL", "matplotlib", "transformers")


def test_every_folder_is_a_package():
    assert sorted(PROJECT["tool"]["setuptools"]["package-dir"].values()) == sorted(FOLDERS)
    assert sorted(path.parent.name for path in REPOSITORY.glob("*/py.typed")) == sorted(set(FOLDERS) - {"recipes"})


def test_every_stage_folder_is_an_entry_point():
    folders = sorted(path.parent.name.replace("_", "-") for path in (REPOSITORY / "stages").glob("*/__init__.py"))
    assert folders == OURS
    assert sorted(ORDER) == OURS


def test_a_stage_is_named_by_hand_in_three_places():
    """Its entry point, its table in a recipe, and one line of order. Generated pages do not count."""
    paths = [REPOSITORY / name for name in ("pyproject.toml", "Makefile", "setup.py", "README.md", "mkdocs.yml")]
    paths += [REPOSITORY / "stages" / "__init__.py", *(REPOSITORY / "recipes").glob("*.toml")]
    naming = {
        "a recipe" if path.parent.name == "recipes" else path.relative_to(REPOSITORY).as_posix()
        for path in paths
        if re.search(r"\bsplit[-_]prompts\b", without_the_tree(path.read_text(encoding="utf-8")))
    }
    assert naming == {"pyproject.toml", "a recipe", "stages/__init__.py"}
    lines = [line for line in PYPROJECT.splitlines() if re.search(r"\bsplit[-_]prompts\b", line)]
    assert lines == ['split-prompts = "irpipe.stages.split_prompts:STAGE"']


def without_the_tree(text: str) -> str:
    return re.sub(r"<!-- the tree.*?<!-- the end", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("folder", house_counts.FOLDERS)
def test_functions_on_arrays_tell_shapes(folder):
    """Of functions whose annotations name an array or a tensor, 80 % say in their docstring which shapes it has."""
    shapeless, total = house_counts.shapeless(folder)
    assert len(shapeless) <= (1 - LEAST_SHAPES) * total, sorted(f"{function.file} {function.name}" for function in shapeless)


def test_files_and_functions_keep_to_their_budgets():
    """Files of at most 400 lines, functions of at most 40, and nine of ten functions of at most 25."""
    functions = [function for folder in house_counts.FOLDERS for function in house_counts.functions(folder)]
    long = {f"{function.file} {function.name}" for function in functions if function.lines > MOST_LINES_OF_A_FUNCTION}
    files = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in house_counts.FOLDERS
        for path in house_counts.files(folder)
        if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES_OF_A_FILE
    }
    assert not long | files
    lengths = sorted(function.lines for function in functions)
    assert lengths[int(0.9 * len(lengths))] <= MOST_LINES_OF_MOST_FUNCTIONS


def test_every_dependency_has_a_range_and_a_pin():
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").split())
    requirements = [*PROJECT["project"]["dependencies"]]
    for extra in PROJECT["project"]["optional-dependencies"].values():
        requirements += extra
    for requirement in requirements:
        name = re.split(r"[<>=!\[]", requirement)[0]
        assert ">=" in requirement and "<" in requirement, requirement
        assert name in pins, f"{name} is not pinned in constraints.txt"


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("MPL-2.0", True),
        ("GPL-3.0-or-later", False),
        ("AGPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("CC-BY-NC-4.0", False),
        (None, False),
    ],
)
def test_a_dependency_with_a_refused_licence_fails_the_check(tmp_path, licence, allowed):
    metadata = tmp_path / "planted-1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    named = f"License-Expression: {licence}\n" if licence else ""
    metadata.write_text(f"Metadata-Version: 2.4\nName: planted\nVersion: 1.0\n{named}", encoding="utf-8")
    command = [sys.executable, "-m", "piplicenses", "--packages", "planted"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is allowed, done.stderr
    assert "planted" in (done.stdout if allowed else done.stderr)


def imported_by(code: str) -> list[str]:
    """Heavy modules that a fresh interpreter has loaded after running some code."""
    script = f"{code}\nimport sys, json\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_declarations_load_nothing_heavy():
    names = ", ".join(f"irpipe.stages.{name.replace('-', '_')}" for name in OURS)
    assert imported_by(f"import {names}") == []


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "build-pairs"], ["run", "build-pairs"], ["status"]])
def test_commands_with_nothing_to_do_load_nothing_heavy(project, arguments):
    text = (project.root / "irpipe.toml").read_text(encoding="utf-8")
    for shipped, small in (
        ("count = 2000", "count = 60"),
        ("count = 300\n", "count = 6\n"),
        ("k = 50", "k = 5"),
        ("num_steps = 40", "num_steps = 1"),
    ):
        assert shipped in text
        text = text.replace(shipped, small)
    project.recipe(text)
    project.run("build-pairs")
    project.recipe(text)
    code = (
        f"import sys; sys.argv = ['irpipe', *{arguments!r}]\nfrom irpipe.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code"
    )
    assert imported_by(code) == []


def surface() -> dict[str, Any]:
    """Every command with its parameters."""
    group: Any = typer.main.get_command(app)
    return {
        name: {parameter.name: sorted(parameter.opts) for parameter in command.params if parameter.name != "help"}
        for name, command in sorted(group.commands.items())
    }


def test_the_command_line_is_frozen():
    """Scripts rely on it. A change here is a change for them: say so in CHANGELOG.md."""
    assert surface() == {
        "cite": {"stage": ["stage"], "json_": ["--json"]},
        "diff": {"first": ["first"], "second": ["second"], "json_": ["--json"]},
        "export": {"identifier": ["identifier"], "folder": ["folder"], "to": ["--to"], "private": ["--private"]},
        "gc": {"yes": ["--yes"], "remote": ["--remote"], "grace": ["--grace"], "json_": ["--json"]},
        "publish": {
            "identifier": ["identifier"],
            "repo": ["repo"],
            "to": ["--to"],
            "yes": ["--yes"],
            "public": ["--public"],
            "json_": ["--json"],
        },
        "push": {"names": ["names"], "remote": ["--remote"], "repair": ["--repair"], "json_": ["--json"]},
        **{name: {"names": ["names"], "remote": ["--remote"], "json_": ["--json"]} for name in ("pull", "fetch")},
        "init": {"name": ["name"], "recipe": ["--recipe"]},
        "log": {"stage": ["stage"], "follow": ["--follow", "-f"], "json_": ["--json"]},
        "report": {"identifier": ["identifier"], "out": ["--out"], "watch": ["--watch"], "open_": ["--open"]},
        "lineage": {"identifier": ["identifier"], "format_": ["--format"], "json_": ["--json"]},
        "plan": {"stage": ["stage"], "set_": ["--set"], "strict_code": ["--strict-code"], "json_": ["--json"]},
        "run": {
            "stage": ["stage"],
            "set_": ["--set"],
            "only": ["--only"],
            "force": ["--force"],
            "strict_code": ["--strict-code"],
            "processes": ["--processes"],
            "executor": ["--executor"],
            "address": ["--address"],
            "push": ["--push"],
            "no_remote": ["--no-remote"],
            "quiet": ["--quiet"],
            "json_": ["--json"],
        },
        "score": {
            "images": ["images"],
            "model": ["--model"],
            "prompt": ["--prompt"],
            "scorer": ["--scorer"],
            "aspect": ["--aspect"],
            "device": ["--device"],
            "json_": ["--json"],
        },
        "show": {"identifier": ["identifier"], "json_": ["--json"], "open_": ["--open"]},
        "sql": {"query": ["query"], "seconds": ["--seconds"], "memory": ["--memory"], "json_": ["--json"]},
        "status": {"json_": ["--json"]},
        "trace": {"row_id": ["row_id"], "json_": ["--json"]},
        "verify": {"rerun": ["--rerun"], "remote": ["--remote"], "json_": ["--json"]},
    }


def test_every_command_shows_an_example():
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        assert f"Example: irpipe {name}" in command.help


def test_the_written_reference_is_up_to_date():
    subprocess.run([sys.executable, REPOSITORY / "docs" / "generate.py", "--check"], check=True)


@pytest.mark.parametrize("name", OURS)
class TestEveryStage:
    """The contract of a stage's folder."""

    def test_its_docstring_tells_what_it_reads_writes_and_costs(self, name):
        doc = __import__(f"irpipe.stages.{name.replace('-', '_')}", fromlist=["STAGE"]).__doc__ or ""
        for word in ("Reads:", "Writes:", "Paper:", "Deviates:", "Cost:"):
            assert word in doc, f"{name} does not say {word}"

    def test_its_settings_say_what_they_mean(self, name):
        config: type[BaseModel] = find_stage(name).config
        for field, info in settings_of(config).items():
            assert info.description and info.description.endswith((".", ")")), f"{name}.{field}"
            assert role_of(config, field) in ("result", "execution", "neutral", "external", "model")  # type: ignore[arg-type]

    def test_its_settings_cannot_be_changed_or_invented(self, name):
        config = find_stage(name).config
        assert config.model_config["frozen"] and config.model_config["extra"] == "forbid"

    def test_its_folder_has_a_run(self, name):
        stage = find_stage(name)
        assert stage.run == f"irpipe.stages.{name.replace('-', '_')}.run:run"
        assert callable(stage.load_run())


def test_stages_of_other_packages_are_found(tmp_path, monkeypatch):
    """A package of a user's own declares a stage through the entry-point group, and it runs like ours."""
    assert all(isinstance(find_stage(name), Stage) for name in registered())


def test_nothing_of_this_machine_is_in_the_repository():
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.split()
    home = "/".join(("", "root", ""))
    # The folder for temporary files is any machine's, and tests name it: a clone that lies there is told by its own name.
    here = REPOSITORY if REPOSITORY.parent == Path(tempfile.gettempdir()).resolve() else REPOSITORY.parent
    for name in files:
        path = REPOSITORY / name
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="ignore")
            assert home not in text and f"{here}/" not in text, name
