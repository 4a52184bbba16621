"""Rich feedback: released records, raw answers, Label Studio's export, aggregation and agreement."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from irpipe.models.maps import discs
from irpipe.pipeline.errors import InputError
from irpipe.schemas.rich_feedback import labelled_text, labels_of_text, prompt_tokens, unrepresentable
from irpipe.stages.load_rich_feedback.published import read_published
from irpipe.stages.load_rich_feedback.record import BadRecordError
from irpipe.stages.load_rich_feedback.tfrecord import read_examples

RECIPE = 'recipe = "rich"\n[load-rich-feedback]\n'


@pytest.fixture
def rich(project):
    project.recipe(RECIPE)
    return project


def load(project, path, *settings, status=0):
    return project.run("load-rich-feedback", f"load-rich-feedback.path={path}", *settings, status=status)


def feedback(project) -> list[dict]:
    (folder,) = [project.store.open(project.store.newest("rich", "load-rich-feedback").content_id).path]
    return pq.read_table(folder / "rich_feedback.parquet").to_pylist()


def heatmaps(project) -> dict[tuple[str, str], np.ndarray]:
    folder = project.store.open(project.store.newest("rich", "load-rich-feedback").content_id).path
    rows = pq.read_table(folder / "heatmaps.parquet").to_pylist()
    return {(row["uid"], row["kind"]): np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows}


def rejected(project) -> list[tuple[int, str]]:
    folder = project.store.open(project.store.newest("rich", "load-rich-feedback").content_id).path
    return [(row["row"], row["reason"]) for row in pq.read_table(folder / "rejected.parquet").to_pylist()]


class TestTokens:
    def test_the_released_rule(self, shared):
        golden = json.loads((shared / "golden" / "richhf_tokens_a.json").read_text())
        for item in golden["items"]:
            if "tokens" not in item:  # the released code fails on a prompt without words
                assert prompt_tokens(item["prompt"]) == []
                continue
            assert prompt_tokens(item["prompt"]) == item["tokens"], item
            wrong = [label == 0 for label in item["token_labels"]]
            text = labelled_text(item["tokens"], wrong)
            assert text == item["labelled_text"]
            assert (labels_of_text(text) == wrong) is item["recovered_equal"]
            if not item["recovered_equal"]:
                assert unrepresentable(item["tokens"])
        for item in golden["mismatches"]:
            if str(item["google"]).startswith("AssertionError"):  # others are spaces that its int() does not take
                assert len(prompt_tokens(item["prompt"])) != len(item["labels"].split())

    def test_what_the_published_text_loses(self):
        assert unrepresentable(["a", "line\nend", "level_0", "no\u00a0break", "_0x"]) == ["line\nend", "level_0", "no\u00a0break"]


class TestTFRecords:
    def golden(self, shared, name=""):
        return shared / "golden" / f"richhf_tfrecord_a{name}.tfrecord"

    def test_fields_and_maps_as_the_released_parser_has_them(self, rich, shared):
        load(rich, self.golden(shared), "load-rich-feedback.require_prompts=false")
        records = json.loads((shared / "golden" / "richhf_tfrecord_a.json").read_text())["records"]
        rows, maps = feedback(rich), heatmaps(rich)
        assert len(rows) == len(records) == 5
        for row, record in zip(rows, records, strict=True):
            assert row["uid"] == Path(record["filename"]).stem
            names = ("artifact_score", "misalignment_score", "aesthetics_score", "overall_score")
            for aspect, name in zip(("plausibility", "alignment", "aesthetics", "overall"), names, strict=True):
                assert row[aspect] == record[name]
            assert row["labels"] == [part == "0" for part in record["prompt_misalignment_label"].split()]
            assert row["words"] is None and row["prompt"] is None
            for kind, name in (("implausibility", "artifact_map"), ("misalignment", "misalignment_map")):
                ours, theirs = maps[row["uid"], kind], record[name]
                assert (int(ours.sum()), int((ours > 0).sum())) == (
                    theirs["by_pillow"]["sum"],
                    theirs["by_pillow"]["nonzero"],
                )
                assert ours.shape == (512, 512)

    def test_prompts_and_images_of_pickapic(self, rich, shared, tmp_path):
        """Joined by uid, on either side; what is missing is rejected by its reason."""
        records = json.loads((shared / "golden" / "richhf_tfrecord_a.json").read_text())["records"]
        uids = [Path(record["filename"]).stem for record in records]
        jpg = encoded(Image.new("RGB", (24, 32), "red"))
        rows = [
            {"image_0_uid": uids[0], "image_1_uid": "other", "caption": records[0]["prompt"], "jpg_0": jpg, "jpg_1": jpg},
            {"image_0_uid": "another", "image_1_uid": uids[1], "caption": records[1]["prompt"], "jpg_0": jpg, "jpg_1": jpg},
            {"image_0_uid": uids[2], "image_1_uid": "x", "caption": records[2]["prompt"], "jpg_0": b"no image", "jpg_1": jpg},
            {"image_0_uid": uids[3], "image_1_uid": "y", "caption": "a b c d e f g h i j k l m", "jpg_0": jpg, "jpg_1": jpg},
        ]
        (tmp_path / "pap").mkdir()
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pap" / "train-00000.parquet", row_group_size=1)
        told = load(
            rich, self.golden(shared), f"load-rich-feedback.pickapic={tmp_path / 'pap'}", "load-rich-feedback.max_rejected=1"
        )
        assert "Pick-a-Pic has 4 of 5 images; 0 are without bytes, 1 do not decode" in told.err
        rows = feedback(rich)
        assert [row["uid"] for row in rows] == uids[:3]
        assert [word["word"] for word in rows[0]["words"]] == prompt_tokens(records[0]["prompt"])
        assert [word["misaligned"] for word in rows[0]["words"]] == rows[0]["labels"]
        assert rejected(rich) == [(3, "labels do not fit the prompt"), (4, "its prompt is not known")]
        folder = rich.store.open(rich.store.newest("rich", "load-rich-feedback").content_id).path
        pictures = pq.read_table(folder / "images").to_pylist()
        assert {row["image_id"] for row in pictures} >= {row["image_id"] for row in rows[:2]}
        assert {(row["width"], row["height"]) for row in pictures} == {(24, 32)}

    @pytest.mark.parametrize(
        ("name", "told"),
        [
            ("corrupt_crc", "record 1 at byte 1928 has a wrong checksum"),
            ("truncated", "cut short in record 1"),
            ("empty", "is empty"),
            ("lfs_pointer", "git lfs pull"),
            ("bad_map", "the implausibility map does not decode"),
            ("wrong_kind", "artifact_score is missing"),
        ],
    )
    def test_a_broken_file_is_a_clear_error(self, rich, shared, name, told):
        error = load(rich, self.golden(shared, f"_{name}"), "load-rich-feedback.require_prompts=false", status=2).err
        assert told in error, error

    @pytest.mark.parametrize(
        ("name", "row"),
        [("missing_feature", (1, "overall_score is missing")), ("extra", (1, "overall_score has 2 values"))],
    )
    def test_a_broken_record_is_rejected(self, rich, shared, name, row):
        load(rich, self.golden(shared, f"_{name}"), "load-rich-feedback.require_prompts=false")
        assert rejected(rich) == [row] and feedback(rich)

    @pytest.mark.parametrize(
        ("field", "value", "told"),
        [
            ("aesthetics_score", b"0.5", "aesthetics_score is no number"),
            ("aesthetics_score", True, "aesthetics_score is no number"),
            ("overall_score", 1.5, "overall_score is not from 0 to 1"),
            ("filename", b"\xff", "filename is not UTF-8"),
        ],
    )
    def test_a_value_of_another_kind(self, shared, tmp_path, field, value, told):
        features = next(read_examples(self.golden(shared)))
        row = {name: values[0] for name, values in features.items()} | {field: value}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
        (found,) = read_published(tmp_path / "a.parquet", "richhf-parquet")
        assert isinstance(found, BadRecordError) and found.reason == told

    def test_splits_by_the_names_of_files(self, rich, shared, tmp_path):
        """A file's own name says more than the folder in a record: dev records of RichHF lie under Pick-a-Pic's train."""
        folder = tmp_path / "released"
        folder.mkdir()
        for split in ("train", "dev", "test"):
            shutil.copy(self.golden(shared), folder / f"{split}.tfrecord")
        settings = ("load-rich-feedback.format=richhf-tfrecord", "load-rich-feedback.require_prompts=false")
        load(rich, folder, *settings, "load-rich-feedback.max_rejected=1")
        assert {row["split"] for row in feedback(rich)} == {"validation"}, "the first in the order of names"
        assert [reason for _, reason in rejected(rich)] == ["the image stands twice"] * 10

    def test_without_prompts_the_error_says_what_to_give(self, rich, shared):
        error = load(rich, self.golden(shared), status=2).err
        assert "its prompt is not known" in error and "load-rich-feedback.pickapic" in error

    def test_a_flipped_bit_anywhere_is_found(self, shared, tmp_path):
        data = self.golden(shared).read_bytes()
        for place in (0, 5, 9, 12, 40, 3000, len(data) - 1):
            broken = tmp_path / "x.tfrecord"
            broken.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
            with pytest.raises(InputError):
                list(read_examples(broken))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_the_parquet_mirror(rich, tmp_path):
    """The released fields with image and prompt: the same tables."""
    row = {
        "filename": "train/abc.png",
        **dict.fromkeys(("artifact_score", "misalignment_score", "aesthetics_score", "overall_score"), 0.5),
        **dict.fromkeys(("artifact_map", "misalignment_map"), encoded(Image.new("L", (8, 8)))),
        "prompt_misalignment_label": "1 0",
        "prompt": "a cat",
        "image": {"bytes": encoded(Image.new("RGB", (8, 8))), "path": None},
    }
    rows = [row, row | {"filename": "train/b.png", "overall_score": 1.5}, row | {"filename": "train/c.png"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "validation.parquet")
    load(rich, tmp_path / "validation.parquet", "load-rich-feedback.format=richhf-parquet")
    rows = feedback(rich)
    assert [(row["uid"], row["split"]) for row in rows] == [("abc", "validation"), ("c", "validation")]
    assert [(word["word"], word["misaligned"]) for word in rows[0]["words"]] == [("a", False), ("cat", True)]
    assert rejected(rich) == [(1, "overall_score is not from 0 to 1")]


def answer(annotator="ann", **more) -> dict:
    base = {"image": "a.png", "prompt": "a red circle, big", "annotator": annotator, "width": 40, "height": 20}
    scores = dict.fromkeys(("plausibility", "alignment", "aesthetics", "overall"), 3)
    return base | {"scores": scores, "points": [], "misaligned_words": []} | more


class TestRawAnswers:
    def test_discs_majority_and_means_by_hand(self, rich):
        """Three people: disc maps of radius height / 20 averaged, two of three votes win, mean scores on 0..1."""
        spot = {"kind": "implausibility", "x": 0.5, "y": 0.5}
        answers = [
            answer("ann", points=[spot], misaligned_words=[1], scores={"plausibility": 1, "alignment": 5, "overall": 2}),
            answer("bob", points=[spot, {"kind": "misalignment", "x": 0, "y": 1}], misaligned_words=[1, 3]),
            answer("cid", scores={"plausibility": 2}),
        ]
        load(rich, rich.jsonl("raw.jsonl", answers))
        (row,) = feedback(rich)
        assert row["plausibility"] == pytest.approx((2 - 1) / 4) and row["alignment"] == pytest.approx((4 - 1) / 4)
        assert row["aesthetics"] == pytest.approx(0.5) and row["overall"] == pytest.approx((2.5 - 1) / 4)
        assert [(word["word"], word["misaligned"]) for word in row["words"]] == [
            ("a", False), ("red", True), ("circle", False), ("big", False)
        ]  # fmt: skip
        assert [word["share"] for word in row["words"]] == pytest.approx([0, 2 / 3, 0, 1 / 3])
        assert row["annotators"] == 3 and row["image_id"] is not None and row["uid"] == f"{row['image_id']:016x}"
        maps = heatmaps(rich)
        expected = np.zeros((20, 40), dtype=np.uint8)
        expected[9:11, 19:21] = 170
        assert (maps[row["uid"], "implausibility"] == expected).all()
        corner = np.zeros((20, 40), dtype=np.uint8)
        corner[19, 0] = 85
        assert (maps[row["uid"], "misalignment"] == corner).all()
        assert rich.rows("SELECT count(*) AS n FROM rich_points")[0]["n"] == 3
        assert rich.rows("SELECT word FROM rich_words WHERE annotator = 'bob'") == [{"word": "red"}, {"word": "big"}]

    def test_a_disc_is_round_in_any_picture(self):
        for shape in ((200, 200), (100, 300), (300, 90)):
            radius = 0.05 * shape[0]
            marked = discs([(0.5 * shape[1], 0.5 * shape[0])], shape, radius)
            assert marked.sum() == pytest.approx(np.pi * radius**2, rel=0.15), shape
            rows, columns = np.flatnonzero(marked.any(axis=1)), np.flatnonzero(marked.any(axis=0))
            assert len(rows) == len(columns) == 2 * radius
        tiny = discs([(4.0, 4.0)], (4, 4), 0.2)
        assert tiny.sum() == 1 and tiny[3, 3], "a point never vanishes"

    def test_ties_are_aligned(self, rich):
        load(rich, rich.jsonl("raw.jsonl", [answer("ann", misaligned_words=[0]), answer("bob")]))
        assert not any(word["misaligned"] for word in feedback(rich)[0]["words"])

    def test_large_images_have_smaller_maps(self, rich):
        load(rich, rich.jsonl("raw.jsonl", [answer(width=2048, height=1024)]), "load-rich-feedback.map_size=64")
        assert {one.shape for one in heatmaps(rich).values()} == {(32, 64)}

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"points": [{"kind": "implausibility", "x": 1.2, "y": 0.5}]}, "a point is outside the image"),
            ({"points": [{"kind": "ugly", "x": 0.2, "y": 0.5}]}, "a point's kind is none of implausibility, misalignment"),
            ({"misaligned_words": [4]}, "a misaligned word is not in the prompt"),
            ({"scores": {"plausibility": 6}}, "a score is not from 1 to 5"),
            ({"scores": {"beauty": 3}}, "scores are not by aspect"),
            ({"prompt": None}, "no prompt"),
            ({"image": None}, "an image is named by either image or uid"),
            ({"annotator": ""}, "annotator is no text"),
            ({"width": None}, "width and height of the image are not known"),
            ({"colour": "red"}, "unknown keys"),
            ({"split": "dev"}, "split is not train, validation or test"),
            ({"annotator": "ann"}, "the annotator answered twice"),
            ({"height": 30}, "height differs from that of an earlier answer"),
        ],
    )
    def test_a_bad_answer_is_rejected_with_its_reason(self, rich, change, reason):
        load(rich, rich.jsonl("raw.jsonl", [answer("ann"), answer("bob") | change, answer("cid")]))
        assert rejected(rich) == [(1, reason)] and feedback(rich)[0]["annotators"] == 2

    def test_no_json(self, rich):
        (rich.root / "raw.jsonl").write_text(json.dumps(answer()) + "\n{broken\n" + json.dumps(answer("x")) + "\n")
        load(rich, "raw.jsonl")
        assert rejected(rich) == [(1, "not a JSON object")]

    def test_agreement(self, rich):
        """Shares of equal and nearly equal scores, overlap of discs, and who is against all others."""
        answers = []
        for number in range(12):
            level = 1 + number % 5
            for person, score in (("ann", level), ("bob", min(5, level + number % 2)), ("eve", 6 - level)):
                spot = {"kind": "implausibility", "x": 0.5 if person != "eve" else 0.1, "y": 0.5}
                scores = dict.fromkeys(("plausibility", "alignment", "aesthetics", "overall"), score)
                answers.append(answer(person, image=f"{number}.png", points=[spot], scores=scores))
        load(rich, rich.jsonl("raw.jsonl", answers))
        folder = rich.store.open(rich.store.newest("rich", "load-rich-feedback").content_id).path
        figures = json.loads((folder / "agreement.json").read_text())
        assert figures["against_all"] == ["eve"]
        spans = [max(a) - min(a) for a in ((1 + n % 5, min(5, 1 + n % 5 + n % 2), 5 - n % 5) for n in range(12))]
        assert figures["plausibility"]["equal"] == pytest.approx(np.mean(np.array(spans) == 0))
        assert figures["plausibility"]["within_one"] == pytest.approx(np.mean(np.array(spans) <= 1))
        assert figures["iou"] == {"implausibility": pytest.approx(1 / 3), "misalignment": None}
        assert figures["words_alike"] == 1.0 and figures["plausibility"]["alpha"] < 0.3

    def test_one_annotator_has_no_agreement(self, rich):
        done = rich.last("load-rich-feedback", f"load-rich-feedback.path={rich.jsonl('raw.jsonl', [answer()])}")
        figures = done["metrics"]["agreement"]
        assert figures["plausibility"] == {"images": 0, "equal": None, "within_one": None, "alpha": None}
        assert figures["iou"]["implausibility"] is None and figures["against_all"] == []
        assert {one.max() for one in heatmaps(rich).values()} == {0}


class TestLabelStudio:
    def task(self, *annotations, **data):
        return {
            "id": 1,
            "data": {"image": "/data/local-files/?d=imgs/a1.png", "prompt": "\U0001f600 a red cat"} | data,
            "annotations": list(annotations),
        }

    def annotation(self, person, results, at="2026-01-01", **more):
        return {"id": 7, "completed_by": person, "result": results, "was_cancelled": False, "updated_at": at} | more

    def results(self, **scores):
        size = {"original_width": 200, "original_height": 100, "image_rotation": 0}
        spot = {"x": 50.0, "y": 50.0, "width": 1, "keypointlabels": ["Implausibility"]}
        ratings = [
            {"type": "rating", "from_name": name, "to_name": "image", "value": {"rating": score}}
            for name, score in scores.items()
        ]
        return [{**size, "type": "keypointlabels", "from_name": "points", "value": spot}, *ratings]

    def span(self, start, end, text):
        value = {"start": start, "end": end, "text": text, "labels": ["misaligned"]}
        return {"type": "labels", "from_name": "words", "to_name": "prompt", "value": value}

    def test_points_spans_and_ratings(self, rich):
        """Per cent, UTF-16 offsets behind an emoji, and the latest answer of each person."""
        export = [
            self.task(
                self.annotation(1, self.results(plausibility=1)),
                self.annotation(1, [*self.results(plausibility=5), self.span(5, 8, "red")], at="2026-01-02"),
                self.annotation({"id": 2, "email": "x"}, [*self.results(plausibility=3), self.span("4", "7", "red")]),
                self.annotation(3, self.results(), was_cancelled=True),
            )
        ]
        (rich.root / "export.json").write_text(json.dumps(export))
        load(rich, "export.json", "load-rich-feedback.format=label-studio", "load-rich-feedback.max_rejected=1")
        (row,) = feedback(rich)
        assert (row["uid"], row["annotators"], row["plausibility"]) == ("a1", 2, pytest.approx(0.75))
        assert [(word["word"], word["misaligned"]) for word in row["words"]][2] == ("red", True)
        assert rejected(rich) == [(0, "the annotator answered again later"), (3, "skipped by the annotator")]
        maps = heatmaps(rich)
        assert maps["a1", "implausibility"].shape == (100, 200) and maps["a1", "implausibility"][50, 100] == 255

    @pytest.mark.parametrize(
        ("results", "reason"),
        [
            ([{"type": "rating", "from_name": "beauty", "value": {"rating": 3}}], "a result that is no rich feedback"),
            ([{"type": "rating", "from_name": "overall", "value": {"rating": 99}}], "a score is not from 1 to 5"),
            (
                [{"type": "labels", "from_name": "w", "value": {"start": 0, "end": 3, "text": "dog"}}],
                "a span's text is not what the prompt has there",
            ),
            (
                [{"type": "keypointlabels", "value": {"x": 101, "y": 5, "keypointlabels": ["misalignment"]}}],
                "a point is outside the image",
            ),
        ],
    )
    def test_the_server_checks_nothing_so_we_do(self, rich, results, reason):
        good = self.annotation(1, self.results(overall=3))
        bad = self.annotation(2, [*self.results(), *results])
        (rich.root / "export.json").write_text(json.dumps([self.task(good, bad, self.annotation(3, self.results()))]))
        load(rich, "export.json", "load-rich-feedback.format=label-studio")
        assert rejected(rich) == [(1, reason)]

    def test_another_export(self, rich):
        (rich.root / "export.json").write_text(json.dumps([{"image": "a", "annotator": 1}]))
        assert "not a task of Label Studio" in load(rich, "export.json", "load-rich-feedback.format=label-studio", status=2).err


def test_a_format_that_cannot_be_guessed(rich):
    (rich.root / "x.json").write_text("[]")
    assert "load-rich-feedback.format=" in load(rich, "x.json", status=2).err
