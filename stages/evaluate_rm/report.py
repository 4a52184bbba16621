"""The report as text, in the layout of the paper's tables 3 and 1, and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from irpipe.models.plotting import NEUTRAL, PALETTE, legend_below, new_figure, save, style
from irpipe.stages.evaluate_rm import EvaluateRmConfig
from irpipe.stages.evaluate_rm.choices import ACCURACY, EXPECTED, Judged, agreement_on_choices
from irpipe.stages.evaluate_rm.ranking import rho

Row = Mapping[str, Any]


def table_3(
    rows: Sequence[Row], bound: float | None, human: tuple[float | None, int], config: EvaluateRmConfig, pairs: str
) -> str:
    """Accuracy, recall and filter of every scorer in per cent, with the bound beside it."""
    by = {(row["scorer"], row["figure"]): row for row in rows}
    names = list(dict.fromkeys(row["scorer"] for row in rows))
    ranked = [f"{kind}@{k}" for kind in ("recall", "filter") for k in config.at if (names[0], f"{kind}@{k}") in by]
    ranked += config.rules
    share = bound is not None
    header = ["scorer", "accuracy", "95 %", "by prompt", *ranked] + (["share of gap"] if share else [])
    lines = [header]
    for name in names:
        row = by[name, "accuracy"]
        span = f"{row['low']:.1%}-{row['high']:.1%}".replace("%-", "-") if row["low"] is not None else ""
        cells = [name, f"{row['value']:.2%}", span, f"{by[name, 'accuracy_by_prompt']['value']:.2%}"]
        cells += [f"{by[name, figure]['value']:.2%}" for figure in ranked]
        lines.append(cells + ([f"{(row['value'] - 0.5) / (bound - 0.5):.0%}"] if bound is not None else []))
    count = by[names[0], "accuracy"]["count"]
    text = f"{count:,} pairs of the {config.split} split (pairs {pairs[:12]}); equal scores are wrong;"
    text += " intervals by bootstrap over prompts\n\n"
    text += aligned(lines)
    if bound is not None:
        text += f"\nBayes bound: {bound:.2%}; the share of gap is from chance, 50 %, to it\n"
    if human[0] is not None:
        text += f"Two people agree on {human[0]:.2%} of {human[1]:,} comparisons\n"
    return text


def table_2(rows: Sequence[Row], judged: Judged, config: EvaluateRmConfig) -> str:
    """HPS's table 2: accuracy on choices, in all and by the number of images. Empty where nobody made choices."""
    if not judged.choices:
        return ""
    by = {(row["scorer"], row["figure"]): row for row in rows}
    sizes = sorted({len(choice.images) for choice in judged.choices}, reverse=True)
    main, bounds = EXPECTED if judged.bounds else ACCURACY, judged.bounds
    over = [f"{main}_over_{config.baseline}"] if config.baseline else []
    lines = [["scorer", "choices", "95 %", *([f"over {config.baseline}"] if over else []), "drawn", *(f"of {n}" for n in sizes)]]
    lines[0] += ["share of gap"] if bounds else []
    for name in (name for name, figure in by if figure == main):
        row = by[name, main]
        cells = [name, f"{row['value']:.2%}", _span(row)]
        cells += [
            f"{by[name, figure]['value']:+.2%} {_span(by[name, figure])}" if (name, figure) in by else "" for figure in over
        ]
        cells += [f"{by[name, ACCURACY]['value']:.2%}", *(f"{by[name, f'{ACCURACY}_of_{n}']['value']:.2%}" for n in sizes)]
        lines.append(cells + ([f"{(row['value'] - bounds.chance) / (bounds.best - bounds.chance):.0%}"] if bounds else []))
    text = f"\n{len(judged.choices):,} choices of the {config.split} split; equal scores share 1 / k; intervals over prompts\n"
    text += f"{judged.unscored:,} more have images without scores\n" if judged.unscored else ""
    text += "\n"
    text += aligned(lines)
    if bounds:
        text += (
            f"\nBayes bound: {bounds.best:.2%}; another person: {bounds.another_person:.2%}; chance: {bounds.chance:.2%}."
            " 'choices' is the accuracy expected over people's noise, 'drawn' that on the choices that were made\n"
        )
    alike, total = agreement_on_choices(judged.choices)
    return text + (f"Two people chose the same image in {alike:.2%} of {total:,} cases\n" if alike is not None else "")


