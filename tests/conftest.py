"""What the tests share: a project in an empty folder, and the command line run in this process."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from irpipe.cli import main
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.registry import STAGES, declared
from irpipe.pipeline.stage import Context
from irpipe.pipeline.store import Store
from tests.choir import CHOIR
from tests.paired import RECIPE
from tests.renders import render_pool
from tests.shouting import PACKAGE

REPOSITORY = Path(__file__).resolve().parents[1]
# Real prompts, vectors and rankings, and outputs recorded from the published implementations. Not part of the project.
SHARED = REPOSITORY.parent / "shared"


@dataclass
class Result:
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Project:
    """A folder with a recipe, and `irpipe` run in it."""

    def __init__(self, root: Path, run: Callable[..., Result]) -> None:
        self.root = root
        self._run = run

    def __call__(self, *arguments: str, status: int = 0) -> Result:
        result = self._run(*arguments)
        assert result.status == status, f"irpipe {' '.join(arguments)} ended with {result.status}:\n{result.err}\n{result.out}"
        return result

    def recipe(self, text: str) -> None:
        (self.root / "irpipe.toml").write_text(text, encoding="utf-8")

    def rows(self, query: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self("sql", "--json", query).json
        return rows

    def run(self, stage: str, *settings: str, status: int = 0) -> Result:
        flags = [part for setting in settings for part in ("--set", setting)]
        return self("run", stage, *flags, status=status)

    def last(self, stage: str, *settings: str) -> dict[str, Any]:
        flags = [part for setting in settings for part in ("--set", setting)]
        return self("run", stage, "--json", *flags).events[-1]

    @property
    def store(self) -> Store:
        return Store(self.root / "artifacts")

    def jsonl(self, name: str, records: list[Any]) -> Path:
        path = self.root / name
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Project:
    """An empty folder with the micro recipe, but for its sentence encoder and with near-duplicates kept together."""
    root = tmp_path / "project"
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["irpipe", *arguments])
        capsys.readouterr()
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    project = Project(root, run)
    project("init")
    # Hashed n-grams need no model: loading one takes longer than most tests.
    shipped = (root / "irpipe.toml").read_text(encoding="utf-8")
    text = shipped.replace('model = "micro-sentences"\ndtype = "float32"', 'embedder = "lexical"')
    # Starting further processes takes longer than most tests as well.
    dropped = ("near_duplicate", "num_processes", "training.processes", "training.threads")
    project.recipe("".join(line for line in text.splitlines(keepends=True) if not line.startswith(dropped)))
    return project


@pytest.fixture
def import_recipe(project: Project) -> None:
    """The recipe of people who bring their own images and annotations."""
    project.recipe(
        'recipe = "micro"\n[simulate-prompts]\n[embed-prompts]\nembedder = "lexical"\n[prompt-graph]\nk = 50\n'
        "[select-prompts]\ncount = 200\n[load-annotations]\n[import-images]\nmax_rejected = 1.0\n[split-prompts]\n[build-pairs]\n"
    )


@pytest.fixture(scope="session")
def pool_renders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of the first 200 simulated prompts, in folders by prompt id."""
    return render_pool(tmp_path_factory.mktemp("renders"), 200)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a package with entry points (name to `module:attribute`), as pip would: by its metadata, for every importer."""

    def declare(points: dict[str, str], group: str = STAGES) -> None:
        site = tmp_path / f"site-{len(points)}-{next(iter(points))}"
        metadata = site / "somebodys-1.0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n", encoding="utf-8")
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(site))
        declared.cache_clear()

    yield declare
    declared.cache_clear()


@pytest.fixture
def shouting(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[..., None]) -> Iterator[Path]:
    """A user's own package with two stages, and a recipe that runs them."""
    folder = tmp_path / "site" / "shouting"
    for name, text in PACKAGE.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    install({name: f"shouting.{name}:STAGE" for name in ("word", "count")})
    project.recipe('recipe = "shouting"\n[word]\n[count]\n')
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "shouting"]:
        del sys.modules[name]


@pytest.fixture
def choir(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, install: Callable[..., None]) -> Iterator[Project]:
    """A user's own package with stages that write words, and one that reads several."""
    folder = tmp_path / "site" / "choir"
    for name, text in CHOIR.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder.parent))
    install({name: f"choir.{name}:STAGE" for name in ("word", "echo", "song", "rhyme", "drum", "band", "chorus")})
    yield project
    for name in [name for name in sys.modules if name.partition(".")[0] == "choir"]:
        del sys.modules[name]


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A run's surroundings, for calling parts of a stage."""
    work = tmp_path / "scratch"
    work.mkdir()
    return Context(work, Watcher().progress, lambda text: None, {})


@pytest.fixture
def shared() -> Path:
    """Recorded and real data; tests that need them are skipped, loudly, where they are missing."""
    if not SHARED.is_dir():
        pytest.skip(f"NEEDS RECORDED DATA: {SHARED.name}/ is not beside the repository")
    return SHARED


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that all workers of a test run share: whoever needs it first makes it, the others wait."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            draft = folder.with_suffix(".draft")
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            make(draft)
            draft.rename(folder)
    return folder


def make_recipe(folder: Path, *targets: str) -> None:
    """Run targets of the tests' recipe in a folder."""
    (folder / "irpipe.toml").write_text(RECIPE, encoding="utf-8")
    for target in targets:
        subprocess.run([sys.executable, "-m", "irpipe.cli", "run", target, "--quiet"], cwd=folder, check=True)


@pytest.fixture(scope="session")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store that holds pairs of 40 prompts and all that they were made from. Nobody changes it."""
    return made_once(tmp_path_factory, "paired", lambda folder: make_recipe(folder, "build-pairs", "oracle-truth"))


@pytest.fixture
def rm(project: Project, paired: Path) -> Project:
    """A project that has the pairs already."""
    shutil.copytree(paired / "artifacts", project.root / "artifacts", copy_function=os.link)
    project.recipe(RECIPE)
    return project


@pytest.fixture(scope="session")
def trained(paired: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store also holds a reward model and captioned images. Nobody changes it."""

    def make(folder: Path) -> None:
        shutil.copytree(paired / "artifacts", folder / "artifacts", copy_function=os.link)
        make_recipe(folder, "train-rm", "simulate-captions")

    return made_once(tmp_path_factory, "trained", make)


@pytest.fixture
def world(project: Project, trained: Path) -> Project:
    """A project that is ready to tune a generator."""
    shutil.copytree(trained / "artifacts", project.root / "artifacts", copy_function=os.link)
    project.recipe(RECIPE)
    return project
