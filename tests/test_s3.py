"""Remotes on two real servers of S3: large and many files, kills, wrong credentials, no network, a server that only reads."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyarrow import fs

from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.exchange import bring, send
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import MARK, Remote, parts_of
from irpipe.pipeline.remote_upkeep import verify_remote
from irpipe.pipeline.store import Store
from tests.conftest import Project
from tests.servers import KEY, SECRET, Server, environment, serving, slowed
from tests.test_remote import recipe, store_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["moto", "rclone"])
def programs(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, environment(request.param, tmp_path_factory.mktemp("servers"))


@pytest.fixture
def server(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    with serving(*programs, tmp_path) as started:
        if started.name == "moto":
            options = {"endpoint_override": f"127.0.0.1:{started.port}", "scheme": "http", "region": "us-east-1"}
            fs.S3FileSystem(allow_bucket_creation=True, **options).create_dir("team")
        yield started


@pytest.fixture
def second(project, tmp_path) -> Project:
    root = tmp_path / "second"
    root.mkdir()
    other = Project(root, project._run)
    other.recipe(recipe())
    return other


def test_a_team(server: Server, project, second, monkeypatch):
    project.recipe(recipe())
    project("run", "embed-prompts")
    assert project("push", "--remote", server.url, "--json").json["artifacts"] == 2
    assert project("push", "--remote", server.url, "--json").json["bytes"] == 0
    monkeypatch.chdir(second.root)
    assert second("pull", "--remote", server.url, "--json").json["artifacts"] == 2
    assert second("plan", "embed-prompts").out.count("reuse") == 2
    assert second("verify", "--remote", server.url).out == "2 artifacts checked, 0 damaged\n"
    assert second("gc", "--remote", server.url).out == "nothing to delete\n"
    told = "".join(path.read_text() for path in second.root.rglob("*.json*")) + second("status").out
    assert SECRET not in told


def test_many_and_large_files(server: Server, tmp_path):
    """10,000 files, and one of 1 GB, in parts."""
    files = {f"many/{number:05}": f"{number}".encode() * 20 for number in range(10_000)}
    store = store_with(tmp_path / "large", files | {"large": bytes(range(256)) * 3_906_250})
    [identity] = [path.name for path in store.objects()]
    assert len(parts_of(store.open(identity).manifest)) == 31
    started = time.monotonic()
    send(Remote(server.url), store, [identity], Watcher())
    target = Store(tmp_path / "target")
    bring(Remote(server.url), target, [identity], Watcher())
    print(f"{server.name}: {time.monotonic() - started:.1f} s there and back")
    assert target.open(identity).manifest == store.open(identity).manifest


def test_a_slow_line(server: Server, tmp_path):
    """A quarter of a second before each answer, 400 kB per second, and a pause of two seconds within each large file."""
    store = store_with(tmp_path, {"large": bytes(range(256)) * 8000, **{f"{number}": b"x" * number for number in range(50)}})
    [identity] = [path.name for path in store.objects()]
    with slowed(server, 400_000, 0.25, pause=2.0) as slow:
        send(Remote(slow.url), store, [identity], Watcher())
        assert verify_remote(Remote(server.url), Watcher()) == (1, [])
        target = Store(tmp_path / "target")
        bring(Remote(slow.url), target, [identity], Watcher())
    assert target.holds(identity)


def test_kills(server: Server, project, monkeypatch):
    """Killed at five moments, and no moment leaves anything that is not whole."""
    project.recipe(recipe())
    project("run", "embed-prompts")
    command = [sys.executable, "-m", "irpipe.cli", "push", "--remote", server.url]
    for delay in (0.5, 0.8, 1.0, 1.2, 1.5):
        process = subprocess.Popen(command, cwd=project.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if Remote(server.url).bucket.entry(MARK) is not None:
            assert verify_remote(Remote(server.url), Watcher())[1] == []
    project("push", "--remote", server.url)
    assert verify_remote(Remote(server.url), Watcher()) == (2, [])


def test_damage_on_the_server(server: Server, tmp_path):
    store = store_with(tmp_path / "x", {"file": b"0123456789" * 100})
    [identity] = [path.name for path in store.objects()]
    remote = Remote(server.url)
    send(remote, store, [identity], Watcher())
    [part] = parts_of(store.open(identity).manifest)
    data = remote.part(part)
    for wrong, match in ((data[:-1], "has 999 of 1,000 bytes"), (b"x" + data[1:], "is otherwise than it tells")):
        remote.bucket.write(part.path, wrong)
        with pytest.raises(StoreError, match=match):
            bring(Remote(server.url), Store(tmp_path / "target"), [identity], Watcher())
        assert len(verify_remote(Remote(server.url), Watcher())[1]) == 1


def test_wrong_credentials(server: Server, project, monkeypatch):
    if server.name == "moto":
        pytest.skip("MOTO DOES NOT CHECK SECRETS; rclone's server does")
    project.recipe(recipe())
    project("run", "simulate-prompts")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    told = project("push", "--remote", server.url, status=2).err
    assert "AWS_ACCESS_KEY_ID" in told and SECRET not in told and "wrong" not in told.replace("is wrong", "")


def test_a_server_that_only_reads(programs, tmp_path, project, monkeypatch):
    if programs[0] == "moto":
        pytest.skip("MOTO HAS NO READ-ONLY MODE; rclone's server does")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    project.recipe(recipe())
    project("run", "simulate-prompts")
    with serving(*programs, tmp_path) as server:
        project("push", "--remote", server.url)
    with serving(*programs, tmp_path, "--read-only") as server:
        assert project("pull", "--remote", server.url, "--json").json["artifacts"] == 0
        project.recipe(recipe(count=70))
        project("run", "simulate-prompts")
        told = project("push", "--remote", server.url, status=2).err
        assert "cannot be read or written" in told and "fix:" in told


def test_no_network(project, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    project.recipe(recipe())
    project("run", "simulate-prompts")
    started = time.monotonic()
    told = project("push", "--remote", "s3://team/x?endpoint_override=127.0.0.1:9&scheme=http&region=x", status=2).err
    assert "check the address and the network" in told
    assert time.monotonic() - started < 120
