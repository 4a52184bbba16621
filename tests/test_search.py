"""Searches: nodes whose settings a sampler draws, given the results of the earlier ones."""

from __future__ import annotations

import math
import re
import shutil
import textwrap
import tomllib
from pathlib import Path

import pytest

from irpipe.pipeline.errors import RecipeError
from irpipe.pipeline.search import Search, next_point, read_search

SPACE = {"text": ["a", "b"], "voice": {"times": {"low": 1, "high": 400, "log": True}, "gain": {"low": 0.1, "high": 10.0}}}


def follow(search: Search, figure) -> list[tuple[dict, float]]:
    trials: list = []
    for _ in range(search.trials):
        point = next_point(search, trials)
        trials.append((point, figure(point)))
    return trials


def loss(point) -> float:
    """Lowest, 0, at text a, 40 times and gain 2."""
    return (point["text"] == "b") + abs(math.log(point["voice.times"] / 40)) + abs(point["voice.gain"] - 2.0)


class TestDrawing:
    def test_points_lie_in_the_space_and_come_nearer_to_the_best(self):
        search = read_search("x", {"trials": 40, "seed": 3, "space": SPACE})
        trials = follow(search, loss)
        for point, _ in trials:
            assert list(point) == ["text", "voice.times", "voice.gain"]
            assert point["text"] in "ab" and 0.1 <= point["voice.gain"] <= 10
            assert isinstance(point["voice.times"], int) and 1 <= point["voice.times"] <= 400
        losses = [value for _, value in trials]
        assert sum(losses[-10:]) < 0.6 * sum(losses[:10]), "the last trials are better than the random first ones"
        assert sum(point["text"] == "a" for point, _ in trials[-10:]) >= 8

    def test_the_highest_figure_is_wanted_where_the_search_says_so(self):
        search = read_search("x", {"trials": 40, "seed": 3, "direction": "maximize", "space": SPACE})
        assert follow(search, lambda point: -loss(point)) == [
            (point, -value) for point, value in follow(search.model_copy(update={"direction": "minimize"}), loss)
        ]

    def test_a_point_is_a_function_of_the_seed_and_the_earlier_results(self):
        search = read_search("x", {"trials": 14, "space": SPACE})
        trials = follow(search, loss)
        assert next_point(search, trials[:12]) == trials[12][0], "an interrupted search goes on as an uninterrupted one"
        other = read_search("x", {"trials": 14, "seed": 1, "space": SPACE})
        assert next_point(other, trials[:12]) != trials[12][0]
        assert len({point["voice.gain"] for point, _ in trials[:10]}) == 10

    def test_numbers_can_be_read(self):
        search = read_search("x", {"trials": 3, "space": {"rate": {"low": 1e-6, "high": 1e-3, "log": True}}})
        assert all(float(f"{point['rate']:.3g}") == point["rate"] for point, _ in follow(search, lambda _: 0.0))


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ({}, ["must give trials", "must give space"]),
        ({"trials": 0, "space": {"a": [1]}}, ["trials = 0"]),
        ({"trials": 2, "trial": 3, "space": {"a": [1]}}, ["no setting 'trial'; did you mean 'trials'?"]),
        ({"trials": 2, "space": {"a": {"low": 2, "high": 1}}}, ["space] a", "low must be below high"]),
        ({"trials": 2, "space": {"a": {"low": 0.0, "high": 1.0, "log": True}}}, ["low must be above 0"]),
        ({"trials": 2, "space": {"a": 3}}, ["space] a: a list of values or { low"]),
        ({"trials": 2, "space": {"a": []}}, ["space] a"]),
        ("many", ["must give trials"]),
    ],
)
def test_a_wrong_search_is_one_clear_error(table, lines):
    with pytest.raises(RecipeError) as error:
        read_search("hps", table)
    assert all(line in str(error.value) for line in lines), str(error.value)


