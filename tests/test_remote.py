"""Remotes in a folder: what is pushed comes back whole or not at all, nothing of others is touched, kills cost nothing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from irpipe.pipeline import remote as layout
from irpipe.pipeline.bucket import Bucket, Entry
from irpipe.pipeline.errors import DamageError, InputError, RecipeError
from irpipe.pipeline.exchange import bring, pull, send
from irpipe.pipeline.machines import ExecutorSettings, RemoteSettings, read_settings
from irpipe.pipeline.manifest import FileEntry, Manifest
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import MARK, Remote, parts_of
from irpipe.pipeline.remote_upkeep import collect, drop, verify_remote
from irpipe.pipeline.store import Store
from tests.conftest import Project

RECIPE = 'recipe = "{name}"\n{more}[simulate-prompts]\ncount = {count}\n[embed-prompts]\nembedder = "lexical"\ndimensions = 16\n'


def recipe(name: str = "team", count: int = 60, more: str = "") -> str:
    return RECIPE.format(name=name, count=count, more=more)


@pytest.fixture
def url(tmp_path) -> str:
    return f"file://{tmp_path}/remote"


@pytest.fixture
def pushed(project, url) -> Project:
    """A store whose results of two stages are in the remote."""
    project.recipe(recipe())
    project("run", "embed-prompts")
    project("push", "--remote", url)
    return project


@pytest.fixture
def second(project, tmp_path, monkeypatch) -> Project:
    """Another machine with the same recipe: another folder, and an empty store."""
    root = tmp_path / "second"
    root.mkdir()
    other = Project(root, project._run)
    other.recipe(recipe())
    monkeypatch.chdir(root)
    return other


def files_of(url: str) -> dict[str, bytes]:
    root = Path(url.removeprefix("file://"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def part_of(url: str) -> Path:
    """The largest of the remote's parts."""
    return max(Path(url.removeprefix("file://")).glob("parts/*/*"), key=lambda path: path.stat().st_size)


class TestTogether:
    def test_a_second_machine_makes_nothing_again(self, pushed, second, url):
        told = second("pull", "--remote", url, "--json").json
        assert (told["artifacts"], told["records"], told["absent"], told["unknown"]) == (2, 2, [], {})
        assert second("plan", "embed-prompts").out.count("reuse") == 2
        assert second("status", "--json").json["stages"][1]["state"] == "done"
        assert second("verify").out.endswith("2 artifacts checked, 0 damaged\n")
        ours, theirs = (Store(root / "artifacts").newest("team", "embed-prompts") for root in (pushed.root, second.root))
        assert ours == theirs

    def test_what_is_there_is_not_sent_again(self, pushed, url):
        before = files_of(url)
        assert pushed("push", "--remote", url, "--json").json["bytes"] == 0
        assert files_of(url) == before

    def test_names_and_ids(self, pushed, second, url):
        first = pushed.store.newest("team", "simulate-prompts")
        assert second("pull", "simulate-prompts", "--remote", url, "--json").json["artifacts"] == 1
        last = pushed.store.newest("team", "embed-prompts")
        for prefix in (last.key[:12], last.content_id[:12]):
            shutil.rmtree(second.root / "artifacts", ignore_errors=True)
            assert second("pull", prefix, "--remote", url, "--json").json["artifacts"] == 2
            assert second.store.holds(first.content_id) and second.store.holds(last.content_id)
            assert second.store.newest("team", "embed-prompts") is None
        assert "nothing has an id that starts with 'abcdabcd'" in second("pull", "abcdabcd", "--remote", url, status=2).err
        assert "is not an id, nor a stage" in second("pull", "embed-prompt", "--remote", url, status=2).err

    def test_fetch_leaves_the_newest_results_alone(self, pushed, second, url):
        second("fetch", "--remote", url)
        assert second.store.newest("team", "embed-prompts") is None
        assert second("plan", "embed-prompts").out.count("reuse") == 2

    def test_other_settings_are_not_in_the_remote(self, pushed, second, url):
        second.recipe(recipe(count=61))
        told = second("pull", "--remote", url, status=2).err
        assert "the remote has no result of this recipe's nodes" in told
        second.recipe(recipe() + '[prompt-graph]\nk = 5\n[load-annotations]\npath = "missing.json"\nformat = "imagerewarddb"\n')
        told = second("pull", "--remote", url).out
        assert "prompt-graph: not in the remote" in told and "load-annotations: missing.json does not exist" in told

    def test_a_run_takes_what_the_team_has_made(self, pushed, second, url):
        second.recipe(recipe(more=f'[remote]\nurl = "{url}"\n'))
        told = second("run", "embed-prompts").err
        assert f"taken from {url}: simulate-prompts, embed-prompts" in told and "embed-prompts: reused" in told
        shutil.rmtree(second.root / "artifacts")
        assert "runs, since it never ran" in second("run", "simulate-prompts", "--no-remote").err
        assert "runs, since" in second("run", "simulate-prompts", "--force").err

    def test_a_run_pushes_on_request(self, project, second, url):
        second.recipe(recipe(more=f'[remote]\nurl = "{url}"\n'))
        second("run", "simulate-prompts")
        assert not Path(url.removeprefix("file://")).exists()
        second("run", "simulate-prompts", "--push")
        assert sum(name.startswith("objects/") for name in files_of(url)) == 1
        second.recipe(recipe(more=f'[remote]\nurl = "{url}"\npush = true\n'))
        second("run", "embed-prompts")
        assert sum(name.startswith("objects/") for name in files_of(url)) == 2
        assert "contradict" in second("run", "embed-prompts", "--push", "--no-remote", status=2).err

    def test_two_push_at_once(self, pushed, url):
        shutil.rmtree(url.removeprefix("file://"))
        command = [sys.executable, "-m", "irpipe.cli", "push", "--remote", url]
        pushers = [subprocess.Popen(command, cwd=pushed.root, stdout=subprocess.DEVNULL) for _ in range(3)]
        assert [pusher.wait() for pusher in pushers] == [0, 0, 0]
        assert verify_remote(Remote(url), Watcher()) == (2, [])


