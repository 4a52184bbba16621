"""sweep-rm: grids and searches of trainings, whose points are ordinary runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from irpipe.pipeline.search import next_point, read_search


class TestSweep:
    def test_every_trial_is_an_artifact_and_a_larger_grid_trains_what_is_missing(self, rm):
        done = rm.last("sweep-rm")
        rows = rm.rows("SELECT * FROM sweep ORDER BY node")
        nodes = ["train-rm-grid[optimizer.learning_rate=0.0001]", "train-rm-grid[optimizer.learning_rate=0.001]"]
        assert [row["node"] for row in rows] == nodes and len({row["model"] for row in rows}) == 2
        assert all(rm.store.holds(row["model"]) for row in rows)
        best = min(rows, key=lambda row: row["validation_loss"])
        assert done["metrics"]["best"]["point"] == best["node"]
        assert (Path(done["path"]) / "sweep.png").is_file()
        larger = rm.run("sweep-rm", "train-rm-grid.grid.optimizer.learning_rate=[1e-4, 1e-3, 3e-3]").err
        assert larger.count("]: reused") == 2 and larger.count("]: runs") == 1
        plain = rm.run("train-rm", "train-rm.optimizer.learning_rate=0.001").err
        assert "train-rm: reused" in plain, "a point of a grid is an ordinary run"

    @pytest.mark.slow
    def test_trainings_of_two_processes_follow_each_other_in_one_run(self, rm):
        """Each meets anew: the other process of an earlier training is gone."""
        rm.run("sweep-rm", "train-rm.training.processes=2", "train-rm.training.threads=1", "train-rm.epochs=1")
        nodes = [f"train-rm-grid[optimizer.learning_rate={rate}]" for rate in (0.0001, 0.001)]
        assert [rm.store.newest("micro", node).processes for node in nodes] == [2, 2]

    def test_a_search_draws_each_trial_by_the_validation_of_the_earlier_ones(self, rm):
        """The points are what the sampler says for the figures that the store has."""
        text = (rm.root / "irpipe.toml").read_text(encoding="utf-8")
        grid = "grid.optimizer.learning_rate = [1e-4, 1e-3]"
        rm.recipe(
            text.replace(grid, "epochs = 1\nsearch = { trials = 3, random_trials = 1, space = { batch_pairs = [64, 128, 256] } }")
        )
        rm.run("sweep-rm")
        losses = {row["node"]: row["validation_loss"] for row in rm.rows("SELECT node, validation_loss FROM sweep")}
        search, trials = read_search("x", {"trials": 3, "random_trials": 1, "space": {"batch_pairs": [64, 128, 256]}}), []
        for _ in range(3):
            point = next_point(search, trials)
            trials.append((point, round(losses[f"train-rm-grid[batch_pairs={point['batch_pairs']}]"], 5)))
        assert {f"train-rm-grid[batch_pairs={point['batch_pairs']}]" for point, _ in trials} == set(losses)
        plain = rm.run("train-rm", f"train-rm.batch_pairs={trials[0][0]['batch_pairs']}", "train-rm.epochs=1").err
        assert "train-rm: reused" in plain, "a trial is an ordinary run"

    def test_seeds_are_repetitions_of_one_point(self, rm):
        rm.run(
            "sweep-rm",
            "train-rm-grid.grid.training.seed=[1, 2]",
            "train-rm.epochs=1",
            "train-rm-grid.grid.optimizer.learning_rate=[1e-4]",
        )
        rows = rm.rows("SELECT point, count(*) AS seeds FROM sweep GROUP BY point")
        assert rows == [{"point": "train-rm-grid[optimizer.learning_rate=0.0001]", "seeds": 2}]
        assert rm.store.newest("micro", "train-rm") is None, "a point of a grid is not the recipe's newest train-rm"
