"""More small decisions by hand, each of which a mutant has once survived (tests/test_decisions.py)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from irpipe.models.training.objective import shuffled
from irpipe.models.training.weights import _buckets
from irpipe.models.tuning.evaluation import Evaluation, write_evaluated
from irpipe.pipeline.store import Store
from irpipe.schemas.prompts import PROMPTS
from irpipe.stages.evaluate_rahf.figures import weighted_correlation
from irpipe.stages.evaluate_rm.ranking import RULES, Ranking, read_human_ranking
from irpipe.stages.evaluate_rm.run import figures
from irpipe.stages.refl.objective import ReflObjective
from irpipe.stages.split_prompts import SplitPromptsConfig
from irpipe.stages.split_prompts.links import near_links
from irpipe.stages.train_rm.data import PairRows, choices_of, fewer_prompts, of_loss
from tests.test_choices import part_of


def pairs(*rows, split="train"):
    """Pairs of (ranking, better, worse); a ranking's prompt has its number."""
    ranking, better, worse = (np.array(column, dtype=np.uint64) for column in zip(*rows, strict=True))
    count = len(rows)
    return PairRows(
        np.arange(count, dtype=np.uint64), ranking, ranking, better, worse, np.ones(count, np.float32), np.array([split] * count)
    )


class TestChoices:
    def test_a_choice_is_the_first_image_of_its_ranking(self):
        """1 > 2 > 3 in ranking 7, 5 > 6 in ranking 8; the same image may be first in one and not in another."""
        rows = pairs((7, 1, 2), (7, 1, 3), (7, 2, 3), (8, 5, 6), (9, 2, 1))
        kept = of_loss(rows, "choice")
        assert [*zip(kept.ranking_id, kept.better, kept.worse, strict=True)] == [(7, 1, 2), (7, 1, 3), (8, 5, 6), (9, 2, 1)]
        assert len(of_loss(rows, "pairwise")) == 5

    def test_pairs_of_one_choice_have_one_number(self):
        rows = pairs((7, 1, 2), (8, 1, 3), (7, 1, 3), (7, 2, 3))
        numbers = choices_of(rows, "choice").tolist()
        assert numbers[0] == numbers[2] and len(set(numbers)) == 3
        assert choices_of(rows, "pairwise").tolist() == [0, 1, 2, 3]

    def test_so_many_training_prompts(self):
        rows = pairs((1, 1, 2), (2, 3, 4), (3, 5, 6))
        assert fewer_prompts(rows, 2).prompt_id.tolist() == [1, 2]
        assert len(fewer_prompts(rows, 0)) == len(fewer_prompts(rows, 3)) == 3
        assert len(fewer_prompts(pairs((1, 1, 2), split="validation"), 1)) == 1


class TestRules:
    def test_equal_scores_are_half_right_and_ties_of_people_do_not_count(self):
        ranking = Ranking((10, 11, 12, 13), (1, 2, 2, 3))
        of = RULES["ties-as-half"]
        assert of([ranking], {10: 4.0, 11: 3.0, 12: 2.0, 13: 1.0}) == (1.0, 5)
        assert of([ranking], {10: 1.0, 11: 2.0, 12: 3.0, 13: 4.0}) == (0.0, 5)
        assert of([ranking], {10: 1.0, 11: 1.0, 12: 1.0, 13: 1.0}) == (0.5, 5)
        assert of([ranking], {10: 4.0, 11: 3.0, 12: 2.0, 13: 3.0}) == (pytest.approx(3.5 / 5), 5), "12 below 13, 11 beside it"
        assert of([], {}) == (0.0, 0)

    def test_wins_are_higher_better_and_ranks_lower(self, tmp_path):
        (tmp_path / "wins.csv").write_text("generator,wins\na,3\nb,5\n", encoding="utf-8")
        (tmp_path / "ranks.csv").write_text("generator,rank\na,3\nb,5\n", encoding="utf-8")
        assert read_human_ranking(tmp_path / "wins.csv") == {"a": 3.0, "b": 5.0}
        assert read_human_ranking(tmp_path / "ranks.csv") == {"a": -3.0, "b": -5.0}

    def test_figures_have_four_digits(self):
        generators = [
            {"generator": name, "scorer": "rm", "mean": mean, "human": human}
            for name, mean, human in (("a", 1.0, 1.0), ("b", 1.0, 2.0), ("c", 2.0, 3.0))
        ]
        rows = [{"scorer": "rm", "figure": "accuracy", "value": 0.6, "count": 7}]
        assert figures(rows, [], None, (None, 0), generators, [])["rho_rm"] == 0.866


class TestFigures:
    def test_a_constant_has_no_correlation(self):
        """Its mean is rounded, so that differences from it are not 0."""
        values = np.random.default_rng(0).random(2000)
        assert np.isnan(weighted_correlation(np.full(2000, 0.7389770380614961), values)(np.ones(2000)))
        once = np.zeros(2000)
        once[:2] = 1
        assert np.isnan(weighted_correlation(np.repeat([0.1, 0.2], 1000), values)(once))
        assert weighted_correlation(values, 3 * values + 1)(np.ones(2000)) == pytest.approx(1.0)


