"""Rankings to pairs, and splits without leaks."""

from __future__ import annotations

import json
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irpipe.pipeline.errors import LeakError
from irpipe.pipeline.hashing import row_id
from irpipe.schemas.annotations import PROMPT_LABELS, RANKINGS
from irpipe.schemas.embeddings import unit_rows
from irpipe.schemas.prompts import normalise
from irpipe.stages.build_pairs.aggregate import aggregates
from irpipe.stages.build_pairs.expand import Rankings, candidate_pairs, read_rankings
from irpipe.stages.build_pairs.facts import Facts, label_facts
from irpipe.stages.build_pairs.run import examine, pair_columns
from irpipe.stages.split_prompts.cut import components, cut
from irpipe.stages.split_prompts.links import Link, links_by_text, links_by_vector
from tests.oracles import pairs_of


def ranking(prompt="a cat", images="abc", ranks=(1, 2, 3), **more):
    names = [f"{prompt}/{image}" for image in images]
    return {"prompt": prompt, "images": names, "ranking": list(ranks), **more}


def build(project, records, *settings, status=0):
    flags = (f"load-annotations.path={project.jsonl('mine.jsonl', records)}", *settings)
    return project.run("build-pairs", *flags, status=status) if status else project.last("build-pairs", *flags)


def made(project):
    """(better, worse) by path, with the split."""
    return project.rows(
        "SELECT b.path AS better, w.path AS worse, split, weight, category, rank_better, rank_worse, annotator FROM pairs"
        " JOIN annotation_images b ON better = b.image_id JOIN annotation_images w ON worse = w.image_id"
    )


