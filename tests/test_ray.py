"""The executor `ray` on a real cluster of two nodes with stores of their own: the same artifacts, and what may be lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from irpipe.pipeline.errors import InputError, StageError
from irpipe.pipeline.machines import ExecutorSettings, Machines
from irpipe.pipeline.shards import map_shards
from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of sockets and processes
]
ray = pytest.importorskip("ray")

RECIPE = """
recipe = "cluster"
[remote]
url = "{remote}"
[executor]
share = "{share}"
[simulate-prompts]
count = 60
[embed-prompts]
embedder = "lexical"
[prompt-graph]
k = 5
index = "ivf"
sets = 2
[select-prompts]
count = 6
[generate-images]
models = ["micro-generator"]
num_steps = 2
min_images = 4
max_images = 4
guidance_scale = 1.0
dtype = "float32"
[import-images]
layout = "folder"
image_root = "{images}"
min_images = 1
[reads]
images = "generate-images"
[split-prompts]
near_duplicate = "off"
[score-images]
scorers = ["clip", "random"]
clip_model = "micro-clip"
split = "all"
[predict-rich-feedback]
reward_model = "micro-rahf"
"""
TARGETS = ("embed-prompts", "prompt-graph", "generate-images", "import-images", "score-images", "predict-rich-feedback")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[ray.cluster_utils.Cluster]:
    """Two nodes in processes of their own, each with a store of its own; skipped where Ray does not start in two minutes."""
    from ray.cluster_utils import Cluster

    started, ends, fault = None, time.monotonic() + 120, "?"
    while started is None and time.monotonic() < ends:
        try:
            started = Cluster(
                initialize_head=True, head_node_args={"num_cpus": 1, "env_vars": node_environment(tmp_path_factory)}
            )
            started.add_node(num_cpus=1, env_vars=node_environment(tmp_path_factory))
            started.wait_for_nodes(60)
        except Exception as error:  # noqa: BLE001 # whatever keeps it from starting on a loaded machine
            started, fault = None, repr(error)
    if started is None:
        pytest.skip(f"RAY DID NOT START within two minutes: {fault}")
    yield started
    ray.shutdown()
    started.shutdown()


def node_environment(factory) -> dict[str, str]:
    return {
        "IRPIPE_NODE_STORE": str(factory.mktemp("node") / "store"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }


@pytest.fixture
def settings(cluster) -> ExecutorSettings:
    return ExecutorSettings(name="ray", address=cluster.address, workers=2)


def made(project, target: str, *flags: str) -> str:
    return project("run", target, "--json", "--no-remote", *flags).events[-1]["content_id"]


@pytest.mark.parametrize("share", ["folder", "remote"])
def test_the_same_artifacts_as_inline(share, cluster, project, pool_renders, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    recipe = RECIPE.format(remote=f"file://{tmp_path}/remote", share=share, images=pool_renders)
    project.recipe(recipe)
    inline = {target: made(project, target, "--executor", "inline") for target in TARGETS}
    (project.root / "artifacts").rename(tmp_path / "inline")
    for target in TARGETS:
        assert made(project, target, "--executor", "ray", "--address", cluster.address) == inline[target]
    if share == "remote":  # inputs came by the remote, and to a machine's own store
        assert list((tmp_path / "remote" / "objects").rglob("*.json"))


@dataclass(frozen=True)
class Dying:
    """Writes its shard; the first time it is asked for `victim`, its process is killed."""

    folder: Path
    victim: str

    def __call__(self, shard: str, draft: Path) -> None:
        mark = self.folder / f"tried-{shard}-{time.time_ns()}"
        mark.touch()
        if shard == self.victim and len(list(self.folder.glob(f"tried-{shard}-*"))) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if shard == "bad":
            raise InputError("row 7 of the bad shard is no image")
        if shard == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        draft.write_text(shard)


def mapped(folder: Path, settings: ExecutorSettings, names, worker) -> list[str]:
    from irpipe.pipeline.on_ray import Ray

    done: list[str] = []
    machines = Machines(settings=settings, store=folder)
    map_shards(worker, {name: name for name in names}, folder / "work" / "x", lambda _: Ray(machines), done.append)
    return done


def test_a_killed_worker_costs_its_shard(settings, tmp_path):
    done = mapped(tmp_path, settings, ["a", "b", "c", "d"], Dying(tmp_path, "b"))
    assert sorted(done) == ["a", "b", "c", "d"]
    assert {path.name: path.read_text() for path in (tmp_path / "work" / "x").glob("?")} == {n: n for n in "abcd"}
    assert {name: len(list(tmp_path.glob(f"tried-{name}-*"))) for name in "abcd"} == {"a": 1, "b": 2, "c": 1, "d": 1}


def test_a_shard_that_always_fails_is_named_and_the_rest_is_made(settings, tmp_path):
    with pytest.raises(InputError, match="the shard bad failed of 4; the rest is made and kept: row 7 of the bad shard"):
        mapped(tmp_path, settings, ["a", "bad", "c", "d"], Dying(tmp_path, ""))
    assert sorted(path.name for path in (tmp_path / "work" / "x").glob("?")) == ["a", "c", "d"]
    with pytest.raises(StageError, match=r"the shard deadly failed of 2; .*3 workers ended while they made it"):
        mapped(tmp_path, settings, ["deadly", "e"], Dying(tmp_path, ""))


def test_a_lost_machine_costs_its_shards(cluster, settings, tmp_path):
    node = cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(REPOSITORY)})
    cluster.wait_for_nodes(60)
    names = [f"{number}" for number in range(12)]
    lost: list[str] = []

    def end_the_node(name: str) -> None:
        lost.append(name)
        if len(lost) == 3:
            cluster.remove_node(node, allow_graceful=False)

    from irpipe.pipeline.on_ray import Ray

    machines = Machines(settings=settings.model_copy(update={"workers": 3}), store=tmp_path)
    results = map_shards(Slow(), {name: name for name in names}, tmp_path / "work" / "x", lambda _: Ray(machines), end_the_node)
    assert [path.read_text() for path in results] == names


@dataclass(frozen=True)
class Slow:
    def __call__(self, shard: str, draft: Path) -> None:
        time.sleep(0.5)
        draft.write_text(shard)


@dataclass(frozen=True)
class Counted:
    """Writes its shard in half a second, and leaves a mark for each time it was asked."""

    folder: Path

    def __call__(self, shard: str, draft: Path) -> None:
        (self.folder / f"tried-{shard}-{time.time_ns()}").touch()
        time.sleep(0.5)
        draft.write_text(shard)


def drive(folder: str, address: str) -> None:
    """Make twenty shards: a driver in a process of its own."""
    settings = ExecutorSettings(name="ray", address=address, workers=2)
    mapped(Path(folder), settings, [f"{number}" for number in range(20)], Counted(Path(folder)))


def test_a_killed_driver_goes_on(cluster, tmp_path):
    code = f"from tests.test_ray import drive; drive({str(tmp_path)!r}, {cluster.address!r})"
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    finished: list[str] = []
    ends = time.monotonic() + 120
    while time.monotonic() < ends and len(finished) < 3:
        time.sleep(0.1)
        finished = [path.stem for path in tmp_path.glob("work/x/*.sha256")]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert 3 <= len(finished) < 20
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)
    assert sorted(int(path.stem) for path in tmp_path.glob("work/x/*.sha256")) == list(range(20))
    assert all(len(list(tmp_path.glob(f"tried-{name}-*"))) == 1 for name in finished)


def test_workers_that_never_fit_are_told(settings, tmp_path, monkeypatch):
    """A cluster may still grow, so the run waits, but not in silence."""
    from irpipe.pipeline import on_ray

    told: list[str] = []

    def say(text: str) -> None:
        told.append(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(on_ray, "_IDLE_WAITS", 2)
    machines = Machines(settings=settings.model_copy(update={"num_cpus": 64.0}), store=tmp_path, say=say)
    with pytest.raises(KeyboardInterrupt):
        map_shards(Slow(), {"a": "a"}, tmp_path / "work" / "x", lambda _: on_ray.Ray(machines), lambda name: None)
    assert "each asks for 64 CPUs, 0 GPUs" in told[0] and "have 2 CPUs" in told[0]


class TestRefused:
    def test_no_cluster(self, project):
        project.recipe('recipe = "x"\n[simulate-prompts]\ncount = 30\n[embed-prompts]\nembedder = "lexical"\n')
        told = project("run", "embed-prompts", "--executor", "ray", "--address", "127.0.0.1:1", status=2).err
        assert "there is no Ray cluster at '127.0.0.1:1'" in told and "ray start --head" in told

    def test_a_cluster_that_was_killed(self, project, monkeypatch):
        """Its address is still known."""
        monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        project.recipe('recipe = "x"\n[simulate-prompts]\ncount = 30\n[embed-prompts]\nembedder = "lexical"\n')
        told = project("run", "embed-prompts", "--executor", "ray", status=2).err
        assert "there is no Ray cluster at '127.0.0.1:1'" in told

    def test_other_packages(self, settings, tmp_path, monkeypatch):
        monkeypatch.setattr("irpipe.pipeline.on_ray.versions", lambda: {"python": "2.7", "numpy": "0.1"})
        with pytest.raises(StageError, match=r"has other packages than the driver: python 3\.\d+, not 2\.7; numpy"):
            mapped(tmp_path, settings, ["a"], Dying(tmp_path, ""))

    def test_neither_folder_nor_remote(self, settings, tmp_path):
        with pytest.raises(StageError, match="sees neither the store's folder nor a remote"):
            mapped(tmp_path, settings.model_copy(update={"share": "remote"}), ["a"], Dying(tmp_path, ""))

    def test_files_that_another_machine_lacks(self, settings, tmp_path, monkeypatch):
        """The driver's digest of a folder is another than what the machine finds."""
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "weights").write_text("x")
        monkeypatch.setattr("irpipe.pipeline.parcels.Memory.digest", lambda self, path, where: "0" * 64)
        store = tmp_path / "store"
        with pytest.raises(InputError, match="has other content on the machine"):
            mapped(store, settings, ["a"], Dying(outside, ""))
