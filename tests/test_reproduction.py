"""The recipe that an export's card and a report show: it makes the same runs again."""

from __future__ import annotations

import tomllib
from types import SimpleNamespace

from irpipe.exports.reproduction import recipe_of


class TestReproduction:
    def run(self, stage, config, inputs=(), node=None):
        entries = {slot: SimpleNamespace(node=maker) for slot, maker in inputs}
        return SimpleNamespace(stage=stage, node=node or stage, config=config, given=tuple(config), inputs=entries, recipe="r")

    def test_what_reads_from_where_is_told_where_two_write_a_kind(self):
        runs = [
            self.run("generate-images", {}),
            self.run("import-images", {}),
            self.run("simulate-annotations", {}, [("images", "generate-images")]),
            self.run("build-pairs", {}, [("images", "import-images"), ("annotations", "load-annotations")]),
        ]
        told = tomllib.loads(recipe_of(runs))
        assert told["build-pairs"] == {"reads": {"images": "import-images"}}
        assert told["simulate-annotations"] == {"reads": {"images": "generate-images"}}

    def test_the_points_of_a_grid_are_one_table(self):
        points = {
            f"grid[seed={seed}, group.rate={rate}]": {"seed": seed, "group.rate": rate, "k": 3}
            for seed in (1, 2)
            for rate in (0.1, 0.2)
        }
        runs = [
            *(self.run("train-rm", config, node=node) for node, config in points.items()),
            self.run("sweep-rm", {"note": None}, [(f"reward-model[{node}]", node) for node in points]),
        ]
        told = tomllib.loads(recipe_of(runs))
        assert told["grid"] == {"stage": "train-rm", "k": 3, "grid": {"seed": [1, 2], "group": {"rate": [0.1, 0.2]}}}
        assert told["sweep-rm"] == {"reads": {"reward-model": list(points)}}
        told = tomllib.loads(recipe_of([runs[1], self.run("refl", {}, [("reward-model", runs[1].node)])]))
        assert told["grid"]["grid"] == {"seed": [1], "group": {"rate": [0.2]}}
        assert told["refl"] == {"reads": {"reward-model": runs[1].node}}

    def test_a_grid_of_lists_of_whole_numbers_and_of_what_is_read(self):
        def name(values):
            return f"grid[{', '.join(f'{key}={value}' for key, value in values.items())}]"

        given = [{"scorers": ["a"], "rate": 1, "reads.pairs": "p"}, {"scorers": ["b"], "rate": 1, "reads.pairs": "q"}]
        runs = [
            self.run("train-rm", {"scorers": point["scorers"], "rate": 1.0}, [("pairs", point["reads.pairs"])], node=name(point))
            for point in given
        ]
        told = tomllib.loads(recipe_of(runs))["grid"]
        assert told == {"stage": "train-rm", "grid": {"scorers": [["a"], ["b"]], "rate": [1], "reads": {"pairs": ["p", "q"]}}}
        assert isinstance(told["grid"]["rate"][0], int), "the point's name has 1, not 1.0"

    def test_what_is_written_but_not_read_counts_as_a_choice(self):
        runs = [
            self.run("refl", {}),
            self.run("finetune", {}, node="raft"),
            self.run("compare-generators", {}, [("generator[refl]", "refl")]),
        ]
        assert tomllib.loads(recipe_of(runs))["compare-generators"] == {"reads": {"generator": "refl"}}

    def test_a_stage_name_that_toml_must_quote(self):
        assert tomllib.loads(recipe_of([self.run("a.b", {"x": 1e-05})]))["a.b"] == {"x": 1e-05}
