"""score-images, evaluate-rm and `irpipe score`: the statistics by hand, the published figures, every scorer, and bad input."""

from __future__ import annotations

import csv
import importlib
import io
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from irpipe.models.imagereward import ImageReward
from irpipe.models.reward.start import init_reward_model
from irpipe.models.scorers.baselines import aesthetic_head
from irpipe.pipeline.errors import InputError, ModelError
from irpipe.pipeline.external import shipped_folder
from irpipe.pipeline.registry import SCORERS
from irpipe.pipeline.stage import Model
from irpipe.stages.evaluate_rm.accuracy import (
    accuracies,
    calibration,
    calibration_error,
    correct_pairs,
    grouped,
    intervals,
)
from irpipe.stages.evaluate_rm.ranking import (
    Ranking,
    best_images,
    best_of,
    mean_scores,
    read_human_ranking,
    read_rankings,
    recall_and_filter,
    rho,
    wins,
)
from tests.conftest import REPOSITORY
from tests.paired import RECIPE

TABLE_1 = REPOSITORY / "tests" / "fixtures" / "imagereward_table_1.csv"
CATEGORY_SCORERS = ("reward-model", "clip", "aesthetic", "blip", "random")


def ids(*values):
    return np.array(values, dtype=np.uint64)


class TestThePublishedFigures:
    """ImageReward, table 1, as an input file."""

    @pytest.fixture
    def columns(self):
        with TABLE_1.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return {name: {row["generator"]: float(row[name]) for row in rows} for name in ("ImageReward", "CLIP")}

    @pytest.mark.parametrize(("scorer", "expected"), [("ImageReward", 1.00), ("CLIP", 0.60)])
    def test_spearmans_rho_to_people(self, columns, scorer, expected):
        assert rho(columns[scorer], read_human_ranking(TABLE_1)) == pytest.approx(expected, abs=5e-3)

    def test_win_counts_come_from_rankings_as_printed(self):
        """Any rankings with these win counts give them back; here: who has more wins is ranked higher, prompt by prompt."""
        human = read_human_ranking(TABLE_1)
        assert {name: int(value) for name, value in human.items()}["Openjourney"] == 507
        order = sorted(human, key=lambda name: -human[name])
        best = {prompt: {name: -float(rank) for rank, name in enumerate(order)} for prompt in range(100)}
        assert wins(best) == {name: 100 * (5 - rank) for rank, name in enumerate(order)}

    def test_a_rank_column_counts_the_other_way(self, tmp_path):
        path = tmp_path / "ranks.csv"
        path.write_text("generator,rank\na,1\nb,2\n", encoding="utf-8")
        assert read_human_ranking(path) == {"a": -1.0, "b": -2.0}
        path.write_text("generator,rank\na,first\n", encoding="utf-8")
        with pytest.raises(InputError, match="no number"):
            read_human_ranking(path)
        path.write_text("model,place\na,1\n", encoding="utf-8")
        with pytest.raises(InputError, match="no column"):
            read_human_ranking(path)


class TestAccuracy:
    def test_pooled_and_by_prompt_are_two_things(self):
        """3 of 4 pairs of one prompt and 0 of 1 of another: 3/5 pooled, (3/4 + 0) / 2 by prompt."""
        right = np.array([1.0, 1, 1, 0, 0])
        found = accuracies(right, ids(1, 1, 1, 1, 2))
        assert found == {"accuracy": 3 / 5, "accuracy_by_prompt": 3 / 8}

    def test_equal_scores_are_wrong(self):
        assert correct_pairs({1: 0.5, 2: 0.5, 3: 0.1}, ids(1, 1), ids(2, 3)).tolist() == [0, 1]

    def test_intervals_are_over_prompts_not_pairs(self):
        """40 prompts of 50 equal pairs say as much as 40 pairs: the interval is that of 40 coin throws."""
        prompts = np.repeat(np.arange(40, dtype=np.uint64), 50)
        right = np.repeat((np.arange(40) % 2).astype(float), 50)
        low, high = intervals(right, prompts, 4000, 0)["accuracy"]
        spread = 1.96 * 0.5 / np.sqrt(40)
        assert low == pytest.approx(0.5 - spread, abs=0.02) and high == pytest.approx(0.5 + spread, abs=0.02)
        assert intervals(right, prompts, 0, 0) == {}

    def test_intervals_are_drawn_by_their_seed(self):
        """Ten prompts of three pairs, 0 to 3 of them right, so that different draws have different quantiles."""
        prompts = np.repeat(np.arange(10, dtype=np.uint64), 3)
        right = np.array([float(place < prompt % 4) for prompt in range(10) for place in range(3)])
        one, again, other = (intervals(right, prompts, 500, seed) for seed in (0, 0, 1))
        assert one == again and one != other

    def test_groups(self):
        assert grouped(np.array([1.0, 0, 1]), [3, None, 3]) == [("3", 2, 1.0)]

    def test_calibration_of_a_judge_whose_log_odds_are_right(self):
        rng = np.random.default_rng(0)
        gaps = rng.normal(0, 2, 200_000)
        right = (rng.random(len(gaps)) < 1 / (1 + np.exp(-np.abs(gaps)))).astype(float)
        assert calibration_error(calibration(gaps, right)) < 0.01
        assert calibration_error(calibration(10 * gaps, right)) > 0.1