# Pairs


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=9), min_size=0, max_size=12))
def test_pairs_are_those_of_a_plain_double_loop(rankings):
    ids = [number for number, ranks in enumerate(rankings) for _ in ranks]
    images = np.arange(len(ids), dtype=np.uint64)
    ranks = np.array([rank for row in rankings for rank in row], dtype=np.int32)
    block = Rankings.of(
        np.array(ids, np.uint64), np.zeros(len(ids), np.uint64), images, ranks, [None] * len(ids), np.zeros(len(ids), bool)
    )
    facts = plain_facts()
    found = examine(block, {}, facts)
    keep = found.reason < 0
    columns = pair_columns(found, keep, facts, np.ones(1))
    expected = set()
    start = 0
    for row in rankings:
        names = [str(place) for place in range(start, start + len(row))]
        expected |= {(int(better), int(worse)) for better, worse in pairs_of(names, row)}
        start += len(row)
    assert set(zip(columns["better"].tolist(), columns["worse"].tolist(), strict=True)) == expected
    assert len(keep) == sum(len(row) * (len(row) - 1) // 2 for row in rankings)
    assert len(set(columns["pair_id"].tolist())) == len(expected)


def plain_facts() -> Facts:
    one = np.zeros(1, dtype=np.uint64)
    return Facts(
        one,
        np.zeros(1, np.int8),
        np.zeros(1, bool),
        np.full(1, -1),
        pa.array([], pa.string()),
        np.empty(0, np.uint64),
        None,
        np.zeros(1, np.int64),
    )


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=30))
def test_candidates_stand_in_the_order_of_rankings_and_places(sizes):
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    first, second = candidate_pairs(starts)
    expected = [pair for start, size in zip(starts, sizes, strict=False) for pair in combinations(range(start, start + size), 2)]
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == expected


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=0, max_size=40), st.integers(1, 20))
def test_blocks_hold_whole_rankings(tmp_path_factory, sizes, block):
    folder = tmp_path_factory.mktemp("rankings")
    ids = np.repeat(np.arange(len(sizes)), sizes)
    columns = {
        "ranking_id": ids,
        "prompt_id": ids,
        "image_id": np.arange(len(ids)),
        "rank": np.arange(len(ids)),
        "annotator": [f"u{row % 3}" if row % 5 else None for row in range(len(ids))],
        "choice": [False] * len(ids),
    }
    RANKINGS.write(folder, columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("irpipe.stages.build_pairs.expand._ROWS_PER_BLOCK", block)
        blocks = list(read_rankings([folder / "rankings.parquet"]))
    assert [row for part in blocks for row in part.images.tolist()] == list(range(len(ids)))
    assert [name for part in blocks for name in part.annotators.to_pylist()] == columns["annotator"]
    assert [stop - start for part in blocks for start, stop in zip(part.starts, part.starts[1:], strict=False)] == sizes


def test_pairs_by_hand(project):
    """Ranks 1 2 2 4 with a gap: a beats all, d loses to all, b and c tie."""
    done = build(project, [ranking(images="abcd", ranks=(1, 2, 2, 4), annotator="u", labels={"category": "Animals"})])
    found = {(row["better"][-1], row["worse"][-1]): row for row in made(project)}
    assert set(found) == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")}
    assert found["b", "d"]["rank_better"] == 2 and found["b", "d"]["rank_worse"] == 4
    assert {row["annotator"] for row in found.values()} == {"u"}
    assert {row["category"] for row in found.values()} == {"Animals"}
    assert done["metrics"]["candidate_pairs"] == 6 and done["metrics"]["ties"] == 1
    assert project.rows("SELECT reason FROM build_pairs.rejected") == [{"reason": "tie"}]


def test_ties_are_never_oriented(project):
    message = build(project, [ranking(ranks=(2, 2, 2))], status=2).err
    assert "none of 3 candidate pairs can be kept" in message and "'tie': 3" in message


def test_pairs_never_cross_records(project):
    """Two records of one prompt: ranks of different records do not compare."""
    records = [ranking(images="ab", ranks=(1, 2), ranking_id="r"), ranking(images="cd", ranks=(5, 3), ranking_id="s")]
    build(project, records)
    assert {(row["better"][-1], row["worse"][-1]) for row in made(project)} == {("a", "b"), ("d", "c")}


def test_unranked_images_make_no_pairs(project):
    build(project, [ranking(ranks=(1, None, 3))])
    assert [(row["better"][-1], row["worse"][-1]) for row in made(project)] == [("a", "c")]


def test_weights_of_a_prompt_sum_to_one(project):
    records = [ranking(), ranking("a dog", "ab", (1, 2)), ranking(ranking_id="again", ranks=(1, 1, 2))]
    build(project, records, "build-pairs.weighting=prompt")
    rows = project.rows("SELECT prompt_id, sum(weight) AS total FROM pairs GROUP BY prompt_id")
    assert [row["total"] for row in rows] == [pytest.approx(1)] * 2
    build(project, records)
    assert {row["weight"] for row in made(project)} == {1.0}


def test_labels_and_problems_take_prompts_and_images_out(project):
    records = [
        ranking("a cat", problems=[[], ["body_problem"], []]),
        ranking("a dog", labels={"intent_unclear": True}),
        ranking("a bird", labels={"unsafe": ["violent"]}),
        ranking("a fish", labels={"category": "Animals", "intent_unclear": False}),
    ]
    done = build(project, records)
    assert done["metrics"]["rejected_for"] == {"prompt label": 6} and done["metrics"]["pairs"] == 6
    done = build(project, records, "build-pairs.drop_labels=['violent']", "build-pairs.drop_image_problems=['body_problem']")
    assert done["metrics"]["rejected_for"] == {"prompt label": 3, "image problem": 2}


@pytest.mark.parametrize(("votes", "category"), [("AB", None), ("AAB", "A"), ("BBA", "B"), ("AABBC", None), ("", None)])
def test_a_prompts_category_is_the_most_frequent_or_none(tmp_path, votes, category):
    count = len(votes)
    columns = {
        "ranking_id": range(count),
        "prompt_id": [7] * count,
        "category": list(votes),
        "intent_unclear": [None] * count,
        "unsafe": [[]] * count,
    }
    PROMPT_LABELS.write(tmp_path, columns)
    labels = SimpleNamespace(table=lambda name: [tmp_path / f"{name}.parquet"])
    dropped, categories, names = label_facts(labels, {7: 0}, ())
    assert dropped.tolist() == [False]
    assert (names[categories[0]].as_py() if categories[0] >= 0 else None) == category


def test_the_same_input_gives_the_same_bytes(project):
    records = [ranking(f"prompt {row}", "abcde", np.random.default_rng(row).integers(1, 6, 5).tolist()) for row in range(40)]
    one = build(project, records)["content_id"]
    project("gc", "--yes")
    assert project("verify", "--rerun", "--json").json["rerun"][-1]["after"] == one


def test_the_real_rankings(project, shared):
    path = shared / "data" / "imagerewarddb_rankings_120.json"
    flags = (f"load-annotations.path={path}", "load-annotations.format=imagereward-json")
    metrics = project.last("build-pairs", *flags)["metrics"]
    assert (metrics["candidate_pairs"], metrics["ties"], metrics["pairs"]) == (1853, 211, 1642)
    data = json.loads(path.read_text(encoding="utf-8"))
    expected = {pair for item in data for pair in pairs_of(item["generations"], item["ranking"])}
    assert {(row["better"], row["worse"]) for row in made(project)} == expected


# Several annotators


def three(*votes):
    return [ranking(images="ab" if len(vote) == 2 else "abc", ranks=vote, annotator=f"u{n}") for n, vote in enumerate(votes)]


def test_majority_by_hand(project):
    """a beats b and c 3 : 0; b and c are ordered once each way and tied once: a conflict, dropped."""
    done = build(project, three((1, 2, 3), (1, 3, 2), (1, 2, 2)), "build-pairs.aggregate=majority")
    assert {(row["better"][-1], row["worse"][-1]) for row in made(project)} == {("a", "b"), ("a", "c")}
    assert done["metrics"]["conflicts"] == 1 and made(project)[0]["rank_better"] is None


def test_a_pair_that_all_tie_is_a_tie_not_a_conflict(project):
    done = build(project, three((1, 1, 2), (1, 1, 2)), "build-pairs.aggregate=majority")
    assert done["metrics"]["ties"] == 1 and done["metrics"]["conflicts"] == 0


def test_majority_keeps_a_circle(project):
    """Condorcet: a > b, b > c, c > a, each 2 : 1. No ranking says that; three pairs do."""
    build(project, three((1, 2, 3), (3, 1, 2), (2, 3, 1)), "build-pairs.aggregate=majority")
    assert {(row["better"][-1], row["worse"][-1]) for row in made(project)} == {("a", "b"), ("b", "c"), ("c", "a")}


@pytest.mark.parametrize("method", ["borda", "bradley-terry"])
def test_joint_rankings(project, method):
    """Rank sums 4, 5, 9: a before b before c. A circle of votes ties all."""
    build(project, three((1, 2, 3), (1, 2, 3), (2, 1, 3)), f"build-pairs.aggregate={method}")
    assert {(row["better"][-1], row["worse"][-1]) for row in made(project)} == {("a", "b"), ("a", "c"), ("b", "c")}
    assert (
        "none of 3 candidate pairs"
        in build(project, three((1, 2, 3), (3, 1, 2), (2, 3, 1)), f"build-pairs.aggregate={method}", status=2).err
    )


def test_aggregation_joins_only_the_same_images(project):
    records = [*three((1, 2), (2, 1)), ranking(images="abc", annotator="u9"), ranking("a dog", "ab", (2, 1))]
    done = build(project, records, "build-pairs.aggregate=majority")
    found = {(row["better"], row["worse"]) for row in made(project)}
    assert found == {("a cat/a", "a cat/b"), ("a cat/a", "a cat/c"), ("a cat/b", "a cat/c"), ("a dog/b", "a dog/a")}
    assert done["metrics"]["conflicts"] == 1


def test_choices_say_nothing_of_the_others(project):
    """HPS: one image was chosen; the others were not compared, which is no tie."""
    record = {"human_preference": 1, "prompt": "a cat", "id": 5, "file_path": ["a", "b", "c"], "user_hash": "u"}
    (project.root / "hps.json").write_text(json.dumps([record]), encoding="utf-8")
    done = project.last("build-pairs", "load-annotations.path=hps.json", "load-annotations.format=hps-json")
    assert done["metrics"]["rejected_for"] == {"not compared": 1} and done["metrics"]["pairs"] == 2


def test_choices_that_contradict_each_other_are_a_conflict(project):
    records = [
        {"human_preference": chosen, "prompt": "a cat", "id": chosen, "file_path": ["a", "b", "c"], "user_hash": f"u{chosen}"}
        for chosen in (0, 1)
    ]
    (project.root / "hps.json").write_text(json.dumps(records), encoding="utf-8")
    flags = ("load-annotations.path=hps.json", "load-annotations.format=hps-json", "build-pairs.aggregate=majority")
    assert project.last("build-pairs", *flags)["metrics"]["rejected_for"] == {"conflict": 1}


def test_vectors_can_be_connected_on_purpose(project):
    """Near-duplicates among one's own annotations, by the vectors of one's own pool."""
    text = (project.root / "irpipe.toml").read_text(encoding="utf-8")
    project.recipe(text + '\n[split-prompts.reads]\nembeddings = "embed-prompts"\n')
    project.jsonl("pool.jsonl", [{"prompt": "a cat"}, {"prompt": "a dog"}])
    build(project, [ranking(), ranking("a dog")], "embed-prompts.path=pool.jsonl")
    splits = project.store.newest("micro", "split-prompts")
    assert splits.metrics["prompts_with_vector"] == 2 and "selected-prompts" not in splits.inputs


def test_strengths_that_are_nearly_equal_tie_wherever_they_lie():
    """Not by rounding: 0.5 and 1.5 of a step would fall apart, 0.49 and 0.51 too."""
    from irpipe.stages.build_pairs import aggregate

    choix = pytest.importorskip("choix")
    for one, two, ties in ((0.49999, 0.50001, True), (0.2, 0.9, True), (0.2, 1.5, False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                choix, "opt_pairwise", lambda *args, one=one, two=two, **kw: np.array([one, two]) * aggregate._SAME_STRENGTH
            )
            ranks = aggregate._bradley_terry(np.array([[1.0, 2.0]]))
        assert (ranks[0] == ranks[1]) == ties


def test_aggregates_do_not_depend_on_the_order_of_images():
    ids = np.array([1, 1, 1, 2, 2, 2], np.uint64)
    images = np.array([10, 11, 12, 12, 11, 10], np.uint64)
    rankings = Rankings.of(
        ids, np.ones(6, np.uint64), images, np.array([1, 2, 3, 3, 2, 1], np.int32), ["u"] * 3 + ["v"] * 3, np.zeros(6, bool)
    )
    joined, _ = aggregates(rankings, "borda")
    assert dict(zip(joined.images.tolist(), joined.ranks.tolist(), strict=True)) == {10: 1, 11: 2, 12: 3}
    assert joined.annotators.to_pylist() == [None] * 3


# Splits

TEXTS = [f"prompt number {row}" for row in range(200)]


def test_splits_have_their_shares_and_depend_on_the_seed_alone():
    one = cut(TEXTS, [], {}, (0.1, 0.2), 0)
    assert np.bincount(one).tolist() == [140, 20, 40]
    assert (cut(TEXTS, [], {}, (0.1, 0.2), 0) == one).all() and (cut(TEXTS, [], {}, (0.1, 0.2), 1) != one).any()
    backwards = cut(TEXTS[::-1], [], {}, (0.1, 0.2), 0)[::-1]
    assert (backwards == one).all(), "the order of prompts does not matter"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60), st.integers(0, 5))
