"""A package of somebody else's: its reward model, scorer and tuning are scored, tuned by, compared and exported as ours are."""

from __future__ import annotations

import importlib
import json
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from irpipe.pipeline.registry import declared
from tests.guests import PACKAGE, POINTS
from tests.paired import RECIPE


def install_package(site: Path, version: str = "1.0") -> None:
    """Put the package into a folder on the path, with its metadata, as pip would."""
    for name, text in PACKAGE.items():
        path = site / "guest" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    metadata = site / "guest.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: guest\nVersion: {version}\n", encoding="utf-8")
    lines = [line for group, points in POINTS.items() for line in (f"[{group}]", *(f"{n} = {v}" for n, v in points.items()))]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def site(world, tmp_path, monkeypatch):
    """The package, installed; a project with a reward model, pairs and captioned images of ours."""
    folder = tmp_path / "guest-site"
    install_package(folder)
    monkeypatch.syspath_prepend(str(folder))
    declared.cache_clear()
    yield folder
    declared.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "guest"]:
        del sys.modules[name]


@pytest.fixture
def colours(site, world):
    """A folder with a reward model of the package, that likes the colour it was asked for."""
    import torch

    model = importlib.import_module("guest.model").ColourReward()
    with torch.no_grad():
        model.lower.weight.copy_(torch.eye(3))
        model.upper.weight.copy_(torch.eye(3)[None])
        model.upper.bias.zero_()
    model.save_pretrained(world.root / "colours")
    return "colours"


def test_it_is_scored_beside_ours_in_one_table(world, colours):
    """Two reward models of two kinds in one `scores`, one table 3. The guest's is a start that one step leaves as it was."""
    world.recipe(
        RECIPE.replace(
            "[score-images]",
            f'[train-colours]\nlike = "train-rm"\nmodel = "{colours}"\nimage_size = 16\nepochs = 1\n'
            '[score-images]\nreads.reward-model = ["train-rm", "train-colours"]',
        )
    )
    done = world.last("evaluate-rm", "score-images.scorers=['reward-model', 'redness', 'random']")
    rows = world.rows("SELECT scorer, reward_model, log_odds FROM scorer_cards ORDER BY scorer")
    assert rows == [
        {"scorer": "random", "reward_model": False, "log_odds": False},
        {"scorer": "redness", "reward_model": False, "log_odds": False},
        {"scorer": "train-colours", "reward_model": True, "log_odds": True},
        {"scorer": "train-rm", "reward_model": True, "log_odds": True},
    ]
    report = (Path(done["path"]) / "report.txt").read_text()
    for name in ("train-rm", "train-colours", "redness", "random", "oracle"):
        assert f"\n{name} " in report
    calibrated = {row["scorer"] for row in world.rows("SELECT DISTINCT scorer FROM calibration")}
    assert calibrated == {"train-rm", "train-colours"}
    trained = world.store.open(world.store.newest("micro", "train-colours").content_id)
    assert json.loads(trained.file("config.json").read_text()) == {"format": "colours"}
    curves = world.rows("SELECT count(*) AS n FROM train_colours.curves")
    assert curves[0]["n"] > 1
    world("export", "train-colours", str(world.root / "exported"), "--to", "reward-model")
    assert "Its format is `colours`" in (world.root / "exported" / "README.md").read_text()
    assert "train-colours" in world("report", "train-colours", "--out", "page.html").err + (world.root / "page.html").read_text()


def test_given_as_a_setting_it_replaces_the_recipes(world, colours):
    done = world.last("score-images", f"score-images.reward_model={colours}", "score-images.scorers=['reward-model']")
    rows = world.rows(
        "SELECT prompt, raw, image.bytes AS data FROM scores JOIN generate_images.images USING (image_id)"
        " JOIN prompt_splits p ON p.prompt_id = scores.prompt_id LIMIT 0"
    )
    assert rows == [] and "reward-model" not in world.store.newest("micro", "score-images").inputs
    assert done["metrics"]["scorers"] == ["reward-model"]


def test_irpipe_score_takes_it_and_the_scorer(world, colours):
    from PIL import Image

    folder = world.root / "pictures"
    folder.mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (20, 30), name).save(folder / f"{name}.png")
    for flags in (("--model", colours), ("--scorer", "redness")):
        told = world("score", *flags, "--prompt", "a red circle", str(folder), "--json").json
        assert {Path(row["image"]).stem: row["rank"] for row in told["scores"]} == {"red": 1, "blue": 2}
    told = world("score", "--scorer", "clip", "--model", "micro-clip", "--prompt", "a red circle", str(folder), "--json").json
    assert "mean" not in told and told["scorer"] == "clip"
    assert "the scorer clip needs a model" in world("score", "--scorer", "clip", "--prompt", "x", str(folder), status=2).err


