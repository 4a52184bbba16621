"""Choosing images to tune on: against what the released code chose (recorded), and by hand."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from irpipe.models.tuning.choose import Chosen, best_and_worst, best_of_each, blindly, largest_alpha
from irpipe.schemas.images import ImageReader
from irpipe.stages.choose_images.blur import largest_step
from tests.conftest import SHARED

GOLDEN = SHARED / "golden" / "hps_tuning_set_a.json"
ROWS = [
    {"id": number, "prompt": prompt, "score": score, "blurry": False}
    for number, (prompt, score) in enumerate([*[("a", s) for s in (20.0, 21.0, 20.0, 20.0)], *[("b", 20.0)] * 4, ("c", 1.0)])
]
RECIPE = 'recipe = "chosen"\n[choose-images]\npath = "scores.jsonl"\n'


@pytest.fixture
def recorded(shared) -> dict:
    return json.loads(GOLDEN.read_text())


@pytest.fixture
def chosen(project):
    """Choose of rows of scores: the table, and the finished event."""
    project.recipe(RECIPE)

    def choose(rows, *settings):
        project.jsonl("scores.jsonl", rows)
        done = project.last("choose-images", *settings)
        return project.rows("SELECT * FROM chosen_images"), done

    return choose


class TestAsPublished:
    def test_the_same_images_with_the_same_confidence(self, recorded, chosen):
        fragile = {group["prompt"] for group in recorded["groups"] if group["fragile"]}
        rows, done = chosen(recorded["input_rows"], "choose-images.rules=as-published")
        kinds = {"positive": "preferred", "negative": "non-preferred"}
        theirs = {(row["source_id"], kinds[row["type"]]): row for row in recorded["output_rows"] if row["prompt"] not in fragile}
        ours = {(row["source_row"], row["kind"]): row for row in rows if row["prompt"] not in fragile}
        assert ours.keys() == theirs.keys()
        for key, row in ours.items():
            assert row["confidence"] == pytest.approx(theirs[key]["confidence"], abs=1e-12)
            assert (row["prompt"], row["group_size"]) == (theirs[key]["prompt"], theirs[key]["batch_size"])
        assert done["rows"]["kept"] + done["rows"]["rejected"] == len(recorded["input_rows"])

    def test_the_same_pictures_are_blurred(self, recorded):
        for case in recorded["blur"]:
            picture = np.array(case["pixels"], dtype=np.uint8)
            assert largest_step(picture, "as-published") == case["max_signed_drop_to_right"], case["name"]
            ours = max(case["max_abs_difference_horizontal"], case["max_abs_difference_vertical"])
            assert largest_step(picture, "standardised") == ours, case["name"]


class TestRules:
    def test_a_scale_of_scores_changes_nothing(self, chosen):
        """Cosines of another training, a hundred times smaller, choose the same images; as published they choose none."""
        small = [row | {"score": row["score"] / 100} for row in ROWS]
        all_bad = "choose-images.non_preferred_share=1.0"
        assert [row["source_row"] for row in chosen(small, all_bad)[0]] == [row["source_row"] for row in chosen(ROWS, all_bad)[0]]
        scores = [np.array([row["score"] for row in small if row["prompt"] == "a"])]
        assert best_and_worst(scores, 2.0) == [] and len(best_and_worst(scores, 2.0, scores[0].std() / 3)) == 1

    def test_temperature_and_spread_are_in_the_record(self, chosen):
        # a: .75 of squares over 3 degrees of freedom, b: none over 3.
        metrics = chosen(ROWS, "choose-images.alpha=1.5")[1]["metrics"]
        assert metrics["spread_within_prompts"] == metrics["temperature"] == pytest.approx(np.sqrt(0.75 / 6), abs=1e-4)
        assert (metrics["prompts"], metrics["preferred"], metrics["share_of_prompts_preferred"]) == (2, 1, 0.5)
        assert metrics["score_above_mean_preferred"] == 0.75
        assert chosen(ROWS, "choose-images.temperature=0.5")[1]["metrics"]["temperature"] == 0.5

    def test_every_image_that_is_not_chosen_has_its_reason(self, chosen):
        rows = [*ROWS, {"id": 50, "prompt": "a", "score": 30.0, "blurry": True}]
        _, done = chosen(rows, "choose-images.alpha=1.5")
        assert done["metrics"]["rejected_for"] == {"blurry": 1, "fewer than 4 images of its prompt": 1, "not chosen": 7}

    def test_half_of_the_bad_ones_go_by_lot(self, chosen):
        rows = [
            {"id": 4 * prompt + number, "prompt": str(prompt), "score": float(number == 0) * -9, "blurry": False}
            for prompt in range(20)
            for number in range(4)
        ]
        few, done = chosen(rows)
        assert Counter(row["kind"] for row in few) == {"non-preferred": 10}
        assert done["metrics"]["rejected_for"]["left out by lot"] == 10
        assert {row["source_row"] % 4 for row in few} == {0}
        again = chosen(rows, "choose-images.seed=1")[0]
        assert {row["source_row"] for row in again} != {row["source_row"] for row in few}

    def test_the_best_above_a_threshold(self, chosen):
        rows, _ = chosen(ROWS, "choose-images.select=best", "choose-images.threshold=20.0")
        assert [(row["source_row"], row["kind"], row["confidence"]) for row in rows] == [(1, "preferred", None)]
        assert len(chosen(ROWS, "choose-images.select=best")[0]) == 2

    def test_blindly_chosen_are_as_many_of_the_same_prompts(self):
        scores = [np.array([0.0, 9.0, 0.0, -9.0]), np.array([1.0, np.nan, 1.0])]
        seen = [Chosen(0, 1, 1.0), Chosen(0, 3, 1.0, bad=True), Chosen(1, 0, 1.0)]
        draws = [blindly(seen, scores, seed) for seed in range(200)]
        assert all([(one.prompt, one.bad) for one in draw] == [(0, False), (0, True), (1, False)] for draw in draws)
        assert all(draw[0].image != draw[1].image for draw in draws)
        assert {draw[0].image for draw in draws} == {0, 1, 2, 3} and {draw[2].image for draw in draws} == {0, 2}

    def test_a_threshold_and_nan_bound_the_best(self):
        scores = [np.array([3.0, np.nan, 2.0, 1.0])]
        assert [one.image for one in best_of_each(scores, 4)] == [0, 2, 3]
        assert [one.image for one in best_of_each(scores, 4, 1.5)] == [0, 2]

    def test_the_largest_alpha_is_where_choosing_ends(self):
        scores = [np.array([0.0, 1.0, 2.0]), np.array([5.0, 5.0])]
        bar = largest_alpha(scores, 1.0)
        assert best_and_worst(scores, bar) == [] and len(best_and_worst(scores, bar - 1e-9)) == 2


class TestBadInput:
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [
            ({"id": 0, "prompt": "x", "score": 1.0}, "missing field"),
            ([1], "missing field"),
            ({"id": "7", "prompt": "x", "score": 1.0, "blurry": False}, "id is no whole number"),
            ({"id": True, "prompt": "x", "score": 1.0, "blurry": False}, "id is no whole number"),
            ({"id": 0, "prompt": "x", "score": 1.0, "blurry": False}, "id was there before"),
            ({"id": 70, "prompt": None, "score": 1.0, "blurry": False}, "prompt is no text"),
            ({"id": 70, "prompt": "a\ud800", "score": 1.0, "blurry": False}, "prompt is no text"),
            ({"id": 70, "prompt": "x", "score": float("inf"), "blurry": False}, "score is no finite number"),
            ({"id": 70, "prompt": "x", "score": None, "blurry": False}, "score is no finite number"),
            ({"id": 70, "prompt": "x", "score": 1.0, "blurry": "no"}, "blurry is neither true nor false"),
        ],
    )
    def test_rows_that_cannot_be_used(self, chosen, bad, reason):
        assert chosen([*ROWS, bad], "choose-images.alpha=1.5")[1]["metrics"]["rejected_for"][reason] == 1

    def test_nothing_chosen_says_what_would_choose(self, project):
        project.recipe(RECIPE)
        project.jsonl("scores.jsonl", ROWS)
        error = project.run("choose-images", "choose-images.alpha=3.9", status=2).err
        assert "none stands out with alpha = 3.9, and some only below" in error
        fix = error.split("--set choose-images.")[1].split()[0]
        assert project.run("choose-images", f"choose-images.{fix}")
        error = project.run("choose-images", "choose-images.min_images=5", status=2).err
        assert "no prompt has 5 of them, and none more than 4" in error and "min_images=4" in error
        error = project.run("choose-images", "choose-images.select=best", "choose-images.threshold=99.0", status=2).err
        assert "the highest score is 21, not above the threshold" in error
        fix = error.split("--set choose-images.")[1].split()[0]
        assert project.run("choose-images", "choose-images.select=best", f"choose-images.{fix}")
        project.jsonl("scores.jsonl", [row | {"score": -row["score"]} for row in ROWS])
        error = project.run("choose-images", "choose-images.alpha=1.5", "choose-images.non_preferred_share=0.0", status=2).err
        assert "1 stand out, all of them non-preferred, and non_preferred_share leaves none" in error
        project.jsonl("scores.jsonl", ROWS[4:8])
        assert "of no prompt do scores differ" in project.run("choose-images", status=2).err

    @pytest.mark.parametrize(
        ("rows", "fix"),
        [
            (ROWS[:3], ["rules=standardised", "min_images=3"]),
            ([row | {"score": row["score"] / 10} for row in ROWS], ["rules=standardised"]),
        ],
    )
    def test_nothing_chosen_as_published_says_what_would_choose(self, project, rows, fix):
        """Other rules than the published ones: under these their settings are without effect."""
        project.recipe(RECIPE)
        project.jsonl("scores.jsonl", rows)
        error = project.run("choose-images", "choose-images.rules=as-published", status=2).err
        given = [word.split()[0] for word in error.split("--set choose-images.")[1:]]
        assert given == fix
        project.run("choose-images", *(f"choose-images.{one}" for one in given))

    def test_settings_without_effect(self, project):
        project.recipe(RECIPE)
        project.jsonl("scores.jsonl", ROWS)
        for setting, why in (
            ("choose-images.scorer=clip", "path holds the scores"),
            ("choose-images.blur_threshold=3.0", "path says what is blurry"),
            ("choose-images.best=2", "select is 'best-and-worst'"),
        ):
            assert why in project.run("choose-images", setting, status=2).err
        both = ("choose-images.rules=as-published", "choose-images.alpha=1.5")
        assert "rules is 'as-published'" in project.run("choose-images", *both, status=2).err


class TestOfARecipe:
    SETTINGS = ("choose-images.scorer=random", "score-images.scorers=['random']", "choose-images.alpha=1.0")

    def test_images_and_scores_by_hand(self, world):
        """The table has the images whose share of the softmax is above the bar, and their rows in the table of images."""
        used = ("choose-images.annotated_prompts=use", "choose-images.non_preferred_share=1.0")
        world.run("choose-images", *self.SETTINGS, *used)
        best = world.rows(
            "SELECT arg_max(image_id, raw) AS best, arg_min(image_id, raw) AS worst FROM scores GROUP BY prompt_id"
            " HAVING count(*) >= 4"
        )
        rows = world.rows("SELECT * FROM chosen_images")
        assert {row["image_id"] for row in rows if row["kind"] == "preferred"} == {row["best"] for row in best}
        assert {row["image_id"] for row in rows if row["kind"] == "non-preferred"} == {row["worst"] for row in best}
        images = ImageReader(world.store.open(world.store.newest("micro", "generate-images").content_id).table("images")).ids
        assert all(int(images[row["source_row"]]) == int(row["image_id"], 16) for row in rows)
        shown = world("show", "choose-images").out
        assert "Chosen images" in shown and "were divided by" in shown
        world("report", "--out", "page.html")
        page = (world.root / "page.html").read_text()
        assert "Preferred and non-preferred images" in page and 'role="alert"' not in page

    def test_prompts_that_people_annotated_are_left_out(self, world):
        error = world.run("choose-images", *self.SETTINGS, status=2).err
        assert "its prompt was annotated" in error and "none of" in error

    def test_another_scorer(self, world):
        error = world.run("choose-images", "score-images.scorers=['random']", status=2).err
        assert "the scores have no scorer 'reward-model'" in error and "--set choose-images.scorer=random" in error

    def test_scores_of_other_images(self, world):
        text = (world.root / "irpipe.toml").read_text()
        more = '[generate-more]\nstage = "generate-images"\nlike = "generate-images"\nseed = 1\n'
        wiring = '[choose-images]\nreads.images = "generate-more"\n'
        named = 'reads.images = "generate-images"\n'
        for node in ("simulate-annotations", "score-images", "adapted"):
            text = text.replace(f"[{node}]\n", f"[{node}]\n{named}")
        world.recipe(text.replace("[choose-images]\n", more + wiring))
        error = world.run("choose-images", *self.SETTINGS, "choose-images.annotated_prompts=use", status=2).err
        assert "are of images that are not among the recipe's" in error