def test_related_prompts_share_a_split(pairs, seed):
    links = [Link(one, two, "") for one, two in pairs if one != two]
    splits = cut(TEXTS[:40], links, {}, (0.2, 0.2), seed)
    assert all(splits[link.first] == splits[link.second] for link in links)
    labels = components(40, links)
    assert (np.bincount(splits, minlength=3)[1:] <= 8).all() and len(labels) == 40


def test_little_data_trains():
    assert cut(TEXTS[:1], [], {}, (0.05, 0.05), 0).tolist() == [0]
    for count in range(2, 6):
        assert 0 in cut(TEXTS[:count], [], {}, (0.05, 0.05), 0)
    assert cut(TEXTS[:2], [], {0: "train"}, (0.05, 0.05), 0).tolist() == [0, 2]


def test_the_first_drawn_is_for_the_test_and_the_last_trains():
    drawn = sorted(range(3), key=lambda place: row_id("split", 0, normalise(TEXTS[place])))
    assert cut(TEXTS[:3], [], {}, (0.3, 0.3), 0)[drawn].tolist() == [2, 1, 0]


def test_given_splits_are_honoured():
    given_splits = {3: "test", 4: "validation", 5: "train"}
    splits = cut(TEXTS, [Link(3, 9, "")], given_splits, (0.1, 0.1), 0)
    assert splits[[3, 9, 4, 5]].tolist() == [2, 2, 1, 0]


