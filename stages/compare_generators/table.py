"""Table 4: wins, win rates and gains, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.stages.compare_generators import CompareGeneratorsConfig

COLUMNS = ("oracle", "alignment", "fidelity")
BASE = "base"
Worths = dict[str, dict[str, NDArray[np.float64]]]


def compare(worths: Worths, made: Mapping[str, int], draws: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `comparison`.

    Args:
        worths: (prompts, images each) by judge and generator; images of one place are of the same prompt and noise.
        made: images that each generator had to make.
    """
    rows = []
    for judge, by_generator in worths.items():
        base = by_generator[BASE]
        for name, worth in by_generator.items():
            others = [won(worth, other).sum() for other_name, other in by_generator.items() if other_name != name]
            row: dict[str, Any] = {
                "judge": judge,
                "generator": name,
                "wins": float(sum(others)),
                "mean": float(worth.mean()),
                "images": worth.size,
                "images_made": made[name],
            }
            for figure, values in (("win_rate", won(worth, base)), ("gain", worth - base)):
                by_prompt = values.mean(axis=1)
                low, high = interval(by_prompt, draws, seed)
                of_base = name == BASE
                row |= {
                    figure: None if of_base else float(by_prompt.mean()),
                    f"{figure}_low": None if of_base else low,
                    f"{figure}_high": None if of_base else high,
                }
            rows.append(row)
    return rows


def differences(worths: Worths, pairs: Sequence[tuple[str, str]], draws: int, seed: int) -> list[dict[str, Any]]:
    """The gain of one generator over another that is not the base, by judge, with its interval over prompts."""
    rows = []
    for judge, by_generator in worths.items():
        for name, other in pairs:
            by_prompt = (by_generator[name] - by_generator[other]).mean(axis=1)
            low, high = interval(by_prompt, draws, seed)
            rows.append(
                {"judge": judge, "generator": name, "other": other, "gain": float(by_prompt.mean()), "low": low, "high": high}
            )
    return rows


def differences_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The differences as text; empty without any."""
    names = [f"{row['generator']} over {row['other']}" for row in rows]
    width = max(map(len, names), default=0)
    lines = [
        f"  {name:<{width}}  {row['judge']:<14}{row['gain']:>+9.4f}  {row['low']:+.4f} to {row['high']:+.4f}\n"
        for name, row in zip(names, rows, strict=True)
    ]
    return "\nwith and without a negative prompt, gains and 95 % intervals\n" + "".join(lines) if lines else ""


def won(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the first is worth more, 0 where the second is, a half for a tie."""
    found: NDArray[np.float64] = (first > second) + 0.5 * (first == second)
    return found


def interval(by_prompt: NDArray[np.float64], draws: int, seed: int) -> tuple[float, float]:
    """95 % interval of a mean over prompts, by bootstrap over prompts: images of one prompt are not independent."""
    rng, size = np.random.default_rng(seed), len(by_prompt)
    times = rng.multinomial(size, np.full(size, 1 / size), size=draws)
    low, high = np.quantile(times @ by_prompt / size, (0.025, 0.975)).tolist()
    return low, high


def table_4(rows: Sequence[Mapping[str, Any]], prompts: int, config: CompareGeneratorsConfig) -> str:
    """The table as text, a block a judge."""
    whose = "given prompts" if config.prompts is not None else "prompts of the test split"
    text = f"{prompts} {whose}, {config.images_per_prompt} images each, the same noise for all\n"
    for judge in dict.fromkeys(row["judge"] for row in rows):
        text += (
            f"\n{judge:<18}{'#win':>8}{'win % against base':>26}{'mean':>9}{'gain':>9}{'95 % interval':>20}{'images made':>13}\n"
        )
        for row in (row for row in rows if row["judge"] == judge):
            text += f"  {row['generator']:<16}{row['wins']:>8.1f}"
            if row["gain"] is None:
                text += f"{'':>26}{row['mean']:>9.4f}{'':>29}{row['images_made']:>13,}\n"
                continue
            rate = f"{row['win_rate']:.1%} ({row['win_rate_low']:.0%} to {row['win_rate_high']:.0%})"
            span = f"{row['gain_low']:+.4f} to {row['gain_high']:+.4f}"
            text += f"{rate:>26}{row['mean']:>9.4f}{row['gain']:>+9.4f}{span:>20}{row['images_made']:>13,}\n"
    return text
