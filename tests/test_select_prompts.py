"""The graph of a pool of prompts, and the chosen ones."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.stage import Context
from irpipe.schemas.graph import EDGES, Graph, read_graph
from irpipe.stages.prompt_graph import PromptGraphConfig
from irpipe.stages.prompt_graph import parts as graph_parts
from irpipe.stages.prompt_graph import run as graph_run
from irpipe.stages.prompt_graph.parts import EDGES_FILE, Pool, Searcher, divide
from irpipe.stages.select_prompts.run import k_center
from irpipe.stages.select_prompts.votek import Ballot, vote_k
from tests.oracles import fast_vote_k, knn_graph

# Graph


def neighbours_of(graph: Graph) -> list[list[int]]:
    return [graph.targets[start:stop].tolist() for start, stop in zip(graph.offsets[:-1], graph.offsets[1:], strict=True)]


def as_graph(neighbours: list[list[int]]) -> Graph:
    sizes = [len(row) for row in neighbours]
    targets = np.array([target for row in neighbours for target in row], dtype=np.int32)
    return Graph(np.concatenate([[0], np.cumsum(sizes)]), targets, np.zeros(len(neighbours), dtype=np.int32))


def found(points: np.ndarray, **settings) -> tuple[list[list[int]], float]:
    """Neighbours of each point, and the recall, by the stage's own parts."""
    with TemporaryDirectory() as folder:
        np.save(Path(folder, "vectors.npy"), points)
        pool = Pool(PromptGraphConfig(**settings), Path(folder, "vectors.npy"))
        context = Context(Path(folder, "work"), Watcher().progress, lambda text: None, {})
        lists, made = graph_run.search(pool, context)
        rows = EDGES.read([shard / EDGES_FILE for shard in made]).to_pydict()
        neighbours: list[list[int]] = [[] for _ in points]
        for source, target in zip(rows["source"], rows["target"], strict=True):
            neighbours[source].append(target)
        return neighbours, graph_run.recall(pool, 0, made) if lists else 1.0


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
        assert [target // 5 for target in targets[:4]] == [row // 5] * 4, "its four copies come first"


def test_the_inverted_file_measures_its_recall():
    points = np.random.default_rng(0).normal(size=(600, 12))
    some, recall = found(points, k=10, index="ivf", probes=20)
    true = knn_graph(points.astype(np.float32), 10)
    measured = np.mean([len(set(one) & set(two)) / 10 for one, two in zip(some, true, strict=True)])
    assert 0.3 < measured < 1 and recall == pytest.approx(measured, abs=0.05)
    whole, recall = found(points, k=10, index="ivf", probes=10_000)
    kept = np.mean([len(set(one) & set(two)) / 10 for one, two in zip(whole, true, strict=True)])
    assert kept > 0.99 and recall > 0.99, "half precision may swap near equals"


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 9))
def test_an_inverted_file_of_few_prompts(count, probes, rows):
    """faiss's big batches need more queries than lists; the rows of a part are a division of all."""
    points = np.random.default_rng(count).normal(size=(count, 6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_parts, "INDEXED_ROWS", rows)
        neighbours, recall = found(points, k=5, index="ivf", probes=probes)
    assert all(row not in targets and len(set(targets)) == len(targets) for row, targets in enumerate(neighbours))
    if count == 1:
        assert neighbours == [[]] and recall == 1.0
        return
    true = knn_graph(points.astype(np.float32), min(5, count - 1))
    hits = sum(len(set(one) & set(two)) for one, two in zip(neighbours, true, strict=True))
    assert recall == pytest.approx(hits / (count * min(5, count - 1)), abs=1e-9), "the sample is all of so few"


def test_a_worker_is_sent_without_the_pools_vectors(tmp_path):
    np.save(tmp_path / "vectors.npy", np.ones((5000, 64), dtype=np.float16))
    pool = Pool(PromptGraphConfig(), tmp_path / "vectors.npy")
    assert len(pool.points(0)) == 5000
    assert len(pickle.dumps(Searcher(pool))) < 2000


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


def test_k_center_by_hand(context):
    """Angles of 0, 10, 20, 90 and 180 degrees have their mean at 38: 20 is nearest to it, then 180 and 90 are farthest."""
    angles = np.deg2rad([38, 0, 10, 20, 90, 180])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.array([[9, 1, 2, 3, 1, 2]]).T  # lengths do not count
    assert k_center(points, np.arange(1, 6), 5, context).tolist() == [3, 5, 4, 1, 2]


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
    assert [event["event"] for event in again if event["event"] != "message"] == ["plan", "reused", "reused", "reused", "done"]
    assert again[-1]["content_id"] == first["content_id"]
