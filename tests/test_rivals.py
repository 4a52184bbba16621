"""What ReFL is held against, and how: pools of a generator's own images, captioned images, and table 4."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from irpipe.models.scorers.make import make_scorers
from irpipe.models.tuning.caption_files import decoded, local_captions
from irpipe.models.tuning.captions import fitted
from irpipe.models.tuning.choose import best_and_worst, best_of_each, weighted
from irpipe.pipeline.errors import InputError, RecipeError
from irpipe.schemas.generator import GeneratorCard
from irpipe.stages.compare_generators import CompareGeneratorsConfig
from irpipe.stages.compare_generators.drawing import sources_of
from irpipe.stages.compare_generators.run import pairs_of
from irpipe.stages.compare_generators.table import compare, differences, differences_text, interval, won
from tests.paired import RECIPE

SCORED_BY_CLIP = (
    "choose-images.scorer=clip",
    "choose-images.annotated_prompts=use",
    "score-images.scorers=['clip']",
)
REWARDS = np.array([[0.0, 3.0, 1.0], [np.nan, -1.0, -2.0]])


def cards(**negative_prompts: str) -> dict[str, GeneratorCard]:
    return {
        name: GeneratorCard("b", "r", "finetune", "lora", 1, 1, "", {}, negative) for name, negative in negative_prompts.items()
    }


@pytest.mark.parametrize("node", ["base", "best-of-2", "base-as-adapted", "adapted-plain"])
def test_no_node_takes_the_place_of_a_row(node, tmp_path):
    config = CompareGeneratorsConfig(best_of=[2], negative_prompts=True)
    tuned = cards(adapted="Odd. ", **{"best-of-3": "", "refl-plain": ""})
    sources_of(tuned, dict.fromkeys(tuned, tmp_path), config)
    tuned |= cards(**{node: ""})
    with pytest.raises(RecipeError, match=f"'{node}' is a row of the comparison"):
        sources_of(tuned, dict.fromkeys(tuned, tmp_path), config)


def test_rows_with_and_without_negative_prompts(tmp_path):
    tuned = cards(refl="", adapted="Odd. {prompt}")
    folders = dict.fromkeys(tuned, tmp_path)
    plain = sources_of(tuned, folders, CompareGeneratorsConfig())
    assert {name: source.negative_prompt for name, source in plain.items()} == {
        "base": "",
        "refl": "",
        "adapted": "Odd. {prompt}",
    }
    both = sources_of(tuned, folders, CompareGeneratorsConfig(negative_prompts=True))
    assert both.keys() - plain.keys() == {"adapted-plain", "base-as-adapted", "adapted-marked"}
    assert (both["adapted-marked"].negative_prompt, both["adapted-marked"].prefix) == ("", "Odd. ")
    assert pairs_of(plain) == []
    assert pairs_of(both) == [
        ("adapted", "adapted-plain"),
        ("adapted", "base-as-adapted"),
        ("adapted-marked", "adapted-plain"),
    ]
    assert both["adapted-plain"].tuned == plain["adapted"].tuned and both["adapted-plain"].negative_prompt == ""
    assert both["base-as-adapted"].tuned is None and both["base-as-adapted"].negative_prompt == "Odd. {prompt}"


def test_no_reward_model_takes_the_place_of_a_scorer():
    with pytest.raises(RecipeError, match="'random' is a scorer, and the node of a reward model"):
        make_scorers(["reward-model", "random"], {}, {"random": None, "other": None}, device="cpu", dtype="float32", seed=0)


class TestChoosing:
    def test_raft_takes_the_best_of_each_prompt(self):
        assert [(one.prompt, one.image, one.weight) for one in best_of_each(REWARDS, 1)] == [(0, 1, 1.0), (1, 1, 1.0)]
        assert [(one.prompt, one.image) for one in best_of_each(REWARDS, 3)] == [(0, 1), (0, 2), (0, 0), (1, 1), (1, 2)]

    def test_weights_go_from_0_to_1_over_the_pool_or_a_prompt(self):
        pool = {(one.prompt, one.image): one.weight for one in weighted(REWARDS, by_prompt=False)}
        assert pool == {(0, 0): 0.4, (0, 1): 1.0, (0, 2): 0.6, (1, 1): 0.2, (1, 2): 0.0}
        prompt = {(one.prompt, one.image): one.weight for one in weighted(REWARDS, by_prompt=True)}
        assert prompt == {(0, 0): 0.0, (0, 1): 1.0, (0, 2): pytest.approx(1 / 3), (1, 1): 1.0, (1, 2): 0.0}

    def test_filtering_takes_what_stands_out(self):
        found = [(one.prompt, one.image, one.bad) for one in best_and_worst(REWARDS, 2.0)]
        # softmax of 0, 3, 1: .042 .844 .114; negated: .705 .035 .259; the bar is 2/3. Of -1, -2: .73 each way, the bar 1.
        assert found == [(0, 1, False), (0, 0, True)]
        assert len(best_and_worst(REWARDS, 1.0)) == 4


class TestStages:
    @pytest.mark.parametrize("stage", ["raft", "reward-weighted", "filter-tune"])
    def test_each_makes_a_generator(self, world, stage):
        done = world.last(stage)
        pools = 2 if stage == "raft" else 1
        assert done["metrics"]["images_drawn"] == pools * 4 * 3
        card = GeneratorCard.read(Path(done["path"]))
        assert card.stage == "finetune" and card.negative_prompt == ("Weird image. " if stage == "filter-tune" else "")
        table = stage.replace("-", "_")
        query = f"SELECT DISTINCT figure FROM {table}.curves WHERE split = 'train'"
        assert {"pool_loss", "pretraining_loss", "gradient_norm", "learning_rate"} == {row["figure"] for row in world.rows(query)}

    def test_on_chosen_images(self, world):
        """The best image of each training prompt, by the scores of somebody: nothing is drawn."""
        done = world.last("adapted", "choose-images.select=best", *SCORED_BY_CLIP)
        assert GeneratorCard.read(Path(done["path"])).negative_prompt == "", "no bad image taught it an identifier"
        (scored,) = world.rows(
            "SELECT count(DISTINCT scores.prompt_id) AS prompts FROM scores"
            " JOIN prompt_splits p ON p.prompt_id = scores.prompt_id WHERE p.split = 'train'"
        )
        assert done["metrics"]["preferred"] == scored["prompts"] and done["metrics"]["non_preferred"] == 0
        assert "images_drawn" not in done["metrics"]
        idle = world.run("adapted", "adapted.pool_every=3", status=2).err
        assert "pool_every has no effect: source is 'images'" in idle

    @pytest.mark.parametrize(("negative", "told"), [("identifier", "Odd. "), ("identifier+prompt", "Odd. {prompt}")])
    def test_bad_images_are_marked_and_the_mark_is_the_negative_prompt(self, world, negative, told):
        guided = ("adapted.evaluation.guidance_scale=2.0", f"adapted.negative={negative}", 'adapted.identifier="Odd. "')
        done = world.last("adapted", "choose-images.alpha=1.0", "choose-images.non_preferred_share=1.0", *SCORED_BY_CLIP, *guided)
        assert done["metrics"]["non_preferred"] > 0
        assert GeneratorCard.read(Path(done["path"])).negative_prompt == told

    def test_the_control_trains_on_captioned_images_alone(self, world):
        done = world.last("adapted", "adapted.source=none")
        figures = {row["figure"] for row in world.rows("SELECT DISTINCT figure FROM adapted.curves WHERE split = 'train'")}
        assert figures == {"pretraining_loss", "gradient_norm", "learning_rate"}
        assert GeneratorCard.read(Path(done["path"])).negative_prompt == ""
        nothing = world.run("adapted", "adapted.source=none", "adapted.pretraining.weight=0", status=2).err
        assert "nothing would be trained on" in nothing

    def test_nothing_that_stands_out(self, world):
        told = world.run("filter-tune", "filter-tune.alpha=3.0", status=2).err
        assert "of 12 images none was chosen" in told

    def test_pools_as_rare_as_steps(self, world):
        assert "there would be one pool" in world.run("raft", "raft.pool_every=4", status=2).err

    @pytest.mark.slow
    def test_killed_and_resumed_has_the_same_weights(self, world):
        laid = ("raft.steps=8", "raft.pool_every=3", "raft.evaluation.every=100", "raft.training.checkpoint_minutes=0")
        whole = world.last("raft", *laid)
        (world.root / "artifacts" / "keys" / whole["key"][:2] / f"{whole['key']}.json").unlink()
        flags = [part for setting in laid for part in ("--set", setting)]
        command = [sys.executable, "-m", "irpipe.cli", "run", "raft", *flags]
        process = subprocess.Popen(command, cwd=world.root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list((world.root / "artifacts" / "work").rglob("pool-3.pt")):
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert "goes on after step" in world.run("raft", *laid).err
        assert world.store.newest("micro", "raft").content_id == whole["content_id"]


class TestComparing:
    def test_against_the_base(self, world):
        done = world.last(
            "compare-generators",
            "compare-generators.reads.generator=['refl','filter-tune']",
            "compare-generators.best_of=[2]",
        )
        rows = world.rows("SELECT * FROM comparison")
        names = ["base", "best-of-2", "filter-tune", "refl"]
        assert [row["generator"] for row in rows if row["judge"] == "oracle"] == names
        assert {row["judge"] for row in rows} == {"reward-model", "clip", "blip", "oracle", "alignment", "fidelity"}
        of = {row["generator"]: row for row in rows if row["judge"] == "reward-model"}
        assert of["best-of-2"]["gain"] > 0 and of["best-of-2"]["images_made"] == 2 * of["base"]["images_made"]
        for row in of.values():
            assert row["generator"] == "base" or row["gain_low"] <= row["gain"] <= row["gain_high"]
        images = of["base"]["images"]
        assert sum(row["wins"] for row in of.values()) == images * 6  # six pairs of four generators
        text = (Path(done["path"]) / "report.txt").read_text()
        assert "win % against base" in text and "best-of-2" in text
        assert (Path(done["path"]) / "side_by_side.png").is_file()
        (joined,) = world.rows(
            "SELECT count(*) AS n FROM worths JOIN compare_generators.images USING (image_id) WHERE judge = 'oracle'"
        )
        assert joined["n"] == images * 4

    def test_a_generator_that_was_not_tuned_is_the_base(self, world):
        world.recipe(RECIPE.replace("optimizer.learning_rate = 1e-3", "optimizer.learning_rate = 1e-12"))
        world.run("compare-generators", "compare-generators.scorers=['reward-model']")
        (row,) = world.rows("SELECT gain, win_rate FROM comparison WHERE judge = 'oracle' AND generator = 'refl'")
        assert row == {"gain": 0.0, "win_rate": 0.5}

    def test_given_prompts(self, world):
        (world.root / "mine.txt").write_text("a red circle\na large blue square\na small green cross\n")
        done = world.last("compare-generators", "compare-generators.prompts=mine.txt")
        assert done["rows"]["kept"] == 3

    def test_another_base(self, world, tmp_path):
        from tests.pipelines import stable_diffusion

        told = world.run("compare-generators", f"compare-generators.model={stable_diffusion(tmp_path / 'sd')}", status=2).err
        assert "refl tuned micro-generator" in told

    def test_differences_of_rows(self):
        worths = {"j": {"a": np.array([[1.0, 2.0], [3.0, 5.0]]), "b": np.array([[1.0, 1.0], [1.0, 1.0]])}}
        (row,) = differences(worths, [("a", "b")], 200, 0)
        assert (row["gain"], row["low"], row["high"]) == (1.75, 0.5, 3.0)
        assert "a over b" in differences_text([row]) and "+1.7500  +0.5000 to +3.0000" in differences_text([row])
        assert differences_text([]) == ""

    def test_wins_gains_and_intervals(self):
        assert won(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])).tolist() == [0.0, 0.5, 1.0]
        rng = np.random.default_rng(0)
        base = rng.normal(size=(200, 2))
        rows = compare({"j": {"base": base, "better": base + 1.0}}, {"base": 400, "better": 400}, 1000, 0)
        assert rows[0]["gain"] is None and rows[0]["wins"] == 0
        assert rows[1]["win_rate"] == 1.0 and rows[1]["gain"] == pytest.approx(1.0) and rows[1]["gain_low"] == pytest.approx(1.0)
        values = rng.normal(size=100)
        low, high = interval(values, 4000, 0)
        half = 1.96 * values.std() / 10
        assert low == pytest.approx(values.mean() - half, abs=0.03) and high == pytest.approx(values.mean() + half, abs=0.03)


class TestLocalCaptions:
    def picture(self, path, colour=(255, 0, 0), size=(8, 8)):
        Image.new("RGB", size, colour).save(path)

    def test_a_folder_with_metadata(self, tmp_path):
        self.picture(tmp_path / "a.png"), self.picture(tmp_path / "b.png", (0, 255, 0))
        rows = [{"file_name": "b.png", "text": "green"}, {"file_name": "a.png", "text": "red"}]
        (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = local_captions(tmp_path, 10)
        assert found.captions == ["green", "red"]
        assert [image.convert("RGB").getpixel((0, 0)) for image in decoded(found.open())] == [(0, 255, 0), (255, 0, 0)]
        (tmp_path / "metadata.jsonl").unlink()
        (tmp_path / "metadata.csv").write_text("file_name,text\na.png,red\n")
        assert local_captions(tmp_path, 10).captions == ["red"]

    def test_parquet_as_datasets_saves_it(self, tmp_path):
        self.picture(tmp_path / "a.png")
        data = (tmp_path / "a.png").read_bytes()
        images = pa.array([{"bytes": data, "path": "a.png"}] * 2, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        pq.write_table(pa.table({"image": images, "text": ["one", "two"]}), tmp_path / "x.parquet")
        for path in (tmp_path, tmp_path / "x.parquet"):
            found = local_captions(path, 10)
            assert found.captions == ["one", "two"] and len(list(decoded(found.open()))) == 2
        assert local_captions(tmp_path, 1).captions == ["one"]

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            (None, "holds no captioned images"),
            ([{"file_name": "../secret.png", "text": "x"}], "lies outside of the data set"),
            ([{"file_name": "none.png", "text": "x"}], "there is no"),
            ([{"file_name": "a.png"}], "row 0 of .* has no caption"),
            ([{"text": "x"}], "a row names no picture"),
            ([], "there are no captioned images"),
        ],
    )
    def test_broken_data_sets(self, tmp_path, lines, message):
        folder = tmp_path / "set"
        folder.mkdir()
        self.picture(folder / "a.png"), self.picture(tmp_path / "secret.png")
        if lines is not None:
            (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(InputError, match=message):
            local_captions(folder, 10)

    def test_pictures_cover_the_frame(self):
        wide = Image.new("RGB", (64, 16), (0, 0, 255))
        assert fitted(wide, 32, 32).shape == (32, 32, 3) and (fitted(wide, 32, 32) == [0, 0, 255]).all()

    def test_they_replace_the_recipes(self, world):
        folder = world.root / "real"
        folder.mkdir()
        rows = []
        for number in range(12):
            self.picture(folder / f"{number}.png", (20 * number, 0, 0), (40, 32))
            rows.append({"file_name": f"{number}.png", "text": "a red circle"})
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        done = world.last("refl", "refl.pretraining_data=real", "refl.steps=2", "refl.evaluation.early_stopping=log")
        assert done["metrics"]["captioned_images"] == 4
        shutil.copyfile(folder / "0.png", folder / "x.png")
        told = world.run("refl", "refl.pretraining_data=real", "refl.evaluation.captioned_images=12", status=2).err
        assert "there are 12 captioned images, and 12 are only evaluated on" in told
