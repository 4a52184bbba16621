"""What the store and its tools may not believe: links, altered records, JSON of another form, folders that cannot be read."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from irpipe.pipeline.manifest import read_record, record_json
from irpipe.pipeline.store import write_durably

ODD = [None, True, -1, 1e308, "", "x" * 300, [], ["a"], {}, {"a": 1}, [[[]]], 10**400]
TOOLS = (("status",), ("verify",), ("gc",), ("log", "count"), ("plan", "count"), ("show", "word"), ("lineage", "count"))


@pytest.fixture
def made(project, shouting):
    project.run("count")
    return project


def modes(root: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and bytes of everything in a tree."""
    paths = [root, *sorted(root.rglob("*"))]
    return {str(path): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"") for path in paths}


class TestLinks:
    @pytest.fixture
    def foreign(self, tmp_path):
        """Somebody else's folder, read-only, with a folder and files."""
        root = tmp_path / "foreign"
        (root / "deep").mkdir(parents=True)
        for name in ("file.txt", "deep/file.parquet"):
            (root / name).write_text("mine")
        for path in (root / "deep", root):
            path.chmod(0o555)
        yield root
        for path in (root, root / "deep"):
            path.chmod(0o755)

    def plant(self, store: Path, foreign: Path) -> list[Path]:
        """Links everywhere in a store: for folders and files, and in place of what it holds itself."""
        made = []
        for folder in [path for path in (store, *store.rglob("*")) if path.is_dir() and not path.is_symlink()]:
            mode = folder.stat().st_mode
            folder.chmod(0o755)
            for name, target in (("link", foreign), ("link.json", foreign / "file.txt"), ("0" * 64, foreign)):
                if not (folder / name).is_symlink():
                    (folder / name).symlink_to(target)
                    made.append(folder / name)
            folder.chmod(mode)
        work = store / "work" / ("1" * 64)
        (work / "scratch" / "deep").mkdir(parents=True)
        for path in (work / "scratch" / "to-folder", work / "scratch" / "deep" / "to-folder", store / "damaged-link"):
            path.symlink_to(foreign)
        object_ = next(store.glob("objects/??/*"))
        object_.parent.chmod(0o755)
        (object_.parent / ("2" * 64)).symlink_to(foreign)
        return made

    def test_nothing_behind_a_link_is_touched(self, made, foreign):
        store, before = made.root / "artifacts", modes(foreign)
        self.plant(store, foreign)
        for arguments in (("verify",), ("gc", "--yes"), ("verify",), ("status",)):
            made._run(*arguments)
            assert modes(foreign) == before, arguments
        (store / "work" / ("1" * 64)).mkdir(exist_ok=True)
        made.run("count", "word.text=another")
        assert modes(foreign) == before

    def test_gc_unlinks_a_link(self, made, foreign):
        work = made.root / "artifacts" / "work" / ("1" * 64)
        (work / "scratch").mkdir(parents=True)
        (work / "scratch" / "link").symlink_to(foreign)
        (made.root / "artifacts" / "damaged").mkdir()
        (made.root / "artifacts" / "damaged" / ("3" * 64)).symlink_to(foreign)
        before = modes(foreign)
        made("gc", "--yes")
        assert not work.exists() and not list((made.root / "artifacts" / "damaged").iterdir())
        assert modes(foreign) == before

    def test_a_store_that_is_spread_over_disks_is_read(self, made, tmp_path):
        store = made.root / "artifacts"
        shutil.move(store / "objects", tmp_path / "another-disk")
        (store / "objects").symlink_to(tmp_path / "another-disk")
        assert "0 damaged" in made("verify").out
        assert "count: reused" in made.run("count").err


