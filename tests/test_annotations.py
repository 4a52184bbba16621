"""Anybody's annotations in one canonical form."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from irpipe.stages.load_annotations.agreement import agreement, kendalls_w, krippendorffs_alpha
from irpipe.stages.load_annotations.check import Record
from irpipe.stages.load_annotations.readers import read_records


def load(project, path, *settings, status=0):
    flags = (f"load-annotations.path={path}", *settings)
    return project.run("load-annotations", *flags, status=status) if status else project.last("load-annotations", *flags)


def ranks(project):
    """{prompt: {path: rank}} of every record, in order."""
    rows = project.rows(
        "SELECT prompt, path, rank, hex(ranking_id) AS record FROM rankings JOIN annotation_images USING (image_id)"
        " JOIN annotated_prompts ON rankings.prompt_id = annotated_prompts.prompt_id"
    )
    found: dict[tuple[str, str], dict[str, int]] = {}
    for row in rows:
        found.setdefault((row["prompt"], row["record"]), {})[row["path"]] = row["rank"]
    return sorted((prompt, images) for (prompt, _), images in found.items())


def write_json(project, name, data):
    path = project.root / name
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


# One fixture a shape, all saying the same: of a cat's images a beats b and ties with c.
CAT = [("a cat", {"a": 1, "b": 2, "c": 1})]


def imagereward(project):
    record = {"id": "000001-0001", "prompt": "a cat", "generations": ["a", "b", "c"], "ranking": [1, 2, 1]}
    return write_json(project, "train.json", [record]), "imagereward-json"


def imagerewarddb(project):
    rows = {
        "image_path": ["a", "b", "c"],
        "prompt_id": ["000001-0001"] * 3,
        "prompt": ["a cat"] * 3,
        "classification": ["Animals"] * 3,
        "image_amount_in_total": pa.array([3] * 3, pa.int8()),
        "rank": pa.array([1, 2, 1], pa.int8()),
        "overall_rating": pa.array([7, 1, 7], pa.int8()),
        "image_text_alignment_rating": pa.array([7, 1, 4], pa.int8()),
        "fidelity_rating": pa.array([7, 1, 4], pa.int8()),
    }
    path = project.root / "metadata.parquet"
    pq.write_table(pa.table(rows), path)
    return path, "imagerewarddb"


def hpdv2_train(project):
    record = {"prompt": "a cat", "file_path": ["a", "b", "c"], "human_preference": [1, 0, 1]}
    return write_json(project, "train.json", [record]), "hpdv2-json"


def hpdv2_test(project):
    record = {"prompt": "a cat", "image_path": ["a", "b", "c"], "rank": [1.5, 3.0, 1.5], "raw_annotations": []}
    record["raw_annotations"] = [{"rank": [1, 2, 1], "user_hash": "u"}]
    return write_json(project, "test.json", [record]), "hpdv2-json"


def jsonl(project):
    return project.jsonl("mine.jsonl", [{"prompt": "a cat", "images": ["a", "b", "c"], "ranking": [1, 2, 1]}]), "jsonl"


def own_csv(project):
    path = project.root / "mine.csv"
    path.write_text("ranking_id,prompt,image,rank\nr,a cat,a,1\nr,a cat,b,2\nr,a cat,c,1\n", encoding="utf-8")
    return path, "csv"


@pytest.mark.parametrize("make", [imagereward, imagerewarddb, hpdv2_train, hpdv2_test, jsonl, own_csv])
def test_every_shape_gives_the_same_records(project, make):
    path, kind = make(project)
    done = load(project, path, f"load-annotations.format={kind}")
    assert ranks(project) == CAT
    assert done["rows"] == {"read": 1, "kept": 1, "rejected": 0}


def test_hps_choices(project):
    record = {
        "human_preference": 1,
        "prompt": "a cat",
        "id": 5,
        "file_path": ["a", "b", "c"],
        "user_hash": "u",
        "contain_name": False,
    }
    path = write_json(project, "preference_train.json", [record])
    load(project, path, "load-annotations.format=hps-json")
    assert ranks(project) == [("a cat", {"a": 2, "b": 1, "c": 2})]
    assert project.rows("SELECT annotator FROM annotations") == [{"annotator": "u"}]


def pickapic(project, labels, has_label=True):
    columns = {
        "caption": "a cat",
        "image_0_uid": "a",
        "image_1_uid": "b",
        "label_0": labels[0],
        "label_1": labels[1],
        "has_label": has_label,
        "ranking_id": 9,
        "user_id": 4,
    }
    path = project.root / "train-00000.parquet"
    pq.write_table(pa.table({name: [value] for name, value in columns.items()}), path)
    return path


@pytest.mark.parametrize(("labels", "expected"), [((1.0, 0.0), (1, 2)), ((0.0, 1.0), (2, 1)), ((0.5, 0.5), (1, 1))])
def test_pickapic_labels(project, labels, expected):
    load(project, pickapic(project, labels), "load-annotations.format=pickapic")
    assert ranks(project) == [("a cat", dict(zip("ab", expected, strict=True)))]


def test_pickapic_without_label_is_no_record(project):
    """Train splits hold many such rows: they are filtered, not bad."""
    message = load(project, pickapic(project, (0.0, 0.0), False), "load-annotations.format=pickapic", status=2).err
    assert "none of 1 rows can be kept: row 0: no label" in message
    labelled, unlabelled = pickapic(project, (1.0, 0.0)), project.root / "half.parquet"
    rows = pq.read_table(labelled).to_pylist() + [
        {**pq.read_table(labelled).to_pylist()[0], "has_label": False, "ranking_id": row} for row in range(200)
    ]
    pq.write_table(pa.Table.from_pylist(rows), unlabelled)
    assert load(project, unlabelled, "load-annotations.format=pickapic")["rows"]["kept"] == 1


def test_hpdv2_averaged_ranks_without_raw_votes(project):
    record = {"prompt": "a cat", "image_path": ["a", "b", "c"], "rank": [2.5, 1.2, 2.5]}
    load(project, write_json(project, "test.json", [record]), "load-annotations.format=hpdv2-json")
    assert ranks(project) == [("a cat", {"a": 2, "b": 1, "c": 2})]


def test_choices_have_no_direction(project):
    path, kind = hpdv2_train(project)
    load(project, path, f"load-annotations.format={kind}", "load-annotations.rank_direction=higher-is-better")
    assert ranks(project) == CAT


def test_files_of_a_folder_may_count_alike(project):
    (project.root / "data").mkdir()
    for name, prompt in (("train", "a cat"), ("test", "a dog")):
        record = {"id": "1", "prompt": prompt, "generations": ["a", "b"], "ranking": [1, 2]}
        (project.root / "data" / f"{name}.json").write_text(json.dumps([record]), encoding="utf-8")
    assert load(project, "data", "load-annotations.format=imagereward-json")["rows"]["kept"] == 2
    assert project.rows("SELECT source_row FROM annotations ORDER BY 1") == [{"source_row": 0}, {"source_row": 1}]


def test_rows_of_a_folders_files_are_counted_on_where_records_join_rows(project):
    """Three rows make one record in each of three files; the second of the middle one has a bad rank."""
    (project.root / "data").mkdir()
    for name, rank in (("a", "2"), ("b", "first"), ("c", "2")):
        rows = f"r,a cat,x,1\nr,a cat,y,{rank}\nr,a cat,z,3\n"
        (project.root / "data" / f"{name}.csv").write_text(f"ranking_id,prompt,image,rank\n{rows}", encoding="utf-8")
    assert [(one.row, one.last_row) for one in read_records(project.root / "data", "csv", print)] == [(0, 2), (3, 5), (6, 8)]
    load(project, "data", "load-annotations.format=csv", "load-annotations.max_rejected=0.5")
    assert project.rows("SELECT source_row FROM annotations ORDER BY 1") == [{"source_row": 0}, {"source_row": 6}]
    assert project.rows("SELECT row FROM load_annotations.rejected") == [{"row": 3}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"prompt": "\xff"}', "is not UTF-8"),
        ("x.csv", b"ranking_id,prompt,image,rank\n\xff,a,b,1\n", "is not UTF-8"),
        ("x.csv", b"ranking_id,prompt,image\n", "no column 'rank'"),
        ("x.csv", b"ranking_id,prompt,image,rank,rnak\nr,p,i,1,2\n", "unknown column 'rnak'; did you mean 'rank'?"),
        ("x.jsonl", b"[" * 100_000, "none of 1 rows can be kept: row 0: not JSON"),
        ("x.jsonl", b'{"prompt": "a", "images": ["a", "b"], "ranking": [1, 2], "\\ud800x": 1}', "row 0: unknown field"),
        ("x.jsonl", b'{"prompt": "\\ud800", "images": ["a", "b"], "ranking": [1, 2]}', "row 0: no prompt"),
        ("x.jsonl", b'{"prompt": "a", "images": ["\\ud800", "b"], "ranking": [1, 2]}', "row 0: images are no list of paths"),
    ],
)
def test_broken_text_is_named(project, name, content, message):
    (project.root / name).write_bytes(content)
    assert message in load(project, name, status=2).err


def test_a_folder_gives_splits_by_its_files_names(project):
    folder = project.root / "data"
    folder.mkdir()
    for name, prompt in (("train", "a cat"), ("valid", "a dog"), ("test", "a bird")):
        record = {"id": name, "prompt": prompt, "generations": ["a", "b"], "ranking": [1, 2]}
        (folder / f"{name}.json").write_text(json.dumps([record]), encoding="utf-8")
    load(project, folder, "load-annotations.format=imagereward-json")
    rows = project.rows("SELECT prompt, split FROM annotations JOIN annotated_prompts USING (prompt_id) ORDER BY 1")
    assert [(row["prompt"], row["split"]) for row in rows] == [("a bird", "test"), ("a cat", "train"), ("a dog", "validation")]


FULL = {
    "ranking_id": "r1",
    "prompt_id": "p1",
    "prompt": "a cat",
    "annotator": "ann",
    "images": ["a", "b", "c"],
    "ranking": [1, None, 3],
    "overall": [7, 1, None],
    "alignment": [4, 4, 4],
    "fidelity": [1, 7, 4],
    "problems": [[], ["body_problem", "too_blurred"], []],
    "labels": {"category": "Animals", "intent_unclear": False, "unsafe": ["violent"]},
    "split": "test",
}


def test_our_own_format_holds_everything(project):
    load(project, project.jsonl("mine.jsonl", [FULL]))
    assert ranks(project) == [("a cat", {"a": 1, "c": 3})]
    rows = project.rows(
        "SELECT path, overall, alignment, fidelity, problems FROM ratings JOIN annotation_images USING (image_id) ORDER BY path"
    )
    assert rows == [
        {"path": "a", "overall": 1.0, "alignment": 0.5, "fidelity": 0.0, "problems": []},
        {"path": "b", "overall": 0.0, "alignment": 0.5, "fidelity": 1.0, "problems": ["body_problem", "too_blurred"]},
        {"path": "c", "overall": None, "alignment": 0.5, "fidelity": 0.5, "problems": []},
    ]
    labels = project.rows("SELECT category, intent_unclear, unsafe FROM prompt_labels")
    assert labels == [{"category": "Animals", "intent_unclear": False, "unsafe": ["violent"]}]
    assert project.rows("SELECT annotator, split FROM annotations") == [{"annotator": "ann", "split": "test"}]


def test_csv_holds_everything_too(project):
    path = project.root / "mine.csv"
    path.write_text(
        "ranking_id,prompt,annotator,image,rank,overall,alignment,fidelity,problems,category,intent_unclear,unsafe,split\n"
        "r1,a cat,ann,a,1,7,4,1,,Animals,false,violent,test\n"
        "r1,a cat,ann,b,,1,4,7,body_problem;too_blurred,Animals,false,violent,test\n"
        "r1,a cat,ann,c,3,,4,4,,Animals,false,violent,test\n",
        encoding="utf-8",
    )
    tables = ("rankings", "ratings", "prompt_labels", "annotations")
    load(project, path)
    of_csv = [project.rows(f"SELECT * EXCLUDE (ranking_id) FROM {table}") for table in tables]
    load(project, project.jsonl("mine.jsonl", [FULL]))
    assert of_csv == [project.rows(f"SELECT * EXCLUDE (ranking_id) FROM {table}") for table in tables]


def test_direction_and_scale_are_declared(project):
    path = project.jsonl("mine.jsonl", [{"prompt": "a cat", "images": ["a", "b"], "ranking": [1, 5], "overall": [0, 10]}])
    load(project, path, "load-annotations.rank_direction=higher-is-better", "load-annotations.rating_scale=[0, 10]")
    assert ranks(project) == [("a cat", {"a": 5, "b": 1})]
    overall = "SELECT path, overall FROM ratings JOIN annotation_images USING (image_id) ORDER BY path"
    assert [row["overall"] for row in project.rows(overall)] == [0.0, 1.0], "a rating of 0 is not a missing one"
    load(project, path, "load-annotations.rating_scale=[10, 0]")
    assert [row["overall"] for row in project.rows(overall)] == [1.0, 0.0]
    assert ranks(project) == [("a cat", {"a": 1, "b": 5})]


GOOD = {"prompt": "a dog", "images": ["x", "y"], "ranking": [1, 2]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ranking": [1]}, "ranks and images differ in number"),
        ({"ranking": [1, 2.5, 3]}, "a rank is no whole number"),
        ({"ranking": [1, "2", 3]}, "a rank is no whole number"),
        ({"ranking": [1, True, 3]}, "a rank is no whole number"),
        ({"ranking": [1, -1, 3]}, "a rank is negative or beyond 32 bits"),
        ({"ranking": [1, 1 << 40, 3]}, "a rank is negative or beyond 32 bits"),
        ({"ranking": [1, float("inf"), 3]}, "a rank is no whole number"),
        ({"images": ["a"], "ranking": [1]}, "fewer than two images"),
        ({"images": ["a", "a", "b"]}, "an image stands twice"),
        ({"images": ["a", "", "b"]}, "images are no list of paths"),
        ({"images": "abc"}, "images are no list of paths"),
        ({"prompt": "  "}, "no prompt"),
        ({"prompt": None}, "no prompt"),
        ({"overall": [8, 1, 1]}, "a rating is off the scale"),
        ({"overall": [0, 1, 1]}, "a rating is off the scale"),
        ({"overall": ["good", 1, 1]}, "a rating is no number"),
        ({"overall": [1]}, "ratings and images differ in number"),
        ({"problems": [[], ["bodyproblem"], []]}, "unknown problem"),
        ({"problems": [[]]}, "problems and images differ in number"),
        ({"labels": {"unsafe": ["sex"]}}, "unknown unsafe flag"),
        ({"labels": {"intent_unclear": "no"}}, "intent_unclear is neither true nor false"),
        ({"labels": {"categry": "Animals"}}, "unknown label"),
        ({"split": "trian"}, "unknown split"),
        ({"rankings": [1, 2, 3]}, "unknown field"),
        ({"ranking": None}, "neither ranks nor ratings"),
    ],
)
def test_bad_records_are_kept_apart_with_their_reason(project, change, reason):
    bad = {"prompt": "a cat", "images": ["a", "b", "c"], "ranking": [1, 2, 3], **change}
    path = project.root / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(bad)}\n", encoding="utf-8")
    done = load(project, path)
    assert done["rows"] == {"read": 2, "kept": 1, "rejected": 1}
    rows = project.rows('SELECT "row", reason, bad FROM load_annotations.rejected')
    assert rows == [{"row": 1, "reason": reason, "bad": True}]
    assert ranks(project) == [("a dog", {"x": 1, "y": 2})]


def test_near_misses_are_named(project):
    bad = {"prompt": "a cat", "images": ["a", "b"], "ranking": [1, 2], "problems": [["bodyproblem"], []]}
    load(project, project.jsonl("mine.jsonl", [GOOD, bad]))
    detail = project.rows("SELECT detail FROM load_annotations.rejected")[0]["detail"]
    assert detail == "bodyproblem; did you mean 'body_problem'?"


def test_a_record_counts_once(project):
    records = [{**GOOD, "ranking_id": "r", "annotator": "u"}] * 2 + [{**GOOD, "ranking_id": "r", "annotator": "v"}]
    done = load(project, project.jsonl("mine.jsonl", records))
    assert done["metrics"]["records"] == 2 and done["metrics"]["rejected_for"] == {"record stands twice": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no records"),
        ("{}", "is not a JSON list of records"),
        ("[1", "is not JSON: Expecting ',' delimiter: line 1 column 3"),
        ('[{"id": 1, "prompt": "a", "generations": ["a"], "rankings": [1]}]', "no field 'ranking'; did you mean 'rankings'?"),
    ],
)
def test_files_of_another_shape_are_named(project, content, message):
    (project.root / "x.json").write_text(content, encoding="utf-8")
    assert message in load(project, "x.json", "load-annotations.format=imagereward-json", status=2).err


def test_imagerewarddb_rows_must_add_up(project):
    path, _ = imagerewarddb(project)
    table = pq.read_table(path).slice(0, 2)
    pq.write_table(table, path)
    message = load(project, path, "load-annotations.format=imagerewarddb", status=2).err
    assert "rows do not add up to image_amount_in_total (2 of 3)" in message
    pq.write_table(table.drop_columns(["rank"]), path)
    assert "no column 'rank'" in load(project, path, "load-annotations.format=imagerewarddb", status=2).err


def test_contradictions_are_reported_not_repaired(project):
    record = {"prompt": "a cat", "images": ["a", "b", "c"], "ranking": [1, 2, 3], "overall": [3, 7, 3]}
    done = load(project, project.jsonl("mine.jsonl", [record]))
    assert done["metrics"]["contradictions"] == {"pairs": 1, "of": 3, "records": 1}
    rows = project.rows(
        "SELECT b.path AS better, w.path AS worse FROM contradictions JOIN annotation_images b ON better = b.image_id"
        " JOIN annotation_images w ON worse = w.image_id"
    )
    assert rows == [{"better": "a", "worse": "b"}] and ranks(project)[0][1] == {"a": 1, "b": 2, "c": 3}


# Agreement


def record(annotator, *ranks, prompt="p"):
    images = [f"{prompt}{place}" for place in range(len(ranks))]
    ratings = {aspect: [None] * len(ranks) for aspect in ("overall", "alignment", "fidelity")}
    return Record(0, prompt, prompt, annotator, images, ranks, ratings, [[]] * len(ranks), None, None, [], None)


def test_agreement_by_hand():
    """Of three pairs, two people order (0, 1) and (0, 2) alike and (1, 2) oppositely: 2 of 3."""
    found = agreement([record("u", 1, 2, 3), record("v", 1, 3, 2), record("u", 1, 2, prompt="q")])
    assert found["image_sets"] == 1 and found["pairs_compared"] == 3
    assert found["pairwise_agreement"] == pytest.approx(2 / 3, abs=1e-4)
    assert found["by_annotator"]["u"] == {"pairs": 3, "agreement": pytest.approx(2 / 3, abs=1e-4)}
    assert agreement([record("u", 1, 2)]) == {"image_sets": 0}


def test_kendalls_w_by_hand():
    """m = 3 people, n = 3 images, rank sums 3, 6, 9: S = 18, W = 12 * 18 / (9 * 24) = 1; opposite pairs give 0."""
    assert kendalls_w(np.array([[1.0, 2, 3]] * 3)) == pytest.approx(1)
    assert kendalls_w(np.array([[1.0, 2, 3], [3, 2, 1]])) == pytest.approx(0)
    # With ties: ranks 1.5 1.5 3 twice. S = 2 * ... sums 3, 3, 6, mean 4: S = 6; T = 6 each; W = 72 / (96 - 24) = 1.
    assert kendalls_w(np.array([[1.5, 1.5, 3]] * 2)) == pytest.approx(1)


def test_kendalls_w_is_friedmans_statistic_scaled():
    """W = chi2 / (m (n - 1)): scipy's Friedman test, with and without ties."""
    from scipy.stats import friedmanchisquare, rankdata

    rng = np.random.default_rng(0)
    for _ in range(20):
        ranks = np.array([rankdata(rng.integers(0, 5, 6)) for _ in range(4)])
        statistic = friedmanchisquare(*ranks.T).statistic
        assert kendalls_w(ranks) == pytest.approx(statistic / (4 * 5))


def test_alpha_is_one_for_agreement_and_low_for_noise():
    same = [[record("u", 1, 2, 3), record("v", 1, 2, 3)]]
    assert krippendorffs_alpha(same) == pytest.approx(1)
    rng = np.random.default_rng(0)
    noise = [[record(name, *rng.permutation(6).tolist(), prompt=str(row)) for name in "uv"] for row in range(60)]
    assert abs(krippendorffs_alpha(noise)) < 0.15
    assert krippendorffs_alpha([[record("u", 1, 1), record("v", 2, 2)]]) is None


def test_the_real_rankings(project, shared):
    path = shared / "data" / "imagerewarddb_rankings_120.json"
    done = load(project, path, "load-annotations.format=imagereward-json")
    assert done["rows"] == {"read": 120, "kept": 120, "rejected": 0}
    assert project.rows("SELECT count(*) AS n, min(rank) AS low, max(rank) AS high FROM rankings") == [
        {"n": 698, "low": 1, "high": 5}
    ]
