"""From a pool of prompts to the chosen ones: cleaning, vectors, graph, selection."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpipe.schemas.graph import Graph, read_graph, to_networkx
from irpipe.schemas.prompts import clean, normalise, prompt_id
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph.run import divide, search
from irpipe.stages.prompt_graph.search import Points
from irpipe.stages.select_prompts.votek import Ballot, vote_k
from tests.oracles import fast_vote_k, knn_graph

POOL = ["a red circle", "A red circle!", "a  red circle ", "a blue square", "", "  ", "a green triangle on grass", "x"]


def embed(project, *settings):
    return project.last("embed-prompts", *settings)


def prompts(project):
    return [row["prompt"] for row in project.rows("SELECT prompt FROM prompts ORDER BY source_row")]


def rejected(project):
    rows = project.rows('SELECT "row", reason FROM embed_prompts.rejected ORDER BY "row"')
    return {row["row"]: row["reason"] for row in rows}


# Cleaning


def test_cleaning_drops_by_rule_and_says_why(project):
    path = project.jsonl("pool.jsonl", [{"prompt": text} for text in POOL])
    done = embed(project, f"embed-prompts.path={path}", "embed-prompts.min_characters=2", "embed-prompts.max_characters=20")
    assert prompts(project) == ["a red circle", "a blue square"]
    assert rejected(project) == {
        1: "duplicate (normalised)",
        2: "duplicate (normalised)",
        4: "empty",
        5: "empty",
        6: "too long",
        7: "too short",
    }
    assert done["rows"] == {"read": 8, "kept": 2, "rejected": 6}
    assert project.rows("SELECT num_images FROM prompts ORDER BY source_row") == [{"num_images": 3}, {"num_images": 1}]


def test_duplicates_are_what_the_recipe_says(project):
    path = project.jsonl("pool.jsonl", [{"prompt": text} for text in POOL[:4]])
    embed(project, f"embed-prompts.path={path}", "embed-prompts.duplicates=exact")
    assert prompts(project) == ["a red circle", "A red circle!", "a blue square"]
    embed(project, f"embed-prompts.path={path}", "embed-prompts.duplicates=keep")
    assert prompts(project) == ["a red circle", "A red circle!", "a red circle", "a blue square"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text", "parquet"])
def test_every_format_gives_the_same_prompts(project, kind):
    texts = ["a red circle", 'a "quoted", comma', "ein größerer Kreis"]
    path = project.root / f"pool.{'txt' if kind == 'text' else kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "prompt": texts}), path)
    elif kind == "csv":
        path.write_text('id,prompt\n1,a red circle\n2,"a ""quoted"", comma"\n3,ein größerer Kreis\n', encoding="utf-8")
    elif kind == "text":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    else:
        project.jsonl("pool.jsonl", [{"prompt": text} for text in texts])
    embed(project, f"embed-prompts.path={path}")
    assert prompts(project) == texts
    assert project.rows("SELECT source_row FROM prompts ORDER BY 1") == [{"source_row": row} for row in range(3)]


def diffusiondb(project):
    """Metadata as DiffusionDB publishes it: one row per image, 13 columns."""
    rows = 7
    table = pa.table({
        "image_name": [f"{row}.png" for row in range(rows)],
        "prompt": ["a cat", "a cat", "a dog", "a dog", "a nude", "a bird", None],
        "part_id": pa.array([1] * rows, pa.uint16()),
        "seed": pa.array(range(rows), pa.uint32()),
        "step": pa.array([50] * rows, pa.uint16()),
        "cfg": pa.array([7.0] * rows, pa.float32()),
        "sampler": pa.array([8] * rows, pa.uint8()),
        "width": pa.array([512] * rows, pa.uint16()),
        "height": pa.array([512] * rows, pa.uint16()),
        "user_name": ["deleted_account", None, "u", "u", "u", "u", "u"],
        "timestamp": pa.array([None] * rows, pa.timestamp("ms", tz="UTC")),
        "image_nsfw": pa.array([0.1, 2.0, 0.2, None, 0.1, 0.1, 0.1], pa.float32()),
        "prompt_nsfw": pa.array([0.1, 0.1, 0.1, 0.1, 0.9, None, 0.1], pa.float32()),
    })  # fmt: skip
    path = project.root / "metadata.parquet"
    pq.write_table(table, path)
    return path


def test_diffusiondb_is_read_as_it_is(project):
    path = diffusiondb(project)
    embed(project, f"embed-prompts.path={path}", "embed-prompts.max_prompt_nsfw=0.5", "embed-prompts.max_image_nsfw=1.0")
    assert prompts(project) == ["a cat", "a dog", "a bird"]
    assert rejected(project) == {1: "blurred", 3: "duplicate (normalised)", 4: "prompt_nsfw too high", 6: "empty"}
    embed(
        project,
        f"embed-prompts.path={path}",
        "embed-prompts.max_prompt_nsfw=0.5",
        "embed-prompts.max_image_nsfw=1.0",
        "embed-prompts.keep_unscored=false",
    )
    assert prompts(project) == ["a cat", "a dog"] and rejected(project)[5] == "no prompt_nsfw"
    embed(project, f"embed-prompts.path={path}", "embed-prompts.min_images=2")
    assert prompts(project) == ["a cat", "a dog"] and rejected(project)[5] == "too few images"


@given(st.text(), st.text())
def test_ids_agree_exactly_where_cleaned_texts_do(one, two):
    assert (prompt_id(one) == prompt_id(two)) == (clean(one) == clean(two))
    assert clean(clean(one)) == clean(one)


def test_normalising_forgets_case_punctuation_and_width():
    assert normalise("A  Cat, (sitting)!") == normalise("\uff41 cat sitting") == "a cat sitting"
    assert normalise("!!!") == "!!!" and normalise("") == ""


# Bad input


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "does not exist"),
        ("empty.jsonl", b"", "is empty"),
        ("words.jsonl", b"not json\n", "no line of words.jsonl is a JSON object"),
        ("other.jsonl", b'{"text": "a"}\n', "with a field 'prompt'"),
        ("bytes.jsonl", b'{"prompt": "\xff\xfe"}\n', "is not UTF-8"),
        ("cut.parquet", b"PAR1 and no more", "is not a readable Parquet file"),
        ("pool.csv", b"promt\na\n", "no column 'prompt'; did you mean 'promt'?"),
        ("pool.data", b"a\n", "cannot be guessed from its ending"),
        (".", None, "holds the store itself"),
        ("half.jsonl", b'{"prompt": "\\ud800"}\n', "row 0: prompt is no text"),
        ("nsfw.csv", b"prompt\n" + b"x" * (1 << 25) + b"\n", "is not CSV: field larger than field limit"),
        ("lfs.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(project, name, content, message):
    if content is not None:
        (project.root / name).write_bytes(content)
    assert message in project.run("embed-prompts", f"embed-prompts.path={name}", status=2).err


def test_a_damaged_page_and_a_column_of_words_are_named(project):
    path = diffusiondb(project)
    table = pq.read_table(path)
    pq.write_table(table.set_column(12, "prompt_nsfw", pa.array(["high"] * 7)), project.root / "words.parquet")
    flags = ("embed-prompts.max_prompt_nsfw=0.5",)
    message = project.run("embed-prompts", "embed-prompts.path=words.parquet", *flags, status=2).err
    assert "the column 'prompt_nsfw' holds no numbers but 'high'" in message
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    assert "is damaged" in project.run("embed-prompts", f"embed-prompts.path={path}", status=2).err


def test_the_ending_counts_since_it_tells_how_a_file_is_read(project):
    """The same bytes as JSONL and as text are two inputs; also among what is excluded."""
    project.jsonl("p.jsonl", [{"prompt": f"prompt {row}"} for row in range(9)])
    (project.root / "p.txt").write_bytes((project.root / "p.jsonl").read_bytes())
    assert embed(project, "embed-prompts.path=p.jsonl")["key"] != embed(project, "embed-prompts.path=p.txt")["key"]


def test_texts_may_stay_as_they_are(project):
    path = project.jsonl("pool.jsonl", [{"prompt": "a  cat "}, {"prompt": "a dog"}])
    assert embed(project, f"embed-prompts.path={path}")["metrics"]["texts_cleaned"] == 1
    ids = project.rows("SELECT prompt_id FROM prompts")
    embed(project, f"embed-prompts.path={path}", "embed-prompts.clean=false")
    assert prompts(project) == ["a  cat ", "a dog"] and project.rows("SELECT prompt_id FROM prompts") == ids


def test_an_unused_setting_does_not_count(project):
    """The default model is no part of a lexical artifact's key, so another default would not invalidate it."""
    from irpipe.pipeline.plan import hashed_config
    from irpipe.stages.embed_prompts import EmbedPromptsConfig

    lexical = EmbedPromptsConfig(embedder="lexical")
    assert not {"dtype", "batch_size"} & set(hashed_config(lexical)) and "dimensions" in hashed_config(lexical)
    record = project.store.lookup(embed(project, "simulate-prompts.count=50")["key"])
    assert "model" not in record.external


