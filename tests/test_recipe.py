"""Recipes: names, types, ranges, wiring; every mistake is named with its nearest right word."""

from __future__ import annotations

import pytest

from irpipe.pipeline.recipe_file import load_recipe
from irpipe.recipes import shipped_recipes


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_but_for_what_people_must_give(project, name):
    (project.root / "irpipe.toml").unlink()
    project("init", "--recipe", name)
    recipe = load_recipe(project.root)
    assert recipe.name == name
    for node in recipe.tables:
        if recipe.stages[node].name != "import-images":
            recipe.config(node)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("claims-rm", ("evaluate-rm", "evaluate-noise-low", "evaluate-noise-high", "evaluate-two-people")),
        ("claims-refl", tuple(f"compare-{part}" for part in ("main", "controls", "rivals", "failing", "hacking"))),
        ("claims-hps", ("evaluate-rm", *(f"compare-{part}" for part in ("main", "variants", "unguided", "refl", "hacked")))),
        ("claims-rahf", ("evaluate-rahf", "compare-guided", "compare-tuned")),
    ],
)
def test_every_node_of_the_claims_is_in_one_of_their_tables(project, name, targets):
    (project.root / "irpipe.toml").unlink()
    project("init", "--recipe", name)
    recipe = load_recipe(project.root)
    reached = {node.name for target in targets for node in recipe.chain(target)}
    templates = {
        "claims-rm": {"train-rm", "clean-data"},
        "claims-refl": {"refl", "simulate-captions"},
        "claims-hps": {"train-rm", "finetune", "compare", "choose-raw", "pool-truth"},
        "claims-rahf": {"train-rahf", "refl", "compare"},
    }[name]
    assert set(recipe.tables) - reached <= templates


def test_the_two_recipes_differ_in_values_only(project):
    micro = load_recipe(project.root)
    (project.root / "irpipe.toml").unlink()
    project("init", "--recipe", "imagereward")
    real = load_recipe(project.root)
    offline = {"simulate-prompts", "simulate-annotations", "oracle-truth", "simulate-captions"}

    def nodes(recipe):
        return {name.partition("[")[0] for name in recipe.tables}

    assert nodes(real) - {"import-images", "select-images"} == nodes(micro) - offline


def test_init_does_not_overwrite(project):
    before = (project.root / "irpipe.toml").read_text(encoding="utf-8")
    assert "irpipe.toml is here already" in project("init", status=2).err
    assert (project.root / "irpipe.toml").read_text(encoding="utf-8") == before
    (project.root / "irpipe.toml").unlink()
    assert "did you mean 'micro'" in project("init", "--recipe", "micr0", status=2).err


def test_without_a_recipe_the_error_names_init(project):
    (project.root / "irpipe.toml").unlink()
    assert "irpipe init" in project("status", status=2).err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("select-prompts.cuont=4", "select-prompts has no setting 'cuont'; did you mean 'count'?"),
        ("select-promts.count=4", "no stage 'select-promts'; did you mean 'select-prompts'?"),
        ("select-prompts.count=many", "select-prompts.count = 'many': should be a valid integer"),
        ("select-prompts.count=0", "select-prompts.count = 0: should be greater than or equal to 1"),
        ("select-prompts.count=1.5", "select-prompts.count = 1.5"),
        ("select-prompts.method=votek", "should be 'vote-k', 'k-center' or 'random'"),
        ("select-prompts.count", "is not of the form stage.field=value"),
        ("count=4", "is not of the form stage.field=value"),
        ("split-prompts.test_share=0.99", "leave nothing to train on"),
        ("load-annotations.format=jsonl", "format has no effect: it describes path, which is not given"),
        ("embed-prompts.dtype=float32", "dtype has no effect: embedder = 'lexical' has no model"),
        ("oracle-truth.max_rejected=0.5", "has no effect: build-pairs does not read oracle-truth"),
        ("oracle-truth.max_reject=0.5", "oracle-truth has no setting 'max_reject'; did you mean 'max_rejected'?"),
    ],
)
def test_a_wrong_setting_is_named(project, setting, message):
    assert message in project.run("build-pairs", setting, status=2).err


def test_a_setting_that_must_be_given_is_named(project):
    (project.root / "irpipe.toml").unlink()
    project("init", "--recipe", "imagereward")
    assert "import-images.image_root must be given" in project.run("import-images", status=2).err


def test_an_unknown_stage_is_named(project):
    assert "did you mean 'build-pairs'" in project("run", "build-pair", status=2).err
    project.recipe('recipe = "x"\n[build-pears]\n')
    assert "there is no stage 'build-pears'; did you mean 'build-pairs'?" in project("run", "build-pears", status=2).err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("recipe = ", "is not TOML"),
        ('recipe = "a/b"', "has no name of letters"),
        ("[build-pairs]", "has no name of letters"),
        ('recipe = "x"\nstore = 3', "store = 3 is not a path"),
        ('recipe = "x"\nstor = "y"', "unknown setting 'stor'; did you mean 'store'?"),
        ('recipe = "x"\n[build-pairs]', "reads 'annotations', and no stage of the recipe 'x' writes it"),
        (
            'recipe = "x"\n[load-annotations]\n[build-pairs]\nreads = {image = "a"}',
            "names 'image', which it does not read",
        ),
    ],
)
def test_a_wrong_recipe_is_named(project, text, message):
    project.recipe(text)
    assert message in project("run", "build-pairs", status=2).err


def test_values_of_set_need_no_quotes(project):
    recipe = load_recipe(project.root, ["select-prompts.method=random", "select-prompts.exclude=['a.txt', 'b.txt']"])
    assert recipe.config("select-prompts").model_dump()["method"] == "random"
    assert recipe.config("select-prompts").model_dump()["exclude"] == ("a.txt", "b.txt")


def test_a_given_file_replaces_the_recipes_stage(project):
    """Given a path, nothing upstream runs for it, and the plan says what it replaces."""
    path = project.jsonl("mine.jsonl", [{"prompt": "a cat", "images": ["a.png", "b.png"], "ranking": [1, 2]}])
    steps = project("plan", "build-pairs", "--json", "--set", f"load-annotations.path={path}").json
    assert [step["stage"] for step in steps] == ["load-annotations", "split-prompts", "build-pairs"]
    assert steps[0]["notes"] == ["load-annotations.path makes simulate-annotations unnecessary"]
