"""Without a network: a model of the hub ends in one error that names its setting, and nothing is tried again and again."""

from __future__ import annotations

import socket

import pytest

from irpipe.models import loading
from irpipe.models.generators import Sampling, load
from irpipe.models.loading import files_of
from irpipe.models.scorers.baselines import BlipScorer, ClipScorer
from irpipe.pipeline.errors import ModelError
from irpipe.pipeline.stage import Model
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.vectors import sentence_encoder

HUB = Model("nobody/nothing", "0" * 40, None, "some-stage.model", "nobody/nothing")
LOADERS = {
    "files": files_of,
    "generator": lambda model: load(model, Sampling(1, 1.0, "own", None, None, "", "float32", True), "cpu"),
    "sentences": lambda model: sentence_encoder(EmbedPromptsConfig(device="cpu"), model),
    "clip": lambda model: ClipScorer(model, "cpu", None),
    "blip": lambda model: BlipScorer(model, "cpu", None),
}


@pytest.mark.parametrize("name", LOADERS)
def test_one_error_that_names_the_setting(name, monkeypatch, capfd, caplog):
    from huggingface_hub import constants

    monkeypatch.setattr(loading, "is_reachable", lambda _: False)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(ModelError) as raised:
        LOADERS[name](HUB)
    told = str(raised.value)
    assert "nobody/nothing cannot be loaded: the hub cannot be reached" in told
    assert "hf download nobody/nothing" in told and "--set some-stage.model=FOLDER" in told
    printed = capfd.readouterr()
    assert "Retrying" not in printed.err + printed.out + caplog.text
    assert before == constants.HF_HUB_OFFLINE


def test_a_server_that_is_not_there(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    assert not loading.is_reachable("http://127.0.0.1:9")


def test_proxies_are_asked_in_its_place(monkeypatch):
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for name, value in (
            ("http_proxy", f"http://127.0.0.1:{port}"),
            ("http_proxy", f"127.0.0.1:{port}"),
            ("all_proxy", f"http://127.0.0.1:{port}"),
        ):
            with monkeypatch.context() as patched:
                patched.setenv(name, value)
                assert loading.is_reachable("http://nowhere.invalid"), (name, value)
        with monkeypatch.context() as patched:
            patched.setenv("http_proxy", "http://127.0.0.1:9")
            patched.setenv("no_proxy", "127.0.0.1")
            assert loading.is_reachable(f"http://127.0.0.1:{port}")


def test_a_folder_is_shown_as_it_was_written(project):
    (project.root / "my-model").mkdir()
    (project.root / "my-model" / "x.txt").write_text("x")
    told = project.run("generate-images", "generate-images.models=['my-model']", status=2).err
    assert "the generator my-model cannot be loaded" in told