def test_a_leak_is_named():
    with pytest.raises(LeakError, match=r"'prompt number 3' and 'prompt number 9' are twins"):
        cut(TEXTS, [Link(3, 9, "twins")], {3: "train", 9: "test"}, (0.1, 0.1), 0)
    with pytest.raises(LeakError, match="related through other prompts"):
        cut(TEXTS, [Link(3, 5, "x"), Link(5, 9, "x")], {3: "train", 9: "test"}, (0.1, 0.1), 0)


def test_texts_equal_after_normalisation_are_related():
    links = links_by_text(["A cat!", "a dog", "a  cat", "a bird"])
    assert [(link.first, link.second) for link in links] == [(0, 2)]


def test_near_vectors_are_related():
    points = np.array([[1, 0], [0.995, 0.0999], [0, 1]], dtype=np.float32)
    assert [(link.first, link.second) for link in links_by_vector(np.array([4, 7, 9]), points, 0.95)] == [(4, 7)]


def test_many_equal_vectors_cost_few_links_and_all_belong_together():
    points = np.repeat(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32), 700, axis=0)
    links = links_by_vector(np.arange(2100), unit_rows(points.astype(np.float16)), 1.0)
    assert len(links) < 10_000 and len(np.unique(components(2100, links))) == 3


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(0, 100))
def test_near_vectors_belong_together_as_all_pairs_say(count, seed):
    points = np.random.default_rng(seed).normal(size=(count, 2)).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    every = [Link(one, two, "") for one, two in combinations(range(count), 2) if points[one] @ points[two] >= 0.99 - 1e-5]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("irpipe.stages.split_prompts.links._BLOCK", 7)
        found = links_by_vector(np.arange(count), points, 0.99)
    ours, expected = components(count, found), components(count, every)
    assert len(set(zip(ours.tolist(), expected.tolist(), strict=True))) == len(set(ours.tolist())) == len(set(expected.tolist()))


