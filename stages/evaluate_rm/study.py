"""People beside people: their agreement with each other and with scorers (HPS, table 3), and votes on images side by
side (HPS, figure 3)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from irpipe.models.plotting import new_figure, save
from irpipe.stages.evaluate_rm.report import aligned

PEOPLE = "other people"
Pairs = Mapping[str, NDArray[Any]]


def agreement_by_person(pairs: Pairs) -> dict[str, tuple[int, int]]:
    """By person: how many of the votes of others on the same image pairs are like theirs, and how many there are.

    Args:
        pairs: columns better, worse and annotator, (p,); votes without an annotator do not count.
    """
    votes: dict[tuple[int, int], Counter[tuple[str, bool]]] = defaultdict(Counter)
    for first, second, person in zip(*(pairs[name].tolist() for name in ("better", "worse", "annotator")), strict=True):
        if person is not None:
            votes[min(first, second), max(first, second)][person, first < second] += 1
    alike: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for of_pair in votes.values():
        by_order, by_person = Counter[bool](), Counter[str]()
        for (person, order), count in of_pair.items():
            by_order[order] += count
            by_person[person] += count
        everybody = sum(by_order.values())
        for (person, order), count in of_pair.items():
            alike[person] += count * (by_order[order] - count)
            total[person] += count * (everybody - by_person[person])
    return {person: (alike[person], count) for person, count in total.items() if count}


def human_agreement(by_person: Mapping[str, tuple[int, int]]) -> tuple[float | None, int]:
    """The share of comparisons, of two people on one image pair, that they order alike, and how many there are."""
    alike, total = (sum(column) // 2 for column in zip(*by_person.values(), strict=True)) if by_person else (0, 0)
    return (alike / total if total else None), total


def agreement_rows(pairs: Pairs, correct: Mapping[str, NDArray[np.float64]]) -> list[dict[str, Any]]:
    """Rows of the table `agreement`: mean and standard deviation over people of their agreement with others, and with scorers.

    Args:
        pairs: columns better, worse and annotator, (p,).
        correct: by scorer, (p,) whether it orders each pair as its annotator did.
    """
    by_person = agreement_by_person(pairs)
    shares = {PEOPLE: [alike / total for alike, total in by_person.values()]}
    counts = {PEOPLE: sum(total for _, total in by_person.values()) // 2}
    people = pairs["annotator"]
    for scorer, right in correct.items():
        shares[scorer] = [float(right[people == person].mean()) for person in sorted(set(people.tolist()) - {None})]
        counts[scorer] = int(sum(person is not None for person in people.tolist()))
    return [
        {
            "who": who,
            "mean": float(np.mean(of_people)),
            "deviation": float(np.std(of_people, ddof=1)) if len(of_people) > 1 else None,
            "people": len(of_people),
            "comparisons": counts[who],
        }
        for who, of_people in shares.items()
        if of_people
    ]


def vote_rows(pairs: Pairs, generators: Mapping[int, str | None]) -> list[dict[str, Any]]:
    """Rows of the table `votes`: of image pairs of two generators that were shown side by side, the votes for each.

    Args:
        pairs: columns ranking_id, prompt_id, better and worse, (p,). Records of more than two images are not side by side.
        generators: by image.
    """
    sizes = Counter(pairs["ranking_id"].tolist())
    votes: dict[tuple[int, int, int], Counter[int]] = defaultdict(Counter)
    columns = (pairs[name].tolist() for name in ("ranking_id", "prompt_id", "better", "worse"))
    for record, prompt, better, worse in zip(*columns, strict=True):
        names = generators.get(better), generators.get(worse)
        if sizes[record] == 1 and None not in names and names[0] != names[1]:
            first, second = sorted((better, worse), key=lambda image: (str(generators[image]), image))
            votes[prompt, first, second][better] += 1
    return [
        {
            "prompt_id": prompt,
            "first": first,
            "second": second,
            "generator": generators[first],
            "other": generators[second],
            "votes": of_pair[first],
            "other_votes": of_pair[second],
        }
        for (prompt, first, second), of_pair in sorted(votes.items())
    ]


def user_study(rows: Sequence[Mapping[str, Any]]) -> str:
    """Votes on images side by side, as HPS tells them: the share of image pairs with more than half of the votes for each."""
    if not rows:
        return ""
    lines = [["side by side", "image pairs", "votes", "more than half", "half", "mean share"]]
    for generator, other in sorted({(row["generator"], row["other"]) for row in rows}):
        part = [row for row in rows if (row["generator"], row["other"]) == (generator, other)]
        mine = np.array([row["votes"] for row in part])
        all_ = mine + np.array([row["other_votes"] for row in part])
        for name, against, votes in ((generator, other, mine), (other, generator, all_ - mine)):
            cells = [f"{name} against {against}", f"{len(part):,}", f"{votes.sum():,}", f"{np.mean(2 * votes > all_):.0%}"]
            lines.append([*cells, f"{np.mean(2 * votes == all_):.0%}", f"{np.mean(votes / all_):.1%}"])
    return "\nUser study: votes on images of one prompt side by side\n\n" + aligned(lines)


def table_of_people(rows: Sequence[Mapping[str, Any]]) -> str:
    """HPS's table 3: agreement with people, mean and standard deviation over people."""
    if not rows or rows[0]["who"] != PEOPLE:
        return ""
    lines = [["agreement with people", "mean", "deviation", "people", "comparisons"]]
    for row in rows:
        deviation = "" if row["deviation"] is None else f"{row['deviation']:.1%}"
        lines.append([row["who"], f"{row['mean']:.1%}", deviation, f"{row['people']:,}", f"{row['comparisons']:,}"])
    return "\nAgreement on pairs, mean and standard deviation over people\n\n" + aligned(lines)


def draw_votes(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The share of image pairs by the number of votes for each generator's image (HPS, figure 3), for every two generators."""
    contests = sorted({(row["generator"], row["other"]) for row in rows})
    figure, axes = new_figure(5.5 * len(contests), 4.2, columns=len(contests))
    for axis, contest in zip(axes, contests, strict=True):
        part = [row for row in rows if (row["generator"], row["other"]) == contest]
        most = max(row["votes"] + row["other_votes"] for row in part)
        counts = [[row["votes"] for row in part], [row["other_votes"] for row in part]]
        percent = [np.full(len(part), 100 / len(part))] * 2
        axis.hist(counts, bins=[edge - 0.5 for edge in range(most + 2)], weights=percent, label=list(contest))
        axis.set(title=" against ".join(contest), xlabel="votes for its image", ylabel="image pairs (%)")
        axis.legend(frameon=False)
    save(figure, path)
