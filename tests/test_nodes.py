"""Nodes: a stage under several names, several artifacts of one kind, groups of settings, grids, and what is wrong with them."""

from __future__ import annotations

import pytest


def song(project, *settings: str) -> str:
    from pathlib import Path

    return (Path(project.last("song", *settings)["path"]) / "song.txt").read_text()


THREE = 'recipe = "choir"\n[word]\n[word-2]\nstage = "word"\ntext = "hi"\n[echo]\nreads.word = "word-2"\n'


def test_a_stage_reads_several_nodes_of_two_stages_in_whatever_order_they_are_named(choir):
    choir.recipe(THREE + '[song]\nreads.word = ["word-2", "echo", "word"]\n')
    assert song(choir) == "echo:hiecho word:hello word-2:hi"
    record = choir.store.newest("choir", "song")
    assert {slot: entry.node for slot, entry in record.inputs.items()} == {
        "word[echo]": "echo",
        "word[word-2]": "word-2",
        "word[word]": "word",
    }
    assert choir.store.newest("choir", "word-2").stage == "word"


def test_one_node_is_enough_for_many(choir):
    choir.recipe('recipe = "choir"\n[word]\n[song]\n')
    assert song(choir) == "word:hello"


def test_commands_take_nodes_by_name(choir):
    choir.recipe(THREE + '[song]\nreads.word = ["word", "word-2"]\n')
    assert song(choir, "word-2.text=bye") == "word:hello word-2:bye"
    assert [row["stage"] for row in choir("status", "--json").json["stages"]] == ["word", "word-2", "echo", "song"]
    assert choir("show", "word-2").out.startswith("word-2 ")
    assert "read     word[word-2]: word-2" in choir("show", "song").out
    assert "word-2" in choir("lineage", "song").out and "word-2.text hi -> bye" not in choir("plan", "song").out
    assert "word-2.text bye -> hi" in choir("plan", "song").out


def test_two_nodes_of_equal_settings_are_made_once(choir):
    choir.recipe('recipe = "choir"\n[word]\n[word-2]\nlike = "word"\n[song]\nreads.word = ["word", "word-2"]\n')
    assert song(choir) == "word:hello word-2:hello"
    assert choir.store.newest("choir", "word").key == choir.store.newest("choir", "word-2").key
    assert choir.store.newest("choir", "word-2").node == "word-2"


def test_the_same_words_by_other_nodes_are_another_song(choir):
    """What several of a kind are called gets into the result, so it is part of the key."""
    choir.recipe(THREE + '[song]\nreads.word = ["word", "word-2"]\n')
    first = choir.last("song")["key"]
    choir.recipe(
        (THREE + '[song]\nreads.word = ["word", "word-3"]\n').replace("[word-2]", "[word-3]").replace("word-2", "word-3")
    )
    assert choir.last("song")["key"] != first


def test_the_name_of_a_single_one_counts_too(choir):
    choir.recipe('recipe = "choir"\n[word]\n[word-2]\nlike = "word"\n[song]\nreads.word = "word"\n')
    assert song(choir) == "word:hello"
    assert song(choir, "song.reads.word=word-2") == "word-2:hello"


def test_what_is_read_if_upstream_may_be_of_a_grid(choir):
    grid = 'recipe = "choir"\n[word]\ngrid.text = ["a", "b"]\n[song]\nreads.word = %s\n[rhyme]\n'
    choir.recipe(grid % '"word[text=b]"')
    choir.run("rhyme")
    assert choir.store.newest("choir", "rhyme").inputs["word"].node == "word[text=b]"
    choir.recipe(grid % '"word"')
    error = choir.run("rhyme", status=2).err
    assert "rhyme reads 'word', which word[text=a] and word[text=b] write, and it depends on both" in error
    assert "--set rhyme.reads.word=word[text=a]" in error
    choir.run("rhyme", "rhyme.reads.word=word[text=a]")
    assert choir.store.newest("choir", "rhyme").inputs["word"].node == "word[text=a]"


def test_several_processes_meet_at_the_target_alone(choir, monkeypatch):
    """The others wait for the target: a stage upstream that waited for them would wait for ever."""
    from pathlib import Path

    choir.recipe('recipe = "choir"\n[drum]\n[band]\n')
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert (Path(choir.last("band")["path"]) / "band.txt").read_text() == "1 then 2"


@pytest.mark.parametrize(("target", "message"), [("bnad", "did you mean 'band'?"), ("drum", "drum is a grid of 1 nodes")])
def test_several_processes_for_what_is_no_node(choir, monkeypatch, target, message):
    choir.recipe('recipe = "choir"\n[drum]\ngrid.x = [1]\n[band]\n')
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert message in choir.run(target, status=2).err