@pytest.mark.parametrize(
    ("one", "two", "why"),
    [
        (ranking("A cat!", "ab", (1, 2), split="train"), ranking("a cat", "cd", (1, 2), split="test"), "the same text"),
        (
            {"prompt": "a dog", "images": ["same.png", "x"], "ranking": [1, 2], "split": "train"},
            {"prompt": "a bird", "images": ["y", "same.png"], "ranking": [1, 2], "split": "validation"},
            "annotated on the same image",
        ),
    ],
)
def test_a_planted_leak_fails_the_stage(project, one, two, why):
    message = build(project, [one, two], status=2).err
    assert "leak" in message and why in message


def test_one_prompt_in_two_given_splits(project):
    records = [ranking(split="train", ranking_id="r"), ranking(split="test", ranking_id="s")]
    assert "stands in the splits train and test" in build(project, records, status=2).err


def simulated(project, renders):
    """The micro recipe with rendered images in the generator's place."""
    text = (project.root / "irpipe.toml").read_text(encoding="utf-8")
    head, _, tail = text.partition("[generate-images]")
    project.recipe(head + '[import-images]\nlayout = "folder"\nimage_root = "images"\n\n' + tail[tail.index("[simulate-") :])
    (project.root / "images").symlink_to(renders)
    return ("simulate-prompts.count=200", "select-prompts.count=30", "prompt-graph.k=10", "load-annotations.split=train")


