"""Kills and damage: nothing is lost, nothing is silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SMALL = """
recipe = "small"
[simulate-prompts]
count = 200
[embed-prompts]
embedder = "lexical"
shard_size = 64
[prompt-graph]
k = 10
[select-prompts]
count = 60
[import-images]
layout = "folder"
image_root = "images"
[simulate-annotations]
[load-annotations]
[split-prompts]
[build-pairs]
"""
STAGES = [
    "simulate-prompts",
    "embed-prompts",
    "prompt-graph",
    "select-prompts",
    "import-images",
    "simulate-annotations",
    "load-annotations",
    "split-prompts",
    "build-pairs",
]

# Runs the command line and kills the process at the n-th call of anything that changes the disk during a commit.
KILL_AT_WRITE = """
import os, shutil, signal, sys
from pathlib import Path
from irpipe.pipeline import commit, runner
left = int(sys.argv.pop(1))
def deadly(owner, name):
    real = getattr(owner, name)
    def call(*arguments, **options):
        global left
        if armed:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)
    setattr(owner, name, call)
armed = False
for owner, name in ((os, "fsync"), (os, "fchmod"), (os, "unlink"), (os, "rmdir"), (Path, "replace"), (Path, "rename"),
                    (Path, "chmod"), (Path, "mkdir"), (shutil, "rmtree")):
    deadly(owner, name)
real_commit = commit.commit
def arming(*arguments):
    global armed
    armed = True
    return real_commit(*arguments)
runner.commit = arming
from irpipe.cli import main
main()
"""

# Kills the process some time after a stage's work began.
KILL_IN_STAGE = """
import os, signal, sys, threading, time
from irpipe.pipeline.stage import Stage
name, seconds = sys.argv.pop(1), float(sys.argv.pop(1))
real = Stage.load_run
def load_run(stage):
    run = real(stage)
    if stage.name == name:
        timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
    return run
