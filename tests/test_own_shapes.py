"""Annotations in the shapes that people have: Parquet of many writers, pairs, and columns of other names."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.usefixtures("import_recipe")
RECORDS = [
    {
        "ranking_id": "r1",
        "prompt": "a cat",
        "annotator": "ann",
        "images": ["a", "b", "c"],
        "ranking": [1, 2, 2],
        "split": "train",
    },
    {"ranking_id": "r2", "prompt": "a dog", "annotator": None, "images": ["d", "e"], "ranking": [2, 1], "split": "test"},
]
BY_IMAGE = [
    {**{name: record[name] for name in ("ranking_id", "prompt", "annotator", "split")}, "image": image, "rank": rank}
    for record in RECORDS
    for image, rank in zip(record["images"], record["ranking"], strict=True)
]
PAIRS = [
    {"prompt": "a cat", "image_a": "a", "image_b": "b", "winner": "a"},
    {"prompt": "a dog", "image_a": "c", "image_b": "d", "winner": "B"},
    {"prompt": "a fox", "image_a": "e", "image_b": "f", "winner": "tie"},
    {"prompt": "an owl", "image_a": "g", "image_b": "h", "winner": None},
]
DECIDED = {"a cat": {"a": 1, "b": 2}, "a dog": {"c": 2, "d": 1}, "a fox": {"e": 1, "f": 1}}


def written(project, kind, rows):
    path = project.root / f"mine.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "arrow":  # as `datasets` keeps it on the disk
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path.name


def load(project, name, *settings):
    return project.last("load-annotations", f"load-annotations.path={name}", *settings)


def ranks(project):
    rows = project.rows(
        "SELECT prompt, path, rank FROM rankings JOIN annotated_prompts USING (prompt_id)"
        " JOIN annotation_images USING (image_id) ORDER BY 1, 2"
    )
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["prompt"], {})[row["path"]] = row["rank"]
    return found


EXPECTED = {"a cat": {"a": 1, "b": 2, "c": 2}, "a dog": {"d": 2, "e": 1}}


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_rows_of_lists(project, kind):
    assert load(project, written(project, kind, RECORDS))["rows"] == {"read": 2, "kept": 2, "rejected": 0}
    assert ranks(project) == EXPECTED
    rows = project.rows("SELECT annotator, split FROM annotations ORDER BY source_row")
    assert rows == [{"annotator": "ann", "split": "train"}, {"annotator": None, "split": "test"}]


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_rows_of_images(project, kind):
    assert load(project, written(project, kind, BY_IMAGE))["metrics"]["records"] == 2
    assert ranks(project) == EXPECTED


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
def test_pairs(project, kind):
    done = load(project, written(project, kind, PAIRS), "load-annotations.format=pairs")
    assert done["rows"] == {"read": 4, "kept": 3, "rejected": 1}
    assert done["metrics"]["rejected_for"] == {"no label": 1} and ranks(project) == DECIDED


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_pairs_with_numbers(project, kind):
    by_word = {"a": 0.0, "B": 1.0, "tie": 0.5, None: None}
    rows = [{**{name: row[name] for name in ("prompt", "image_a", "image_b")}, "label": by_word[row["winner"]]} for row in PAIRS]
    load(project, written(project, kind, rows), "load-annotations.format=pairs")
    assert ranks(project) == DECIDED


@pytest.mark.parametrize("odd", ["c", "False", "2", "0"])
def test_a_winner_that_is_none_is_refused(project, odd):
    rows = [*PAIRS[:3], {**PAIRS[3], "winner": odd}]
    done = load(project, written(project, "csv", rows), "load-annotations.format=pairs")
    assert done["metrics"]["rejected_for"] == {"winner is none of a, b or tie": 1}


@pytest.mark.parametrize("odd", [True, 0.3, 2, "yes"])
def test_a_label_that_is_none_is_refused(project, odd):
    rows = [{"prompt": f"p{number}", "image_a": "a", "image_b": "b", "label": 1} for number in range(3)]
    rows.append({"prompt": "x", "image_a": "a", "image_b": "b", "label": odd})
    done = load(project, written(project, "jsonl", rows), "load-annotations.format=pairs")
    assert done["rows"]["kept"] == 3 and sum(done["metrics"]["rejected_for"].values()) == 1


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_columns_of_other_names(project, kind):
    names = {"prompt": "caption", "image_a": "left", "image_b": "right", "winner": "choice", "annotator": "worker"}
    rows = [{**{names.get(name, name): value for name, value in row.items()}, "worker": 9.0} for row in PAIRS]
    settings = [f"load-annotations.columns.{ours}={theirs}" for ours, theirs in names.items()]
    load(project, written(project, kind, rows), "load-annotations.format=pairs", *settings)
    assert ranks(project) == DECIDED
    assert {row["annotator"] for row in project.rows("SELECT annotator FROM annotations")} == {"9"}


def test_a_name_that_is_no_column_is_an_error(project):
    name = written(project, "csv", PAIRS)
    told = project.run(
        "load-annotations",
        f"load-annotations.path={name}",
        "load-annotations.format=pairs",
        "load-annotations.columns.prompt=promt",
        status=2,
    ).err
    assert "there is no column 'promt'; did you mean 'prompt'?" in told


def test_names_for_a_published_format_have_no_effect(project):
    (project.root / "x.json").write_text("[]")
    told = project.run(
        "load-annotations",
        "load-annotations.path=x.json",
        "load-annotations.format=hps-json",
        "load-annotations.columns.prompt=x",
        status=2,
    ).err
    assert "columns.prompt has no effect: hps-json has its own columns" in told


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": "p", "image_a": "a", "image_b": "b"}], "needs one of the columns 'winner' and 'label'"),
        ([{"prompt": "p", "image_a": "a", "image_b": "b", "winner": "a", "label": 0}], "needs one of the columns"),
        ([{"prompt": "p", "image_a": "a", "winner": "a"}], "there is no column 'image_b'"),
    ],
)
def test_pairs_without_a_column(project, rows, message):
    name = written(project, "csv", rows)
    assert (
        message in project.run("load-annotations", f"load-annotations.path={name}", "load-annotations.format=pairs", status=2).err
    )


def test_a_record_is_not_read_without_one_of_its_rows(project):
    text = "ranking_id,prompt,image,rank\nr1,a cat,a,1\nr1,a cat,b,2,surplus\nr1,a cat,c,3\nr2,a dog,d,1\nr2,a dog,e,2\n"
    (project.root / "mine.csv").write_text(text)
    done = load(project, "mine.csv")
    assert done["metrics"]["rejected_for"] == {"more cells than columns": 1} and set(ranks(project)) == {"a dog"}


def test_a_split_of_few_prompts_is_told(project):
    rows = [{"prompt": f"prompt {n}", "image_a": f"{n}a", "image_b": f"{n}b", "winner": "a"} for n in range(60)]
    settings = (f"load-annotations.path={written(project, 'csv', rows)}", "load-annotations.format=pairs")
    few = ("split-prompts.near_duplicate=off", "split-prompts.validation_share=0.05", "split-prompts.test_share=0.2")
    told = project.run("split-prompts", *settings, *few).err
    assert "validation prompts are too few to tell one model from another" in told and "test prompts are too few" not in told
    none = ("split-prompts.near_duplicate=off", "split-prompts.validation_share=0.0", "split-prompts.test_share=0.2")
    assert "too few" not in project.run("split-prompts", *settings, *none).err, "that was asked for"


@pytest.mark.parametrize(
    ("name", "content", "likely"),
    [
        ("x.json", [{"id": 1, "prompt": "p", "generations": ["a", "b"], "ranking": [1, 2]}], "imagereward-json"),
        ("x.json", [{"prompt": "p", "file_path": ["a", "b"], "human_preference": 1}], "hps-json"),
        ("x.json", [{"prompt": "p", "file_path": ["a", "b"], "human_preference": [1, 0]}], "hpdv2-json"),
        ("x.json", [{"prompt": "p", "image_path": ["a", "b"], "rank": [1, 2], "raw_annotations": []}], "hpdv2-json"),
        ("x.parquet", [{"caption": "p", "image_0_uid": "a", "image_1_uid": "b"}], "pickapic"),
        ("x.parquet", [{"prompt": "p", "image_path": "a", "image_amount_in_total": 4}], "imagerewarddb"),
        ("x.csv", PAIRS, "pairs"),
        ("x.jsonl", PAIRS, "pairs"),
    ],
)
def test_the_hint_goes_by_what_the_file_holds(project, name, content, likely):
    kind = name.partition(".")[2]
    if kind == "json":
        (project.root / name).write_text(json.dumps(content))
    else:
        (project.root / written(project, kind, content)).rename(project.root / name)
    told = project.run("load-annotations", f"load-annotations.path={name}", status=2).err
    assert f"{name} looks like {likely}" in told and f"--set load-annotations.format={likely}" in told


def test_a_folder_of_ours_needs_no_format(project):
    (project.root / "data" / "train").mkdir(parents=True)
    (project.root / written(project, "parquet", RECORDS)).rename(project.root / "data" / "train" / "0.parquet")
    assert load(project, "data")["metrics"]["records"] == 2


def test_every_row_of_pairs_is_looked_at(project):
    rows = [*PAIRS[:3], {"prompt": "p", "image_a": "a", "image_b": "b"}, {**PAIRS[0], "prompt": "q", "anotator": "bob"}]
    done = load(project, written(project, "jsonl", rows), "load-annotations.format=pairs")
    assert done["metrics"]["rejected_for"] == {"no label": 1, "unknown field": 1} and ranks(project) == DECIDED


@pytest.mark.parametrize(("kind", "rows", "more"), [("jsonl", PAIRS, ("load-annotations.format=pairs",)), ("jsonl", RECORDS, ())])
def test_a_name_that_no_row_has_is_an_error(project, kind, rows, more):
    name = written(project, kind, rows)
    settings = (f"load-annotations.path={name}", "load-annotations.columns.annotator=nobody", *more)
    assert "there is no column 'nobody'" in project.run("load-annotations", *settings, status=2).err


def test_missing_cells_of_one_record_agree(project):
    rows = [{**row, "split": float("nan")} for row in BY_IMAGE]
    assert load(project, written(project, "parquet", rows))["metrics"]["records"] == 2


@pytest.mark.parametrize(
    ("cell", "name"), [("Nan", "Nan"), ("Null", "Null"), ("nan", None), ("None", None), ("9.0", "9"), (" ann ", "ann")]
)
def test_who_is_somebody(project, cell, name):
    load(project, written(project, "jsonl", [{**RECORDS[0], "annotator": cell}]))
    assert project.rows("SELECT annotator FROM annotations") == [{"annotator": name}]


def test_a_linked_folder_is_told(project, tmp_path):
    (project.root / "data").mkdir()
    (project.root / written(project, "jsonl", RECORDS)).rename(project.root / "data" / "0.jsonl")
    (tmp_path / "elsewhere").mkdir()
    (project.root / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    told = project.run("load-annotations", "load-annotations.path=data", "load-annotations.format=jsonl").err
    assert "left out, a linked folder: linked" in told


def test_an_unclosed_quote_is_told_by_the_line_where_its_row_begins(project):
    text = 'prompt,image_a,image_b,winner\na cat,1,2,a\n"a fox\nof two lines",1,2,a\n"a dog,1,2,b\na cow,1,2,b\n'
    (project.root / "p.csv").write_text(text)
    told = project.run("load-annotations", "load-annotations.path=p.csv", "load-annotations.format=pairs", status=2).err
    assert "is not CSV: unexpected end of data, in the row that begins in line 5" in told
