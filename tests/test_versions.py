"""A stage whose output changes must raise its version, or old results would be taken for new ones.

Each bitwise stage runs on what is committed here. Parquet counts by its rows and JSON by its values, so that another
release of a library does not fail the test; plots do not count.

After a change that is meant: raise the stage's `version`, say so in CHANGELOG.md, and run
    python -m tests.test_versions
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from irpipe.pipeline.hashing import digest
from irpipe.pipeline.recipe_file import load_recipe
from irpipe.pipeline.stage import find_stage, registered
from irpipe.pipeline.store import Store
from tests.renders import render_pool

FIXTURES = Path(__file__).with_name("fixtures")
EXPECTED = FIXTURES / "stage_outputs.json"
RECIPE = FIXTURES / "recipe.toml"
# What a generator makes differs in the last bits from machine to machine.
COMPARABLE = sorted(name for name in registered() if find_stage(name).determinism != "numeric")
TARGETS = ("build-pairs", "evaluate-rm", "simulate-captions", "choose-images", "load-rich-feedback")


def outputs(folder: Path) -> dict[str, dict[str, Any]]:
    """Version and digest of what each stage of the fixture's recipe makes."""
    (folder / "irpipe.toml").write_bytes(RECIPE.read_bytes())
    render_pool(folder / "images", 120)
    for target in TARGETS:
        command = [sys.executable, "-m", "irpipe.cli", "run", target, "--quiet"]
        subprocess.run(command, cwd=folder, check=True, env={**os.environ, "PYTHONWARNINGS": "default"})
    store = Store(folder / "artifacts")
    found = {}
    for name in load_recipe(folder).tables:
        record = store.newest("fixture", name)
        artifact = store.open(record.content_id)
        found[name] = {
            "version": record.stage_version,
            "digest": digest({file.path: value_of(artifact.file(file.path)) for file in artifact.manifest.files}),
        }
    return found


def value_of(path: Path) -> Any:
    """What a file says, apart from how it is encoded."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        return [[field.name, str(field.type)] for field in table.schema] + [
            json.loads(json.dumps(table.to_pylist(), default=str))
        ]
    if path.suffix == ".npy":
        vectors = np.load(path)
        return [list(vectors.shape), np.round(vectors.astype(np.float64), 2).tolist()]
    if path.suffix == ".png":
        return "a plot"
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, dict[str, Any]]:
    return outputs(tmp_path_factory.mktemp("versions"))


def test_every_stage_is_in_the_fixture():
    assert set(json.loads(EXPECTED.read_text(encoding="utf-8"))) == set(COMPARABLE)


@pytest.mark.parametrize("name", COMPARABLE)
def test_a_changed_output_needs_a_new_version(made, name):
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))[name]
    if find_stage(name).determinism == "bitwise":
        assert made[name]["version"] == expected["version"], "python -m tests.test_versions"
        assert made[name]["digest"] == expected["digest"], f"the output of {name} changed: raise its version in stages/"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        EXPECTED.write_text(json.dumps(outputs(Path(folder)), indent=1, sort_keys=True) + "\n", encoding="utf-8")
