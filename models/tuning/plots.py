"""Plots of a tuning: its curves, and images before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from irpipe.models.training.curves import Row
from irpipe.models.tuning.evaluation import DENOISING, HELD_OUT, REWARD, SHOWN, SIMILARITY, Evaluation

_TRAINING = ("reward", "pretraining_loss", "pool_loss", "gradient_norm", "reward_gradient_median", "reward_gradient_largest")
_SIDE, _MARGIN, _LINE = 128, 6, 17  # pixels; a line of the font with its spacing


def draw_curves(evaluations: Sequence[Evaluation], rows: Sequence[Row], kept: int, fired: Sequence[str], path: Path) -> None:
    """Scores, denoising loss, image statistics and training figures over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    scores, loss, statistics, training = figure.subplots(2, 2).ravel()
    steps, first = [one.step for one in evaluations], evaluations[0]
    for name, colour in ((REWARD, "#b0413e"), (HELD_OUT, "#1b6ca8"), (SIMILARITY, "#3a7d44")):
        std = float(first.measures[name].std()) or 1.0
        label = f"{name}, trained" if name == REWARD else f"{name}, held out"
        scores.plot(steps, [(one.mean(name) - first.mean(name)) / std for one in evaluations], "o-", color=colour, label=label)
    scores.set(title="scores: gain in standard deviations over prompts", xlabel="step")
    loss.plot(steps, [one.mean(DENOISING) / first.mean(DENOISING) for one in evaluations], "o-", color="#555555")
    loss.set(title="denoising loss on captioned images, relative to step 0", xlabel="step")
    for name in sorted(first.measures.keys() - {REWARD, HELD_OUT, SIMILARITY, DENOISING, "dark_share"}):
        statistics.plot(steps, [one.mean(name) / max(first.mean(name), 1e-9) for one in evaluations], label=name)
    statistics.set(title="image statistics, relative to step 0", xlabel="step")
    for name in _TRAINING:
        points = [(step, value) for step, split, figure_name, value in rows if (split, figure_name) == ("train", name)]
        if points:
            training.plot(*zip(*points, strict=True), label=name, linewidth=0.8)
    training.set(title="training: means per step", xlabel="step", yscale="symlog")
    for axis in (scores, loss, statistics):
        axis.axvline(kept, color="#999999", linestyle=":", label="kept")
    for axis in (scores, statistics, training):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    if fired:
        figure.suptitle(fired[0], fontsize=9, color="#b0413e")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_before_after(before: NDArray[Any], after: NDArray[Any], prompts: Sequence[str], path: Path) -> None:
    """A column per prompt: its first image before, and after from the same noise; images (prompts, 2, height, width, 3)."""
    columns = [[pair[0][0], pair[1][0]] for pair in zip(before[:SHOWN], after[:SHOWN], strict=True)]
    draw_columns(columns, ["before", "after"], prompts[:SHOWN], path)


def draw_columns(columns: Sequence[Sequence[NDArray[Any]]], rows: Sequence[str], prompts: Sequence[str], path: Path) -> None:
    """Images (height, width, 3) side by side: a column per prompt, a row per generator. Small ones are enlarged."""
    font, step = ImageFont.load_default(11), _SIDE + _MARGIN
    left, top = 130, 5 * _LINE
    page = Image.new("RGB", (left + len(columns) * step, top + len(rows) * step), "white")
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(rows):
        draw.text((4, top + number * step + _SIDE // 2), name, "black", font)
    for column, (pictures, prompt) in enumerate(zip(columns, prompts, strict=True)):
        words, lines = prompt.split(), [""]
        for word in words:
            lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 20 else [*lines, word]
        draw.text((left + column * step, 2), "\n".join(lines[:5]), "black", font)
        for row, picture in enumerate(pictures):
            page.paste(_enlarged(picture), (left + column * step, top + row * step))
    page.save(path)


def _enlarged(picture: NDArray[Any]) -> Image.Image:
    shown = Image.fromarray(np.asarray(picture, dtype=np.uint8))
    times = _SIDE // max(shown.size)
    if times > 1:
        return shown.resize((shown.width * times, shown.height * times), Image.Resampling.NEAREST)
    shown.thumbnail((_SIDE, _SIDE))
    return shown