class TestLike:
    def test_settings_of_another_node_are_defaults(self, choir):
        choir.recipe(
            'recipe = "choir"\n[word]\ntext = "hi"\nvoice.loud = true\nvoice.times = 2\n'
            '[soft]\nlike = "word"\nvoice.times = 1\nvoice.loud = false\n[song]\nreads.word = ["word", "soft"]\n'
        )
        assert song(choir) == "soft:hi word:HI!HI!"

    def test_a_set_reaches_those_that_are_like_it(self, choir):
        choir.recipe('recipe = "choir"\n[word]\n[soft]\nlike = "word"\n[song]\nreads.word = "soft"\n')
        assert song(choir, "word.text=ho") == "soft:ho"

    def test_of_another_stage_what_that_one_knows_is_taken(self, choir):
        choir.recipe(
            'recipe = "choir"\n[word]\ntext = "hi"\n[echo]\nstage = "echo"\nlike = "word"\n[song]\nreads.word = "echo"\n'
        )
        choir.run("echo", "echo.reads.word=word")
        assert choir.store.newest("choir", "echo").config == {"text": "hi"}

    def test_a_set_that_its_own_settings_hide_is_an_error(self, choir):
        choir.recipe('recipe = "choir"\n[word]\n[soft]\nlike = "word"\ntext = "hi"\n[song]\nreads.word = "soft"\n')
        assert "--set word.text=ho has no effect" in choir.run("song", "word.text=ho", status=2).err

    def test_what_has_no_effect_beside_own_settings_stands_aside(self, choir):
        choir.recipe(
            'recipe = "choir"\n[word]\nending = "?"\nvoice.loud = true\n[soft]\nlike = "word"\nvoice.loud = false\n[song]\n'
            'reads.word = ["word", "soft"]\n'
        )
        assert song(choir) == "soft:hello word:HELLO?"
        assert "soft.ending of the recipe has no effect" in choir("plan", "song").out

    def test_its_wiring_is_taken_too(self, choir):
        choir.recipe(THREE + '[echo-2]\nlike = "echo"\ntext = "?"\n[song]\nreads.word = "echo-2"\n')
        assert song(choir) == "echo-2:hi?"

    def test_a_circle_is_an_error(self, choir):
        choir.recipe('recipe = "choir"\n[word]\nlike = "soft"\n[soft]\nlike = "word"\n')
        assert "has a cycle: word is like soft is like word" in choir.run("word", status=2).err

    def test_an_unknown_node_is_an_error(self, choir):
        choir.recipe('recipe = "choir"\n[word]\n[soft]\nlike = "wrod"\n')
        assert "there is no such node; did you mean 'word'?" in choir.run("soft", status=2).err


class TestGrids:
    RECIPE = 'recipe = "choir"\n[word]\n[loud]\nlike = "word"\n[loud.grid]\nvoice.times = [1, 2]\ntext = ["a", "b"]\n'

    def test_a_grid_is_a_node_for_each_point(self, choir):
        choir.recipe(self.RECIPE + '[song]\nreads.word = ["word", "loud"]\n')
        assert song(choir) == (
            "loud[voice.times=1, text=a]:a loud[voice.times=1, text=b]:b loud[voice.times=2, text=a]:aa"
            " loud[voice.times=2, text=b]:bb word:hello"
        )

    def test_it_is_read_only_where_it_is_named(self, choir):
        choir.recipe(self.RECIPE + "[song]\n")
        assert song(choir) == "word:hello"

    def test_a_set_reaches_its_points_and_can_change_it(self, choir):
        choir.recipe(self.RECIPE + '[song]\nreads.word = "loud"\n')
        assert song(choir, "loud.grid.text=['c']", "loud.voice.loud=true") == (
            "loud[voice.times=1, text=c]:C! loud[voice.times=2, text=c]:C!C!"
        )

    def test_settings_of_groups_need_no_quotes(self, choir):
        choir.recipe('recipe = "choir"\n[word]\ngrid.voice.times = [1, 2]\n[song]\nreads.word = "word"\n')
        assert song(choir) == "word[voice.times=1]:hello word[voice.times=2]:hellohello"
        assert song(choir, "word.grid.voice.times=[3]") == "word[voice.times=3]:hellohellohello"

    @pytest.mark.parametrize("setting", ["loud.text=c", "loud.voice.times=4"])
    def test_a_setting_beside_its_axis_is_an_error(self, choir, setting):
        choir.recipe(self.RECIPE + '[song]\nreads.word = "loud"\n')
        axis = setting.removeprefix("loud.").partition("=")[0]
        error = choir.run("song", setting, status=2).err
        assert f"[loud] {axis} is given both by itself and by grid" in error and f"--set loud.grid.{axis}=[...]" in error

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (["a/b", "a:b"], "gives two nodes the name 'word[text=a:b]'"),
            (["a", "a"], "gives two nodes the name 'word[text=a]'"),
            (["a" * 200], "gives a node a name of 211 letters"),
        ],
    )
    def test_its_points_have_names_of_their_own(self, choir, values, message):
        choir.recipe(f'recipe = "choir"\n[word]\ngrid.text = {values}\n[song]\n')
        assert message in choir.run("song", status=2).err

    def test_its_name_alone_is_no_node(self, choir):
        choir.recipe(self.RECIPE)
        assert "loud is a grid of 4 nodes" in choir.run("loud", status=2).err

    def test_its_tables_can_be_queried(self, choir):
        choir.recipe(self.RECIPE + '[song]\nreads.word = "loud"\n')
        song(choir)
        assert choir("sql", "--json", "SELECT 1 AS one").json == [{"one": 1}]

    def test_what_is_no_list_is_an_error(self, choir):
        choir.recipe('recipe = "choir"\n[word]\ngrid.text = "a"\n')
        assert "must be a table of lists" in choir.run("word", status=2).err