def test_a_missing_parquet_column_is_named(project):
    pq.write_table(pa.table({"Prompt": ["a"]}), project.root / "pool.parquet")
    assert "did you mean 'Prompt'" in project.run("embed-prompts", "embed-prompts.path=pool.parquet", status=2).err
    embed(project, "embed-prompts.path=pool.parquet", "embed-prompts.prompt_column=Prompt")


def test_bad_lines_are_kept_with_their_reason(project):
    path = project.root / "pool.jsonl"
    path.write_text('{"prompt": "a"}\nnot json\n{"prompt": 7}\n[]\n{"prompt": "b"}\n', encoding="utf-8")
    embed(project, f"embed-prompts.path={path}")
    assert rejected(project) == {1: "not JSON", 2: "prompt is no text", 3: "no field 'prompt'"}


def test_too_many_bad_lines_stop_the_run_and_name_three(project):
    path = project.root / "pool.jsonl"
    path.write_text("".join(f'{{"prompt": "p{row}"}}\n' if row % 10 else "bad\n" for row in range(100)), encoding="utf-8")
    message = project.run("embed-prompts", f"embed-prompts.path={path}", status=2).err
    assert "10 of 100 rows are bad: row 0: not JSON (bad); row 10: not JSON (bad); row 20: not JSON (bad)" in message
    embed(project, f"embed-prompts.path={path}", "embed-prompts.max_rejected=0.1")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), "has 3 rows and the prompts have 2"),
        (np.zeros(2), "is not a matrix of floats"),
        (np.zeros((2, 4), dtype=int), "is not a matrix of floats"),
        (np.array([[object(), None]]), "is not a readable .npy"),
        (np.full((2, 4), np.nan), "none of 2 rows can be kept"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(project, array, message):
    project.jsonl("pool.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    np.save(project.root / "v.npy", array, allow_pickle=True)
    flags = ("embed-prompts.path=pool.jsonl", "embed-prompts.vectors=v.npy")
    assert message in project.run("embed-prompts", *flags, status=2).err


# Vectors


def vectors_of(project):
    return np.load(project.store.open(project.store.newest("micro", "embed-prompts").content_id).file("vectors.npy"))


def test_given_vectors_follow_their_rows(project):
    path = project.jsonl("pool.jsonl", [{"prompt": text} for text in POOL])
    given_vectors = np.random.default_rng(0).normal(size=(len(POOL), 5)).astype(np.float32)
    np.save(project.root / "v.npy", given_vectors)
    embed(project, f"embed-prompts.path={path}", "embed-prompts.vectors=v.npy")
    rows = [row["source_row"] for row in project.rows("SELECT source_row FROM prompts ORDER BY 1")]
    assert (vectors_of(project) == given_vectors[rows].astype(np.float16)).all()


def test_blank_lines_are_no_rows_and_shift_no_vectors(project):
    (project.root / "p.jsonl").write_text('\n{"prompt": "red"}\n\n{"prompt": "blue"}\n{"prompt": "blue"}\n', encoding="utf-8")
    np.save(project.root / "v.npy", np.eye(3, dtype=np.float32))
    embed(project, "embed-prompts.path=p.jsonl", "embed-prompts.vectors=v.npy")
    assert vectors_of(project).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_recipes_idle_settings_stand_aside_for_the_command_line(project):
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "p.jsonl"\nembedder = "sentence-transformers"\ndtype = "float32"\n')
    project.jsonl("p.jsonl", [{"prompt": "a"}])
    plan = project("plan", "embed-prompts", "--set", "embed-prompts.embedder=lexical").out
    assert "dtype of the recipe has no effect here" in plan
    project.run("embed-prompts", "embed-prompts.embedder=lexical")
    message = project.run("embed-prompts", "embed-prompts.embedder=lexical", "embed-prompts.dtype=float32", status=2).err
    assert "dtype has no effect" in message


def test_centring_subtracts_the_mean_of_unit_vectors(project):
    project.jsonl("pool.jsonl", [{"prompt": text} for text in "abcd"])
    given_vectors = np.random.default_rng(0).normal(size=(4, 5))
    np.save(project.root / "v.npy", given_vectors)
    embed(project, "embed-prompts.path=pool.jsonl", "embed-prompts.vectors=v.npy", "embed-prompts.center=true")
    units = given_vectors / np.linalg.norm(given_vectors, axis=1, keepdims=True)
    centred = units - units.mean(axis=0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(project), expected, atol=1e-3)


def test_lexical_vectors_need_no_weights_and_see_spelling(project):
    project.jsonl("pool.jsonl", [{"prompt": text} for text in ("a red circle", "a red circles", "the blue whale")])
    embed(project, "embed-prompts.path=pool.jsonl")
    vectors = vectors_of(project).astype(np.float32)
    assert vectors.shape == (3, 512)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]


def test_shards_do_not_show_in_the_result(project):
    project.jsonl("pool.jsonl", [{"prompt": f"prompt {row}"} for row in range(50)])
    one = embed(project, "embed-prompts.path=pool.jsonl")["content_id"]
    assert embed(project, "embed-prompts.path=pool.jsonl", "embed-prompts.shard_size=7")["content_id"] == one


def test_without_weights_the_error_says_how_to_get_them(project, monkeypatch):
    pytest.importorskip("sentence_transformers", reason="NEEDS THE EXTRA 'embed'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\n')
    project.jsonl("pool.jsonl", [{"prompt": "a"}])
    missing = "embed-prompts.model=nobody/nothing@" + "0" * 40
    message = project.run("embed-prompts", missing, status=2).err
    assert "cannot be loaded" in message and "huggingface-cli download nobody/nothing" in message
    unpinned = project.run("embed-prompts", "embed-prompts.model=nobody/nothing", status=2).err
    assert "neither a local folder nor a hub id with a pinned revision" in unpinned


# Graph


def neighbours_of(graph: Graph) -> list[list[int]]:
    return [graph.targets[start:stop].tolist() for start, stop in zip(graph.offsets[:-1], graph.offsets[1:], strict=True)]


def as_graph(neighbours: list[list[int]]) -> Graph:
    sizes = [len(row) for row in neighbours]
    targets = np.array([target for row in neighbours for target in row], dtype=np.int32)
    return Graph(np.concatenate([[0], np.cumsum(sizes)]), targets, np.zeros(len(neighbours), dtype=np.int32))


def found(points: np.ndarray, **settings) -> tuple[list[list[int]], list[float]]:
    recalls: list[float] = []
    blocks = search(PromptGraphConfig(**settings), Points(points, np.arange(len(points))), recalls, lambda count: None)
    return [row for block in blocks for row in block.targets.tolist()], recalls


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 60), st.integers(1, 12), st.integers(0, 1000))
def test_exact_search_finds_the_nearest_others(count, k, seed):
    points = np.random.default_rng(seed).normal(size=(count, 6))
    assert found(points, k=k, index="exact")[0] == knn_graph(points.astype(np.float32), min(k, count - 1))


