"""A small share of `make fuzz`, the inputs that it and others have found, and that it can find something."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

import pytest

from irpipe.pipeline.errors import IrpipeError
from irpipe.pipeline.manifest import Manifest, Record, read_typed
from irpipe.schemas.rejected import Rejections
from irpipe.stages.embed_prompts import EmbedPromptsConfig
from irpipe.stages.embed_prompts.readers import read_prompts
from irpipe.stages.embed_prompts.vectors import open_given
from tests.fuzz import run, targets
from tests.fuzz.run import try_one
from tests.fuzz.targets import TARGETS, annotations, images

CASES = Path(__file__).parents[2] / "shared" / "cases-fuzz"
RECORDED = sorted(path.name for path in CASES.glob("*") if path.suffix not in (".npy", ".md"))
KINDS = {"hpdv2-test": "hpdv2-json"}
PER_TARGET = 20


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_end_in_a_result_or_an_error_of_ours(name, tmp_path):
    findings = [try_one(name, seed, tmp_path)[1] for seed in range(PER_TARGET)]
    assert not any(findings), next(filter(None, findings)).what


@pytest.mark.parametrize("name", TARGETS)
def test_the_unchanged_input_is_read_whole(name, tmp_path):
    target = TARGETS[name]
    target.beside(tmp_path)
    (tmp_path / target.file).write_bytes(target.make())
    models = {name: 1 for name in TARGETS if name.partition(" ")[0] in ("clip", "blip", "sentences", "remote")}
    whole = models | {"recipe": 6, "vectors": 1, "excluded jsonl": 1, "excluded parquet": 1}
    assert len(target.read(tmp_path)) == whole.get(name, len(targets.PROMPTS)), "or a change of it says nothing"


class TestItCanFail:
    def broken(self, monkeypatch, read):
        plain = TARGETS["jsonl"]
        monkeypatch.setitem(run.TARGETS, "jsonl", type(plain)(plain.file, plain.make, read(plain.read), plain.structure))

    def test_at_a_traceback(self, monkeypatch, tmp_path):
        def reads(plain):
            def read(folder):
                if b"\xff" in (folder / "a.jsonl").read_bytes():
                    raise UnicodeDecodeError("utf-8", b"", 0, 1, "found by the test")
                return plain(folder)

            return read

        self.broken(monkeypatch, reads)
        found = [try_one("jsonl", seed, tmp_path)[1] for seed in range(200)]
        assert any("found by the test" in finding.what for finding in found if finding)

    def test_at_another_record_that_is_lost(self, monkeypatch, tmp_path):
        def reads(plain):
            def read(folder):
                kept = plain(folder)
                whole = len(kept) == len(targets.PROMPTS)
                return kept if whole else dict(list(kept.items())[:-1])  # a bad record takes the last one along

            return read

        self.broken(monkeypatch, reads)
        found = [try_one("jsonl", seed, tmp_path)[1] for seed in range(200)]
        assert any("another record changed" in finding.what for finding in found if finding)


def reader_of(name: str, path: Path):
    """What reads a recorded input."""
    stem = re.sub(r"-traceback.*", "", name)
    if stem.startswith("ann-"):
        kind = stem.removeprefix("ann-")
        return lambda: annotations(KINDS.get(kind, kind), path.name)(path.parent)
    if stem.startswith("images-"):
        layout = re.sub(r"-(zip|parquet)$", "", stem.removeprefix("images-"))
        (root,) = path.iterdir()
        return lambda: images(layout, root.name)(path)
    if stem.startswith("prompts-"):
        return lambda: prompts(path)
    kinds = {"unit-man": Manifest, "unit-rec": Record, "store-objects": Manifest, "store-keys": Record}
    kind = next((kind for start, kind in kinds.items() if name.startswith(start)), None)
    return (lambda: read_typed(path, kind)) if kind is not None and path.suffix != ".txt" else None


def prompts(path: Path) -> None:
    rows = list(read_prompts(EmbedPromptsConfig(path=path), path, Rejections(1.0, path.name)))
    vectors = CASES / f"{path.name}.npy"
    if vectors.exists():
        open_given(vectors, len(rows))


@pytest.mark.skipif(not RECORDED, reason="NEEDS THE RECORDED INPUTS in ../shared/cases-fuzz")
class TestRecorded:
    @pytest.mark.parametrize("name", RECORDED)
    def test_it_ends_in_a_result_or_an_error_of_ours(self, name, tmp_path):
        source = CASES / name
        path = Path((shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name))
        read = reader_of(name, path)
        if read is None:
            pytest.skip("part of another test (test_store_belief.py), or a traceback's text")
        with contextlib.suppress(IrpipeError):
            read()

    def one(self, name, kind):
        return annotations(kind, name)(CASES)

    def test_what_was_kept_in_silence_is_refused(self, tmp_path):
        assert self.one("conf.csv", "csv") == {}, "its rows disagree on category, intent and split"
        assert len(self.one("dupkey.jsonl", "jsonl")) == 0, "a key twice"
        for name, kind, told in (("dupcol.csv", "csv", "is there twice"), ("rankinf.json", "hpdv2-json", None)):
            if told is None:
                kept = self.one(name, kind)
                assert [value[0] for value in kept.values()] == ["q"], "not the one with an infinite rank"
            else:
                with pytest.raises(IrpipeError, match=told):
                    self.one(name, kind)
        path = Path(shutil.copy(CASES / "pq.csv", tmp_path / "pq.csv"))
        with pytest.raises(IrpipeError, match="is not CSV"):
            prompts(path)
