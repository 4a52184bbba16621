"""From a list of prompts and a reward model of somebody else's: nobody annotates anything, and there are no pairs."""

from __future__ import annotations

import pytest

from tests import test_imagereward
from tests.blips import published_state

RECIPE = """
recipe = "micro"
[embed-prompts]
path = "prompts.txt"
embedder = "lexical"
[prompt-graph]
k = 5
[select-prompts]
count = 40
[split-prompts]
validation_share = 0.2
test_share = 0.2
[simulate-captions]
count = 12
[refl]
model = "micro-generator"
reward_model = "micro-judge"
steps = 2
batch_size = 4
num_steps = 6
first_late_step = 3
last_late_step = 5
reward_weight = 1.0
lora.rank = 2
pretraining.batch_size = 2
evaluation.every = 2
evaluation.prompts = 4
evaluation.num_steps = 4
evaluation.captioned_images = 4
evaluation.kept_images = 2
evaluation.held_out_model = "micro-blip"
evaluation.similarity_model = "micro-clip"
training.dtype = "float32"
[generate-images]
models = ["micro-generator"]
num_steps = 2
min_images = 2
max_images = 2
guidance_scale = 1.0
dtype = "float32"
[score-images]
reward_model = "micro-judge"
[compare-generators]
model = "micro-generator"
reward_model = "micro-judge"
scorers = ["reward-model"]
num_steps = 4
guidance_scale = 1.0
dtype = "float32"
truth = true
"""


@pytest.fixture
def prompts(project):
    """A project with 60 prompts and no annotations."""
    import numpy as np

    from irpipe.microworld.grammar import describe, sample_scene

    rng = np.random.default_rng(0)
    (project.root / "prompts.txt").write_text("".join(f"{describe(sample_scene(rng))}\n" for _ in range(60)), encoding="utf-8")
    project.recipe(RECIPE)
    return project


def test_refl_runs_from_prompts_and_a_reward_model(prompts):
    steps = prompts("plan", "refl", "--json").json
    assert [step["stage"] for step in steps] == [
        "embed-prompts", "prompt-graph", "select-prompts", "split-prompts", "simulate-captions", "refl",
    ]  # fmt: skip
    done = prompts.last("refl")
    splits = {row["split"]: row["n"] for row in prompts.rows("SELECT split, count(*) AS n FROM prompt_splits GROUP BY split")}
    assert sum(splits.values()) == 40 and splits["validation"] == splits["test"] == 8
    assert done["metrics"]["prompts"] == splits["train"] and done["rows"]["read"] == 40
    assert done["rows"]["rejected"] == splits["validation"] + splits["test"]


def test_so_do_scoring_and_comparing(prompts):
    done = prompts.last("score-images")
    assert done["metrics"]["scorers"] == ["reward-model"]
    assert prompts.rows("SELECT count(*) AS n FROM scores") == [{"n": 80}]
    compared = prompts.last("compare-generators")
    assert compared["rows"]["kept"] == 8


def test_the_source_can_be_said(prompts):
    error = prompts.run("split-prompts", "split-prompts.source=annotations", status=2).err
    assert "split-prompts reads 'annotations', and no stage of the recipe 'micro' writes it" in error
    assert "add a table [load-annotations] to irpipe.toml" in error


def test_a_published_checkpoint_is_named_by_its_file(prompts):
    checkpoint = test_imagereward.TestCheckpoints().make(prompts.root / "published", published_state())
    named = f"score-images.reward_model=published/{checkpoint.name}"
    done = prompts.last("score-images", named)
    record = prompts.store.newest("micro", "score-images")
    assert record.external["reward_model"]["given"] == f"published/{checkpoint.name}"
    vocabulary = prompts.root / "published" / "tokenizer.json"
    vocabulary.write_bytes(vocabulary.read_bytes() + b"\n")
    assert prompts("plan", "score-images", "--json", "--set", named).json[-1]["key"] != done["key"], "its tokenizer counts"
