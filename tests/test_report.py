"""What people see: the terminal's views and the page, opened in a browser."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import sys
import termios
import time
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from irpipe.pipeline.lineage import lineage
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.text import visible
from irpipe.pipeline.view import Card, Chart, Gallery, Grid, Picture, Subject, Text, Thumbnail, blocks_of
from irpipe.report import page as page_module
from irpipe.report.page import Section, make_page, recipe_text
from irpipe.report.write import REFRESH_SECONDS
from irpipe.views.pictures import thumbnail
from tests.browser import draw_all, opened
from tests.paired import RECIPE
from tests.test_images import picture

HOSTILE = (
    "<script>alert(1)</script> a cat",
    '"><img src=x onerror=alert(2)> a dog',
    "</script><script>alert(3)</script> a fox",
    "{{ 7 * 7 }} ${7 * 7} a template",
    "قطة على سجادة حمراء",
    "\u202egnihtyna yas thgim sihT a reversal",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 a family, 家族の写真",
    "a bell \x07 and an escape \x1b[31m red",
    "a' OR '1'='1 -- query",
    "x" * 10_000,
)


@pytest.fixture(scope="module")
def everything(trained, tmp_path_factory):
    """A folder whose store also holds an evaluation, a tuned generator and a comparison."""
    folder = tmp_path_factory.mktemp("everything")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    for target in ("evaluate-rm", "compare-generators"):
        subprocess.run([sys.executable, "-m", "irpipe.cli", "run", target, "--quiet"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def report(everything):
    """The page of all that, from the command line."""
    subprocess.run([sys.executable, "-m", "irpipe.cli", "report"], cwd=everything, check=True, capture_output=True)
    return everything / "report.html"


@pytest.fixture
def seen(project, everything):
    """A project with all of it."""
    shutil.copytree(everything / "artifacts", project.root / "artifacts", dirs_exist_ok=True)
    project.recipe(RECIPE)
    return project


def spoil(path: Path, data: bytes | None) -> None:
    """Overwrite, or with None remove, a file of an artifact."""
    path.parent.chmod(0o755)
    path.chmod(0o644)
    if data is None:
        path.unlink()
    else:
        path.write_bytes(data)


class TestShow:
    @pytest.mark.parametrize(
        ("stage", "told"),
        [
            ("select-prompts", ("Coverage against a random selection", "First picks", "Map of the prompts")),
            ("generate-images", ("Made by", "micro-generator\t32 x 32", "contact sheet: ")),
            ("load-annotations", ("Agreement", "ties within a ranking", "Ratings")),
            ("build-pairs", ("candidate pairs, C(k, 2)", "By split", "prompts in two splits\t0", "Pairs by gap of ranks")),
            ("train-rm", ("higher is better", "validation_accuracy", "Loss (from the first to the last)")),
            ("evaluate-rm", ("Accuracy on pairs of the test split", "The most confident mistakes", "oracle")),
            ("refl", ("Held-out measures before and after", "held_out", "Before and after")),
            ("compare-generators", ("Gain over the base", "The paper's table 4", "Side by side")),
        ],
    )
    def test_every_kind_says_what_people_want_of_it(self, seen, stage, told):
        out = seen("show", stage).out
        for text in told:
            assert text in out, text

    def test_a_contact_sheet_is_a_picture(self, seen):
        path = re.search(r"contact sheet: (\S+\.png)", seen("show", "generate-images").out).group(1)
        with Image.open(path) as sheet:
            assert sheet.format == "PNG" and sheet.width > 128 and sheet.height == 8 * 132
            assert len(sheet.convert("RGB").getcolors(1 << 20)) > 50, "not empty"
        Path(path).unlink()

    def test_mistakes_are_what_most_people_prefer(self, seen):
        """Against a plain count of votes."""
        record = seen.store.newest("micro", "evaluate-rm")
        runs = lineage(seen.store, record).records
        gallery = blocks_of(Subject(seen.store, record, runs))[-1]
        votes = seen.rows("SELECT better, worse, count(*) AS people FROM pairs WHERE split = 'test' GROUP BY ALL")
        scores = {row["image_id"]: row["score"] for row in seen.rows("SELECT * FROM scores WHERE scorer = 'reward-model'")}
        count = {(row["better"], row["worse"]): row["people"] for row in votes}
        wrong = sorted(
            (
                scores[worse] - scores[better]
                for (better, worse), people in count.items()
                if people > count.get((worse, better), 0) and scores[worse] > scores[better]
            ),
            reverse=True,
        )
        told = [card.images[0].score - card.images[1].score for card in gallery.cards]
        assert told == pytest.approx(wrong[: len(told)]) and len(told) == min(12, len(wrong))

    def test_what_is_near_is_what_was_read(self, seen):
        """Not what is newer: the reward model was trained on other pairs, made later."""
        record = seen.store.newest("micro", "evaluate-rm")
        runs = list(lineage(seen.store, record).records)
        pairs = next(run for run in runs if run.stage == "build-pairs")
        other = replace(pairs, key="0" * 64, ended="2999-01-01T00:00:00.000+00:00")
        model = next(run for run in runs if run.stage == "train-rm")
        inputs = {**model.inputs, "pairs": replace(model.inputs["pairs"], key=other.key)}
        around = [replace(run, inputs=inputs) if run is model else run for run in runs]
        assert Subject(seen.store, record, [*around, other]).related_run("pairs") == pairs

    def test_the_same_content_under_another_key_is_still_near(self, seen):
        record = seen.store.newest("micro", "evaluate-rm")
        runs = [replace(run, key="0" * 64) if run.stage == "build-pairs" else run for run in lineage(seen.store, record).records]
        assert Subject(seen.store, record, runs).related_run("pairs").key == "0" * 64

    def test_a_curve_keeps_both_its_splits(self, seen, monkeypatch):
        monkeypatch.setattr("irpipe.views.reward_model._POINTS", 3)
        record = seen.store.newest("micro", "train-rm")
        charts = [block for block in blocks_of(Subject(seen.store, record, [record])) if isinstance(block, Chart)]
        curves = seen.rows("SELECT split, max(step) AS last, count(*) AS points FROM curves WHERE figure = 'loss' GROUP BY split")
        for row in curves:
            drawn = [one["step"] for one in charts[0].data if one["split"] == row["split"]]
            assert drawn[-1] == row["last"] and len(drawn) >= 2

    def test_figures_are_those_of_the_tables(self, seen):
        out = seen("show", "build-pairs").out
        for row in seen.rows("SELECT split, count(*) AS pairs FROM pairs GROUP BY split"):
            assert f"{row['split']}\t{row['pairs']:,}\t" in out


def in_terminal(command, folder, answers):
    """What a command prints in a terminal of 100 columns that answers some of its questions."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 1000, 800))
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    printed, waiting = b"", b""
    while select.select([ours], [], [], 60)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        printed, waiting = printed + part, waiting + part
        for question, answer in answers.items():
            if question in waiting:
                os.write(ours, answer)
                waiting = b""
    os.close(ours)
    assert process.wait(60) == 0, printed
    return printed