def test_exact_duplicates_keep_k_neighbours_and_never_themselves():
    """The published code drops the first of equals instead of the prompt itself."""
    points = np.repeat(np.eye(4), 5, axis=0)
    for row, targets in enumerate(found(points, k=6, index="exact")[0]):
        assert len(targets) == len(set(targets)) == 6 and row not in targets
        assert sorted(targets)[:0] == [] and sum(target // 5 == row // 5 for target in targets) == 4


def test_the_inverted_file_measures_its_recall():
    points = np.random.default_rng(0).normal(size=(600, 12))
    some, recalls = found(points, k=10, index="ivf", probes=20)
    true = knn_graph(points.astype(np.float32), 10)
    measured = np.mean([len(set(one) & set(two)) / 10 for one, two in zip(some, true, strict=True)])
    assert 0.3 < measured < 1 and recalls[0] == pytest.approx(measured, abs=0.05)
    whole, recalls = found(points, k=10, index="ivf", probes=10_000)
    kept = np.mean([len(set(one) & set(two)) / 10 for one, two in zip(whole, true, strict=True)])
    assert kept > 0.99 and recalls[0] > 0.99, "half precision may swap near equals"


def test_sets_are_searched_apart(project):
    project.last("prompt-graph", "prompt-graph.sets=4", "prompt-graph.k=9")
    rows = project.rows(
        "WITH v AS (SELECT row_number() OVER () - 1 AS vertex, set FROM vertices)"
        " SELECT count(*) AS edges, count(*) FILTER (one.set = two.set) AS inside FROM edges"
        " JOIN v AS one ON source = one.vertex JOIN v AS two ON target = two.vertex"
    )
    assert rows[0]["edges"] == rows[0]["inside"] > 0
    artifact = project.store.open(project.store.newest("micro", "prompt-graph").content_id)
    graph = read_graph(artifact.table("edges"), artifact.table("vertices"))
    expected = {}
    for row in project.rows("SELECT source, list(target ORDER BY similarity DESC, target) AS targets FROM edges GROUP BY source"):
        expected[row["source"]] = row["targets"]
    assert dict(enumerate(neighbours_of(graph))) == expected, "every vertex has its own edges, whatever the order of sets"
    assert np.bincount(divide(10, 4, 0)).tolist() == [3, 2, 3, 2]
    assert (divide(10, 4, 0) != divide(10, 4, 1)).any()


def test_the_graph_opens_in_networkx(project, monkeypatch):
    project.last("prompt-graph", "prompt-graph.k=5")
    artifact = project.store.open(project.store.newest("micro", "prompt-graph").content_id)
    graph = to_networkx(artifact.table("edges"))
    plain = read_graph(artifact.table("edges"), artifact.table("vertices"))
    assert graph.number_of_edges() == len(plain.targets)
    assert {target for _, target in graph.out_edges(7)} == set(neighbours_of(plain)[7])
    part = to_networkx(artifact.table("edges"), range(100))
    assert set(part.nodes) == set(range(100)) and part.number_of_edges() < graph.number_of_edges()
    monkeypatch.setattr("irpipe.schemas.graph.MAX_NETWORKX_EDGES", 100)
    with pytest.raises(Exception, match="name a subset of vertices"):
        to_networkx(artifact.table("edges"))


# Vote-k


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(1, 8), st.integers(0, 10_000), st.integers(2, 12))
def test_vote_k_follows_the_plain_transcription(count, k, seed, rho):
    points = np.random.default_rng(seed).normal(size=(count, 3))
    neighbours = knn_graph(points, min(k, count - 1))
    expected, expected_scores = fast_vote_k(neighbours, count // 2, rho)
    picks, scores = vote_k(Ballot(as_graph(neighbours), rho), np.arange(count), count // 2)
    assert picks[: len(expected)] == expected
    np.testing.assert_allclose(scores[: len(expected)], expected_scores, rtol=1e-9)


def test_vote_k_by_hand():
    """0, 1 and 2 vote for 3; 3 votes for 4; 4 votes for 3.

    Scores: 3 has 4 voters, 4 has 1. Picking 3 counts once for 0, 1, 2 and 4, and 3 itself is selected, so its vote
    for 4 no longer counts: 4 has no unselected voter, and neither has anybody else.
    """
    neighbours = [[3], [3], [3], [4], [3]]
    picks, scores = vote_k(Ballot(as_graph(neighbours), 10), np.arange(5), 5)
    assert (picks, scores) == ([3, 4, 0, 1, 2], [4.0, 0.0, 0.0, 0.0, 0.0])


def test_vote_k_never_picks_twice_past_exhaustion():
    """The published code repeats picks once all votes are spent."""
    neighbours = knn_graph(np.random.default_rng(1).normal(size=(30, 3)), 4)
    picks, scores = vote_k(Ballot(as_graph(neighbours), 10), np.arange(30), 30)
    assert sorted(picks) == list(range(30)) and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", ["votek_reference_600_k20", "votek_reference_2000_k50"])
def test_vote_k_agrees_with_the_published_implementation(project, shared, name):
    golden = json.loads((shared / "golden" / f"{name}.json").read_text(encoding="utf-8"))
    lines = (shared / "data" / "diffusiondb_prompts_10k.jsonl").read_text(encoding="utf-8").splitlines()
    vectors = np.load(shared / "data" / "diffusiondb_prompts_10k.mpnet.float16.npy", mmap_mode="r")
    (project.root / "pool.jsonl").write_text("\n".join(lines[row] for row in golden["rows"]) + "\n", encoding="utf-8")
    np.save(project.root / "v.npy", vectors[golden["rows"]])
    project.last(
        "select-prompts",
        "embed-prompts.path=pool.jsonl",
        "embed-prompts.vectors=v.npy",
        f"prompt-graph.k={golden['k']}",
        f"select-prompts.count={golden['select']}",
    )
    rows = project.rows("SELECT source_row, vote_score FROM selected_prompts ORDER BY pick")
    assert [row["source_row"] for row in rows] == golden["selected"]
    np.testing.assert_allclose([row["vote_score"] for row in rows], golden["score_at_pick"], rtol=1e-12)


# Selection


SMALL = ("simulate-prompts.count=300", "prompt-graph.k=10", "select-prompts.count=40")
NO_GRAPH = ("simulate-prompts.count=300", "select-prompts.count=40")


def test_methods_are_compared_with_chance(project):
    votes = project.last("select-prompts", *SMALL)["metrics"]
    chance = project.last("select-prompts", *NO_GRAPH, "select-prompts.method=random")["metrics"]
    far = project.last("select-prompts", *NO_GRAPH, "select-prompts.method=k-center")["metrics"]
    assert chance["coverage_mean"] == chance["random_coverage_mean"] == votes["random_coverage_mean"]
    assert far["coverage_p5"] > chance["coverage_p5"] and far["redundancy_mean"] < chance["redundancy_mean"]
    assert votes["selected"] == 40
    artifact = project.store.open(project.store.newest("micro", "select-prompts").content_id)
    assert artifact.file("coverage.png").read_bytes().startswith(b"\x89PNG")


def test_only_vote_k_needs_the_graph(project):
    flags = ("--set", "select-prompts.method=random", "--set", "select-prompts.count=5", "--json")
    steps = project("plan", "select-prompts", *flags).json
    assert [step["stage"] for step in steps] == ["simulate-prompts", "embed-prompts", "select-prompts"]


def test_coverage_is_the_nearest_selected(project, context):
    from irpipe.stages.select_prompts.coverage import nearest_other, nearest_selected

    points = np.random.default_rng(0).normal(size=(50, 4))
    units = points / np.linalg.norm(points, axis=1, keepdims=True)
    picks = np.array([3, 7, 30])
    expected = (units @ units[picks].T).max(axis=1)
    np.testing.assert_allclose(nearest_selected(points, picks, "", context), expected, atol=1e-6)
    among = units[picks] @ units[picks].T - 2 * np.eye(3)
    np.testing.assert_allclose(nearest_other(points, picks), among.max(axis=1), atol=1e-6)


def test_sets_share_the_count(project):
    project.last("select-prompts", *SMALL, "prompt-graph.sets=7")
    rows = project.rows("SELECT set, count(*) AS n, min(pick) AS first FROM selected_prompts GROUP BY set ORDER BY first")
    assert [row["set"] for row in rows] == list(range(7)) and {row["n"] for row in rows} == {5, 6}


def test_selection_in_sets_is_vote_k_in_each(project):
    """The published algorithm on each set alone picks the same."""
    project.last("select-prompts", *SMALL, "prompt-graph.sets=3")
    edges = project.rows("SELECT source, list(target ORDER BY similarity DESC, target) AS targets FROM edges GROUP BY source")
    sets = [row["set"] for row in project.rows("SELECT set FROM vertices")]
    picks = project.rows(
        "WITH p AS (SELECT *, row_number() OVER () - 1 AS vertex FROM prompts)"
        " SELECT vertex, set, vote_score FROM selected_prompts JOIN p USING (prompt_id) ORDER BY pick"
    )
    for number in range(3):
        members = [vertex for vertex, own in enumerate(sets) if own == number]
        place = {vertex: row for row, vertex in enumerate(members)}
        neighbours = [[] for _ in members]
        for row in edges:
            if row["source"] in place:
                neighbours[place[row["source"]]] = [place[target] for target in row["targets"]]
        ours = [(row["vertex"], row["vote_score"]) for row in picks if row["set"] == number]
        expected, scores = fast_vote_k(neighbours, len(ours))
        assert [members[row] for row in expected] == [vertex for vertex, _ in ours]
        np.testing.assert_allclose([score for _, score in ours], scores, rtol=1e-9)


def test_excluded_prompts_are_never_selected(project):
    project.last("select-prompts", *SMALL)
    before = [row["prompt"] for row in project.rows("SELECT prompt FROM selected_prompts")]
    (project.root / "evaluation.txt").write_text("\n".join(text.upper() for text in before[:10]), encoding="utf-8")
    artifact = project.store.newest("micro", "select-prompts").content_id
    done = project.last("select-prompts", *SMALL, "select-prompts.exclude=['evaluation.txt']")
    after = {row["prompt"] for row in project.rows("SELECT prompt FROM selected_prompts")}
    assert done["metrics"]["excluded"] == 10 and not after & set(before[:10]) and len(after) == 40
    project.last("select-prompts", *SMALL, f"select-prompts.exclude=['{artifact[:16]}']")
    assert not {row["prompt"] for row in project.rows("SELECT prompt FROM selected_prompts")} & set(before)
    message = project.run("select-prompts", *SMALL, "select-prompts.exclude=['nowhere.txt']", status=2).err
    assert "nowhere.txt does not exist" in message


def test_asking_for_more_than_there_are(project):
    message = project.run("select-prompts", *SMALL[:2], "select-prompts.count=5000", status=2).err
    assert "5,000 prompts are asked for and 2" in message and "--set select-prompts.count=" in message


def test_the_real_pool(project, shared):
    """400 of the real 10,000 prompts; a second run makes nothing."""
    flags = (
        f"embed-prompts.path={shared / 'data' / 'diffusiondb_prompts_10k.jsonl'}",
        f"embed-prompts.vectors={shared / 'data' / 'diffusiondb_prompts_10k.mpnet.float16.npy'}",
        "prompt-graph.k=150",
        "select-prompts.count=400",
    )
    first = project.last("select-prompts", *flags)
    assert first["metrics"]["coverage_mean"] > first["metrics"]["random_coverage_mean"]
    again = project("run", "select-prompts", "--json", *(part for flag in flags for part in ("--set", flag))).events
    assert [event["event"] for event in again if event["event"] != "message"] == ["reused", "reused", "reused", "done"]
    assert again[-1]["content_id"] == first["content_id"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_real_sentence_model_saved_by_the_test(project, tmp_path, dtype):
    """The real loading code on a tiny MPNet of the same classes, from a local folder."""
    pytest.importorskip("sentence_transformers", reason="NEEDS THE EXTRA 'embed'")
    folder = tiny_sentence_model(tmp_path / "model")
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\n')
    project.jsonl(
        "pool.jsonl", [{"prompt": f"a {word} circle " * (1 + row)} for row, word in enumerate(("red", "blue", "green"))]
    )
    flags = (f"embed-prompts.model={folder}", f"embed-prompts.dtype={dtype}", "embed-prompts.device=cpu")
    one = project.last("embed-prompts", *flags)
    other = project.last("embed-prompts", *flags, "embed-prompts.shard_size=1")
    vectors = [np.load(project.store.open(done["content_id"]).file("vectors.npy")).astype(np.float32) for done in (one, other)]
    assert vectors[0].shape == (3, 16)
    cosine = (vectors[0] * vectors[1]).sum(1) / np.linalg.norm(vectors[0], axis=1) / np.linalg.norm(vectors[1], axis=1)
    assert (cosine > 0.999).all()
    (folder / "model.safetensors").touch()
    assert project.last("embed-prompts", *flags)["key"] == one["key"], "a model counts by content"


def tiny_sentence_model(folder):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "red", "blue", "green", "circle"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = MPNetTokenizerFast(vocab=str(folder / "vocab.txt"))
    config = MPNetConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64,
    )  # fmt: skip
    MPNetModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    word = Transformer(str(folder / "base"), max_seq_length=32)
    SentenceTransformer(modules=[word, Pooling(16)], device="cpu").save(str(folder / "whole"))
    return folder / "whole"
