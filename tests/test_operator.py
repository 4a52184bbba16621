"""What an operator sees: the plan before a run, its log, the state of every stage, and what to do after a crash."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from irpipe.pipeline.journal import Journal, last_progress, read_journal
from irpipe.pipeline.progress import Watcher

SLOW = """
import time
from irpipe.pipeline.stage import Report, Rows
def run(config, inputs, out, context):
    (context.work / "done").write_text("some")
    with context.progress("counting", 1000, "words") as bar:
        for _ in range(1000):
            time.sleep(0.02)
            bar.advance(1, "loss 0.5")
    (out / "count.txt").write_text("1")
    return Report(Rows(1, 1, 0))
"""


def states(project):
    return {row["stage"]: row for row in project("status", "--json").json["stages"]}


def slow_run(project, shouting, wait_for):
    """A run in a process of its own, once its log holds an event; the package is installed there too."""
    (shouting / "count" / "run.py").write_text(SLOW, encoding="utf-8")
    places = os.pathsep.join(place for place in sys.path if "site" in place)
    # Where the tests run in the background, Ctrl-C is ignored, and children would ignore it too.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\nfrom irpipe.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "count"]
    process = subprocess.Popen(
        command, cwd=project.root, env={**os.environ, "PYTHONPATH": places}, stderr=subprocess.PIPE, text=True
    )
    for _ in range(400):
        logs = {
            path for path in (project.root / "artifacts").glob("logs/*.jsonl") if wait_for in path.read_text(encoding="utf-8")
        }
        if logs or process.poll() is not None:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
    return process


class TestPlanFirst:
    def test_a_run_says_what_it_will_do_and_why(self, project, shouting):
        told = project("run", "count").err
        assert told.startswith("plan: 0 of 2 stages are reused, 2 to run\n  run    word\n           it never ran\n")
        told = project("run", "count", "--set", "count.times=2").err
        assert told.startswith("plan: 1 of 2 stages are reused, 1 to run, about ")
        assert "count.times 1 -> 2" in told.splitlines()[2]
        assert "plan" not in project("run", "count").err, "nothing to do needs no plan"

    def test_programs_get_it_as_the_first_event(self, project, shouting):
        events = project("run", "count", "--json").events
        assert events[0]["event"] == "plan"
        assert [(step["stage"], step["state"]) for step in events[0]["steps"]] == [("word", "run"), ("count", "wait")]

    def test_quiet_says_nothing(self, project, shouting):
        assert project("run", "count", "--quiet").err == ""


class TestLog:
    def test_it_keeps_what_was_said(self, project, shouting):
        project.run("count")
        lines = project("log", "count").out.splitlines()
        assert "started, since it never ran" in lines[0] and "irpipe run count" in lines[0]
        assert "kept 1, rejected 1" in lines[-1]
        events = [json.loads(line)["event"] for line in project("log", "count", "--json").out.splitlines()]
        assert events[0] == "started" and "ended" in events

    def test_a_failure_says_where_the_work_is_and_how_to_go_on(self, project, shouting):
        (shouting / "count" / "run.py").write_text(
            "def run(config, inputs, out, context):\n    (context.work / 'x').write_text('x')\n"
            "    from irpipe.pipeline.errors import InputError\n    raise InputError('the dog ate it')\n",
            encoding="utf-8",
        )
        told = project("run", "count", "--force", status=2).err
        assert "what it had saved is kept in" in told and "go on: irpipe run count --force" in told
        assert "failed: the dog ate it" in project("log", "count").out
        row = states(project)["count"]
        assert (row["state"], row["error"]) == ("failed", "the dog ate it")
        assert "failed: the dog ate it" in project("status").out
        project.recipe('recipe = "shouting"\n[word]\n[count]\ntimes = 2\n')
        assert states(project)["count"]["why"] == ["the dog ate it", "with other settings"]

    def test_another_recipes_success_hides_no_failure(self, project, shouting):
        run = shouting / "count" / "run.py"
        good = run.read_text(encoding="utf-8")
        run.write_text(
            "def run(config, inputs, out, context):\n    from irpipe.pipeline.errors import InputError\n"
            "    raise InputError('the dog ate it')\n",
            encoding="utf-8",
        )
        project("run", "count", status=2)
        sys.modules.pop("shouting.count.run", None)
        run.write_text(good, encoding="utf-8")
        project.recipe('recipe = "other"\n[word]\n[count]\ntimes = 2\n')
        for _ in ("made", "reused"):
            project.run("count")
        assert states(project)["count"]["state"] == "done"
        project.recipe('recipe = "shouting"\n[word]\n[count]\n')
        row = states(project)["count"]
        assert row["state"] == "failed" and "the dog ate it" in row["error"]

    def test_following_ends_with_the_run(self, project, shouting):
        process = slow_run(project, shouting, '"progress"')
        time.sleep(0.2)
        places = os.pathsep.join(place for place in sys.path if "site" in place)
        follower = subprocess.Popen(
            [sys.executable, "-m", "irpipe.cli", "log", "count", "-f"],
            cwd=project.root,
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": places},
        )
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        assert process.returncode == 130
        out, _ = follower.communicate(timeout=60)
        assert follower.returncode == 0
        assert "counting: " in out and "loss 0.5" in out and out.strip().splitlines()[-1].endswith("go on: irpipe run count")

    def test_no_log_and_no_stage(self, project, shouting):
        assert "irpipe run count" in project("log", "count", status=2).err
        assert "has no stage 'cuont'" in project("log", "cuont", status=2).err

    def test_it_tells_of_the_latest_run_only(self, project, shouting):
        for _ in range(3):
            project("run", "count", "--force")
        assert sum("started, since" in line for line in project("log", "count").out.splitlines()) == 1

    def test_a_log_that_cannot_be_written_fails_no_run(self, project, shouting, monkeypatch):
        """A full disk: half a line, then none. What comes after begins a line of its own."""
        plain, calls = os.write, []

        def full(descriptor, data):
            calls.append(data)
            if b'"event": "ended"' in data:
                plain(descriptor, data[:20])
                raise OSError(errno.ENOSPC, "No space left on device")
            return plain(descriptor, data)

        monkeypatch.setattr("irpipe.pipeline.journal.os.write", full)
        told = project("run", "count").err
        assert told.count("the log cannot be written: No space left on device") == 2, "once a run"
        assert states(project)["count"]["state"] == "done"
        assert "kept 1, rejected 1" in project("log", "count").out

    def test_nothing_in_it_is_obeyed_by_a_terminal(self, project, shouting):
        (shouting / "count" / "run.py").write_text(
            "def run(config, inputs, out, context):\n    context.say('\\x1b]0;pwned\\x07')\n"
            "    from irpipe.pipeline.errors import InputError\n    raise InputError('\\x1b[2J')\n",
            encoding="utf-8",
        )
        project("run", "count", status=2)
        for command in (("log", "count"), ("status",)):
            out = project(*command).out
            assert "\x1b" not in out and "\x07" not in out and "␛" in out

    def test_half_a_line_waits_and_no_line_is_lost(self, tmp_path):
        path = tmp_path / "log.jsonl"
        journal = Journal(path, Watcher())
        journal.say("one")
        with path.open("ab") as file:
            file.write(b'{"event": "mess')
        told, place = read_journal(path)
        assert [line["text"] for line in told] == ["one"]
        with path.open("ab") as file:
            file.write(b'age", "text": "two"}\nno json\n')
        told, place = read_journal(path, place)
        assert [line["text"] for line in told] == ["two"] and place == path.stat().st_size
        assert last_progress(path) is None and last_progress(tmp_path / "none") is None

    def test_a_log_that_no_result_needs_goes(self, project, shouting):
        project.run("count")
        project.run("count", "count.times=2")
        project("gc", "--yes")
        assert len(list((project.root / "artifacts").glob("logs/*.jsonl"))) == 2, "of word and of the newer count"


class TestStatus:
    def test_what_is_out_of_date_says_why(self, project, shouting):
        project.run("count")
        assert [row["state"] for row in states(project).values()] == ["done", "done"]
        project.recipe('recipe = "shouting"\n[word]\ntext = "hi"\n[count]\n')
        rows = states(project)
        assert rows["word"]["state"] == "stale" and rows["word"]["why"] == ["word.text hello -> hi"]
        assert rows["count"]["state"] == "stale" and rows["count"]["why"] == ["reads word, which must be made first"]
        assert "stale: word.text hello -> hi" in project("status").out

    def test_what_cannot_run_says_why_and_hides_nothing_else(self, project, shouting):
        project.recipe('recipe = "shouting"\n[word]\npath = "nowhere.txt"\n[count]\n')
        rows = states(project)
        assert rows["word"]["state"] == "cannot run" and "nowhere.txt does not exist" in rows["word"]["error"]
        assert rows["count"]["state"] == "not made"

    def test_settings_that_are_wrong(self, project, shouting):
        project.run("count")
        project.recipe('recipe = "shouting"\n[word]\n[count]\ntimes = 0\n')
        rows = states(project)
        assert rows["word"]["state"] == "done" and rows["count"]["state"] == "cannot run"

    def test_the_artifact_is_that_of_these_settings(self, project, shouting):
        first, second = project.last("count"), project.last("count", "count.times=2")
        row = states(project)["count"]
        assert row["state"] == "done" and row["content_id"] == first["content_id"] != second["content_id"]
        assert row["why"] == ["its newest result is of other settings"]

    def test_large_files_are_not_read_to_look_at_them(self, project, shouting, monkeypatch):
        monkeypatch.setattr("irpipe.pipeline.status.MOST_BYTES", 10)
        (project.root / "more.txt").write_text("x" * 11, encoding="utf-8")
        os.utime(project.root / "more.txt", (1, 1))
        project.recipe('recipe = "shouting"\n[word]\npath = "more.txt"\n[count]\n')
        row = states(project)["word"]
        assert row["state"] == "unread" and row["error"] == "more.txt (11 B) was not read yet, or has changed"
        time.sleep(2.1)  # what changed just now is not remembered
        project.run("count")
        assert states(project)["word"]["state"] == "done", "a run remembers"

    def test_what_was_lost(self, project, shouting):
        record = project.last("count")
        path = project.store.object_path(record["content_id"])
        path.chmod(0o755)
        path.rename(project.root / "elsewhere")
        assert states(project)["count"]["state"] == "lost"

    def test_a_record_of_another_version(self, project, shouting):
        record = project.last("count")
        path = project.store.record_path(record["key"])
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "of_tomorrow": 1}), encoding="utf-8")
        row = states(project)["count"]
        assert row["state"] == "lost" and "another version" in row["why"][0]

    def test_what_runs_says_how_far_and_by_whom_and_what_was_killed(self, project, shouting):
        process = slow_run(project, shouting, '"progress"')
        row = states(project)["count"]
        assert row["state"] == "running" and row["process"] == process.pid
        assert row["progress"]["what"] == "counting" and 0 < row["progress"]["done"] < 1000
        assert f"running (process {process.pid}): counting: " in project("status").out
        process.kill()
        process.communicate()
        row = states(project)["count"]
        assert (row["state"], row["error"]) == ("interrupted", "killed")

    def test_an_interrupt_says_how_to_go_on(self, project, shouting):
        process = slow_run(project, shouting, '"started"')
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "count: ended early after" in error and "go on: irpipe run count" in error
        assert states(project)["count"]["state"] == "interrupted"

    @pytest.mark.parametrize("command", ["status", "report"])
    def test_a_store_of_nothing(self, project, shouting, command):
        found = project(command, status=0 if command == "status" else 2)
        assert "not made" in found.out if command == "status" else "has no results yet" in found.err


class TestFirstSteps:
    def test_the_recipe_is_found_from_folders_below_it(self, project, monkeypatch):
        below = project.root / "some" / "folder"
        below.mkdir(parents=True)
        monkeypatch.chdir(below)
        assert "simulate-prompts" in project("status").out
        assert not (below / "artifacts").exists()

    def test_help_is_short_too_and_names_the_recipes(self, project):
        told = project("init", "-h").out
        assert all(name in told for name in ("claims-refl", "claims-rm", "imagereward", "micro"))

    def test_init_with_a_bare_name_says_how(self, project):
        assert "irpipe init --recipe imagereward" in project("init", "imagereward", status=2).err

    def test_cite_alone_lists_the_stages(self, project):
        rows = {row["stage"]: row["does"] for row in project("cite", "--json").json}
        assert rows["build-pairs"].startswith("Make C(k, 2) preference pairs") and "refl" in rows
        assert "build-pairs\tMake" in project("cite").out

    def test_a_store_in_a_home_that_only_a_shell_knows_is_refused(self, project):
        text = (project.root / "irpipe.toml").read_text()
        project.recipe(text.replace('store = "artifacts"', 'store = "~/artifacts"'))
        assert "~ is a name for a folder only in a shell" in project("status", status=2).err
