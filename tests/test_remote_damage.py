"""What is damaged in a remote is named, gets into no store, and can be sent again."""
# ruff: noqa: F811 # fixtures

from __future__ import annotations

import json
from pathlib import Path

import pytest

from irpipe.pipeline import remote as layout
from irpipe.pipeline.errors import DamageError
from irpipe.pipeline.exchange import bring, send
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import Remote
from irpipe.pipeline.remote_upkeep import collect, verify_remote
from tests.conftest import Project
from tests.test_remote import files_of, part_of, pushed, recipe, second, store_with, url  # noqa: F401


class TestDamage:
    """Nothing of a damaged artifact gets into a store, and `verify --remote` names it."""

    def refused(self, second, url, match: str) -> None:
        for command in (("pull", "--remote", url), ("run", "embed-prompts")):
            second.recipe(recipe(more=f'[remote]\nurl = "{url}"\n'))
            assert match in second(*command, status=2).err
        assert all(second.store.holds(path.name) for path in second.store.objects())
        assert second("verify").out.endswith("0 damaged\n")
        assert match.rsplit(":", maxsplit=1)[-1].strip() in second("verify", "--remote", url, status=1).out

    def test_cut_off(self, pushed, second, url, monkeypatch):
        path = part_of(url)
        path.write_bytes(path.read_bytes()[:-1])
        self.refused(second, url, f"has {path.stat().st_size:,} of {path.stat().st_size + 1:,} bytes")
        pushed_again = Project(pushed.root, pushed._run)
        monkeypatch.chdir(pushed.root)
        pushed_again("push", "--remote", url)
        assert verify_remote(Remote(url), Watcher()) == (2, [])

    def test_a_flipped_byte(self, pushed, second, url):
        path = part_of(url)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DamageError, match="is otherwise than it tells"):
            bring(Remote(url), second.store, [path.name.partition(".")[0]], Watcher())
        assert not second.store.objects() and not list(second.store.children("work"))
        assert "has other bytes" in second("verify", "--remote", url, status=1).out

    def test_missing(self, pushed, second, url):
        part_of(url).unlink()
        self.refused(second, url, "of the remote is damaged: it is missing")

    @pytest.mark.parametrize("folder", ["objects", "keys"])
    def test_a_changed_manifest_or_record(self, folder, pushed, second, url):
        for path in Path(url.removeprefix("file://")).glob(f"{folder}/*/*.json"):
            document = json.loads(path.read_text())
            document |= {"seconds": 1e9} if folder == "keys" else {"files": document["files"][:-1]}
            path.write_text(json.dumps(document))
        self.refused(second, url, "of the remote is damaged")

    def test_a_record_under_another_key(self, pushed, second, url):
        one, other = sorted(Path(url.removeprefix("file://")).glob("keys/*/*.json"))
        one.write_bytes(other.read_bytes())
        assert "it is another run's record" in second("verify", "--remote", url, status=1).out

    def test_a_path_out_of_the_store(self, tmp_path, pushed, second, url):
        manifest = next(Path(url.removeprefix("file://")).glob("objects/*/*.json"))
        document = json.loads(manifest.read_text())
        document["files"][0]["path"] = "../../../escaped"
        manifest.write_text(json.dumps(document))
        with pytest.raises(DamageError, match="is no file of the artifact"):
            bring(Remote(url), second.store, [manifest.stem], Watcher())

    def test_every_file_with_a_flipped_byte_is_named_and_mended(self, pushed, url):
        """Of the same size: a push that only looks at sizes leaves it, `push --repair` does not."""
        whole, root = files_of(url), Path(url.removeprefix("file://"))
        for name, data in whole.items():
            if name.startswith(("objects", "keys", "parts")):
                flipped = bytearray(data)
                flipped[len(data) // 3] ^= 1
                (root / name).write_bytes(flipped)
        count, faults = verify_remote(Remote(url), Watcher())
        assert count == 2 and len(faults) == 4, "two artifacts, whose parts are not asked for, and two records"
        pushed("push", "--remote", url)
        assert files_of(url) != whole
        told = pushed("push", "--remote", url, "--repair", "--json").json
        assert (told["artifacts"], told["records"]) == (2, 2) and told["bytes"] > 0
        assert files_of(url) == whole
        again = pushed("push", "--remote", url, "--repair", "--json").json
        assert (again["artifacts"], again["records"], again["bytes"]) == (0, 0, 0)

    @pytest.mark.parametrize("repair", [False, True])
    def test_what_is_damaged_here_is_not_sent(self, tmp_path, url, monkeypatch, repair):
        """Not even a later part of a file whose first one is there."""
        monkeypatch.setattr(layout, "_SMALL", 100)
        monkeypatch.setattr(layout, "_PART", 1000)
        store = store_with(tmp_path, {"large": bytes(range(250)) * 14})
        [identity] = [path.name for path in store.objects()]
        send(Remote(url), store, [identity], Watcher())
        whole, folder = files_of(url), store.object_path(identity)
        last = max(name for name in whole if name.startswith("parts"))
        (Path(url.removeprefix("file://")) / last).unlink()
        data = bytearray((folder / "large").read_bytes())
        data[2500] ^= 1
        (folder / "large").chmod(0o644)
        (folder / "large").write_bytes(data)
        with pytest.raises(DamageError, match="large is not that of the manifest"):
            send(Remote(url), store, [identity], Watcher(), repair=repair)
        assert files_of(url) == {name: data for name, data in whole.items() if name != last}

    def test_a_longer_record_of_a_teammate_is_no_damage_to_stumble_over(self, pushed, url):
        record = next(Path(url.removeprefix("file://")).glob("keys/*/*.json"))
        record.write_bytes(record.read_bytes() + b" " * 40)
        pushed("push", "--remote", url, "--repair")
        assert verify_remote(Remote(url), Watcher()) == (2, [])

    def test_what_a_damaged_root_refers_to_is_not_deleted(self, pushed, url):
        """One changed digit would name another run, and the run that it named would be nobody's."""
        root = next(Path(url.removeprefix("file://")).glob("roots/*/*.json"))
        document = json.loads(root.read_text())
        key = next(iter(document["runs"]))
        document["runs"]["0" * 64] = document["runs"].pop(key)
        root.write_text(json.dumps(document))
        before = files_of(url)
        with pytest.raises(DamageError, match=r"roots/team/\w+\.json of the remote is damaged"):
            collect(Remote(url), 0.0, Watcher())
        assert "delete it there, and irpipe push again" in pushed("push", "--remote", url, status=2).err
        assert files_of(url) == before
        root.unlink()
        pushed("push", "--remote", url)
        assert collect(Remote(url), 0.0, Watcher()) == []
