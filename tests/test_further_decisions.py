"""Small decisions by hand, each of which a mutant of a third draw has survived (tests/test_decisions.py)."""

from __future__ import annotations

import stat
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch

from irpipe.models.guidance.config import GuidanceSettings
from irpipe.models.training.loop import State
from irpipe.models.tuning.choose import Chosen, blindly
from irpipe.models.tuning.evaluation import GeneratorEvaluator, image_statistics
from irpipe.pipeline.commit import place, seal, set_aside
from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.hashing import mix_row_ids
from irpipe.pipeline.plan import Planner, _differences
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.settings import default_config, shown_config
from irpipe.pipeline.stage import find_stage
from irpipe.pipeline.store import Store
from irpipe.pipeline.wiring import _table_for
from irpipe.stages.build_pairs.aggregate import _joint_ranks
from irpipe.stages.build_pairs.run import Candidates, pair_columns
from irpipe.stages.evaluate_rm.run import figures
from irpipe.stages.train_rahf import TrainRahfConfig
from irpipe.stages.train_rm.data import share
from tests.test_training import Every, line


class TestPlan:
    def test_a_strict_plan_reuses_what_unchanged_code_made(self, project):
        project.run("simulate-prompts", "simulate-prompts.count=20")
        told = project("plan", "simulate-prompts", "--strict-code", "--set", "simulate-prompts.count=20").out
        assert told.startswith("reuse  simulate-prompts")

    def test_only_a_nodes_own_unfinished_runs_are_told(self, project):
        """The attempt is of a node whose name comes later, and of a recipe whose name does."""
        for node, recipe in (("zebra", "micro"), ("simulate-prompts", "zoo")):
            work = project.root / "artifacts" / "work" / ("0" * 62 + f"{len(node):02}")
            (work / "scratch" / "something").mkdir(parents=True)
            state = f'{{"stage": "{node}", "node": "{node}", "recipe": "{recipe}", "pid": 1, "started": "x", "error": "killed"}}'
            (work / "attempt.json").write_text(state)
        assert "unfinished" not in project("plan", "simulate-prompts").out

    def test_every_changed_file_is_told(self):
        stage = find_stage("embed-prompts")
        config = stage.config()
        entries = {name: {"given": name, "digest": f"{name} now"} for name in ("model", "path", "vectors")}
        before = entries | {name: {"given": name, "digest": "before"} for name in ("path", "vectors")}
        record = SimpleNamespace(stage_version=stage.version, config=shown_config(config), external=before, inputs={})
        node = SimpleNamespace(stage=stage, config=config, name="embed-prompts", upstream={})
        told = list(_differences(node, record, {}, SimpleNamespace(entries=entries)))
        assert told == ["embed-prompts.path path: the content changed", "embed-prompts.vectors vectors: the content changed"]

    def test_a_plan_compares_with_the_most_similar_run(self):
        assert Planner(None, None, None).against_newest is False

    def test_a_setting_of_the_recipe_without_effect_is_refused(self, project):
        project.recipe('recipe = "micro"\n[simulate-prompts]\n[embed-prompts]\nembedder = "lexical"\ndtype = "float32"\n')
        assert "dtype" in project("plan", "embed-prompts", status=2).err

    def test_another_packages_broken_stage_does_not_hide_ours(self, install):
        install({"aaa-broken": "no_such_module:STAGE"})
        assert _table_for("pairs") == "add a table [build-pairs] to irpipe.toml"

    def test_a_group_is_made_of_a_table_alone(self):
        assert default_config(TrainRahfConfig, heads=5).heads == 5
        assert default_config(TrainRahfConfig, heads={"pixel_channels": 3}).heads.pixel_channels == 3
        assert default_config(TrainRahfConfig, model={"a": 1}).model == {"a": 1}


class TestStore:
    def test_two_artifacts_make_an_id_ambiguous(self, tmp_path, monkeypatch):
        runs = [SimpleNamespace(key=f"abcd{n}", content_id=f"abcd{n}", node="x", ended="") for n in range(2)]
        store = Store(tmp_path)
        monkeypatch.setattr(Store, "records", lambda self: iter(runs))
        with pytest.raises(StoreError, match="ambiguous"):
            store.resolve("abcd")

    def test_all_folders_of_an_object_are_closed(self, tmp_path):
        store, out = Store(tmp_path), tmp_path / "out"
        (out / "a" / "b").mkdir(parents=True)
        (out / "a" / "b" / "file").write_text("x")
        manifest = seal(out, Watcher(), "sealing")
        target = place(store, out, manifest.content_id)
        assert {stat.S_IMODE(path.stat().st_mode) for path in (target, target / "a", target / "a" / "b")} == {0o555}

    def test_what_is_set_aside_replaces_what_was(self, tmp_path):
        store = Store(tmp_path)
        for text in ("first", "second"):
            source = tmp_path / "objects" / "x"
            source.mkdir(parents=True)
            (source / "file").write_text(text)
            source.chmod(0o555)
            set_aside(store, source)
        aside = tmp_path / "damaged" / "x"
        assert (aside / "file").read_text() == "second"
        assert stat.S_IMODE(aside.stat().st_mode) == 0o700