def test_vectors_are_used_where_they_are_at_hand(project, pool_renders):
    """In the recipe the annotations come from embedded prompts; given annotations do not, and nothing is embedded."""
    small = simulated(project, pool_renders)
    done = project.last("split-prompts", *small)
    assert done["metrics"]["prompts_with_vector"] == 30
    loose = project.last("split-prompts", *small, "split-prompts.near_duplicate=0.3")
    assert loose["metrics"]["components"] < done["metrics"]["components"]
    message = build(project, [ranking()], "split-prompts.near_duplicate=0.3", status=2).err
    assert "near_duplicate has no effect" in message


def test_images_at_hand(project, import_recipe):
    """Images that import-images rejected make no pairs, and equal bytes relate prompts and are no pair."""
    from tests.test_images import picture

    root = project.root / "images"
    for name, data in {
        "a cat/a": picture("red"),
        "a cat/b": picture("blue"),
        "a cat/c": picture("blue"),
        "a cat/d": b"broken",
        "a dog/a": picture("red"),
        "a dog/b": picture("green"),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    records = [ranking(images="abcd", ranks=(1, 2, 3, 4)), ranking("a dog", "ab", (1, 2))]
    flags = ("import-images.image_root=images", "build-pairs.use_images=true", "split-prompts.use_images=true")
    done = build(project, records, *flags)
    assert done["metrics"]["rejected_for"] == {"image not at hand": 3, "same image": 1}
    assert done["metrics"]["pairs"] == 3
    assert project.last("split-prompts", *flags[::2], "load-annotations.path=mine.jsonl")["metrics"]["components"] == 1
    divided = build(project, records, *flags[:2], "split-prompts.validation_share=0.5", "split-prompts.test_share=0.0", status=2)
    assert "have images of the same bytes" in divided.err and "split-prompts.use_images=true" in divided.err


def test_a_row_can_be_traced_both_ways(project, pool_renders):
    project.last("build-pairs", *simulated(project, pool_renders), "simulate-annotations.annotators_per_prompt=8")
    pair = project.rows("SELECT pair_id, prompt_id, better FROM pairs LIMIT 1")[0]
    rows = project("trace", pair["pair_id"], "--json").json
    assert {row["table"] for row in rows} >= {"pairs", "rankings", "annotation_images", "selected_prompts", "prompts"}
    back = project("trace", pair["prompt_id"], "--json").json
    assert pair["pair_id"] in {row["row"].get("pair_id") for row in back}
    cut_short = [row for row in back if row["more"]]
    assert cut_short and "more rows not shown" in project("trace", pair["prompt_id"]).out
    assert "is not a row id" in project("trace", "xyz", status=2).err
    assert "no table of the recipe" in project("trace", "0" * 16, status=2).err
    assert project.rows(f"SELECT count(*) AS n FROM pairs WHERE pair_id = row_id('{pair['pair_id']}')") == [{"n": 1}]


def test_pairs_open_in_pandas_and_duckdb(project):
    done = build(project, [ranking()])
    table = pq.read_table(project.store.open(done["content_id"]).table("pairs")[0])
    assert table.num_rows == 3 and table.schema.field("better").metadata[b"doc"]