@pytest.mark.slow
def test_refl_is_tuned_by_it_and_three_tunings_of_two_packages_are_compared(world, colours):
    world.recipe(
        RECIPE.replace('reads.generator = "refl"', 'reads.generator = ["refl", "refl-colours", "nudge"]')
        + f'[refl-colours]\nlike = "refl"\nreward_model = "{colours}"\n[nudge]\nmodel = "micro-generator"\n'
    )
    done = world.last("compare-generators", "compare-generators.scorers=['reward-model', 'redness']")
    rows = world.rows("SELECT judge, generator FROM comparison")
    names = ["base", "nudge", "refl", "refl-colours"]
    for judge in ("reward-model", "redness", "oracle"):
        assert [row["generator"] for row in rows if row["judge"] == judge] == names
    assert done["metrics"]
    record = world.store.newest("micro", "refl-colours")
    assert "reward-model" not in record.inputs and record.external["irpipe.reward_models:colours"]["given"] == "guest 1.0"


class TestKeys:
    """Code of another package counts by its version and its files."""

    SETTINGS = ("score-images.scorers=['redness']",)

    def key(self, world):
        return world("plan", "score-images", "--json", "--set", *self.SETTINGS).json[-1]["key"]

    def test_a_new_version_is_another_run(self, world, site):
        before = self.key(world)
        assert self.key(world) == before
        install_package(site, "1.1")
        importlib.invalidate_caches()
        assert self.key(world) != before

    def test_other_code_is_another_run_and_the_plan_says_so(self, world, site):
        from irpipe.pipeline import plugins

        world.run("score-images", *self.SETTINGS)
        text = (site / "guest" / "scorer.py").read_text()
        (site / "guest" / "scorer.py").write_text(text.replace("[..., 0]", "[..., 1]"))
        plugins._files_digest.cache_clear()
        plan = world("plan", "score-images", "--set", *self.SETTINGS).out
        assert "irpipe.scorers:redness guest 1.0: the content changed" in plan

    def test_our_own_scorers_count_by_the_stage(self, world, site):
        record = world.last("score-images", "score-images.scorers=['random']")
        assert "redness" not in json.dumps(record)
        assert not world.store.newest("micro", "score-images").external


def test_what_is_no_scorer_is_named(world, site):
    (site / "guest" / "scorer.py").write_text("class Redness:\n    image_size = 8\n")
    error = world.run("score-images", "score-images.scorers=['redness']", status=2).err
    assert "is no scorer: it has no card and no __call__" in error


def test_a_format_that_nobody_reads_is_named(world, site, colours):
    (world.root / colours / "config.json").write_text('{"format": "colour"}')
    error = world.run("score-images", f"score-images.reward_model={colours}", status=2).err
    assert "the format 'colour', which no installed package reads; did you mean 'colours'?" in error


def test_the_guests_numbers_are_its_own(site, colours, world):
    """The scorer that wraps it gives what the model gives."""
    import torch

    from irpipe.models.reward import load_reward_model
    from irpipe.models.scorers.base import score_pictures
    from irpipe.models.scorers.reward import RewardModelScorer

    model = load_reward_model(world.root / colours)
    red = np.zeros((16, 16, 3), dtype=np.uint8)
    red[..., 0] = 255
    scores = score_pictures(RewardModelScorer(model, "cpu", torch.float32), ["red", "a blue", "green and red"], [red] * 3)
    assert scores.tolist() == [1.0, -1.0, 0.0]


def test_on_the_hub_its_code_would_not_count(site, colours, world, monkeypatch):
    """What a plan cannot see cannot be part of a key, so it is refused."""
    from irpipe.models.reward.base import load_given
    from irpipe.pipeline.errors import ModelError
    from irpipe.pipeline.stage import Model

    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *given, **more: str(world.root / colours))
    with pytest.raises(ModelError, match="of the format 'colours', which another package reads") as caught:
        load_given(Model("somebody/colours", "0" * 40, None))
    assert "hf download somebody/colours --revision" in caught.value.fix
    assert load_given(Model(colours, "r", world.root / colours)).format == "colours"