class TestStore:
    def test_only_what_is_filed_under_its_id_is_an_object_or_a_record(self, tmp_path):
        identity = "ab" + "0" * 62
        for name in (f"ab/{identity}", f"cd/{identity}", "ab/short", f"zz/{'z' * 64}"):
            (tmp_path / "objects" / name).mkdir(parents=True)
        assert [path.parent.name for path in Store(tmp_path).objects()] == ["ab"]
        for name in (f"ab/{identity}.json", f"cd/{identity}.json", f"ab/{'ab' + '1' * 62}.txt", "ab/short.json"):
            path = tmp_path / "keys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
        assert [path.name for path in Store(tmp_path).record_files()] == [f"{identity}.json"]


class TestLinks:
    @pytest.mark.parametrize("count", [1, 2, 3, 4])
    def test_prompts_without_a_vector_have_no_links(self, tmp_path, count):
        """Also those whose ids are greater than all that have one."""
        ids = np.arange(10, 10 + count, dtype=np.uint64)
        empty = {column.name: [""] * count for column in PROMPTS.columns}
        columns = (
            empty
            | {"prompt_id": ids}
            | {
                column.name: np.zeros(count)
                for column in PROMPTS.columns
                if column.name not in ("prompt_id", "prompt") and "string" not in str(column.type)
            }
        )
        PROMPTS.write(tmp_path, columns | {"prompt_id": ids})
        vectors = np.eye(4, dtype=np.float32)[np.arange(count) % 4]
        np.save(tmp_path / "vectors.npy", vectors)
        embeddings = SimpleNamespace(
            table=lambda name: [tmp_path / f"{name}.parquet"], file=lambda name: tmp_path / "vectors.npy"
        )
        links, told = near_links(SplitPromptsConfig(), {"embeddings": embeddings}, np.array([3, *ids, 99], np.uint64))
        assert told == {"prompts_with_vector": count} and links == []


class TestTuning:
    def test_one_late_step_is_that_step(self):
        config = SimpleNamespace(first_late_step=4, last_late_step=4, refresh_every=1, training=SimpleNamespace(seed=0))
        objective = part_of(ReflObjective, config=config, _rollouts=SimpleNamespace(row_of={3: 1}, prompts=[0, 1]))
        assert objective._drawn(0, 3) == (1, 0)

    def test_rollouts_go_through_the_prompts(self):
        config = SimpleNamespace(refresh_every=2, rollouts_at_a_time=3, training=SimpleNamespace(seed=0))
        objective = part_of(ReflObjective, config=config, _count=12)
        turns = [objective._prompts(step, range(3)) for step in range(8)]
        assert turns[0] == turns[1] and turns[2] == turns[3] == shuffled(12, 0, "prompts", [3, 4, 5])
        assert sorted(turns[0] + turns[2] + turns[4] + turns[6]) == list(range(12))

    def test_every_image_of_every_evaluation_is_kept(self, tmp_path):
        pictures = np.zeros((2, 2, 4, 4, 3), np.uint8)
        measures = dict.fromkeys(("reward", "held_out", "similarity"), np.array([0.5, 1.0]))
        evaluations = [Evaluation(step, measures, pictures) for step in (0, 5)]
        write_evaluated(evaluations, [(1, "a"), (2, "b")], "refl", tmp_path)
        rows = pq.read_table(next((tmp_path / "images").glob("*.parquet"))).to_pylist()
        assert [(row["prompt_id"], row["generator"], row["image"]["path"].split("/")[1]) for row in rows] == [
            (prompt, f"refl step {step}", f"{step}-{turn}.png") for step in (0, 5) for prompt in (1, 2) for turn in (0, 1)
        ]

    def test_gradients_are_summed_tensor_by_tensor(self):
        from irpipe.models.training.weights import Weights

        values = [torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
        for number, value in enumerate(values, start=1):
            value.grad = torch.full_like(value, float(number))
        accelerator = SimpleNamespace(num_processes=2, reduce=lambda flat, how: {"sum": 2 * flat}[how])
        part_of(Weights, trained=dict(zip("ab", values, strict=True))).sum_gradients(accelerator)
        assert [value.grad.unique().tolist() for value in values] == [[2.0], [4.0]]
        assert values[0].grad.shape == (2, 3)
        assert [len(bucket) for bucket in _buckets([torch.zeros(3)] * 4)] == [4]


class TestPlans:
    RECIPE = 'recipe = "x"\n[simulate-prompts]\ncount = 9\n[embed-prompts]\nembedder = "lexical"\n'

    def test_a_plan_says_nothing_of_settings_that_do_not_change_the_result(self, project):
        project.recipe(self.RECIPE)
        project.run("embed-prompts")
        more = ("--set", "embed-prompts.dimensions=32", "--set", "embed-prompts.num_processes=2")
        told = project("plan", "embed-prompts", *more).out
        assert "embed-prompts.dimensions" in told and "num_processes" not in told

    def test_a_record_has_the_overrides_that_it_used(self, project):
        project.recipe(
            self.RECIPE + '[other]\nstage = "embed-prompts"\nembedder = "lexical"\ndimensions = 16\n[prompt-graph]\nk = 2\n'
        )
        project.run("prompt-graph", "reads.embeddings=other", "reads.prompt-pool=simulate-prompts", "other.dimensions=8")
        record = project.store.newest("x", "prompt-graph")
        used = json.dumps(record.to_json() if hasattr(record, "to_json") else record.__dict__, default=str)
        assert "reads.embeddings=other" in used and Path(project.root).is_dir()