class TestKills:
    def test_a_push_killed_at_every_write_goes_on(self, pushed, second, url, monkeypatch):
        complete, root = files_of(url), Path(url.removeprefix("file://"))
        write, count = Bucket.write, 0
        for allowed in range(100):
            shutil.rmtree(root)
            count = 0

            def until(bucket, path, data, allowed=allowed):
                nonlocal count
                count += 1
                if count > allowed:
                    raise KeyboardInterrupt
                write(bucket, path, data)

            monkeypatch.setattr(Bucket, "write", until)
            monkeypatch.chdir(pushed.root)
            ended = pushed._run("push", "--remote", url).status
            monkeypatch.setattr(Bucket, "write", write)
            if root.exists():
                assert verify_remote(Remote(url), Watcher())[1] == []  # what is there is whole
            pushed("push", "--remote", url)
            assert files_of(url).keys() == complete.keys()
            if ended == 0:
                break
        assert allowed > 6

    def test_a_pull_killed_at_every_part_goes_on(self, tmp_path, url, monkeypatch):
        store = store_with(
            tmp_path, {"a": b"1" * 250, "b": b"2" * 90, "c": b"3" * 90, "d": b"1" * 250, "e/f": b"", "g": b"\0" * 99}
        )
        monkeypatch.setattr(layout, "_SMALL", 100)
        monkeypatch.setattr(layout, "_PART", 120)
        [identity] = [path.name for path in store.objects()]
        send(Remote(url), store, [identity], Watcher())
        part, brought = Remote.part, []
        for allowed in range(20):
            target = Store(tmp_path / f"target-{allowed}")
            brought.clear()

            def until(remote, one, allowed=allowed):
                if len(brought) >= allowed:
                    raise KeyboardInterrupt
                brought.append(one.path)
                return part(remote, one)

            monkeypatch.setattr(Remote, "part", until)
            try:
                bring(Remote(url), target, [identity], Watcher())
                break
            except KeyboardInterrupt:
                assert not target.objects()
            monkeypatch.setattr(Remote, "part", lambda remote, one: (brought.append(one.path), part(remote, one))[1])
            bring(Remote(url), target, [identity], Watcher())
            assert target.holds(identity)
        assert allowed == 6  # 250 bytes are three parts; of five small files of 369 bytes three fit, then two


def store_with(tmp_path: Path, files: dict[str, bytes]) -> Store:
    from irpipe.pipeline.commit import place, seal

    store, out = Store(tmp_path / "made"), tmp_path / "out"
    for name, data in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    place(store, out, seal(out, Watcher(), "sealing").content_id)
    return store


