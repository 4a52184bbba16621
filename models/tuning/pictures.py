"""Plots of a tuning: its course, and images before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from irpipe.models.tuning.monitors import DENOISING, HELD_OUT, REWARD, SHOWN, SIMILARITY, Look

_SIDE, _MARGIN, _LINE = 128, 6, 17  # pixels; a line of the font with its spacing


def draw_curves(
    looks: Sequence[Look], rows: Sequence[tuple[int, str, float]], kept: int, noted: Sequence[str], path: Path
) -> None:
    """The judges, the denoising loss, the images' statistics and the slopes over the steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    judges, loss, statistics, training = figure.subplots(2, 2).ravel()
    steps, first = [look.step for look in looks], looks[0]
    for name, colour in ((REWARD, "#b0413e"), (HELD_OUT, "#1b6ca8"), (SIMILARITY, "#3a7d44")):
        spread = float(first.measures[name].std()) or 1.0
        label = f"{name}, trained" if name == REWARD else f"{name}, held out"
        judges.plot(steps, [(look.mean(name) - first.mean(name)) / spread for look in looks], "o-", color=colour, label=label)
    judges.set(title="judges: gain in deviations over prompts", xlabel="step")
    loss.plot(steps, [look.mean(DENOISING) / first.mean(DENOISING) for look in looks], "o-", color="#555555")
    loss.set(title="denoising loss on real pairs, over its start", xlabel="step")
    for name in sorted(first.measures.keys() - {REWARD, HELD_OUT, SIMILARITY, DENOISING, "dark_share"}):
        statistics.plot(steps, [look.mean(name) / max(first.mean(name), 1e-9) for look in looks], label=name)
    statistics.set(title="images: statistics over their start", xlabel="step")
    for name in ("reward", "pretraining_loss", "pool_loss", "gradient_norm", "slope_median", "slope_largest"):
        found = [(step, value) for step, figure_name, value in rows if figure_name == name]
        if found:
            training.plot(*zip(*found, strict=True), label=name, linewidth=0.8)
    training.set(title="training: means over a step", xlabel="step", yscale="symlog")
    for axis in (judges, loss, statistics):
        axis.axvline(kept, color="#999999", linestyle=":", label="kept")
    for axis in (judges, statistics, training):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    if noted:
        figure.suptitle(noted[0], fontsize=9, color="#b0413e")
    figure.savefig(path, dpi=110, metadata={"Software": None})


def draw_before_after(before: NDArray[Any], after: NDArray[Any], prompts: Sequence[str], path: Path) -> None:
    """A column a prompt: its first picture before, and from the same noise after."""
    columns = [[pair[0][0], pair[1][0]] for pair in zip(before[:SHOWN], after[:SHOWN], strict=True)]
    draw_columns(columns, ["before", "after"], prompts[:SHOWN], path)


def draw_columns(columns: Sequence[Sequence[NDArray[Any]]], rows: Sequence[str], prompts: Sequence[str], path: Path) -> None:
    """Pictures side by side: a column a prompt, a row a generator; small pictures are enlarged pixel by pixel."""
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