class TestRecipe:
    """Trials are nodes; see `choir` in tests/conftest.py for the stages."""

    RECIPE = """
        recipe = "choir"
        [word]
        [tries]
        like = "word"
        [tries.search]
        trials = 4
        figure = "length.letters"
        direction = "maximize"
        random_trials = 2
        [tries.search.space]
        ending = ["!", "?!"]
        voice = { times = { low = 1, high = 90 }, loud = [true] }
        [song]
        reads.word = "tries"
    """

    @pytest.fixture
    def tries(self, choir):
        choir.recipe(textwrap.dedent(self.RECIPE))
        return choir

    def words(self, project) -> dict[str, str]:
        path = Path(project.last("song")["path"])
        return dict(re.findall(r"(tries\[.*?\]):(\S+)", (path / "song.txt").read_text()))

    def test_every_trial_is_an_artifact_that_follows_from_the_earlier_ones(self, tries):
        told = tries.run("song").err
        assert [f"tries: trial {n} of 4" in told for n in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
        words = self.words(tries)
        search = read_search("tries", tomllib.loads(self.RECIPE)["tries"]["search"])
        expected = follow(search, lambda point: len("HELLO" + point["ending"]) * point["voice.times"])
        names = [f"tries[{', '.join(f'{key}={value}' for key, value in point.items())}]" for point, _ in expected]
        assert sorted(words) == sorted(set(names))
        assert [len(words[name]) for name in names] == [length for _, length in expected]
        assert all(step["state"] == "reuse" for step in tries("plan", "song", "--json").json)

    def test_an_interrupted_search_goes_on_and_a_longer_one_tries_what_is_missing(self, tries):
        whole = self.words(tries)
        shutil.rmtree(tries.root / "artifacts")
        first = next(name for name in tries("plan", "song", "--json").json if name["stage"].startswith("tries"))["stage"]
        tries.run(first)
        state = {row["stage"]: row["state"] for row in tries("status", "--json").json["stages"]}
        assert state[first] == "done" and list(state.values()).count("done") == 1 and len(state) == 4, state
        told = tries.run("song").err
        assert told.count("trial ") == 3 and self.words(tries) == whole
        longer = tries.run("song", "tries.search.trials=6").err
        assert longer.count("trial ") == 2 and whole.keys() <= {name for name in longer.split() if name} | whole.keys()

    def test_a_single_trial_can_be_looked_at_like_any_node(self, tries):
        name = next(iter(self.words(tries)))
        assert tries("show", name, "--json").json
        assert "is a search of" in tries.run("tries", status=2).err

    @pytest.mark.parametrize(
        ("change", "line"),
        [
            (("length.letters", "length.words"), "figure = 'length.words'"),
            (("length.letters", "letters"), "has no such number"),
            (('like = "word"', 'like = "word"\nending = "."'), "ending is given both by itself and by search"),
            (("ending =", "endings ="), "has no setting 'endings'; did you mean 'ending'?"),
        ],
    )
    def test_what_is_wrong_is_a_clear_error(self, tries, change, line):
        tries.recipe(textwrap.dedent(self.RECIPE).replace(*change))
        assert line in tries.run("song", status=2).err

    def test_a_grid_and_a_search_in_one_node(self, tries):
        tries.recipe(textwrap.dedent(self.RECIPE) + "[tries.grid]\ntext = ['a']\n")
        assert "[tries] has both grid and search" in tries.run("song", status=2).err

    def test_without_optuna_only_what_reads_the_search_fails(self, tries, monkeypatch):
        monkeypatch.setattr("irpipe.pipeline.trials.missing_packages", lambda extra: ("optuna",))
        assert tries.run("word")
        error = tries.run("song", status=2).err
        assert "tries is a search" in error and "pip install 'irpipe[search]'" in error
        assert tries("status", "--json").json["missing"]

    def test_the_recipes_own_reads_may_name_a_search(self, tries, monkeypatch):
        text = textwrap.dedent(self.RECIPE).replace('reads.word = "tries"', "") + '[reads]\nword = "tries"\n'
        tries.recipe(text)
        assert tries.run("song").err.count("trial ") == 4 and len(self.words(tries)) == 4
        monkeypatch.setattr("irpipe.pipeline.trials.missing_packages", lambda extra: ("optuna",))
        assert "pip install 'irpipe[search]'" in tries("status", status=2).err

    def test_a_search_that_reads_another_one_below_it(self, tries):
        """All trials of the one that is read are made first, wherever it stands."""
        tries.recipe(
            textwrap.dedent("""
            recipe = "choir"
            [above]
            stage = "chorus"
            search = { trials = 2, figure = "letters", space = { text = ["x", "yy"] } }
            reads.word = "below"
            [below]
            stage = "word"
            search = { trials = 2, figure = "length.letters", space = { text = ["hi", "hello"] } }
            [song]
            reads.word = ["above", "below"]
            """)
        )
        told = tries.run("song").err
        assert [told.count(f"{name}: trial {number} of 2") for name in ("above", "below") for number in (1, 2)] == [1, 1, 1, 1]
        made = [line.split(": kept")[0] for line in told.splitlines() if ": kept" in line]
        assert [name.partition("[")[0] for name in made] == ["below", "below", "above", "above", "song"]
        assert all(step["state"] == "reuse" for step in tries("plan", "song", "--json").json)

    def test_an_edit_of_the_recipe_during_a_run_changes_nothing_of_it(self, tries, monkeypatch):
        from irpipe.pipeline.runner import Runner

        real, file = Runner._search, tries.root / "irpipe.toml"
        text = file.read_text()

        def edited(self, trial):
            file.write_text("broken [")
            return real(self, trial)

        monkeypatch.setattr(Runner, "_search", edited)
        tries.run("song")
        file.write_text(text)
        monkeypatch.setattr(Runner, "_search", real)
        assert all(step["state"] == "reuse" for step in tries("plan", "song", "--json").json)

    def test_only_the_target_with_trials_missing(self, tries):
        assert "which does not exist yet" in tries("run", "song", "--only", status=2).err
