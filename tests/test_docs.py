"""The documentation: what its pages tell people to type is run, or at least understood, by the command line.

A block ``` { .bash .micro } ``` is run. A block with another recipe's name belongs to it, every other to the micro recipe: its
commands are parsed, and the settings of `run` and `plan` must fit the recipe. A block titled irpipe.toml is laid over the recipe.
In a command `...` stands for something told before; it is only parsed. `irpipe init` stands alone in a block that is run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from irpipe.cli import app
from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.recipe_file import load_recipe, shipped_recipe
from irpipe.pipeline.registry import STAGES
from irpipe.pipeline.wiring import RECIPE_FILE
from tests.conftest import REPOSITORY
from tests.paired import RECIPE

DOCS = REPOSITORY / "docs"
OTHERS = ("imagereward", "hps-micro", "hps", "rahf-micro", "rahf")  # recipes that blocks may belong to
BLOCK = re.compile(
    r"^(?P<fence>```+) *(?:\{(?P<attributes>[^}\n]*)\}|(?P<language>\w*))[^\n]*\n(?P<text>.*?)^(?P=fence) *$", re.M | re.S
)
# What stands for the command line when a block is only parsed: bash itself splits the words, and nothing else is run.
STUBS = r"""
irpipe() { printf '%s\0' "$@" >> "$CALLS"; printf '\036\0' >> "$CALLS"; }
torchrun() { while [ "$1" != irpipe.cli ]; do shift; done; shift; irpipe "$@"; }
cat() { local line; while IFS= read -r line; do printf '%s\n' "$line"; done; }
command_not_found_handle() { printf '0a1b2c3d4e5f6071\n'; }
PATH=/nowhere
"""


@dataclass(frozen=True)
class Block:
    """A fenced or indented block of a page."""

    page: Path
    line: int
    classes: frozenset[str]
    title: str | None
    text: str

    @property
    def recipe(self) -> str:
        return next((name for name in OTHERS if name in self.classes), "micro")

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def fenced(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    text = page.read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        attributes = match["attributes"] or f".{match['language']}"
        title = re.search(r'title="([^"]*)"', attributes)
        line = text.count("\n", 0, match.start()) + 1
        classes = frozenset(re.findall(r"\.([\w-]+)", attributes.partition("title=")[0]))
        found.append(Block(page, line, classes, title and title[1], match["text"]))
    return found


def indented(page: Path) -> list[Block]:
    """The commands in indented blocks. Their recipe is what an `irpipe init` in them says: they have no attributes."""
    found = []
    text = BLOCK.sub(lambda match: "\n" * match[0].count("\n"), page.read_text(encoding="utf-8"))
    for match in re.finditer(r"(?:^ {4,}.*\n|^\n(?= {4}))+", text, re.M):
        lines, kept = match[0].splitlines(), []
        for number, line in enumerate(lines):
            goes_on = bool(kept) and number > 0 and kept[-1].endswith("\\")
            command = line.strip().removeprefix("$ ")
            if goes_on or command.startswith("irpipe "):
                kept.append(command)
        if kept:
            classes = {"bash", *(name for name in OTHERS if any(f"--recipe {name}" in line for line in kept))}
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(page, line, frozenset(classes), None, "\n".join(kept) + "\n"))
    return found


def listed(entries: Any) -> Iterator[str]:
    """Page names of mkdocs.yml's nav, in its order."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else listed(value)


def pages() -> list[Path]:
    """All pages in the order of the site's navigation, those that lie in docs/."""
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    return [path for name in listed(config["nav"]) if (path := DOCS / name).is_file()]


def test_every_page_is_in_the_navigation():
    assert sorted(pages()) == sorted(DOCS.rglob("*.md"))


def test_pictures_are_small_and_used():
    text = "".join(page.read_text(encoding="utf-8") for page in pages())
    for picture in sorted((DOCS / "pictures").iterdir()):
        assert picture.stat().st_size < (4_000_000 if picture.suffix == ".html" else 200_000), picture.name
        assert f"pictures/{picture.name}" in text, picture.name


def test_figures_of_the_explanations_were_measured():
    """Every figure with a point in it stands where it was measured: in the benchmarks, the log or a page of reference."""
    number = re.compile(r"[+-]?\d*\.\d+")
    sources = [REPOSITORY / "README.md", REPOSITORY / "benchmarks" / "README.md"]
    sources += [DOCS / name for name in ("LOG.md", "refl.md", "microworld.md", "reward_model.md", "settings.md")]
    measured = {figure for path in sources for figure in number.findall(path.read_text(encoding="utf-8"))}
    for page in sorted((DOCS / "explanation").glob("*.md")):
        for figure in number.findall(page.read_text(encoding="utf-8")):
            assert figure in measured, f"{page.name}: {figure}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` does it."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        check=False,
        cwd=REPOSITORY,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_asks_no_other_host_for_anything(site):
    loaded = re.compile(
        r"""<(?:script|link|img|iframe|source)\b[^>]*?(?:src|href)=["'](?:https?:)?//[^"']*|url\(["']?https?:[^)]*"""
    )
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not loaded.findall(path.read_text(encoding="utf-8")), path.relative_to(site)
    # Material's script fetches mermaid from elsewhere where a page has such a diagram.
    assert not [path for path in site.rglob("*.html") if 'class="mermaid"' in path.read_text(encoding="utf-8")]


def own_files(page: Path) -> dict[str, str]:
    """The files that a page tells its reader to write, but for the recipe."""
    return {block.title: block.text for block in fenced(page) if block.title and block.title != RECIPE_FILE}


def own_stages(page: Path) -> dict[str, str]:
    """The stages that such files declare."""
    files = own_files(page)
    projects = [tomllib.loads(text) for name, text in files.items() if name.endswith("pyproject.toml")]
    return {name: value for project in projects for name, value in project["project"]["entry-points"][STAGES].items()}


