"""Plan, run, reuse: stages defined here count how often they run."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq

from irpipe.pipeline.code import code_digest
from irpipe.pipeline.cpus import threads
from irpipe.pipeline.lineage import stages_behind, trace
from irpipe.pipeline.stage import find_stage
from tests.shouting import runs


def test_a_stage_runs_once(project, shouting):
    """Invariant 2."""
    first, second = project.last("count"), project.last("count")
    assert (first["key"], first["content_id"]) == (second["key"], second["content_id"])
    assert runs("word") == ["hello"] and runs("count") == [1]


def test_a_setting_runs_its_stage_and_those_below(project, shouting):
    project.last("count")
    project.last("count", "count.times=2")
    assert runs("word") == ["hello"] and runs("count") == [1, 2]
    project.last("count", "word.text=hi")
    assert runs("word") == ["hello", "hi"] and runs("count") == [1, 2, 1]


def test_the_same_content_upstream_stops_there(project, shouting):
    """Invariant 3: 'HELLO' shouted and 'HELLO' said are the same artifact, so counting is not done again."""
    project.last("count", "word.text=HELLO")
    project.last("count", "word.text=hello", "word.loud=true")
    assert runs("word") == ["HELLO", "hello"] and runs("count") == [1]


def test_execution_settings_do_not_count(project, shouting):
    one, two = project.last("word"), project.last("word", "word.workers=8")
    assert one["key"] == two["key"] and runs("word") == ["hello"]


def test_neutral_settings_count_only_when_set(project, shouting):
    """So an artifact made before the setting existed keeps its key."""
    from irpipe.pipeline.settings import hashed_config

    config = find_stage("word").config
    assert hashed_config(config()) == {"text": "hello"}
    assert hashed_config(config(loud=True)) == {"text": "hello", "loud": True}
    keys = {project.last("word", *settings)["key"] for settings in ((), ("word.loud=false",), ("word.loud=true",))}
    assert len(keys) == 2


def test_files_count_by_content_not_by_name(project, shouting):
    for name, text in (("a.txt", "x"), ("b.txt", "x"), ("c.txt", "y")):
        (project.root / name).write_text(text, encoding="utf-8")
    a, b, c = (project.last("word", f"word.path={name}.txt")["key"] for name in "abc")
    assert a == b != c
    (project.root / "a.txt").write_text("y", encoding="utf-8")
    assert project.last("word", "word.path=a.txt")["key"] == c


def test_a_digest_is_remembered_until_the_file_changes(project, shouting, monkeypatch):
    """The file is hashed once; a file that just changed is not trusted to be settled."""
    from irpipe.pipeline import external

    hashed = []
    real = external.file_digest
    monkeypatch.setattr(external, "file_digest", lambda path, advance: hashed.append(path.name) or real(path, advance))
    monkeypatch.setattr(external, "_SETTLED_SECONDS", -1.0)
    (project.root / "a.txt").write_text("x", encoding="utf-8")
    for _ in range(3):
        project.last("word", "word.path=a.txt")
    assert hashed == ["a.txt"]
    (project.root / "a.txt").write_text("longer", encoding="utf-8")
    project.last("word", "word.path=a.txt")
    assert hashed == ["a.txt", "a.txt"]


def test_force_and_only(project, shouting):
    assert "count reads word, which does not exist yet" in project("run", "count", "--only", status=2).err
    project("run", "word")
    project("run", "count", "--only")
    project("run", "count", "--force")
    assert runs("word") == ["hello"] and runs("count") == [1, 1]


def test_a_plan_says_why_field_by_field_and_writes_nothing(project, shouting):
    project.last("count")
    before = sorted(str(path) for path in project.root.rglob("*"))
    steps = project("plan", "count", "--json", "--set", "count.times=3").json
    assert [step["state"] for step in steps] == ["reuse", "run"]
    assert steps[1]["reasons"] == ["count.times 1 -> 3"]
    assert steps[1]["expected_seconds"] is not None
    waiting = project("plan", "count", "--set", "word.text=bye").out
    assert "word.text hello -> bye" in waiting and "wait   count" in waiting
    (project.root / "a.txt").write_text("x", encoding="utf-8")
    assert "word.path unset -> a.txt" in project("plan", "word", "--set", "word.path=a.txt").out
    (project.root / "a.txt").unlink()
    assert sorted(str(path) for path in project.root.rglob("*")) == before


def test_reasons_are_told_against_the_newest_of_runs_equally_far(project, shouting):
    for times in (2, 3, 5, 4):
        project.last("count", f"count.times={times}")
    for times in (6, 7):
        assert project("plan", "count", "--json", "--set", f"count.times={times}").json[1]["reasons"] == [
            f"count.times 4 -> {times}"
        ]


def test_a_first_plan_needs_no_store(project, shouting):
    assert "it never ran" in project("plan", "count").out
    assert not project.store.root.exists()


def test_changed_code_is_told_and_counts_when_asked(project, shouting):
    project.last("word")
    helper = shouting / "helper.py"
    helper.write_text(helper.read_text(encoding="utf-8") + "# a comment changes nothing\n", encoding="utf-8")
    assert "code changed" not in project("plan", "word").out
    helper.write_text('"""Nor does a docstring."""\n' + helper.read_text(encoding="utf-8"), encoding="utf-8")
    assert "code changed" not in project("plan", "word").out
    helper.write_text("def shout(text):\n    return text.upper() + '!'\n", encoding="utf-8")
    assert "its code changed since" in project("plan", "word").out
    assert runs("word") == ["hello"]
    project("run", "word")
    assert runs("word") == ["hello"]
    project("run", "word", "--strict-code")
    project("run", "word", "--strict-code")
    assert runs("word") == ["hello", "hello"], "once more under the new code, then reused"


def test_code_in_a_folder_that_is_no_package_counts(tmp_path, monkeypatch):
    """A namespace package below one that nobody imported yet."""
    files = {
        "guestx/__init__.py": "",
        "guestx/parts/__init__.py": "",
        "guestx/parts/bare/tool.py": "SIZE = 1\n",
        "guestx/stagey/__init__.py": "from guestx.parts.bare import tool\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    before = code_digest("guestx.stagey")
    (tmp_path / "guestx/parts/bare/tool.py").write_text("SIZE = 2\n", encoding="utf-8")
    assert code_digest("guestx.stagey") != before


def test_code_digest_follows_imports(shouting):
    before = code_digest("shouting.word"), code_digest("shouting.count")
    (shouting / "helper.py").write_text("def shout(text):\n    return text\n", encoding="utf-8")
    after = code_digest("shouting.word"), code_digest("shouting.count")
    assert before[0] != after[0] and before[1] == after[1]


def test_the_record_tells_everything(project, shouting):
    record = project.store.lookup(project.last("count")["key"])
    assert record.stage == "count" and record.recipe == "shouting" and record.stage_version == 1
    assert record.config == {"times": 1} and record.rows == {"read": 2, "kept": 1, "rejected": 1}
    assert record.inputs["word"].content_id == project.last("word")["content_id"]
    assert "irpipe" in record.packages and "numpy" in record.packages
    assert record.started <= record.ended and record.command[0] == "irpipe"
    assert record.threads == threads() > 0
    text = project.store.record_path(record.key).read_text(encoding="utf-8")
    assert text == json.dumps(json.loads(text), sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def test_manifests_tell_of_content_only(project, shouting):
    """Invariant 3: nothing of a run may get into an artifact."""
    project.last("word", "word.text=HELLO")
    project.last("word", "word.text=hello", "word.loud=true")
    objects = list(project.store.root.glob("objects/??/*"))
    assert len(objects) == 1
    manifest = json.loads((objects[0] / "manifest.json").read_text(encoding="utf-8"))
    assert set(manifest) == {"content_id", "files", "tables"}


def test_a_stage_that_loses_rows_is_refused(project, shouting):
    run = shouting / "count" / "run.py"
    run.write_text(run.read_text(encoding="utf-8").replace("Rows(2, 1, 1)", "Rows(3, 1, 1)"), encoding="utf-8")
    assert "read 3 rows but kept 1 and rejected 1" in project("run", "count", status=2).err


def test_two_recipes_share_one_store(project, shouting):
    """Two recipes in one store: shared work is shared, and each has its own newest results."""
    one = project.last("count")
    project.recipe('recipe = "other"\n[word]\n[count]\ntimes = 5\n')
    two = project.last("count")
    assert runs("word") == ["hello"] and runs("count") == [1, 5]
    assert project("show", "count", "--json").json["record"]["key"] == two["key"]
    project.recipe('recipe = "shouting"\n[word]\n[count]\n')
    assert project("show", "count", "--json").json["record"]["key"] == one["key"]


def test_a_kind_that_two_stages_write_must_be_chosen(project, shouting, install):
    text = (shouting / "word" / "__init__.py").read_text(encoding="utf-8").replace('name="word"', 'name="other-word"')
    (shouting / "other").mkdir()
    (shouting / "other" / "__init__.py").write_text(text, encoding="utf-8")
    names = {"word": "word", "count": "count", "other-word": "other"}
    install({name: f"shouting.{module}:STAGE" for name, module in names.items()})
    project.recipe('recipe = "x"\n[word]\n[other-word]\n[count]\n')
    assert "name one: --set count.reads.word=word" in project("run", "count", status=2).err
    project.recipe('recipe = "x"\n[word]\n[other-word]\n[count]\nreads = {word = "other-word"}\n')
    project("run", "count")
    assert project.rows("SELECT 1 AS one") == [{"one": 1}]
    assert [run["stage"] for run in project("lineage", "count", "--json").json["runs"]] == ["other-word", "count"]


def test_looking_around(project, shouting):
    first, second = project.last("count"), project.last("count", "count.times=2")
    assert "count.txt" in project("show", second["content_id"][:10]).out
    rows = project("diff", first["key"], second["key"], "--json").json
    assert {"what": "setting", "name": "times", "first": 1, "second": 2} in rows
    assert project("lineage", "count", "--format", "mermaid").out.startswith("flowchart LR")
    assert project("lineage", "count", "--format", "dot").out.startswith("digraph")
    lineage = project("lineage", "word", "--json").json
    assert [run["stage"] for run in lineage["runs"]] == ["word", "count", "count"]
    status = project("status", "--json").json["stages"]
    assert [(row["stage"], row["state"]) for row in status] == [("word", "done"), ("count", "done")]


def test_a_stage_whose_record_is_gone_is_still_behind_what_was_made_of_it(project, shouting):
    made = project.last("count")
    assert stages_behind(project.store, [made["content_id"]]) == {"word", "count"}
    project.store.record_path(project.store.newest("shouting", "word").key).unlink()
    assert stages_behind(project.store, [made["content_id"]]) == {"word", "count"}


def test_a_row_is_traced_two_steps_far(tmp_path):
    """A chain of rows, each of which names the next: 1 names 2, 2 names 3, and so on."""
    table = pa.table({"one": pa.array([1, 2, 3, 4], pa.uint64()), "next": pa.array([2, 3, 4, 5], pa.uint64())})
    pq.write_table(table, tmp_path / "chain.parquet")
    columns = {"one": "uint64", "next": "uint64"}
    manifest = SimpleNamespace(tables={"chain": SimpleNamespace(columns=columns)})
    artifact = SimpleNamespace(manifest=manifest, table=lambda name: [tmp_path / f"{name}.parquet"])
    record = SimpleNamespace(key="k", node="chains", content_id="c")
    found = [(row.distance, int(row.row["one"], 16)) for row in trace(SimpleNamespace(open=lambda _: artifact), [record], 1)]
    assert found == [(0, 1), (1, 2), (2, 3)]


def test_ambiguous_and_unknown_ids_are_refused(project, shouting):
    for number in range(40):
        project.last("word", f"word.text=w{number}")
    records = list(project.store.records())
    prefixes = [record.content_id[:1] for record in records]
    shared = next(prefix for prefix in prefixes if prefixes.count(prefix) > 1)
    assert "is not an id" in project("show", shared, status=2).err
    project.store.resolve(records[0].content_id[:20])
    assert "nothing in the store" in project("show", "0123456789abcdef0123", status=2).err


def test_export(project, shouting, tmp_path):
    made = project.last("count")
    project("export", "count", str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "count.txt").read_text(encoding="utf-8") == "5"
    names = sorted(path.name.rpartition("-")[0] for path in (tmp_path / "copy" / "lineage").iterdir())
    assert names == ["count", "word"]
    assert json.loads((tmp_path / "copy" / "manifest.json").read_text(encoding="utf-8"))["content_id"] == made["content_id"]
    assert "exists already" in project("export", "count", str(tmp_path / "copy"), status=2).err


def test_gc_lists_and_drops_only_what_nothing_needs(project, shouting):
    old, new = project.last("count"), project.last("count", "count.times=2")
    listed = project("gc", "--json").json
    assert sorted(item["name"].split()[0] for item in listed) == ["count", "log", "record"]
    assert project.store.holds(old["content_id"]), "listing drops nothing"
    project("gc", "--yes")
    assert not project.store.holds(old["content_id"]) and project.store.holds(new["content_id"])
    assert project.store.lookup(old["key"]) is None and not project.store.record_path(old["key"]).exists()
    project("run", "count", "--set", "count.times=2")
    assert runs("count") == [1, 2], "what is kept is still reused"
    project("run", "count")
    assert runs("count") == [1, 2, 1], "what was dropped is made again"


def test_gc_waits_for_nobody(project, shouting):
    project.last("count")
    with project.store.in_use():
        assert "a run is using this store" in project("gc", "--yes", status=2).err


def test_quiet_prints_the_path_only(project, shouting):
    result = project("run", "count", "--quiet")
    assert result.err == "" and result.out.strip().endswith(project.last("count")["content_id"])


def test_sql_prints_json_that_others_read(project, shouting):
    project.last("word")
    assert project.rows("SELECT ['nan'::DOUBLE, 1] AS x") == [{"x": [None, 1.0]}]
    assert "two columns have the same name" in project("sql", "--json", "SELECT 1 AS a, 2 AS a", status=2).err
    assert "Catalog Error" in project("sql", "SELECT * FROM nothing", status=2).err
    secret = project.root / "out.csv"
    assert "is not a single query" in project("sql", f"COPY (SELECT 1) TO '{secret}'", status=2).err
    assert "error" in project("sql", f"SELECT * FROM read_text('{project.root / 'irpipe.toml'}')", status=2).err
    assert not secret.exists()


def test_sql_errors_say_what_mends_them(project, shouting):
    for query in ("", "SELECT 1; SELECT 2", "CREATE TABLE t (a INT)", "COPY (SELECT 1) TO 'x.csv'"):
        assert "is not a single query" in project("sql", query, status=2).err
    assert project("sql", "SHOW ALL TABLES").status == 0
    assert "there are no tables yet" in project("sql", "SELECT * FROM pairs", status=2).err
    assert "fix" not in project("sql", "SELCT 1", status=2).err
    wrong_id = "SELECT 1 WHERE 1::UBIGINT = '735c8ccefd61e2e4'"
    assert "row_id('0123456789abcdef')" in project("sql", wrong_id, status=2).err


def test_small_things_people_try(project, shouting):
    assert project("--version").out.strip().count(".") == 2
    first = project.last("count")["key"]
    assert project("diff", first, first).out == "the same\n"
    assert "the path is empty" in project.run("word", "word.path=", status=2).err
    project.recipe('recipe = "x"\nstore = "irpipe.toml"\n[word]\n')
    assert "Traceback" not in project("run", "word", status=2).err


def test_programs_are_told_of_failures(project, shouting):
    events = project("run", "count", "--only", "--json", status=2).events
    assert events[-1]["event"] == "failed" and "does not exist yet" in events[-1]["error"]
    events = project("run", "count", "--json", "--set", "cuont.times=1", status=2).events
    assert [event["event"] for event in events] == ["failed"]


def test_a_stage_that_returns_something_else_is_named(project, shouting):
    run = shouting / "count" / "run.py"
    run.write_text(run.read_text(encoding="utf-8").replace("return Report(Rows(2, 1, 1))", "return None"), encoding="utf-8")
    assert "count returned NoneType" in project("run", "count", status=2).err
    (shouting / "count" / "__init__.py").write_text("import nothing_of_that_name", encoding="utf-8")
    del sys.modules["shouting.count"]
    assert "the stage 'count' cannot be imported" in project("run", "count", status=2).err