def test_a_tie_is_no_win():
    assert wins({1: {"a": 2.0, "b": 2.0, "c": 1.0}, 2: {"a": 0.0, "b": 0.0}}) == {"a": 1, "b": 1, "c": 0}


class TestRankings:
    RANKING = Ranking((1, 2, 3, 4), (2, 1, 3, 3))

    def test_recall_and_filter_by_hand(self):
        scores = {1: 0.9, 2: 0.8, 3: 0.1, 4: 0.5}  # order: 1 2 4 3; people: 2 best; 3 and 4 worst
        found = recall_and_filter([self.RANKING], scores, (1, 2))
        assert found == {"recall@1": (0.0, 1), "recall@2": (1.0, 1), "filter@1": (1.0, 1), "filter@2": (1.0, 1)}

    def test_records_that_cannot_be_wrong_do_not_count(self):
        short = Ranking((5, 6), (1, 2))
        scores = {1: 0.9, 2: 0.8, 3: 0.1, 4: 0.5, 5: 0.1, 6: 0.9}
        found = recall_and_filter([self.RANKING, short], scores, (1, 2, 4))
        assert found["recall@1"] == (0.0, 2) and found["recall@2"] == (1.0, 1) and "recall@4" not in found

    def test_chance_is_k_of_n(self):
        rng = np.random.default_rng(0)
        rankings = [Ranking(tuple(range(8)), tuple(rng.permutation(8).tolist())) for _ in range(4000)]
        found = recall_and_filter(rankings, dict(enumerate(rng.random(8))), (1, 2, 4))
        for k in (1, 2, 4):
            assert found[f"recall@{k}"][0] == pytest.approx(k / 8, abs=0.03)
            assert found[f"filter@{k}"][0] == pytest.approx(k / 8, abs=0.03)

    def test_records_come_back_from_their_pairs(self):
        rows = {
            "ranking_id": [9, 9, 8],
            "better": [1, 1, 5],
            "worse": [2, 3, 6],
            "rank_better": [1, 1, None],
            "rank_worse": [2, 4, None],
        }
        assert read_rankings(rows) == [Ranking((1, 2, 3), (1, 2, 4))]

    @pytest.mark.parametrize("n", [1, 2, 3, 5])
    def test_best_of_n_is_the_mean_over_all_draws(self, n):
        rng = np.random.default_rng(n)
        worth, scores = rng.random(5), rng.random(5)
        picks = [worth[max(draw, key=lambda i: scores[i])] for draw in itertools.combinations(range(5), n)]
        assert best_of(worth, np.argsort(-scores), n) == pytest.approx(np.mean(picks))

    def test_generators(self):
        generators, prompts, given = ["a", "a", "b", "b", "a", "b"], [1, 1, 1, 1, 2, 2], [0.0, 1.0, 0.4, 0.4, 0.2, 0.8]
        assert mean_scores(generators, prompts, given) == pytest.approx({"a": (0.5 + 0.2) / 2, "b": (0.4 + 0.8) / 2})
        assert best_images(generators, prompts, given) == {1: {"a": 1.0, "b": 0.4}, 2: {"a": 0.2, "b": 0.8}}
        assert wins(best_images(generators, prompts, given)) == {"a": 1, "b": 1}
        assert rho({"a": 1.0}, {"a": 2.0}) is None


BRIGHT = """
SIZES = []
class Bright:
    image_size = card = None
    def __call__(self, prompts, pictures):
        SIZES.append(pictures[0].shape)
        return [float(picture.mean()) for picture in pictures]
"""


