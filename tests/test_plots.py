"""Pictures: colours that colour-blind people tell apart, axes with units, legends that cover nothing, what is best marked."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from irpipe.models import plotting
from irpipe.models.plotting import DARK_PALETTE, MARKERS, PALETTE, running_mean
from irpipe.models.tuning import plots
from irpipe.models.tuning.evaluation import Evaluation
from irpipe.pipeline.view import Chart
from irpipe.report.charts import panels
from irpipe.schemas.comparison import main_judge
from irpipe.stages.evaluate_rm.report import draw as draw_evaluation
from irpipe.stages.select_prompts import coverage
from irpipe.stages.sweep_rm.run import draw as draw_sweep
from irpipe.stages.train_rm import curves

# How a person without one kind of cones sees linear RGB (Machado, Oliveira and Fernandes 2009, severity 1.0).
SIGHTS = {
    "all cones": np.eye(3),
    "no red": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "no green": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "no blue": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
LEAST_DIFFERENCE = 15.0  # of CIELAB; 2.3 is just noticeable side by side
LEAST_CONTRAST = 3.0  # WCAG 2.2, 1.4.11: graphical objects
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])


def linear(colour: str):
    values = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    scaled = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.95047, 1.0, 1.08883])
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(first: str, second: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(colour)) for colour in (first, second))
    return (high + 0.05) / (low + 0.05)


def least_difference(palette, sight: str) -> float:
    seen = [lab(np.array(SIGHTS[sight]) @ linear(colour)) for colour in palette]
    return min(float(np.linalg.norm(first - second)) for first, second in itertools.combinations(seen, 2))


class TestColours:
    @pytest.mark.parametrize("sight", SIGHTS)
    @pytest.mark.parametrize("palette", [PALETTE, DARK_PALETTE], ids=["light", "dark"])
    def test_everybody_tells_them_apart(self, palette, sight):
        assert least_difference(palette, sight) >= LEAST_DIFFERENCE

    def test_the_simulation_finds_a_bad_palette(self):
        """Red and green of equal lightness, and the colours that charts had before."""
        assert least_difference(("#b45309", "#5d6b00"), "no red") < 3
        assert least_difference(("#0b5cad", "#6639a6"), "no green") < 3

    @pytest.mark.parametrize(("palette", "back"), [(PALETTE, "#ffffff"), (DARK_PALETTE, "#0f1419")], ids=["light", "dark"])
    def test_they_stand_out_from_the_page(self, palette, back):
        assert min(contrast(colour, back) for colour in palette) >= LEAST_CONTRAST

    def test_markers_tell_lines_apart_without_colour(self):
        assert len(set(MARKERS)) == len(MARKERS) >= len(PALETTE)


def evaluation(step: int, held_out: tuple[float, ...] = (0.1, 0.2, 0.4)) -> Evaluation:
    measures = {
        "reward": np.array([0.0, 1.0, 2.0]) + step,
        "held_out": np.array(held_out),
        "similarity": np.array([0.3, 0.2, 0.1]),
    }
    measures |= {
        "denoising_loss": np.array([1.0, 2.0]),
        "brightness": np.array([0.4, 0.5]),
        "contrast": np.array([1.0, 1, 2]),
    }
    return Evaluation(step, measures, np.full((3, 2, 16, 16, 3), 40 * step + 20, np.uint8))


ROWS = [
    (step, split, figure, 1.0 / step)
    for step in range(1, 101)
    for split, figure in (
        *itertools.product(("train", "validation"), ("loss", "accuracy", "score_std")),
        *(("train", figure) for figure in ("reward", "pretraining_loss", "gradient_norm", "reward_gradient_median")),
    )
]
VECTORS = np.linspace(0.1, 0.9, 20, dtype=np.float32)
PLOTS = {
    "a tuning": lambda path: plots.draw_curves([evaluation(0), evaluation(1)], ROWS, 1, ["it fell"], path),
    "a training": lambda path: curves.draw_curves(ROWS, 60, path),
    "a selection": lambda path: coverage.plot(path, "vote-k", (VECTORS, VECTORS), (VECTORS, VECTORS)),
    "a sweep": lambda path: draw_sweep([{"point": f"rate={n}", "validation_loss": 0.5 + n} for n in (1, 2)], path),
    "an evaluation": lambda path: draw_evaluation(
        [{"figure": "accuracy", "scorer": name, "value": 0.6, "low": 0.5, "high": 0.7} for name in ("one", "two")],
        [{"sure": 0.6, "right": 0.5}, {"sure": 0.8, "right": 0.9}],
        [{"scorer": name, "n": n, "utility": 0.1 * n, "prompts": 30 // n} for name in ("one", "two") for n in (1, 4)],
        0.8,
        path,
    ),
}


@pytest.fixture
def drawn(monkeypatch):
    """The figure that is saved last."""
    figures, real = [], plotting.save

    def kept(figure, path):
        figures.append(figure)
        real(figure, path)

    for module in (plots, curves, coverage):
        monkeypatch.setattr(module, "save", kept)
    monkeypatch.setattr("irpipe.stages.sweep_rm.run.save", kept)
    monkeypatch.setattr("irpipe.stages.evaluate_rm.report.save", kept)
    return figures


@pytest.mark.parametrize("name", PLOTS)
class TestPlots:
    def test_axes_say_what_they_show(self, name, drawn, tmp_path):
        PLOTS[name](tmp_path / "plot.png")
        for axes in drawn[-1].axes:
            assert axes.get_ylabel() and axes.get_xlabel(), axes.get_title()

    def test_legends_cover_no_panel(self, name, drawn, tmp_path):
        PLOTS[name](tmp_path / "plot.png")
        figure = drawn[-1]
        renderer = figure.canvas.get_renderer()
        panels_ = [axes.get_window_extent(renderer) for axes in figure.axes]
        legends = [axes.get_legend() for axes in figure.axes if axes.get_legend() is not None]
        assert legends
        for legend in legends:
            box = legend.get_window_extent(renderer)
            assert not any(box.overlaps(panel) for panel in panels_)
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.width, "it is cut off"

    def test_colours_are_those_of_the_palette(self, name, drawn, tmp_path):
        PLOTS[name](tmp_path / "plot.png")
        colours = {line.get_color().lower() for axes in drawn[-1].axes for line in axes.get_lines()}
        assert colours <= {*PALETTE, plotting.NEUTRAL}

    def test_it_has_a_background_of_its_own_and_the_same_bytes_twice(self, name, tmp_path):
        for part in ("one", "two"):
            PLOTS[name](tmp_path / f"{part}.png")
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
        with Image.open(tmp_path / "one.png") as image:
            assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)


def test_the_kept_step_is_marked(drawn, tmp_path):
    PLOTS["a training"](tmp_path / "plot.png")
    for axes in drawn[-1].axes:
        (line,) = [line for line in axes.get_lines() if line.get_label() == "kept: step 60"]
        assert list(line.get_xdata()) == [60, 60]


def test_each_panel_of_a_tuning_has_one_scale(drawn, tmp_path):
    """Rewards, losses and gradient norms are no neighbours."""
    PLOTS["a tuning"](tmp_path / "plot.png")
    by_panel = {axes.get_title(): {line.get_label().split(",")[0] for line in axes.get_lines()} for axes in drawn[-1].axes}
    assert {"reward"} <= by_panel["training: reward"] and "pretraining_loss" in by_panel["training: losses"]
    assert not {"pretraining_loss", "gradient_norm"} & by_panel["training: reward"]
    assert {"gradient_norm", "reward_gradient_median"} <= by_panel["training: gradients"]


def test_a_running_mean_is_the_mean_of_what_lies_around():
    noise = np.random.default_rng(0).normal(size=100)
    want = [noise[max(0, place - 2) : place + 3].mean() for place in range(100)]  # 100 points / 20 windows: 5 points
    np.testing.assert_allclose(running_mean(noise), want, rtol=0, atol=1e-12)
    np.testing.assert_allclose(running_mean([1.0, 2.0, 3.0]), [1.0, 2.0, 3.0], atol=1e-12)


class TestSheets:
    def test_the_best_of_each_prompt_is_framed(self, tmp_path):
        pictures = [[np.zeros((16, 16, 3), np.uint8)] * 2] * 2
        scores = np.array([[0.1, 0.2], [0.5, 0.5]])  # of two equal ones neither is better
        plots.draw_columns(pictures, ["before", "after"], ["one", "two"], tmp_path / "sheet.png", {"oracle": scores})
        frame = tuple(int(PALETTE[1][start : start + 2], 16) for start in (1, 3, 5))
        with Image.open(tmp_path / "sheet.png") as sheet:
            pixels = np.asarray(sheet.convert("RGB"))
        framed = (pixels == frame).all(axis=2)
        step, top = 128 + 6, 5 * 17
        boxes = [bool(framed[top + row * (step + 17), 130 + column * step]) for column in range(2) for row in range(2)]
        assert boxes == [False, True, False, False]

    def test_before_and_after_carry_the_held_out_scores(self, tmp_path, monkeypatch):
        given = {}
        monkeypatch.setattr(plots, "draw_columns", lambda *args: given.update(args[-1]))
        plots.draw_before_after(evaluation(0), evaluation(1, (0.5, 0.1, 0.4)), ["a", "b", "c"], tmp_path / "x.png")
        np.testing.assert_array_equal(given["held out"], [[0.1, 0.5], [0.2, 0.1], [0.4, 0.4]])

    def test_the_oracle_judges_where_there_is_one(self):
        assert main_judge(["clip", "oracle", "reward-model"]) == "oracle"
        assert main_judge(["reward-model", "clip"]) == "reward-model"


class TestCharts:
    """What Vega-Lite is told."""

    def lines(self, count: int, **changes):
        rows = [{"step": n, "loss": 1.0, "split": split} for n in range(count) for split in ("train", "validation")]
        given = {"colour": "split", "y_title": "nats per pair", "steps": {"kept: step 3": 3.0}, **changes}
        ((_, spec),) = panels(Chart("Loss", "loss", "line", rows, "step", "loss", **given))
        return spec["layer"]

    def test_short_lines_have_a_marker_for_each_colour(self):
        line, points, *_ = self.lines(5)
        assert line["encoding"]["y"]["title"] == "nats per pair"
        assert len(set(points["encoding"]["shape"]["scale"]["range"])) >= 6

    def test_long_lines_are_smoothed_over_their_own_values(self):
        pale, smooth, *_ = self.lines(100)
        (window,) = smooth["transform"]
        assert window["groupby"] == ["split"] and window["frame"] == [-2, 2]
        assert pale["mark"]["opacity"] < 0.5 and smooth["encoding"]["y"]["field"] == "running mean"

    def test_the_kept_step_is_an_upright_line(self):
        rule, label = self.lines(5)[-2:]
        assert rule["data"]["values"] == [{"value": 3.0, "is": "kept: step 3"}] and label["mark"]["type"] == "text"

    def test_each_panel_has_its_own_unit(self):
        rows = [{"step": n, "value": 1.0, "figure": figure} for n in range(3) for figure in ("reward", "loss")]
        chart = Chart("Evaluations", "", "line", rows, "step", "value", panel="figure", units={"loss": "squared error"})
        titles = {title: spec["layer"][0]["encoding"]["y"].get("title") for title, spec in panels(chart)}
        assert titles == {"reward": None, "loss": "squared error"}


def test_no_plot_is_drawn_past_these_rules():
    """Figures are made in one place."""
    from tests.test_house import REPOSITORY

    found = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("models", "stages", "views", "report", "exports")
        for path in (REPOSITORY / folder).rglob("*.py")
        if re.search(r"import Figure$|matplotlib\.pyplot", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert found == {"models/plotting.py"}
