"""`irpipe export --private`: nothing that is published names a person, a machine or a place on its disk."""

from __future__ import annotations

import getpass
import json
import platform
from dataclasses import replace

import pytest

from irpipe.pipeline.manifest import read_record
from irpipe.pipeline.private import private

HOST, USER = "gpu-box-7", "mallory-x"


@pytest.fixture
def told(project, monkeypatch):
    """A project whose recipe names an absolute path, on a machine and by a user with names."""
    monkeypatch.setattr(platform, "node", lambda: HOST)
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    folder = project.root / "home" / USER / "my data"
    folder.mkdir(parents=True)
    (folder / "prompts.txt").write_text("a red cat\na blue dog\ntwo hens\n")
    project.run("select-prompts", f"embed-prompts.path={folder / 'prompts.txt'}", "select-prompts.count=2")
    return project


def texts(folder):
    """Every text that is published beside the artifact's own files, by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in [*folder.glob("lineage/*.json"), *folder.glob("README.md")]}


@pytest.mark.parametrize("kind", ["files", "hf-dataset"])
def test_what_is_published_names_nobody_and_no_place(told, kind):
    told("export", "select-prompts", "out", "--to", kind, "--private")
    found = texts(told.root / "out")
    assert len(found) == (4 if kind == "hf-dataset" else 3)
    for name, text in found.items():
        for secret in (HOST, USER, str(told.root), "/tmp", "my data"):
            assert secret not in text, (name, secret)
    embed = next(json.loads(text) for name, text in found.items() if name.startswith("embed-prompts"))
    assert embed["host"] == "" and embed["command"] == ["irpipe", "run", "embed-prompts"]
    assert embed["config"]["path"] == "…/prompts.txt" == embed["external"]["path"]["given"]
    assert embed["external"]["path"]["digest"], "what it was is still known"
    if kind == "hf-dataset":
        assert (
            "left out were: host, user, command lines, names of annotators, and of absolute paths all but the last part"
            in found["README.md"]
        )


def test_without_it_everything_is_told(told):
    told("export", "select-prompts", "out", "--to", "hf-dataset")
    found = texts(told.root / "out")
    assert any(HOST in text for text in found.values()) and any(USER in text for text in found.values())
    assert "host, time and command" in found["README.md"]


def test_the_record_is_whole_by_its_own_digest(told):
    told("export", "select-prompts", "out", "--private")
    for path in (told.root / "out" / "lineage").iterdir():
        assert read_record(path).node in path.name


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("/home/mallory-x/a b/c.txt", "…/c.txt"),
        ("~/c.txt", "…/c.txt"),
        ("file:///data/x.parquet", "…/x.parquet"),
        ("read from /data/in/x.csv, row 3", "read from …/x.csv, row 3"),
        (r"C:\Users\mallory-x\c.txt", "…/c.txt"),
        (f"made by {USER} on {HOST}.local", "made by … on ….local"),
        ("data/prompts.txt", "data/prompts.txt"),
        ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-4"),
        ("see https://huggingface.co/a/b/c", "see https://huggingface.co/a/b/c"),
        ("a cat and/or a dog, 3/4 view", "a cat and/or a dog, 3/4 view"),
        (3, 3),
        (["/a/b", {"/c/d": None}], ["…/b", {"…/d": None}]),
    ],
)
def test_values(told, value, shown):
    record = told.store.newest("micro", "select-prompts")
    assert private(replace(record, metrics={"x": value})).metrics["x"] == shown


def test_results_and_identity_stay(told):
    record = told.store.newest("micro", "select-prompts")
    hidden = private(record)
    for name in ("key", "content_id", "rows", "inputs", "packages", "code_digest", "device", "threads", "numerics", "git"):
        assert getattr(hidden, name) == getattr(record, name)