def _span(row: Row) -> str:
    """An interval in per cent."""
    return "" if row["low"] is None else f"({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def table_1(rows: Sequence[Row]) -> str:
    """Generators by every scorer; Spearman's rho against people where they are given. Empty for one generator."""
    if not rows:
        return ""
    lines = [["scorer", "generator", "mean", "wins", "people"]]
    for row in rows:
        human = "" if row["human"] is None else f"{row['human']:g}"
        lines.append([row["scorer"], row["generator"], f"{row['mean']:.4f}", str(row["wins"]), human])
    text = "\nGenerators, over all scored images\n\n" + aligned(lines)
    for name in dict.fromkeys(row["scorer"] for row in rows):
        ranked = [row for row in rows if row["scorer"] == name and row["human"] is not None]
        correlation = rho({row["generator"]: row["mean"] for row in ranked}, {row["generator"]: row["human"] for row in ranked})
        text += f"Spearman's rho of {name} to people: {correlation:.2f}\n" if correlation is not None else ""
    return text


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first aligned left, the others right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ""
    for line in lines:
        cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        text += "  ".join([line[0].ljust(widths[0]), *cells[1:]]) + "\n"
    return text


def draw(rows: Sequence[Row], bins: Sequence[Row], picks: Sequence[Row], bound: float | None, path: Path) -> None:
    """Accuracies with intervals and bound, calibration, and best-of-n."""
    figure, (left, middle, *last) = new_figure(14 if picks else 9.5, 4.8, columns=3 if picks else 2)
    accuracy = sorted((row for row in rows if row["figure"] == "accuracy"), key=lambda row: row["value"])
    for height, row in enumerate(accuracy):
        left.plot(row["value"], height, **style(0))
        if row["low"] is not None:
            left.plot([row["low"], row["high"]], [height, height], color=PALETTE[0])
    left.set_yticks(range(len(accuracy)), [row["scorer"] for row in accuracy])
    left.axvline(0.5, color=NEUTRAL, linestyle=":", label="chance")
    if bound is not None:
        left.axvline(bound, color=PALETTE[1], linestyle="--", label="Bayes bound")
    left.set(title="Accuracy on pairs, 95 % intervals", xlabel="share of pairs ordered as people do", ylabel="scorer")
    legend_below(left)
    middle.plot([0.5, 1], [0.5, 1], color=NEUTRAL, linestyle=":")
    middle.plot([row["sure"] for row in bins], [row["right"] for row in bins], **style(0))
    middle.set(title="Calibration of the reward model", xlabel="sigmoid(|difference|)", ylabel="share ordered as people do")
    for axes in last:
        _draw_best_of(axes, picks)
    save(figure, path)


def _draw_best_of(axes: Any, picks: Sequence[Row]) -> None:
    """What the best of n by each scorer is worth, by the oracle."""
    for number, name in enumerate(dict.fromkeys(row["scorer"] for row in picks)):
        part = [row for row in picks if row["scorer"] == name]
        axes.plot([row["n"] for row in part], [row["utility"] for row in part], label=name, **style(number))
    prompts = {row["n"]: row["prompts"] for row in picks}  # with fewer images than n a prompt does not count
    axes.set_xticks(list(prompts), [f"{n}\n{count:,}" for n, count in prompts.items()])
    axes.set(title="Best of n by each scorer", xlabel="n, and how many prompts have n images", ylabel="utility by the oracle")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=7, frameon=False)
