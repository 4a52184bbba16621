"""Choices of one image among several: simulated ones, their bounds, and table 2."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from irpipe.microworld.annotators import Annotator, Impression, crowd, utilities_for
from irpipe.microworld.choices import SIZES, choice_bounds, choice_probabilities, group_sizes, pick
from irpipe.stages.evaluate_rm.choices import Choice, Judged, agreement_on_choices, choice_rows, read_choices, shares_of_best
from irpipe.stages.evaluate_rm.data import ScorerData
from irpipe.stages.evaluate_rm.ranking import RULES, Ranking, correlations
from irpipe.stages.evaluate_rm.run import judge_choices
from tests.paired import RECIPE

IMAGES = [Impression(0.9, 0.8, 0, 0), Impression(0.7, 0.9, 0, 0), Impression(0.4, 0.5, 0, 0), Impression(0.8, 0.75, 0, 0)]


class TestPeople:
    def test_chances_are_how_often_each_is_picked(self):
        people = crowd(5, 0.1, 0.07, np.random.default_rng(0))
        rng = np.random.default_rng(1)
        picks = Counter(pick(people[turn % 5], IMAGES, rng) for turn in range(100_000))
        drawn = np.array([picks[image] for image in range(4)]) / 100_000
        assert choice_probabilities(people, IMAGES) == pytest.approx(drawn, abs=0.006)

    def test_two_images_are_a_normal_distribution(self):
        from scipy.stats import norm

        person = Annotator("x", 0.0, 0.13, 0.0)
        gap = float(np.diff(utilities_for(person, IMAGES[:2]))[0])
        assert choice_probabilities([person], IMAGES[:2])[1] == pytest.approx(norm.cdf(gap / 0.13 / np.sqrt(2)), abs=1e-6)

    def test_bounds_by_hand(self):
        bounds = choice_bounds([np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.1])])
        assert bounds.best == pytest.approx(0.7) and bounds.chance == pytest.approx((1 / 3 + 1 / 2) / 2)
        assert bounds.another_person == pytest.approx((0.38 + 0.82) / 2)
        assert bounds.pairs == pytest.approx((0.5 + 0.5 + 0.3 + 0.9) / 3)

    def test_groups_have_the_papers_sizes(self):
        sizes = [group_sizes(count, np.random.default_rng([count, seed])) for count in range(2, 10) for seed in range(200)]
        assert all(set(one) <= set(SIZES) for one in sizes)
        whole = Counter(size for seed in range(500) for size in group_sizes(40, np.random.default_rng(seed))[:5])
        assert whole[4] / whole.total() == pytest.approx(23722 / 25205, abs=0.02)
        assert group_sizes(1, np.random.default_rng(0)) == [] and group_sizes(2, np.random.default_rng(0)) == [2]


class TestFigures:
    CHOICES = (Choice(1, (10, 11, 12)), Choice(1, (11, 10)), Choice(2, (20, 21, 22, 23)))
    SCORES = dict.fromkeys(range(10, 24), 0.0) | {10: 1.0, 20: 2.0, 21: 2.0}

    def test_ties_share(self):
        assert shares_of_best(self.SCORES, (20, 21, 22, 23)).tolist() == [0.5, 0.5, 0, 0]
        rows = {row["figure"]: row for row in choice_rows(Judged(self.CHOICES), {"s": self.SCORES}, None, 50, 0)}
        assert rows["choice_accuracy"]["value"] == pytest.approx((1 + 0 + 0.5) / 3) and rows["choice_accuracy"]["count"] == 3
        assert rows["choice_accuracy_of_4"]["value"] == 0.5 and rows["choice_accuracy_of_2"]["value"] == 0

    def test_expected_accuracy_and_the_difference_from_a_baseline(self):
        chances = [np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.6]), np.array([0.1, 0.2, 0.3, 0.4])]
        judged = Judged(self.CHOICES, chances)
        best = dict.fromkeys(range(10, 24), 0.0) | {10: 1.0, 23: 1.0}
        rows = {(r["scorer"], r["figure"]): r for r in choice_rows(judged, {"s": self.SCORES, "best": best}, "s", 50, 0)}
        assert rows["s", "expected_choice_accuracy"]["value"] == pytest.approx((0.6 + 0.6 + 0.15) / 3)
        assert rows["best", "expected_choice_accuracy"]["value"] == pytest.approx(judged.bounds.best)
        over = rows["best", "expected_choice_accuracy_over_s"]
        assert over["value"] == pytest.approx((0.4 - 0.15) / 3) and over["low"] <= over["value"] <= over["high"]
        assert ("s", "expected_choice_accuracy_over_s") not in rows

    ROWS = (
        *((1, 7, image, int(image != 12), True) for image in (10, 11, 12)),
        *((2, 7, image, rank, False) for image, rank in ((10, 1), (11, 2))),
        *((3, 8, image, rank, True) for image, rank in ((20, 1), (21, 0))),
    )

    def rankings(self):
        return dict(zip(("ranking_id", "prompt_id", "image_id", "rank", "choice"), zip(*self.ROWS, strict=True), strict=True))

    def test_records_tell_choices_from_rankings(self):
        """A ranking of two is none, and a choice has all its images, whatever pairs were made of them."""
        assert read_choices(self.rankings(), {1, 2, 3}) == [Choice(7, (12, 10, 11)), Choice(8, (21, 20))]
        assert read_choices(self.rankings(), {2, 3}) == [Choice(8, (21, 20))]

    def test_a_choice_with_an_image_that_nobody_scored_is_left_out_and_counted(self):
        scorers = {"a": ScorerData(dict.fromkeys((10, 11, 20, 21), 0.0), {}), "b": ScorerData(dict.fromkeys(range(30), 0.0), {})}
        judged = judge_choices(read_choices(self.rankings(), {1, 3}), scorers, [], [])
        assert (judged.choices, judged.unscored) == ([Choice(8, (21, 20))], 1)

    def test_agreement(self):
        choices = [Choice(1, (10, 11)), Choice(1, (11, 10)), Choice(1, (10, 11)), Choice(2, (10, 12))]
        assert agreement_on_choices(choices) == (pytest.approx(1 / 3), 3)
        assert agreement_on_choices(choices[:1]) == (None, 0)

    def test_other_rules_of_ties(self):
        rankings = [Ranking((1, 2, 3), (1, 2, 2)), Ranking((4, 5), (1, 1))]
        scores = {1: 1.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 0.0}
        assert RULES["ties-as-half"](rankings, scores) == (0.75, 2)
        assert RULES["hpsv2-imagereward"](rankings, scores) == (
            0.5,
            1,
        )  # of two pairs one tied: wrong; the other ranking has none
        assert RULES["hpsv2-inversion"](rankings, scores) == (1.0, 2)


class TestCorrelations:
    def test_over_all_and_within_prompts(self):
        """Over all images the two agree, since the prompts differ; within each prompt they contradict each other."""
        images = list(range(6))
        prompt_of = {image: image // 3 for image in images}
        first = dict(zip(images, [0.0, 1.0, 2.0, 10.0, 11.0, 12.0], strict=True))
        second = dict(zip(images, [2.0, 1.0, 0.0, 12.0, 11.0, 10.0], strict=True))
        rows = correlations({"a": first, "b": second, "flat": dict.fromkeys(images, 1.0)}, prompt_of, images)
        found = {(row["other"], row["figure"]): (row["value"], row["count"]) for row in rows if row["scorer"] == "a"}
        assert found["b", "pearson"] == (pytest.approx(np.corrcoef(list(first.values()), list(second.values()))[0, 1]), 6)
        assert found["b", "spearman"] == (pytest.approx(19 / 35), 6)
        for figure in ("pearson_within_prompts", "spearman_within_prompts"):
            assert found["b", figure] == (pytest.approx(-1), 2)
        assert found["flat", "pearson"] == (None, 6) and found["flat", "pearson_within_prompts"] == (None, 0)


class TestStages:
    @pytest.fixture
    def choices(self, world):
        world.recipe(RECIPE.replace("[simulate-annotations]\n", '[simulate-annotations]\nrecords = "choices"\n'))
        return world

    def test_hps_files_are_written_and_read(self, choices):
        done = choices.last("build-pairs")
        artifact = choices.store.open(choices.store.newest("micro", "simulate-annotations").content_id)
        files = sorted((artifact.path / "preferences").iterdir())
        assert {file.name for file in files} <= {f"preference_{split}.json" for split in ("train", "validation", "test")}
        records = [record for file in files for record in json.loads(file.read_text())]
        fields = {"human_preference", "prompt", "id", "file_path", "user_hash", "contain_name"}
        assert all(record.keys() == fields and record["human_preference"] < len(record["file_path"]) for record in records)
        assert len({record["id"] for record in records}) == len(records)
        assert done["metrics"]["pairs"] == sum(len(record["file_path"]) - 1 for record in records)
        assert choices.store.newest("micro", "load-annotations").rows["kept"] == len(records)

    def test_the_oracle_reaches_the_bound(self, choices):
        done = choices.last("evaluate-rm", "score-images.scorers=['clip', 'random']", "evaluate-rm.baseline=clip")
        metrics = done["metrics"]
        assert metrics["expected_choice_accuracy_oracle"] == pytest.approx(metrics["choice_best"], abs=0.005)
        assert metrics["choice_chance"] < metrics["choice_another_person"] < metrics["choice_best"]
        assert metrics["bayes_bound"] == metrics["choice_pairs"]
        text = (Path(done["path"]) / "report.txt").read_text()
        assert "equal scores share 1 / k" in text and "over clip" in text and "another person" in text
        shown = choices("show", "evaluate-rm").out
        assert "HPS's table 2" in shown and "How alike scorers score" in shown

    def test_a_baseline_that_says_nothing(self, choices, world):
        clip = "score-images.scorers=['clip']"
        error = choices.run("evaluate-rm", clip, "evaluate-rm.baseline=blip", status=2).err
        assert "'blip' did not score" in error and "clip" in error
        world.recipe(RECIPE)
        error = world.run("evaluate-rm", clip, "evaluate-rm.baseline=clip", status=2).err
        assert "baseline has no effect: the pairs are not of choices" in error

    def test_rankings_have_their_own_settings(self, choices):
        error = choices.run("simulate-annotations", "simulate-annotations.unclear_share=0.1", status=2).err
        assert "unclear_share has no effect: records is 'choices'" in error