class TestTraining:
    def test_an_evaluation_is_due_every_so_many_steps_and_at_the_end(self):
        config = SimpleNamespace(evaluation=SimpleNamespace(every=10), steps=25)
        due = [step for step in range(26) if GeneratorEvaluator.due(SimpleNamespace(config=config), step)]
        assert due == [0, 10, 20, 25]

    def test_a_training_begins_at_step_0(self):
        assert (State().step, State().best_step, State().since_best) == (0, 0, 0)

    def test_an_objective_without_samples_moves_nothing(self, tmp_path):
        trainer, objective = line(tmp_path, Every(100), steps=1)
        before = {name: value.detach().clone() for name, value in trainer.weights.trained.items()}
        objective.parts = lambda step: []
        trainer.run()
        assert all(torch.equal(value, before[name]) for name, value in trainer.weights.trained.items())

    def test_the_largest_groups_are_dealt_first(self):
        assert share([0, 1, 2], {0: 1, 1: 5, 2: 3}, 2) == [[1], [2, 0]]

    def test_a_guidance_may_be_rare(self):
        assert GuidanceSettings(every=1000).every == 1000


class TestFigures:
    def test_the_brightest_colour_has_no_bin_of_its_own(self):
        picture = np.full((1, 2, 2, 3), 1.0)
        picture[0, 0] = 0.95
        assert image_statistics(picture)["colour_entropy"].tolist() == [0.0]

    def test_one_column_is_mixed_as_well(self):
        one = np.array([1, 2], dtype=np.uint64)
        assert len(set(mix_row_ids(one).tolist())) == 2
        assert mix_row_ids(one).tolist() != mix_row_ids(one, one).tolist()

    def test_accuracy_by_prompt_and_the_agreement_of_people_are_told(self):
        row = {"scorer": "clip", "value": 0.7, "count": 9, "low": 0.6, "high": 0.8}
        rows = [row | {"figure": "accuracy"}, row | {"figure": "accuracy_by_prompt", "value": 0.6}]
        told = figures(rows, [], None, (0.65, 12), [], [])
        assert (told["accuracy_clip"], told["by_prompt_clip"], told["agreement_of_people"]) == (0.7, 0.6, 0.65)

    def test_ranks_of_strengths_begin_at_one(self):
        votes = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        assert _joint_ranks(votes, "bradley-terry").tolist() == [1, 2, 3]

    def test_a_pair_names_its_ranking(self):
        block = SimpleNamespace(
            rankings=np.array([7, 7], dtype=np.uint64),
            images=np.array([1, 2], dtype=np.uint64),
            prompts=np.array([5, 5], dtype=np.uint64),
            ranks=np.array([2, 1], dtype=np.int32),
            annotators=pa.array(["ann", "ann"]),
        )
        batch = Candidates(block, np.array([0]), np.array([1]), np.array([-1]), np.array([-1]), np.array([0]))
        facts = SimpleNamespace(categories=np.array([0]), category_names=["x"], splits=np.array([0]))
        columns = pair_columns(batch, np.array([True]), facts, np.array([1.0]))
        assert [columns[name].tolist() for name in ("ranking_id", "better", "worse", "prompt_id")] == [[7], [2], [1], [5]]

    def test_a_blind_choice_is_of_the_same_prompts_and_none_twice(self):
        scores = np.array([[0.1, 0.2, np.nan], [0.3, 0.1, 0.2]])
        chosen = [Chosen(0, 1, 1.0, False, 0.9), Chosen(0, 0, 1.0, True, 0.8), Chosen(1, 0, 1.0, False, 0.7)]
        blind = blindly(chosen, scores, 0)
        assert [one.prompt for one in blind] == [0, 0, 1] and [one.bad for one in blind] == [False, True, False]
        assert {one.image for one in blind[:2]} == {0, 1} and all(one.confidence is None for one in blind)
