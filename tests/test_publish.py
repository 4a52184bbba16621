"""Publishing: what nobody wants published is not in it, files stay small, and the Hub's client talks to a stand-in."""

from __future__ import annotations

import base64
import getpass
import json
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

from irpipe.exports import files as export_files

PEOPLE = ("Ada Lovelace", "Grace Hopper")


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's HTTP API as an upload of small files needs: who am I, make a repository, which way, commit."""

    repos: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path}")
        if self.path.startswith("/api/whoami"):
            self.answer({"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}})
        else:
            self.answer({"siblings": [], "sha": "0" * 40, "id": "me/x", "private": True})

    def do_POST(self) -> None:
        self.asked.append(f"POST {self.path}")
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != "Bearer hf_test":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path.startswith("/api/repos/create"):
            made = json.loads(data)
            name = f"{made.get('organization') or 'me'}/{made['name']}"
            self.repos[name] = {"": data}
            self.answer({"url": f"http://{self.headers['Host']}/{made.get('type', 'model')}s/{name}", "id": name})
        elif "/preupload/" in self.path:
            wanted = json.loads(data)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in wanted]})
        elif "/commit/" in self.path:
            name = "/".join(self.path.split("/api/")[1].split("/")[1:3])
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/datasets/{name}/commit/{'1' * 40}",
                    "commitOid": "1" * 40,
                    "success": True,
                    "hookOutput": "",
                }
            )
        else:
            self.answer({"valid": True})

    def answer(self, document: object, status: int = 200) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.repos, Hub.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def annotated(project):
    """Annotations of two people by name, loaded from an absolute path."""
    images = [f"{number}.png" for number in range(4)]
    rows = [{"prompt": "a cat", "images": images, "ranking": [1, 2, 3, 4], "annotator": person} for person in PEOPLE]
    path = project.jsonl("annotations.jsonl", rows)
    project.recipe(f'recipe = "micro"\n[load-annotations]\npath = "{path}"\nformat = "jsonl"\n')
    return project


def published(project, hub: str, *flags: str, token: str = "hf_test") -> subprocess.CompletedProcess[str]:
    """`irpipe publish` in a process of its own: the client reads the Hub's address when it is imported."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(project.root / "hf"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "irpipe.cli", "publish", "load-annotations", "me/cats", *flags]
    return subprocess.run(command, cwd=project.root, env=environment, capture_output=True, text=True, check=False)


def test_what_is_published_names_nobody(annotated, hub):
    annotated("run", "load-annotations")
    told = published(annotated, hub, "--yes", "--json")
    assert told.returncode == 0, told.stderr
    uploaded = Hub.repos["me/cats"]
    made = json.loads(uploaded[""])
    assert made.get("private") or made.get("visibility") == "private"
    names = json.loads(told.stdout)["files"].keys()
    assert set(names) == uploaded.keys() - {"", ".gitattributes"} and "README.md" in names
    secrets = [*PEOPLE, platform.node(), str(annotated.root), *({getpass.getuser()} - {"root"}), "hf_test", sys.executable]
    for name, data in uploaded.items():
        for secret in secrets:
            assert secret.encode() not in data, (name, secret)
    rankings = annotated.root / "rankings.parquet"
    rankings.write_bytes(uploaded["rankings/full-00000.parquet"])
    assert sorted(set(pq.read_table(rankings)["annotator"].to_pylist())) == ["annotator-0000", "annotator-0001"]
    assert not list((annotated.root / "artifacts" / "work").glob("publish-*"))


def test_first_it_is_only_listed(annotated, hub):
    annotated("run", "load-annotations")
    told = published(annotated, hub)
    assert told.returncode == 0 and "would upload" in told.stdout and "README.md" in told.stdout
    assert Hub.repos == {} and Hub.asked == []


def test_the_hub_refuses(annotated, hub):
    annotated("run", "load-annotations")
    told = published(annotated, hub, "--yes", token="hf_wrong")
    assert told.returncode == 2 and "the Hub does not take me/cats" in told.stderr and "hf auth login" in told.stderr
    assert "hf_wrong" not in told.stderr
    assert "is no repository" in annotated("publish", "load-annotations", "cats", status=2).err


def test_files_of_a_split_are_cut(annotated, monkeypatch, tmp_path):
    from datasets import load_dataset

    annotated("run", "load-annotations")
    monkeypatch.setattr(export_files, "MOST_BYTES", 1)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    annotated("export", "load-annotations", "cut", "--to", "hf-dataset")
    parts = sorted(path.name for path in (annotated.root / "cut" / "rankings").iterdir())
    assert parts == ["full-00000.parquet"]
    rows = load_dataset(str(annotated.root / "cut"), "rankings", cache_dir=str(tmp_path / "cache"))["full"]
    assert len(rows) == sum(pq.read_metadata(annotated.root / "cut" / "rankings" / part).num_rows for part in parts)


def test_a_file_ends_when_it_is_large(tmp_path, monkeypatch):
    import pyarrow as pa

    rows = pa.table({"x": list(range(1000))})
    monkeypatch.setattr(export_files, "MOST_BYTES", 3000)
    with export_files.SplitFiles(tmp_path / "x", "train", rows.schema) as files:
        for _ in range(7):
            files.write(rows)
    counts = {path.name: pq.read_metadata(path).num_rows for path in sorted((tmp_path / "x").iterdir())}
    assert sum(counts.values()) == 7000 and list(counts) == [f"train-{number:05}.parquet" for number in range(len(counts))]
    assert len(counts) > 1 and max(counts.values()) < 7000


def test_names_in_other_columns_are_numbered_or_left_out():
    import pyarrow as pa

    numbered = export_files.Numbered()
    numbered(pa.table({"annotator": ["Ada", None, "Grace"]}))
    groups = numbered(pa.table({"part": ["annotator", "category"], "label": ["Grace", "Grace"]}))
    assert groups["label"].to_pylist() == ["annotator-0001", "Grace"]
    rejected = numbered(pa.table({"reason": ["stands twice"], "detail": ["7 by Ada"]}))
    assert rejected.to_pylist() == [{"reason": "stands twice", "detail": None}]