class TestTerminal:
    COMMAND = (sys.executable, "-m", "irpipe.cli", "show", "generate-images")

    def test_pictures_are_drawn_where_that_is_possible(self, everything):
        """The terminal says, when asked for its attributes, that it knows sixels (4)."""
        printed = in_terminal(self.COMMAND, everything, {b"\x1b[c": b"\x1b[?62;4;22c", b"\x1b[16t": b"\x1b[6;20;10t"})
        assert b"\x1bP" in printed and len(printed) > 10_000

    def test_else_their_path_is_told(self, everything):
        printed = in_terminal(self.COMMAND, everything, {b"\x1b[c": b"\x1b[?62;22c"})
        assert b"\x1bP" not in printed and re.search(rb"contact sheet: \S+\.png", printed)


class TestPage:
    def test_it_opens_without_a_fault(self, report):
        assert report.stat().st_size < 20_000_000
        with opened(report) as page:
            assert draw_all(page) > 10
            broken = page.evaluate("[...document.images].filter(image => !(image.complete && image.naturalWidth)).length")
            assert page.locator("img").count() > 100 and broken == 0
            assert page.faults == []
            assert page.locator("[role=alert]").count() == 0, "every artifact can be shown"
            for text in (
                "Images by prompt",
                "Leaks, checked",
                "Before and after",
                "The paper's table 4",
                "The most confident mistakes",
                "Lineage",
            ):
                assert page.get_by_text(text, exact=True).count() >= 1, text

    def test_every_section_holds_its_artifact_and_its_hashes(self, report, everything):
        with opened(report) as page:
            text = page.locator("main").inner_text()
        for path in (everything / "artifacts" / "refs" / "micro").glob("*.json"):
            told = json.loads(path.read_text(encoding="utf-8"))
            assert told["content_id"] in text and told["key"] in text, path.stem

    def test_galleries_are_filtered(self, report):
        with opened(report) as page:
            gallery = page.locator("section", has=page.locator("h2", has_text="generate-images")).locator(".gallery").first
            cards = gallery.locator(".card")
            every = cards.count()
            word = cards.first.locator("p").inner_text().split()[-1]
            gallery.get_by_label("text").fill(word.upper())
            shown = [card.inner_text() for card in cards.all() if card.is_visible()]
            assert 0 < len(shown) < every and all(word in text for text in shown)
            assert gallery.get_by_role("status").inner_text() == f"{len(shown)} of {every} shown"
            gallery.get_by_label("text").fill("")
            gallery.get_by_label("split").select_option("test")
            splits = [json.loads(card.get_attribute("data-tags"))["split"] for card in cards.all() if card.is_visible()]
            assert splits and set(splits) == {"test"}
            gallery.get_by_label("split").select_option("")
            # Read before anything is hidden: a browser gives the lines of hidden text without their breaks.
            best = {
                card: max(float(told.split("\n")[-1]) for told in card.locator("figcaption").all_inner_texts())
                for card in cards.all()
            }
            gallery.get_by_label("best score at least").fill("0.5")
            shown = [card for card in best if card.is_visible()]
            assert 0 < len(shown) < every and all((score >= 0.5) == (card in shown) for card, score in best.items())

    def test_a_phone_and_the_dark(self, report):
        with opened(report, width=390, height=844, scheme="dark") as page:
            draw_all(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, "only tables and the diagram scroll sideways"
            back, front = page.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
            )
            assert back == "rgb(15, 20, 25)" and front == "rgb(230, 237, 243)"
            assert page.faults == []

    def test_without_scripts_the_numbers_and_images_are_there(self, report):
        with opened(report, scripts=False) as page:
            assert page.locator("img").count() > 100
            assert page.locator("summary", has_text="The numbers").count() > 5

    def test_it_can_be_used_by_keyboard_and_is_told_in_words(self, report):
        with opened(report) as page:
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.tagName") == "A"
            assert page.locator("img:not([alt])").count() == 0
            assert page.locator(".chart:not([aria-label])").count() == 0
            assert page.locator("form label:not(:has(input, select))").count() == 0
            assert all(link.get_attribute("aria-label") for link in page.locator("svg.diagram a").all())

    def test_of_one_run_and_what_it_was_made_from(self, seen):
        seen("report", "build-pairs", "--out", "pairs.html")
        text = (seen.root / "pairs.html").read_text(encoding="utf-8")
        assert 'id="build-pairs-' in text and 'id="load-annotations-' in text
        assert 'id="train-rm-' not in text, "that was made from it"

    def test_the_recipe_that_makes_it_again(self, seen):
        records = [seen.store.newest("micro", stage) for stage in ("simulate-prompts", "generate-images", "evaluate-rm")]
        told = tomllib.loads(recipe_text([Section(record) for record in records]))
        wanted = tomllib.loads(RECIPE)
        assert told["recipe"] == "micro"
        assert {name: told[name] for name in ("simulate-prompts", "generate-images", "evaluate-rm")} == {
            name: wanted[name] for name in ("simulate-prompts", "generate-images", "evaluate-rm")
        }