class TestRecords:
    def path(self, project, node="count") -> Path:
        record = project.store.newest("shouting", node)
        return project.store.record_path(record.key)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("seconds", 1.5),
            ("rows", {"read": 9, "kept": 9, "rejected": 0}),
            ("metrics", {"a": 1}),
            ("content_id", "0" * 64),
            ("stage", "word"),
            ("node", "word"),
            ("key", "0" * 64),
            ("config", {}),
        ],
    )
    def test_an_altered_record_is_not_believed(self, made, field, value):
        path = self.path(made)
        told = json.loads(path.read_text())
        path.chmod(0o644)
        path.write_text(json.dumps({**told, field: value}))
        assert "damaged" in made("status").out or "stale" in made("status").out or "lost" in made("status").out
        verified = made("verify", status=1)
        assert "was changed" in verified.out + verified.err
        told = made.run("count").err
        assert "word: reused" in told and "count: runs" in told

    def test_a_record_under_another_key_is_not_believed(self, made):
        count, word = self.path(made), self.path(made, "word")
        count.chmod(0o644)
        count.write_bytes(word.read_bytes())
        assert made.store.lookup(count.stem) is None
        assert "another run's" in made("verify", status=1).out
        assert "count: runs" in made.run("count").err

    def test_a_record_whose_settings_are_not_those_of_its_key(self, made, monkeypatch):
        """Written by somebody who also made its digest again."""
        path = self.path(made, "word")
        record = read_record(path)
        path.chmod(0o644)
        changed = type(record)(**{**record.__dict__, "config": {**record.config, "text": "forged"}, "given": ("text",)})
        path.write_text(record_json(changed))
        assert "its key is that of other settings" in made("verify", status=1).out

    def test_a_manifest_that_tells_of_other_tables(self, made):
        folder = made.store.object_path(made.store.newest("shouting", "count").content_id)
        path = folder / "manifest.json"
        told = json.loads(path.read_text())
        folder.chmod(0o755)
        path.chmod(0o644)
        path.write_text(json.dumps({**told, "tables": {"forged": {"files": [], "rows": 1, "columns": {}}}}))
        assert "other tables" in made("verify", status=1).out


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value, itself included."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, one in inner:
        yield from places(one, (*path, name))


def replaced(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], odd)
    return copy