class TestTheStages:
    def test_table_3_with_the_bound_beside_it(self, rm):
        done = rm.last("evaluate-rm")
        report = (Path(done["path"]) / "report.txt").read_text(encoding="utf-8")
        for word in (*CATEGORY_SCORERS, "oracle", "recall@4", "filter@2", "Bayes bound", "share of gap", "Two people agree"):
            assert word in report
        assert done["metrics"]["bayes_bound"] > done["metrics"]["accuracy_random"]
        assert done["metrics"]["accuracy_oracle"] > 0.7
        (row,) = rm.rows("SELECT sum(utility) AS s FROM best_of WHERE scorer = 'oracle' AND n = 4")
        (other,) = rm.rows("SELECT sum(utility) AS s FROM best_of WHERE scorer = 'random' AND n = 4")
        assert row["s"] > other["s"]
        groups = {row["part"] for row in rm.rows("SELECT DISTINCT part FROM groups")}
        assert groups == {"rank_gap", "category", "annotator"}
        assert (Path(done["path"]) / "evaluation.png").is_file()

    def test_scores_are_those_of_the_model_alone(self, rm):
        """Whatever the batch; the text's padding and the other images of a batch change nothing but the last bits."""
        done = rm.last("score-images", "score-images.scorers=['reward-model']", "score-images.batch_size=17")
        model = ImageReward.from_pretrained(rm.store.open(rm.store.newest("micro", "train-rm").content_id).path)
        rows = pq.read_table(Path(done["path"]) / "scores.parquet").to_pylist()[:9]
        texts = {int(row["prompt_id"], 16): row["prompt"] for row in rm.rows("SELECT * FROM annotated_prompts")}
        images = {}
        for path in rm.store.open(rm.store.newest("micro", "generate-images").content_id).table("images"):
            images |= {row["image_id"]: row["image"]["bytes"] for row in pq.read_table(path, partitioning=None).to_pylist()}
        for row in rows:
            (score,) = model.score(texts[row["prompt_id"]], [Image.open(io.BytesIO(images[row["image_id"]]))])
            assert row["score"] == pytest.approx(score, abs=1e-4)
            assert row["raw"] == pytest.approx(score * model.card.std + model.card.mean, abs=1e-4)

    def test_one_split_alone(self, rm):
        done = rm.last("score-images", "score-images.scorers=['random']", "score-images.split=test")
        rejected = done["metrics"]["rejected_for"]
        assert set(rejected) == {"of another split"} and done["rows"]["kept"] > 0
        splits = {row["prompt_id"] for row in rm.rows("SELECT prompt_id FROM prompt_splits WHERE split = 'test'")}
        assert {row["prompt_id"] for row in rm.rows("SELECT DISTINCT prompt_id FROM scores")} == splits

    def test_prompts_nobody_annotated(self, rm):
        rm.run("score-images", "score-images.scorers=['random']", "split-prompts.source='selected-prompts'")

    def test_a_scorer_of_another_package(self, rm, monkeypatch, install, tmp_path):
        """Declared as an entry point; it gets pictures as they are."""
        (tmp_path / "brightness.py").write_text(BRIGHT, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        install({"bright": "brightness:Bright"}, SCORERS)
        module = importlib.import_module("brightness")
        rm.run("score-images", "score-images.scorers=['bright']")
        assert module.SIZES[0] == (32, 32, 3)
        module.Bright = type("Short", (), {"image_size": None, "card": None, "__call__": lambda *_: [1.0]})
        error = rm.run("score-images", "score-images.scorers=['bright']", "score-images.split=test", status=2).err
        assert "the scorer bright returned" in error

    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (("score-images.scorers=['clap']",), "there is no scorer 'clap'; did you mean"),
            (("score-images.scorers=['clip']", "score-images.clip_model=micro-blip"), "the CLIP micro-blip: its CLIPModel lacks"),
            (("score-images.scorers=['aesthetic']", "score-images.aesthetic_model=micro-sentences"), "no aesthetic head"),
            (("score-images.scorers=['random']", "score-images.clip_model=micro-clip"), "no effect"),
            (("score-images.scorers=['random']", "score-images.device=cuda:9"), "cannot be used"),
        ],
    )
    def test_settings_that_cannot_be(self, rm, settings, told):
        assert told in rm.run("score-images", *settings, status=2).err

    def test_a_split_without_pairs(self, rm):
        rm.recipe(RECIPE.replace("count = 40", "count = 1"))
        splits = {row["split"] for row in rm_pairs(rm)}
        missing = ({"train", "validation", "test"} - splits).pop()
        error = rm.run("evaluate-rm", "score-images.scorers=['random']", f"evaluate-rm.split={missing}", status=2).err
        assert f"the pairs have no {missing} split" in error

    def test_scores_of_other_images(self, rm):
        error = rm.run(
            "evaluate-rm",
            "evaluate-rm.split=test",
            "score-images.split=train",
            "score-images.scorers=['random']",
            "evaluate-rm.truth=false",
            status=2,
        ).err
        assert "no pair has scores" in error

    def test_generators_against_people(self, rm):
        (rm.root / "human.csv").write_text("generator,wins\nmicro-generator,3\nother,1\n", encoding="utf-8")
        error = rm.run("evaluate-rm", "score-images.scorers=['random']", "evaluate-rm.human_ranking=human.csv", status=2).err
        assert "'other' of the human ranking made none" in error
        (rm.root / "human.csv").write_text("generator,wins\nmicro-generator,3\n", encoding="utf-8")
        error = rm.run("evaluate-rm", "score-images.scorers=['random']", "evaluate-rm.human_ranking=human.csv", status=2).err
        assert "nothing to rank" in error

    def test_no_stage_that_trains_may_read_the_evaluation_of_the_truth(self, rm):
        """The evaluation knows the truth; a model made from it would too."""
        folder = rm.last("evaluate-rm", "score-images.scorers=['random']")["path"]
        assert "may not" in rm.run("train-rm", f"train-rm.model={folder}", status=2).err