def test_a_card_is_found_by_its_highest_score():
    scores = (0.25, None, -1.5, 0.75, 0.5)
    card = Card("a cat", [Thumbnail(b"", "", score) for score in scores])
    assert page_module.best(card) == "0.75"
    assert page_module.best(Card("a cat", [Thumbnail(b"", "")])) == "" == page_module.best(Card("a cat", []))


class TestBadInput:
    def test_hostile_prompts_stay_text(self, project, import_recipe):
        """Through the whole pipeline: prompts of any script and length, beside their images."""
        (project.root / "prompts.jsonl").write_text(
            "".join(json.dumps({"prompt": text}) + "\n" for text in HOSTILE), encoding="utf-8"
        )
        settings = ("embed-prompts.path=prompts.jsonl", "select-prompts.method=random", f"select-prompts.count={len(HOSTILE)}")
        project.run("select-prompts", *settings, "embed-prompts.clean=false")
        for row in project.rows("SELECT prompt_id FROM selected_prompts"):
            for number in range(2):
                (project.root / "images" / row["prompt_id"]).mkdir(parents=True, exist_ok=True)
                (project.root / "images" / row["prompt_id"] / f"{number}.png").write_bytes(picture((number, len(row), 9)))
        settings += ("import-images.layout=folder", "import-images.image_root=images", "import-images.min_images=1")
        project.run("import-images", *settings, "embed-prompts.clean=false")
        project("report")
        with opened(project.root / "report.html") as page:
            draw_all(page)
            time.sleep(0.5)
            text = page.locator("main").inner_text()
            assert page.faults == []
            assert page.locator("img[src=x]").count() == 0
            assert page.locator(".card").count() == len(HOSTILE)
        for hostile in HOSTILE[:5]:
            assert hostile in text, hostile
        assert "49 a template" not in text and "\x07" not in text and "\x1b" not in text and "␇" in text
        assert "\u202e" not in text and "<U+202E>" in text, "what reorders text is shown, not obeyed"
        assert "(10,000 characters)" in text

    @pytest.mark.parametrize("hostile", HOSTILE)
    def test_every_block_escapes(self, hostile, seen, tmp_path, monkeypatch):
        """Titles, cells, charts, captions, tags and alternative texts."""
        chart = Chart(hostile, hostile, "bars", [{"x": hostile, "y": 1.0}, {"x": "b", "y": float("nan")}], "x", "y", panel=None)
        panels = Chart("t", hostile, "line", [{"x": 1, "y": 2, "p": hostile}], "x", "y", panel="p")
        card = Card(hostile, [Thumbnail(thumbnail(picture((1, 2, 3))), hostile, 1.0)], {"category": hostile})
        other = Card("b", [Thumbnail(thumbnail(picture((1, 2, 3))), "b")], {"category": "b"})
        blocks = [
            Text(hostile),
            Grid(hostile, (hostile, "n"), [(hostile, 1), ({hostile: hostile}, 2)], hostile),
            chart,
            panels,
            Gallery(hostile, [card, other], hostile),
            Picture(hostile, hostile, tmp_path / "none.png"),
        ]
        monkeypatch.setattr(page_module, "blocks_or_fault", lambda shown: (blocks, ""))
        record = seen.store.newest("micro", "simulate-prompts")
        with Watcher().progress("", 1, "") as bar:
            (tmp_path / "page.html").write_text(
                make_page(seen.store, "micro", [record], [], bar, title=hostile), encoding="utf-8"
            )
        with opened(tmp_path / "page.html") as page:
            draw_all(page)
            page.get_by_label("category").select_option(index=1)
            assert page.locator(".card:visible").count() == 1
            assert page.faults == [] and page.locator("img[src=x]").count() == 0

    def test_what_is_visible(self):
        assert visible("a\tb\nc") == "a b c"
        assert visible("\x00\x1b[0m\x7f") == "␀␛[0m<U+007F>"
        assert visible("\ud800") == "<U+D800>"
        assert visible("x" * 401).endswith("… (401 characters)")

    def test_a_missing_and_a_damaged_artifact_are_shown_as_such(self, seen):
        pairs = seen.store.open(seen.store.newest("micro", "build-pairs").content_id)
        spoil(pairs.file("pairs.parquet"), None)
        ratings = seen.store.open(seen.store.newest("micro", "load-annotations").content_id).file("ratings.parquet")
        spoil(ratings, b"\0" * ratings.stat().st_size)
        seen("report")
        with opened(seen.root / "report.html") as page:
            alerts = page.locator("[role=alert]").all_inner_texts()
            assert page.faults == []
        assert len(alerts) == 2
        assert any("missing or damaged" in text and "irpipe run build-pairs" in text for text in alerts)
        assert any("cannot be shown" in text and "irpipe run load-annotations" in text for text in alerts)

    def test_a_broken_view_hides_itself_only(self, seen, monkeypatch):
        def broken(shown):
            raise IndexError("a bug of somebody's")

        monkeypatch.setattr("irpipe.views.annotations.pairs", broken)
        assert "it cannot be shown: IndexError: a bug of somebody's" in seen("show", "build-pairs").out
        seen("report", "train-rm")
        text = (seen.root / "report-train-rm.html").read_text(encoding="utf-8")
        assert text.count('role="alert"') == 1 and "Score card" in text

    @pytest.mark.parametrize("side", [(4000, 8), (8, 4000), (1, 1), (80, 81), (161, 160)])
    def test_pictures_of_any_shape(self, side):
        written = io.BytesIO()
        Image.new("RGB", side, (1, 2, 3)).save(written, "PNG")
        with Image.open(io.BytesIO(thumbnail(written.getvalue()))) as small:
            assert max(small.size) <= 160 and min(small.size) >= 1

    def test_an_image_that_cannot_be_decoded_is_grey_and_says_why(self, seen, monkeypatch):
        from irpipe.views import pictures

        plain, calls = pictures.thumbnail, []

        def broken(data):
            calls.append(data)
            return plain(data[:20] if len(calls) == 1 else data)

        monkeypatch.setattr(pictures, "thumbnail", broken)
        record = seen.store.newest("micro", "generate-images")
        gallery = next(block for block in blocks_of(Subject(seen.store, record, [record])) if isinstance(block, Gallery))
        captions = [image.caption for card in gallery.cards for image in card.images]
        assert sum("no image" in caption for caption in captions) == 1

    def test_no_images_no_runs_and_one_prompt(self, project):
        assert "irpipe run" in project("report", status=2).err
        project.run("simulate-prompts", "simulate-prompts.count=1")
        project("report")
        with opened(project.root / "report.html") as page:
            assert page.faults == [] and page.locator("section").count() == 1
        project.run("embed-prompts", "simulate-prompts.count=1")
        assert "a prompt" not in project("show", "embed-prompts").err

    def test_a_full_page_leaves_images_out_and_says_so(self, seen):
        with Watcher().progress("", 1, "") as bar:
            record = seen.store.newest("micro", "generate-images")
            whole = make_page(seen.store, "micro", [record], [], bar)
            small = make_page(seen.store, "micro", [record], [], bar, most_image_bytes=10_000)
        assert "left out: the page is full" in small and "to bound the size of this page" in small
        assert "left out" not in whole and len(small) < len(whole)

    def test_a_file_that_cannot_be_written(self, seen):
        assert "error" in seen("report", "build-pairs", "--out", "/dev/null/x", status=2).err


class TestWatching:
    @pytest.mark.slow
    def test_it_is_written_again_while_a_run_goes_on(self, seen):
        """The lock says that it runs: it is held here as a run holds it."""
        store, key, out = seen.store, "f" * 64, seen.root / "report.html"
        (store.work_path(key) / "scratch").mkdir(parents=True)
        told = {"stage": "train-rm", "node": "train-rm", "recipe": "micro", "pid": 1, "started": "2999-01-01T00:00:00+00:00"}
        (store.work_path(key) / "attempt.json").write_text(json.dumps(told), encoding="utf-8")
        command = [sys.executable, "-m", "irpipe.cli", "report", "--watch"]
        with store.lock(key, lambda: None):
            process = subprocess.Popen(command, cwd=seen.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(600):
                if out.exists() or process.poll() is not None:
                    break
                time.sleep(0.1)
            meanwhile = out.read_text(encoding="utf-8") if out.exists() else ""
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert f'data-refresh="{REFRESH_SECONDS}"' in meanwhile and ">running<" in meanwhile
        assert 'data-refresh="0"' in out.read_text(encoding="utf-8"), "the last one stays as it is"