def install(page: Path, folder: Path) -> None:
    """Write a page's files, and make its stages known as `pip install` would."""
    for name, text in own_files(page).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    if stages := own_stages(page):
        metadata = folder / "readers-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: readers\nVersion: 1.0\n", encoding="utf-8")
        points = [f"[{STAGES}]", *(f"{name} = {value}" for name, value in stages.items())]
        (metadata / "entry_points.txt").write_text("\n".join(points) + "\n", encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_what_the_pages_run_runs(tmp_path):
    """All pages one after the other, on one store. The recipe is a small one wherever a page says `irpipe init`."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    ran = 0
    for page in pages():
        blocks = [block for block in fenced(page) if {"bash", "micro"} <= block.classes]
        if not blocks:
            continue
        (tmp_path / RECIPE_FILE).write_text(RECIPE, encoding="utf-8")
        install(page, tmp_path)
        for block in blocks:
            starts = "irpipe init" in block.text
            if starts:
                assert block.text.strip() == "irpipe init", f"{block}: irpipe init stands alone"
                (tmp_path / RECIPE_FILE).unlink()
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                check=False,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{block.text}\n{done.stdout}\n{done.stderr}"
            if starts:
                assert (tmp_path / RECIPE_FILE).read_text(encoding="utf-8") == shipped_recipe("micro")
                (tmp_path / RECIPE_FILE).write_text(RECIPE, encoding="utf-8")
            ran += 1
    assert ran > 20


def calls(block: Block, folder: Path) -> list[list[str]]:
    """The arguments of every `irpipe` in a block, as bash hands them over. What a block appends to files is appended."""
    log = folder / "calls"
    log.write_bytes(b"")
    script = STUBS.replace("$CALLS", str(log)) + block.text
    done = subprocess.run(
        ["bash", "-c", script], check=False, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert "syntax error" not in done.stderr and "unexpected EOF" not in done.stderr, f"{block}: {done.stderr}"
    found = log.read_bytes().decode().split("\x1e\0")[:-1]
    return [call.split("\0")[:-1] for call in found]


def parse(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that arguments mean and its parameters, without running it; nothing for a mere option such as --version."""
    group: Any = typer.main.get_command(app)
    try:
        context = group.make_context("irpipe", list(arguments))
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        return name, command.make_context(name, rest, parent=context).params
    except typer.Exit:
        return "", {}


def as_toml(tables: dict[str, Any]) -> str:
    """A recipe's text; values are what JSON and TOML write alike."""
    lines = list(as_lines({name: value for name, value in tables.items() if not isinstance(value, dict)}))
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *as_lines(table)]
    return "\n".join(lines) + "\n"


def as_lines(table: dict[str, Any], within: str = "") -> Iterator[str]:
    """A line per value, nested tables with dotted names."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from as_lines(value, f"{within}{name}.")
        else:
            yield f"{within}{name} = {json.dumps(value)}"


def lay_over(folder: Path, block: Block) -> None:
    """Fill in the tables of a recipe as a page tells its reader to."""
    path = folder / RECIPE_FILE
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    for name, table in tomllib.loads(block.text).items():
        assert name in tables, f"{block}: the recipe has no table [{name}]"
        tables[name] |= table
    path.write_text(as_toml(tables), encoding="utf-8")


# What a user of the recipe imagereward has in irpipe.toml, where a page does not say it itself.
YOURS = """
[embed-prompts]
path = "metadata-large.parquet"
[load-annotations]
path = "train.json"
format = "imagereward-json"
[import-images]
image_root = "images"
[train-rm.reads]
images = "import-images"
[score-images.reads]
images = "import-images"
[refl]
pretraining_data = "laion-aesthetics"
"""


def understand(block: Block, arguments: list[str], folder: Path) -> None:
    """Parse one command, and try its settings on the recipe it belongs to."""
    name, params = parse(arguments)
    told = any("..." in word for word in arguments)
    if name in ("run", "plan") and not told and not own_stages(block.page):  # the page's own stages are run
        recipe = load_recipe(folder, params["set_"] or ())
        assert recipe.chain(params["stage"])


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", *pages()], ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_are_understood(page, tmp_path):
    recipes = [block for block in fenced(page) if block.title == RECIPE_FILE]
    folders = {name: tmp_path / name for name in ("micro", *OTHERS)}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / RECIPE_FILE).write_text(shipped_recipe(name), encoding="utf-8")
    for block in recipes or [Block(page, 0, frozenset({"imagereward"}), RECIPE_FILE, YOURS)]:
        lay_over(folders[block.recipe], block)
    for block in [block for block in fenced(page) if "bash" in block.classes] + indented(page):
        for arguments in calls(block, folders[block.recipe]):
            try:
                understand(block, arguments, folders[block.recipe])
            except (IrpipeError, *click_errors()) as error:
                pytest.fail(f"{block}: irpipe {' '.join(arguments)}: {error}")


def click_errors() -> tuple[type[Exception], ...]:
    """What Typer's click raises for words it does not know."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        parse(["no-such-command"])
    kinds = [kind for kind in caught.type.__mro__ if kind.__name__ == "ClickException"]
    assert kinds
    return tuple(kinds)


def test_examples_of_the_commands_are_understood(tmp_path):
    found = re.findall(r"^Example: irpipe (.*)$", (DOCS / "cli.md").read_text(encoding="utf-8"), re.M)
    assert len(found) > 10
    block = Block(DOCS / "cli.md", 0, frozenset({"bash"}), None, "\n".join(f"irpipe {line}" for line in found))
    assert all(parse(arguments) for arguments in calls(block, tmp_path))