class TestFoundByReading:
    """What a reading by fresh eyes has found."""

    def test_a_damaged_footer_is_damage_and_can_be_mended(self, pushed, second, url):
        path = part_of(url)
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        identity = path.name.partition(".")[0]
        for _ in range(2):
            with pytest.raises(DamageError, match="is otherwise than it tells"):
                bring(Remote(url), second.store, [identity], Watcher())
        path.write_bytes(whole)
        bring(Remote(url), second.store, [identity], Watcher())
        assert second.store.holds(identity)

    def test_a_kill_while_twins_are_sealed(self, tmp_path, url, monkeypatch):
        from irpipe.pipeline import exchange

        store = store_with(tmp_path, {"a": b"same", "b": b"same", "c": b"", "d": b""})
        [identity] = [path.name for path in store.objects()]
        send(Remote(url), store, [identity], Watcher())
        seal, target = exchange.seal, Store(tmp_path / "target")

        def killed(*arguments):
            seal(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(exchange, "seal", killed)
        with pytest.raises(KeyboardInterrupt):
            bring(Remote(url), target, [identity], Watcher())
        out = target.root / "work" / f"pull-{identity}" / "out"
        assert {path.stat().st_mode & 0o222 for path in out.iterdir() if path.name != "manifest.json"} == {0}
        monkeypatch.setattr(exchange, "seal", seal)
        (out / "d").unlink()
        bring(Remote(url), target, [identity], Watcher())
        assert target.holds(identity)

    def test_a_result_that_was_lost_here_stays_in_the_root(self, pushed, url):
        from irpipe.pipeline.commit import remove

        lost = pushed.store.newest("team", "embed-prompts")
        remove(pushed.store.object_path(lost.content_id))
        pushed("push", "simulate-prompts", "--remote", url)
        pushed("gc", "--remote", url, "--grace", "0", "--yes")
        assert verify_remote(Remote(url), Watcher()) == (2, [])
        assert pushed("pull", "--remote", url, "--json").json["artifacts"] == 1

    def test_rotten_bytes_are_not_pushed(self, tmp_path, url):
        store = store_with(tmp_path, {"a": b"fine"})
        [path] = store.objects()
        (path / "a").chmod(0o644)
        (path / "a").write_bytes(b"fire")
        with pytest.raises(DamageError, match="a is not that of the manifest"):
            send(Remote(url), store, [path.name], Watcher())

    def test_parts_that_a_push_relies_on_stay(self, tmp_path, url, monkeypatch):
        """Two artifacts share a large file; the older one is refused by nobody, and gc runs between listing and deleting."""
        monkeypatch.setattr(layout, "_SMALL", 10)
        first = store_with(tmp_path / "1", {"large": b"x" * 50, "a": b"1"})
        second = store_with(tmp_path / "2", {"large": b"x" * 50, "b": b"2"})
        [one], [other] = ([path.name for path in store.objects()] for store in (first, second))
        send(Remote(url), first, [one], Watcher())
        doomed = collect(Remote(url), -1.0, Watcher())
        send(Remote(url), second, [other], Watcher())
        drop(Remote(url), doomed)
        assert verify_remote(Remote(url), Watcher()) == (1, [])

    def test_a_draft_of_a_killed_first_push_is_nobodys(self, pushed, url, tmp_path):
        remote = tmp_path / "fresh"
        remote.mkdir()
        (remote / f"{MARK}.draft-0123").write_text("{")
        assert pushed("push", "--remote", f"file://{remote}", "--json").json["artifacts"] == 2


class TestParts:
    def test_small_files_together_and_large_ones_cut(self, monkeypatch):
        monkeypatch.setattr(layout, "_SMALL", 10)
        monkeypatch.setattr(layout, "_PART", 16)
        entries = [("a", 9, "0" * 64), ("b", 8, "1" * 64), ("c", 40, "2" * 64), ("d", 40, "2" * 64), ("e", 3, "3" * 64)]
        manifest = Manifest("f" * 64, tuple(FileEntry(*entry) for entry in entries), {})
        parts = [
            (part.path, [(piece.file.path, piece.start, piece.size) for piece in part.pieces]) for part in parts_of(manifest)
        ]
        assert parts == [
            (f"parts/ff/{'f' * 64}.0", [("a", 0, 9)]),
            (f"parts/ff/{'f' * 64}.1", [("b", 0, 8), ("e", 0, 3)]),
            (f"parts/22/{'2' * 64}.0", [("d", 0, 16)]),
            (f"parts/22/{'2' * 64}.1", [("d", 16, 16)]),
            (f"parts/22/{'2' * 64}.2", [("d", 32, 8)]),
        ]

    def test_there_is_room_on_the_disk(self, pushed, second, url, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
        assert "are free" in second("pull", "--remote", url, status=2).err


class TestUpkeep:
    def test_what_any_recipe_of_any_store_refers_to_stays(self, pushed, second, url, monkeypatch):
        """Another recipe with nodes of the same names in the same remote, from another store."""
        second.recipe(recipe("other", count=50))
        second("run", "embed-prompts")
        second("push", "--remote", url)
        assert second("gc", "--remote", url, "--grace", "0").out == "nothing to delete\n"
        second.recipe(recipe("other", count=40))
        second("run", "embed-prompts")
        second("push", "--remote", url)
        kept = [path for path in files_of(url) if path.startswith("objects")]
        assert len(kept) == 6
        assert second("gc", "--remote", url).out == "nothing to delete\n"  # within the grace time
        assert "would delete" in second("gc", "--remote", url, "--grace", "0").out
        second("gc", "--remote", url, "--grace", "0", "--yes")
        assert sum(path.startswith("objects") for path in files_of(url)) == 4
        assert verify_remote(Remote(url), Watcher()) == (4, [])
        monkeypatch.chdir(pushed.root)
        shutil.rmtree(pushed.root / "artifacts")
        assert pushed("pull", "--remote", url, "--json").json["artifacts"] == 2

    def test_what_was_pushed_by_id_stays(self, pushed, url):
        old = pushed.store.newest("team", "embed-prompts")
        pushed.recipe(recipe(count=70))
        pushed("run", "embed-prompts")
        pushed("push", old.key[:12], "--remote", url)
        pushed("push", "--remote", url)
        pushed("gc", "--remote", url, "--grace", "0", "--yes")
        assert Remote(url).record(old.key) == old

    def test_what_was_written_again_meanwhile_stays(self, pushed, url):
        pushed.recipe(recipe(count=70))
        pushed("run", "embed-prompts")
        pushed("push", "--remote", url)
        entries = collect(Remote(url), -1.0, Watcher())
        assert len(entries) == 6  # two records, two manifests, two parts
        later = Path(url.removeprefix("file://"), entries[0].path)
        os.utime(later, (later.stat().st_atime, later.stat().st_mtime + 100))
        drop(Remote(url), entries)
        assert later.exists() and not any(Path(url.removeprefix("file://"), entry.path).exists() for entry in entries[1:])

    def test_ages_are_by_the_remotes_clock(self, pushed, url, monkeypatch):
        """It is a hundred days behind, and nothing there is two weeks old."""
        pushed.recipe(recipe(count=70))
        pushed("run", "embed-prompts")
        pushed("push", "--remote", url)
        of = Bucket._entry

        def behind(bucket, known):
            entry = of(bucket, known)
            return Entry(entry.path, entry.size, entry.written - 100 * 86_400)

        monkeypatch.setattr(Bucket, "_entry", behind)
        assert collect(Remote(url), 14 * 86_400, Watcher()) == []
        assert len(collect(Remote(url), -1.0, Watcher())) == 6

    def test_an_unreadable_root_keeps_everything(self, pushed, url):
        next(Path(url.removeprefix("file://")).glob("roots/*/*.json")).write_text("{")
        assert "cannot be read" in pushed("gc", "--remote", url, "--grace", "0", "--yes", status=2).err

    def test_a_copy_of_a_store_has_roots_of_its_own(self, pushed, second, url):
        shutil.copytree(pushed.root / "artifacts", second.root / "artifacts")
        second("push", "--remote", url)
        assert len(list(Path(url.removeprefix("file://")).glob("roots/team/*.json"))) == 2


class TestSomebodyElses:
    def test_another_tools_files_are_not_touched(self, project, url, tmp_path):
        project.recipe(recipe())
        project("run", "simulate-prompts")
        theirs = tmp_path / "remote" / "objects" / "ab" / ("ab" * 32 + ".json")
        theirs.parent.mkdir(parents=True)
        theirs.write_text("{}")
        for command in (("push",), ("pull",), ("verify",), ("gc", "--grace", "0", "--yes")):
            told = project(*command, "--remote", url, status=2).err
            assert "there are files that are not irpipe's: nothing was written or deleted" in told
        assert files_of(url) == {f"objects/ab/{'ab' * 32}.json": b"{}"}

    def test_files_of_other_names_stay(self, pushed, url, tmp_path):
        for name in ("README.md", "objects/readme", "parts/ab/notes.txt"):
            path = tmp_path / "remote" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x")
        next(tmp_path.glob("remote/roots/*/*.json")).unlink()
        pushed("gc", "--remote", url, "--grace", "0", "--yes")
        assert files_of(url).keys() == {"README.md", "objects/readme", "parts/ab/notes.txt", MARK} | {
            name for name in files_of(url) if name.startswith("roots")
        }

    def test_nobody_has_pushed_yet(self, project, url):
        project.recipe(recipe())
        for command in (("pull",), ("verify",), ("gc",)):
            assert "there is no remote yet" in project(*command, "--remote", url, status=2).err
        assert "the recipe has no results yet" in project("push", "--remote", url, status=2).err
        assert "simulate-prompts has no artifact yet" in project("push", "simulate-prompts", "--remote", url, status=2).err
        assert "no remote is named" in project("push", status=2).err


class TestAddresses:
    def test_credentials_are_refused_and_not_repeated(self, project):
        project.recipe(recipe())
        project("run", "simulate-prompts")
        told = project("push", "--remote", "s3://AKIAKEY:geheim@bucket/irpipe", status=2).err
        assert "holds credentials" in told and "geheim" not in told and "AKIAKEY" not in told
        project.recipe(recipe(more='[remote]\nurl = "s3://AKIAKEY:geheim@bucket/irpipe"\n'))
        told = project("run", "simulate-prompts", status=2).err
        assert "holds credentials" in told and "geheim" not in told
        kept = [path.read_bytes() for path in (project.root / "artifacts").rglob("*") if path.is_file()]
        assert not any(b"geheim" in data for data in kept)

    def test_wrong_addresses(self, tmp_path):
        for wrong, match in (
            ("s3://bucket/x?colour=red", "has the option 'colour'"),
            ("nothing://x/y", "there is nothing here for addresses of 'nothing'"),
            ("file://host/x", "a folder of this machine has three slashes"),
        ):
            with pytest.raises(InputError, match=match):
                Remote(wrong).bucket  # noqa: B018 # it is opened by being asked for

    def test_what_fsspec_knows(self, tmp_path, pushed, second, monkeypatch):
        pushed_url = "memory://team/irpipe"
        monkeypatch.chdir(pushed.root)
        pushed("push", "--remote", pushed_url)
        monkeypatch.chdir(second.root)
        assert second("pull", "--remote", pushed_url, "--json").json["artifacts"] == 2
        assert second("verify", "--remote", pushed_url).out == "2 artifacts checked, 0 damaged\n"

    def test_tables_of_the_recipe_are_checked(self, project):
        for table, match in (
            ('[remote]\nadress = "x"\n', "known: push, url"),
            ("[remote]\nurl = 5\n", r"\[remote\] url = 5: should be a valid string"),
            ("[executor]\nnum_cpus = 0\n", "num_cpus = 0"),
            ('[executor]\nshare = "everything"\n', "'auto', 'folder' or 'remote'"),
        ):
            project.recipe(recipe(more=table))
            assert re.search(match, project("plan", "simulate-prompts", status=2).err)
        assert read_settings(ExecutorSettings, "executor", {"num_cpus": 2}).num_cpus == 2
        assert read_settings(RemoteSettings, "remote", {}) == RemoteSettings()
        with pytest.raises(RecipeError):
            read_settings(RemoteSettings, "remote", {"push": "yes"})

    def test_an_executor_that_is_not_installed(self, project):
        project.recipe(recipe())
        told = project("run", "embed-prompts", "--executor", "slurm", status=2).err
        assert "there is no executor 'slurm'" in told and "irpipe.executors" in told

    def test_pull_of_records_is_idempotent(self, pushed, second, url):
        records = list(pushed.store.records())
        assert pull(Remote(url), second.store, records, Watcher()).records == 2
        assert pull(Remote(url), second.store, records, Watcher()).records == 0
