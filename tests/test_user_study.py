"""People beside people: their agreement with each other and with scorers, and votes on images side by side."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from irpipe.pipeline.external import shipped_folder
from irpipe.stages.evaluate_rm.accuracy import correct_pairs
from irpipe.stages.evaluate_rm.study import (
    agreement_by_person,
    agreement_rows,
    human_agreement,
    table_of_people,
    user_study,
    vote_rows,
)
from tests.paired import RECIPE


def pairs(votes):
    """Columns of pairs, of (better, worse, annotator); each a record of its own."""
    better, worse, people = zip(*votes, strict=True)
    return {
        "ranking_id": np.arange(len(votes), dtype=np.uint64),
        "prompt_id": np.array(better, dtype=np.uint64) // 10,
        "better": np.array(better, dtype=np.uint64),
        "worse": np.array(worse, dtype=np.uint64),
        "annotator": np.array(people, dtype=object),
    }


VOTES = [(10, 11, "a"), (10, 11, "b"), (11, 10, "c"), (20, 21, "a"), (20, 21, "c"), (30, 31, "a"), (40, 41, None), (41, 40, None)]


class TestAgreement:
    def test_of_each_person_with_all_others(self):
        by_person = agreement_by_person(pairs(VOTES))
        assert by_person == {"a": (2, 3), "b": (1, 2), "c": (1, 3)}
        assert human_agreement(by_person) == (0.5, 4)
        assert human_agreement({}) == (None, 0)

    def test_like_counting_every_two_votes(self):
        rng = np.random.default_rng(0)
        votes = []
        for person, pair in zip(rng.choice(list("abcde"), 300), rng.integers(0, 12, 300), strict=True):
            order = (10 * pair, 10 * pair + 1)
            votes.append((*(order if rng.random() < 0.7 else order[::-1]), str(person)))
        alike, total = dict.fromkeys("abcde", 0), dict.fromkeys("abcde", 0)
        for first, second in combinations(votes, 2):
            if set(first[:2]) == set(second[:2]) and first[2] != second[2]:
                for person in (first[2], second[2]):
                    alike[person] += first[:2] == second[:2]
                    total[person] += 1
        assert agreement_by_person(pairs(votes)) == {person: (alike[person], total[person]) for person in "abcde"}

    def test_the_statistics_of_table_3(self):
        """Mean and standard deviation over people, of people and of scorers."""
        columns = pairs(VOTES)
        scores = {10: 1.0, 11: 0.0, 20: 0.0, 21: 0.0, 30: 1.0, 31: 0.0, 40: 0.0, 41: 1.0}
        right = correct_pairs(scores, columns["better"], columns["worse"])
        people, scorer = agreement_rows(columns, {"hps": right})
        shares = [2 / 3, 1 / 2, 1 / 3]
        assert people["mean"] == pytest.approx(0.5) and people["deviation"] == pytest.approx(np.std(shares, ddof=1))
        assert (people["people"], people["comparisons"]) == (3, 4)
        of_scorer = [2 / 3, 1.0, 0.0]
        assert (scorer["who"], scorer["people"], scorer["comparisons"]) == ("hps", 3, 6)
        assert scorer["mean"] == pytest.approx(np.mean(of_scorer)) and scorer["deviation"] == pytest.approx(
            np.std(of_scorer, ddof=1)
        )
        assert table_of_people([people, scorer]).splitlines()[-2].split() == ["other", "people", "50.0%", "16.7%", "3", "4"]

    def test_nobody_is_named(self):
        rows = agreement_rows(pairs([(10, 11, None)]), {"hps": np.ones(1)})
        assert rows == [] and table_of_people(rows) == ""


class TestVotes:
    """HPS, figure 3: 100 image pairs, 20 people; more than 10 votes for 74 % of one model's images, for 22 % of the other's."""

    POSITIVE = (14,) * 74 + (10,) * 4 + (5,) * 22
    GENERATORS: ClassVar = {10 * n + k: ("adapted", "original")[k] for n in range(1, 101) for k in (0, 1)}

    def columns(self):
        votes = []
        for n, positive in enumerate(self.POSITIVE, start=1):
            ends = (10 * n, 10 * n + 1)
            votes += [(*(ends if person < positive else ends[::-1]), f"p{person}") for person in range(20)]
        return pairs(votes)

    def test_the_published_statistics_come_out(self):
        rows = vote_rows(self.columns(), self.GENERATORS)
        assert len(rows) == 100 and [row["votes"] for row in rows] == list(self.POSITIVE)
        assert all(row["votes"] + row["other_votes"] == 20 and row["generator"] == "adapted" for row in rows)
        text = user_study(rows)
        adapted, original = (line.split()[3:] for line in text.splitlines()[-2:])
        assert adapted == ["100", "1,186", "74%", "4%", "59.3%"] and original == ["100", "814", "22%", "4%", "40.7%"]

    def test_only_images_of_two_generators_side_by_side_count(self):
        columns = self.columns()
        columns["ranking_id"][:2] = 5000  # of three images or more
        same = dict.fromkeys(self.GENERATORS, "adapted")
        assert sum(row["votes"] + row["other_votes"] for row in vote_rows(columns, self.GENERATORS)) == 1998
        assert vote_rows(columns, same) == [] and vote_rows(columns, {}) == [] and user_study([]) == ""


def test_a_user_study_is_told_by_the_stage(world):
    """From people's choices among images of two generators to the table, the report and the histogram."""
    shutil.copytree(shipped_folder("micro-generator"), world.root / "other")
    world.recipe(
        RECIPE.replace("[simulate-annotations]\n", '[simulate-annotations]\nrecords = "choices"\nannotators_per_prompt = 6\n')
        .replace('models = ["micro-generator"]', 'models = ["micro-generator", "other"]')
        .replace('scorers = ["reward-model", "clip", "aesthetic", "blip", "random"]', 'scorers = ["random"]')
    )
    done = world.last("evaluate-rm", "score-images.split=all", "evaluate-rm.split=train")
    rows = world.rows("SELECT * FROM votes ORDER BY first, second")
    (contest,) = {(row["generator"], row["other"]) for row in rows}
    assert contest[0].startswith("folder:") and contest[1] == "micro-generator"
    assert done["rows"]["kept"] > sum(row["votes"] + row["other_votes"] for row in rows) >= len(rows)
    folder = Path(done["path"])
    assert "User study" in (folder / "report.txt").read_text() and (folder / "votes.png").is_file()
    assert "votes side by side" in world("show", "evaluate-rm").out.lower()