class TestWrongWiring:
    @pytest.mark.parametrize(
        ("reads", "message"),
        [
            ("", "song reads 'word', which word and word-2 and echo write\n  fix:      name one or several"),
            ('reads.word = "wrod"\n', "there is no node 'wrod'; did you mean 'word'?"),
            ('reads.wrod = "word"\n', "names 'wrod', which it does not read; did you mean 'word'?"),
            ('reads.word = "song"\n', "word = 'song', which writes 'song'"),
            ("reads.word = []\n", "is neither a node nor a list of nodes"),
            ("reads.word = 3\n", "is neither a node nor a list of nodes"),
            ('reads = "word"\n', "must be a table of kind = node"),
        ],
    )
    def test_it_is_named(self, choir, reads, message):
        choir.recipe(THREE + "[song]\n" + reads)
        assert message in choir.run("song", status=2).err

    def test_two_producers_without_a_choice(self, choir):
        choir.recipe('recipe = "choir"\n[word]\n[word-2]\nstage = "word"\n[echo-3]\nstage = "echo"\n')
        error = choir.run("echo-3", status=2).err
        assert "echo-3 reads 'word', which word and word-2 and echo-3 write" in error and "reads.word=word" in error

    def test_several_where_one_is_read(self, choir):
        choir.recipe(THREE.replace('reads.word = "word-2"', 'reads.word = ["word", "word-2"]'))
        assert "echo reads one 'word', and word and word-2 are named" in choir.run("echo", status=2).err

    def test_a_circle(self, choir):
        choir.recipe('recipe = "choir"\n[a]\nstage = "echo"\nreads.word = "b"\n[b]\nstage = "echo"\nreads.word = "a"\n')
        assert "has a cycle: a -> b -> a" in choir.run("a", status=2).err

    @pytest.mark.parametrize("name", ["../word", "a/b", "a.b", ""])
    def test_a_node_has_a_plain_name(self, choir, name):
        choir.recipe(f'recipe = "choir"\n["{name}"]\nstage = "word"\n')
        assert "is no name for a node" in choir("status", status=2).err

    def test_a_stage_that_is_none(self, choir):
        choir.recipe('recipe = "choir"\n[word-2]\nstage = "wrod"\n')
        assert "there is no stage 'wrod'; did you mean 'word'?" in choir.run("word-2", status=2).err


class TestGroups:
    def test_a_setting_of_a_group_has_a_name_everywhere(self, choir):
        choir.recipe('recipe = "choir"\n[word]\n[word.voice]\ntimes = 2\n')
        choir.run("word", "word.voice.loud=true")
        record = choir.store.newest("choir", "word")
        assert record.config == {"text": "hello", "ending": "!", "voice.loud": True, "voice.times": 2, "voice.workers": 1}
        assert record.given == ("voice.loud", "voice.times")
        assert "word.voice.loud True -> False" in choir("plan", "word").out
        cited = {row["setting"]: row for row in choir("cite", "word", "--json").json}
        assert cited["voice.times"] == {
            "setting": "voice.times",
            "default": 1,
            "meaning": "How often.",
            "source": "nobody",
            "role": "result",
        }

    def test_execution_settings_of_a_group_do_not_count(self, choir):
        choir.recipe('recipe = "choir"\n[word]\nvoice.loud = true\n')
        assert choir.last("word", "word.voice.workers=4")["key"] == choir.last("word")["key"]
        assert choir.last("word", "word.voice.times=4")["key"] != choir.last("word")["key"]

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ("word.voice.tmies=2", "word.voice has no setting 'tmies'; did you mean 'times'?"),
            ("word.voice.times=0", "word.voice.times = 0: should be greater than or equal to 1"),
            ("word.voice=2", "word.voice = 2: is a table of settings: loud, times, workers"),
            ("word.vioce.times=2", "word has no setting 'vioce'; did you mean 'voice'?"),
            ("word.voice.workers=2", "voice.workers has no effect: nothing is loud"),
        ],
    )
    def test_mistakes_are_named(self, choir, setting, message):
        choir.recipe('recipe = "choir"\n[word]\n')
        assert message in choir.run("word", setting, status=2).err

    def test_a_run_is_done_again_from_its_record(self, choir):
        choir.recipe(
            'recipe = "choir"\n[word]\nvoice.times = 3\n[word-2]\nlike = "word"\n[song]\nreads.word = ["word", "word-2"]\n'
        )
        song(choir)
        reruns = choir("verify", "--rerun", "--json").json["rerun"]
        assert [(run["stage"], run["after"] == run["before"]) for run in reruns] == [
            ("word", True),
            ("word-2", True),
            ("song", True),
        ]
