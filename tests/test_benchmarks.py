"""Every benchmark still runs, at a size that says nothing about speed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.__main__ import NAMES
from tests.conftest import REPOSITORY

ROWS = {
    "startup": ["irpipe --help", "nothing to do, 50 in zip", "nothing to do, 50 in files"],
    "store": ["commit of 30 files"],
    "engine": ["inline", "processes", "ray", "commit", "status (is it whole by sizes)", "verify", "gc"],
    "pairs": ["M candidates", "the same by a DuckDB self-join"],
    "votek": ["10 of 200"],
    "embed": ["32 prompts"],
    "graph": ["exact, one set of 200", "inverted file, 300", "inverted file, 600", "law: n^1.5"],
    "generate": ["micro generator, CPU, float32"],
    "choices": ["plain step, float32", "ours, 1 choices per group, bfloat16", "ours, 8 choices per group, float32"],
    "rahf": [f"{variant}: {what}" for variant in ("multi-head", "augmented-prompt") for what in ("scores and maps", "words")],
    "guidance": ["plain sampling, micro-generator", "guided by ImageReward's kind", "guided by RAHF"],
    "threads": ["idle", "beside two busy processes", "one core by affinity"],
    "images": ["written", "plain copy of the shards", "read by id, all", "read by id, 1 of 100"],
    "oracle": ["oracle, clean images", "oracle, damaged images", "annotators, 7 images a record"],
    "reward_model": [
        "420 pairs, 140 images",
        "32 wide: the published step",
        "32 wide: train-rm",
        "score-images, micro world, 32 px PNGs",
        "score-images, 32 wide, 64 px PNGs",
    ],
    "refl": ["transcription", "ours / transcription", "ours, rollouts used again / transcription"],
    "memory": ["lora, samples at a time: 1, recomputed", "unet, samples at a time: 2"],
    "presets": ["train-rm, 4 images, recomputed", "draw, 2 images", "refl, LoRA, samples at a time: 1"],
    "report": ["status, 2 artifacts", "report, 240 images"],
}


def benchmarks(*arguments):
    command = [sys.executable, "-m", "benchmarks", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_every_benchmark_is_listed():
    assert set(ROWS) == set(NAMES)
    unknown = benchmarks("--tiny", "vote")
    assert unknown.returncode == 1 and "there is no benchmark 'vote'; known: startup, store" in unknown.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_finishes_and_prints_its_rows(name):
    done = benchmarks("--tiny", name)
    assert done.returncode == 0, done.stderr
    assert [row for row in ROWS[name] if row not in done.stdout] == []
    assert "fits no" not in done.stdout