Stage.load_run = load_run
from irpipe.cli import main
main()
"""


@pytest.fixture(autouse=True)
def images(project, pool_renders):
    """The images that the small recipe imports."""
    (project.root / "images").symlink_to(pool_renders)


def script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def irpipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "irpipe.cli", *arguments], capture_output=True, text=True, check=False)


def whole(project) -> None:
    """Every object that is there is complete: no moment of a kill leaves half of one."""
    found = project("verify", "--json").json
    assert found["damaged"] == []


@pytest.mark.slow
def test_a_kill_at_every_write_of_a_commit(project):
    """Invariant 5: before or after, never between; and what was finished is published, not made again."""
    project.recipe(SMALL)
    expected = project.last("simulate-prompts")["content_id"]
    for number in range(200):
        project("gc", "--yes")
        for folder in ("refs", "keys", "objects"):
            subprocess.run(["rm", "-rf", str(project.store.root / folder)], check=True)
        killed = script(KILL_AT_WRITE, str(number), "run", "simulate-prompts", "--quiet")
        whole(project)
        done = project.last("simulate-prompts")
        assert done["content_id"] == expected
        whole(project)
        assert project.store.lookup(done["key"]) is not None
        assert not list((project.store.root / "work").iterdir())
        if killed.returncode == 0:
            break
        assert killed.returncode == -9, killed.stderr
    assert 10 < number < 199, "the last run was not killed"


@pytest.mark.slow
def test_finished_work_is_published_not_made_again(project):
    project.recipe(SMALL)
    project.last("simulate-prompts")
    key = project.store.newest("small", "simulate-prompts").key
    for number in range(200):
        for folder in ("refs", "keys", "objects"):
            subprocess.run(["rm", "-rf", str(project.store.root / folder)], check=True)
        if script(KILL_AT_WRITE, str(number), "run", "simulate-prompts", "--quiet").returncode == 0:
            break
        finished = (project.store.work_path(key) / "record.json").exists()
        events = [json.loads(line) for line in irpipe("run", "simulate-prompts", "--json").stdout.splitlines()]
        made_again = any(event["event"] == "started" for event in events)
        assert not (finished and made_again)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("share", [pytest.param(0.2, marks=pytest.mark.slow), 0.7])
def test_a_kill_in_the_middle_of_a_stage(project, stage, share):
    project.recipe(SMALL)
    expected = project.last(stage)["content_id"]
    seconds = project.store.newest("small", stage).seconds
    project("run", stage)
    for folder in ("refs", "keys", "objects"):
        subprocess.run(["rm", "-rf", str(project.store.root / folder)], check=True)
    killed = script(KILL_IN_STAGE, stage, str(share * seconds), "run", stage, "--quiet")
    assert killed.returncode in (-9, 0), killed.stderr
    assert project.last(stage)["content_id"] == expected
    whole(project)
    assert not list((project.store.root / "work").iterdir())


def test_embedding_goes_on_after_the_last_whole_shard(project, monkeypatch):
    """A kill costs at most one shard."""
    from irpipe.stages.embed_prompts import vectors

    project.recipe(SMALL)
    embedded: list[int] = []
    real = vectors.lexical_encoder

    def counting(config, fail_after):
        encode = real(config)

        def call(texts):
            if sum(embedded) >= fail_after:
                raise KeyboardInterrupt
            embedded.append(len(texts))
            return encode(texts)

        return call

    monkeypatch.setattr(vectors, "lexical_encoder", lambda config: counting(config, 128))
    result = project("run", "embed-prompts", status=130)
    assert "finished work is kept" in result.err and embedded == [64, 64]
    assert "\tinterrupted\t" in project("status").out
    assert "continues where it was interrupted" in project("plan", "embed-prompts").out
    monkeypatch.setattr(vectors, "lexical_encoder", lambda config: counting(config, 10_000))
    done = project.last("embed-prompts")
    assert sum(embedded) == done["rows"]["kept"]
    monkeypatch.setattr(vectors, "lexical_encoder", real)
    assert project("verify", "--rerun", "--json").json["rerun"][-1]["before"] == done["content_id"]


@pytest.mark.slow
def test_eight_processes_make_one_artifact(project):
    """Invariant 4: one computes, all get it."""
    project.recipe(SMALL)
    command = [sys.executable, "-m", "irpipe.cli", "run", "build-pairs", "--json"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    events = [[json.loads(line) for line in process.communicate()[0].splitlines()] for process in started]
    assert [process.returncode for process in started] == [0] * 8
    assert len({lines[-1]["content_id"] for lines in events}) == 1
    ran = [event["stage"] for lines in events for event in lines if event["event"] == "started"]
    assert sorted(ran) == sorted(STAGES)
    whole(project)


def test_a_flipped_byte_is_found_named_and_made_again(project):
    project.recipe(SMALL)
    done = project.last("build-pairs")
    path = project.store.object_path(done["content_id"]) / "pairs.parquet"
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = project("verify", status=1)
    assert f"damaged: build-pairs {done['content_id'][:12]}: pairs.parquet has other bytes; moved aside" in result.out
    assert "its artifact is damaged or was dropped" in project("plan", "build-pairs").out
    assert project("status", "--json").json["stages"][-1]["state"] == "lost"
    assert project.last("build-pairs")["content_id"] == done["content_id"]
    whole(project)


def test_a_missing_object_is_named(project):
    project.recipe(SMALL)
    done = project.last("simulate-prompts")
    subprocess.run(["rm", "-rf", str(project.store.object_path(done["content_id"]))], check=True)
    assert "simulate-prompts" in project("verify", status=1).out
    assert "fix:      irpipe run simulate-prompts" in project("show", "simulate-prompts", status=2).err
    project.run("simulate-prompts")
    whole(project)


@pytest.mark.parametrize("damage", ["missing", "more", "manifest", "cut"])
def test_other_damage_is_found(project, damage):
    project.recipe(SMALL)
    done = project.last("simulate-prompts")
    folder = project.store.object_path(done["content_id"])
    folder.chmod(0o755)
    path = folder / "prompts.jsonl"
    if damage == "missing":
        path.unlink()
    elif damage == "more":
        (folder / "more.txt").write_text("x", encoding="utf-8")
    elif damage == "cut":
        path.chmod(0o644)
        os.truncate(path, 10)
    else:
        (folder / "manifest.json").chmod(0o644)
        (folder / "manifest.json").write_text("{", encoding="utf-8")
    if damage != "more":
        assert "damaged or was dropped" in project("plan", "simulate-prompts").out, "even before it is verified"
    assert len(project("verify", "--json", status=1).json["damaged"]) == 1
    assert project.last("simulate-prompts")["content_id"] == done["content_id"]
    whole(project)


def test_objects_are_read_only(project):
    project.recipe(SMALL)
    folder = project.store.object_path(project.last("build-pairs")["content_id"])
    assert {oct(path.stat().st_mode & 0o222) for path in (folder, *folder.rglob("*"))} == {"0o0"}


def test_an_unreadable_record_is_named_and_made_again(project):
    """One bad record blocks nothing else."""
    project.recipe(SMALL)
    done = project.last("build-pairs")
    key = project.store.newest("small", "simulate-prompts").key
    path = project.store.record_path(key)
    path.write_text("{", encoding="utf-8")
    for command in (["status"], ["plan", "build-pairs"], ["gc"], ["sql", "SELECT 1"]):
        project(*command)
    assert f"damaged: no known stage {key[:12]}: the run's record cannot be read" in project("verify", status=1).out
    assert project.last("build-pairs")["content_id"] == done["content_id"]
    whole(project)


def test_an_empty_attempt_blocks_nothing(project):
    project.recipe(SMALL)
    project.last("simulate-prompts")
    (project.store.work_path("ab" * 32) / "scratch").mkdir(parents=True)
    (project.store.work_path("ab" * 32) / "attempt.json").write_text("", encoding="utf-8")
    for command in (["status"], ["plan", "build-pairs"], ["gc"]):
        project(*command)


def test_status_forgets_a_failure_that_was_fixed(project):
    project.recipe(SMALL)
    project.run("select-prompts", "select-prompts.count=99999", status=2)
    assert "99,999 prompts are asked for" in project("status").out
    project.run("select-prompts")
    project.run("select-prompts", "select-prompts.count=88888", status=2)
    project.run("select-prompts")
    states = {row["stage"]: row["state"] for row in project("status", "--json").json["stages"]}
    assert states["select-prompts"] == "done"


def test_shards_of_other_code_are_not_used(project):
    """What a killed run left is only gone on with by the same code, and not at all by --force."""
    project.recipe(SMALL)
    done = project.last("embed-prompts")
    work = project.store.work_path(done["key"])
    for code, flags in (("of another stage", []), ("of another stage", ["--force"])):
        (work / "scratch").mkdir(parents=True)
        (work / "code").write_text(code, encoding="utf-8")
        (work / "scratch" / "00000.npy").write_bytes(b"not what it should be")
        if not flags:
            subprocess.run(["rm", "-rf", str(project.store.record_path(done["key"]))], check=True)
        assert project("run", "embed-prompts", "--json", *flags).events[-1]["content_id"] == done["content_id"]


def test_gc_keeps_what_a_setting_names(project):
    """An artifact named in `exclude` is as much an ancestor as one that is read."""
    project.recipe(SMALL)
    excluded = project.last("select-prompts")["content_id"]
    flag = f"select-prompts.exclude=['{excluded[:12]}']"
    project.last("select-prompts", flag)
    project("gc", "--yes")
    assert project.store.holds(excluded)
    runs = project("lineage", "select-prompts", "--json").json["runs"]
    assert [run["content_id"] for run in runs].count(excluded) == 1
    assert project.run("select-prompts", flag)


def test_force_mends_a_damaged_object(project):
    project.recipe(SMALL)
    done = project.last("simulate-prompts")
    path = project.store.object_path(done["content_id"]) / "prompts.jsonl"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    project("run", "simulate-prompts", "--force")
    whole(project)


def test_rerun_reports_damage_and_what_cannot_be_compared(project):
    project.recipe(SMALL)
    done = project.last("select-prompts")
    vectors = project.store.object_path(project.store.newest("small", "embed-prompts").content_id) / "vectors.npy"
    vectors.chmod(0o644)
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"X")
    result = project("verify", "--rerun", status=1)
    assert "damaged: embed-prompts" in result.out and "vectors.npy has other bytes" in result.out
    assert "select-prompts: cannot be compared" in result.out
    assert project.last("select-prompts")["content_id"] == done["content_id"]


def test_what_is_missing_outside_is_missed_before_anything_runs(project):
    project.recipe(SMALL)
    message = project.run("select-prompts", "select-prompts.exclude=['gone.txt']", status=2).err
    assert "gone.txt does not exist" in message and "runs, since" not in message


def test_a_file_that_changes_while_it_is_read_makes_no_artifact(project, monkeypatch):
    from irpipe.stages.embed_prompts import run as stage

    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\nembedder = "lexical"\n')
    path = project.jsonl("pool.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    real = stage.gather

    def meddle(*arguments):
        pool = real(*arguments)
        path.write_text('{"prompt": "c"}\n', encoding="utf-8")
        return pool

    monkeypatch.setattr(stage, "gather", meddle)
    assert "changed while it ran" in project.run("embed-prompts", status=2).err
    assert not list(project.store.root.glob("objects/??/*"))


def test_eight_processes_and_a_file_from_outside(project, monkeypatch):
    """The memory of digests is shared and never stands in the way."""
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\nembedder = "lexical"\n')
    path = project.jsonl("pool.jsonl", [{"prompt": f"prompt {row}"} for row in range(50)])
    os.utime(path, (1, 1))
    time.sleep(2.1)
    command = [sys.executable, "-m", "irpipe.cli", "run", "embed-prompts", "--quiet"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    assert len({process.communicate()[0] for process in started}) == 1
    assert [process.returncode for process in started] == [0] * 8
    for broken in (b"", b"not a database"):
        (project.store.root / "digests.sqlite").write_bytes(broken)
        project.run("embed-prompts")


def test_a_file_that_may_not_be_read_is_named(project, monkeypatch):
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\nembedder = "lexical"\n')
    path = project.jsonl("pool.jsonl", [{"prompt": "a"}])

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("irpipe.pipeline.external.file_digest", refuse)
    message = project.run("embed-prompts", status=2).err
    assert "pool.jsonl cannot be used: Permission denied" in message and "store" not in message


def test_an_interrupt_ends_with_130_and_keeps_the_work(project):
    project.recipe(SMALL.replace("count = 400", "count = 60000"))
    # A shell that runs its jobs in the background leaves Ctrl-C ignored for them, and so for us.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from irpipe.cli import main; main()"
    lines = []
    command = [sys.executable, "-c", code, "run", "embed-prompts"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            lines.append(line)
            if line.startswith("embed-prompts: runs"):
                time.sleep(0.5)
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert "finished work is kept" in lines[-1] and not any("Traceback" in line for line in lines)


def test_a_path_out_of_the_store_is_no_id(project):
    assert "is not an id" in project("show", "../../etc", status=2).err


def test_links_never_get_into_an_artifact(tmp_path):
    from irpipe.pipeline.errors import StageError
    from irpipe.pipeline.manifest import list_files

    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(StageError, match="holds files only"):
        list_files(Path(tmp_path))
