"""Plots of a tuning: its curves, and images before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from irpipe.models.plotting import NEUTRAL, PALETTE, draw_line, legend_below, mark_step, new_figure, save, style
from irpipe.models.training.curves import Row
from irpipe.models.tuning.evaluation import DENOISING, HELD_OUT, REWARD, SHOWN, SIMILARITY, Evaluation

_SCORES = {REWARD: "reward, trained", HELD_OUT: "held out", SIMILARITY: "similarity, held out"}
_LOSSES = ("pretraining_loss", "pool_loss")
_GRADIENTS = ("gradient_norm", "reward_gradient_median", "reward_gradient_largest")
_SIDE, _MARGIN, _LINE, _FRAME = 128, 6, 17, 3  # pixels; a line of the font with its spacing


def draw_curves(evaluations: Sequence[Evaluation], rows: Sequence[Row], kept: int, fired: Sequence[str], path: Path) -> None:
    """Scores, denoising loss, image statistics and training figures over the steps, each panel with one scale."""
    figure, panels = new_figure(14, 8.5, 2, 3)
    scores, loss, statistics, reward, losses, gradients = panels
    steps, first = [one.step for one in evaluations], evaluations[0]
    for number, (name, label) in enumerate(_SCORES.items()):
        std = float(first.measures[name].std()) or 1.0
        scores.plot(steps, [(one.mean(name) - first.mean(name)) / std for one in evaluations], label=label, **style(number))
    scores.set(title="scores of held-out prompts", ylabel="gain (standard deviations over prompts)")
    loss.plot(steps, [one.mean(DENOISING) / first.mean(DENOISING) for one in evaluations], label="denoising loss", **style(0))
    loss.set(title="denoising loss on captioned images", ylabel="relative to step 0")
    for number, name in enumerate(sorted(first.measures.keys() - {*_SCORES, DENOISING, "dark_share"})):
        values = [one.mean(name) / max(first.mean(name), 1e-9) for one in evaluations]
        statistics.plot(steps, values, label=name, **style(number))
    statistics.set(title="image statistics", ylabel="relative to step 0")
    drawn = ((reward, ("reward",)), (losses, _LOSSES), (gradients, _GRADIENTS))
    for axes, names in drawn:
        _draw_training(axes, names, rows)
    reward.set(title="training: reward", ylabel="reward (standard deviations of its scores)")
    losses.set(title="training: losses", ylabel="mean squared error of the noise")
    gradients.set(title="training: gradients", ylabel="norm", yscale="symlog")
    for axes in panels:
        mark_step(axes, kept, f"kept: step {kept:,}")
        axes.set_xlabel("step")
        legend_below(axes)
    if fired:
        figure.suptitle(fired[0], fontsize=9)
    save(figure, path)


def _draw_training(axes: Any, names: Sequence[str], rows: Sequence[Row]) -> None:
    """The curves of some figures of the training steps."""
    for number, name in enumerate(names):
        points = [(step, value) for step, split, figure_name, value in rows if (split, figure_name) == ("train", name)]
        if points:
            draw_line(axes, number, points, name)


def draw_before_after(before: Evaluation, after: Evaluation, prompts: Sequence[str], path: Path) -> None:
    """A column per prompt: its first image before, and after from the same noise, with the prompt's held-out score."""
    pairs = zip(before.pictures[:SHOWN], after.pictures[:SHOWN], strict=True)
    columns = [[pictures[0][0], pictures[1][0]] for pictures in pairs]
    scores = np.stack([one.measures[HELD_OUT][: len(columns)] for one in (before, after)], axis=1)
    draw_columns(columns, ["before", "after"], prompts[:SHOWN], path, {"held out": scores})


def draw_columns(
    columns: Sequence[Sequence[NDArray[Any]]],
    rows: Sequence[str],
    prompts: Sequence[str],
    path: Path,
    scores: Mapping[str, NDArray[np.float64]],
) -> None:
    """Images (height, width, 3) side by side: a column per prompt, a row per generator. Small ones are enlarged.

    Args:
        scores: (columns, rows) by the name of who gives them, one or none; the best of each column is framed.
    """
    font, step = ImageFont.load_default(11), _SIDE + _MARGIN
    left, top, high = 130, 5 * _LINE, step + (_LINE if scores else 0)
    page = Image.new("RGB", (left + len(columns) * step, top + len(rows) * high), "white")
    draw = ImageDraw.Draw(page)
    for by in scores:
        draw.text((4, 2), f"below: score by\n{by};\nframed: the best", NEUTRAL, font)
    for number, name in enumerate(rows):
        draw.text((4, top + number * high + _SIDE // 2), name, "black", font)
    for column, (pictures, prompt) in enumerate(zip(columns, prompts, strict=True)):
        x = left + column * step
        draw.text((x, 2), _wrapped(prompt), "black", font)
        for row, picture in enumerate(pictures):
            page.paste(_enlarged(picture), (x, top + row * high))
        for worths in scores.values():
            _write_scores(draw, font, worths[column], (x, top), high)
    page.save(path)


def _write_scores(draw: Any, font: Any, worths: NDArray[np.float64], place: tuple[int, int], high: int) -> None:
    """The scores (rows,) of a column below its images, and a frame around the best one; none where all are equal."""
    x, top = place
    for row, worth in enumerate(worths.tolist()):
        y, best = top + row * high, worth == worths.max() > worths.min()
        draw.text((x, y + _SIDE), f"{worth:+.3f}{' best' if best else ''}", "black", font)
        if best:
            draw.rectangle((x, y, x + _SIDE - 1, y + _SIDE - 1), outline=PALETTE[1], width=_FRAME)


def _wrapped(prompt: str) -> str:
    """The first words of a prompt in at most five lines."""
    lines = [""]
    for word in prompt.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < 20 else [*lines, word]
    return "\n".join(lines[:5])


def _enlarged(picture: NDArray[Any]) -> Image.Image:
    shown = Image.fromarray(np.asarray(picture, dtype=np.uint8))
    times = _SIDE // max(shown.size)
    if times > 1:
        return shown.resize((shown.width * times, shown.height * times), Image.Resampling.NEAREST)
    shown.thumbnail((_SIDE, _SIDE))
    return shown