class TestTypedJson:
    """Every value of every JSON file of a store, replaced by values of other types: each tool ends, and says what is wrong."""

    def files(self, project) -> dict[str, Path]:
        store, record = project.store, project.store.newest("shouting", "count")
        attempt = store.work_path("4" * 64) / "attempt.json"
        attempt.parent.mkdir(parents=True)
        state = {"stage": "count", "node": "count", "recipe": "shouting", "pid": 1, "started": "2026-01-01T00:00:00+00:00"}
        attempt.write_text(json.dumps(state))
        return {
            "manifest": store.object_path(record.content_id) / "manifest.json",
            "record": store.record_path(record.key),
            "ref": store.ref_path("shouting", "count"),
            "attempt": attempt,
            "log": store.log_path(record.key),
        }

    @pytest.mark.parametrize("name", ["manifest", "record", "ref", "attempt", "log"])
    def test_no_tool_ends_in_a_traceback(self, made, name):
        path = self.files(made)[name]
        for folder in (path.parent, path):
            folder.chmod(0o755)
        text = path.read_text()
        lines = text.splitlines() if name == "log" else [text]
        number = 0
        for line_number, line in enumerate(lines):
            value = json.loads(line)
            for place in places(value):
                odd = ODD[number % len(ODD)]
                number += 1
                changed = list(lines)
                changed[line_number] = json.dumps(replaced(value, place, odd))
                self.check(made, path, "\n".join(changed) + "\n", TOOLS[number % len(TOOLS)])
        for whole in ("", "{", "[]", "null", "\x00", '{"a": 1, "a": 2}', "[" * 100_000):
            for tool in TOOLS:
                self.check(made, path, whole, tool)
        assert number > 2

    def check(self, project, path: Path, text: str, tool: tuple[str, ...]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_bytes() if path.exists() else b""
        path.write_text(text)
        result = project._run(*tool)
        assert result.status in (0, 1, 2) and "Traceback" not in result.err, (tool, text[:300], result)
        # What verify moved aside comes back for the next one.
        damaged = project.root / "artifacts" / "damaged"
        for entry in list(damaged.iterdir()) if damaged.exists() else []:
            target = path if entry.name == path.name else path.parent
            if not target.exists():
                shutil.move(entry, target)
        path.write_bytes(before)


class TestUnreadable:
    @pytest.mark.parametrize("tool", [("verify",), ("gc",), ("status",), ("plan", "count")])
    @pytest.mark.parametrize("folder", ["keys", "objects"])
    def test_what_may_not_be_read_is_not_absent(self, made, monkeypatch, tool, folder):
        refused = made.root / "artifacts" / folder
        plain = {name: getattr(Path, name) for name in ("iterdir", "read_text", "stat")}

        def guarded(name):
            def call(path, *given, **named):
                if path.is_relative_to(refused) and path != refused:
                    raise PermissionError(13, "Permission denied", str(path))
                return plain[name](path, *given, **named)

            return call

        for name in plain:
            monkeypatch.setattr(Path, name, guarded(name))
        result = made._run(*tool)
        assert result.status == 2 and "Permission denied" in result.err, result


class TestDisks:
    def test_a_mount_without_locks_is_told(self, made, monkeypatch):
        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refuse)
        for arguments in (("run", "count", "--force"), ("gc",), ("verify",)):
            told = made(*arguments, status=2).err
            assert "files cannot be locked where the store lies: No locks available" in told and "store = ..." in told

    def test_a_draft_that_a_full_disk_leaves_goes(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            write_durably(tmp_path / "a.json", "text")
        assert list(tmp_path.iterdir()) == []

    def test_an_export_gives_away_nothing_damaged(self, made):
        artifact = made.store.open(made.store.newest("shouting", "word").content_id)
        path = artifact.file(artifact.manifest.files[0].path)
        data = path.read_bytes()
        path.chmod(0o644)
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        told = made("export", "word", "copy", status=2).err
        assert "has other bytes than it was made with" in told and "irpipe verify" in told
        assert not (made.root / "copy").exists() and not list(made.root.glob(".copy*"))


class TestHealthyStores:
    """What is unusual and right must not be taken for damage."""

    def test_figures_that_are_named_by_numbers(self, made):
        record = made.store.newest("shouting", "word")
        path = made.store.record_path(record.key)
        changed = replace(record, metrics={"images_per_prompt": {4: 10, 9: 3, 10: 1}, "texts": {"ü": 1e-300, "x": 10**30}})
        path.chmod(0o644)
        path.write_text(record_json(changed), encoding="utf-8")
        assert made.store.lookup(record.key) is not None
        assert made.store.lookup(record.key).metrics["images_per_prompt"] == {"4": 10, "9": 3, "10": 1}
        assert "0 damaged" in made("verify").out

    def test_a_setting_that_is_new_since(self, made):
        record = made.store.newest("shouting", "word")
        path = made.store.record_path(record.key)
        older = replace(record, config={name: value for name, value in record.config.items() if name != "loud"})
        path.chmod(0o644)
        path.write_text(record_json(older), encoding="utf-8")
        assert "0 damaged" in made("verify").out, "its key was right for the release that made it"

    def test_another_way_to_write_a_type(self, made):
        folder = made.store.object_path(made.store.newest("shouting", "count").content_id)
        path = folder / "manifest.json"
        told = json.loads(path.read_text())
        for table in told["tables"].values():
            table["columns"] = dict.fromkeys(table["columns"], "as another version of pyarrow writes it")
        folder.chmod(0o755)
        path.chmod(0o644)
        path.write_text(json.dumps(told))
        assert "0 damaged" in made("verify").out

    def test_gc_deletes_nothing_while_a_record_cannot_be_read(self, made):
        path = made.store.record_path(made.store.newest("shouting", "count").key)
        path.chmod(0o644)
        path.write_text("{")
        before = sorted(made.store.objects())
        assert "records cannot be read" in made("gc", "--yes", status=2).err
        assert sorted(made.store.objects()) == before

    @pytest.mark.parametrize("outside", ["../evil", "/tmp/evil", "a/../../evil", ""])
    def test_a_manifest_that_names_files_elsewhere(self, made, outside):
        folder = made.store.object_path(made.store.newest("shouting", "word").content_id)
        path = folder / "manifest.json"
        told = json.loads(path.read_text())
        told["files"].append({**told["files"][0], "path": outside})
        folder.chmod(0o755)
        path.chmod(0o644)
        path.write_text(json.dumps(told))
        made("export", "word", "deep/copy", status=2)
        assert not (made.root / "evil").exists() and not (made.root / "deep" / "evil").exists()
        assert "is no file of the artifact" in made("verify", status=1).out