def rm_pairs(rm):
    rm.run("build-pairs")
    return rm.rows("SELECT DISTINCT split FROM pairs")


class TestTheCommand:
    @pytest.fixture
    def images(self, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        for name, colour in (("red", "red"), ("blue", "blue")):
            Image.new("RGB", (40, 50), colour).save(folder / f"{name}.png")
        init_reward_model(Model("micro-blip", "", shipped_folder("micro-blip")), "auto", 0)[0].save_pretrained(tmp_path / "model")
        return folder

    def test_json_and_table_and_python_agree(self, project, images):
        arguments = ("score", "--model", str(images.parent / "model"), "--prompt", "a red circle", str(images))
        found = project(*arguments, "--json").json
        assert [Path(row["image"]).name for row in found["scores"]] == ["blue.png", "red.png"]
        assert sorted(row["rank"] for row in found["scores"]) == [1, 2] and "one prompt only" in found["meaning"]
        assert found["scores"][0]["raw"] == pytest.approx(found["scores"][0]["score"] * found["std"] + found["mean"])
        model = ImageReward.from_pretrained(images.parent / "model")
        pictures = [Image.open(images / name) for name in ("blue.png", "red.png")]
        assert model.score("a red circle", pictures) == pytest.approx([row["score"] for row in found["scores"]], abs=1e-5)
        table = project(*arguments).out.splitlines()
        assert table[0].split("\t") == ["rank", "score", "raw", "image", "prompt"] and table[1].startswith("1\t")

    def test_a_trained_model_by_its_stage(self, rm, images):
        rm.run("train-rm", "train-rm.epochs=1")
        assert (
            len(rm("score", "--model", "train-rm", "--prompt", "x", "--prompt", "y", str(images), "--json").json["scores"]) == 4
        )

    def test_bad_input(self, project, images):
        model = ("score", "--model", str(images.parent / "model"), "--prompt", "x")
        (images / "bad.png").write_bytes(b"\x89PNG")
        assert "bad.png" in project(*model, str(images), status=2).err
        assert "does not exist" in project(*model, str(images / "none.png"), status=2).err
        (images.parent / "empty").mkdir()
        assert "holds no images" in project(*model, str(images.parent / "empty"), status=2).err
        assert "does not exist" in project("score", "--model", "nowhere/at/all", "--prompt", "x", str(images), status=2).err


def test_aesthetic_heads_of_both_kinds(tmp_path):
    """LAION's layers.0.weight to layers.7.weight, and our one layer."""
    sizes = [8, 6, 4, 1]
    state = {}
    for place, (one, other) in enumerate(itertools.pairwise(sizes)):
        state |= {f"layers.{2 * place}.weight": torch.randn(other, one), f"layers.{2 * place}.bias": torch.randn(other)}
    torch.save(state, tmp_path / "head.pth")
    head = aesthetic_head(Model("x", "", tmp_path))
    values = expected = torch.randn(3, 8)
    for place in range(3):
        expected = expected @ state[f"layers.{2 * place}.weight"].T + state[f"layers.{2 * place}.bias"]
    assert torch.allclose(head(values), expected, atol=1e-5)
    assert aesthetic_head(Model("x", "", shipped_folder("micro-clip")))(torch.randn(2, 64)).shape == (2, 1)
    with pytest.raises(ModelError, match="no aesthetic head"):
        aesthetic_head(Model("x", "", shipped_folder("micro-sentences")))


def test_the_report_is_plain_json_and_text(rm):
    done = rm.last("evaluate-rm", "score-images.scorers=['random', 'clip']")
    assert json.dumps(done["metrics"]) and "reward-model" not in (Path(done["path"]) / "report.txt").read_text(encoding="utf-8")
