"""Annotations (ratings, agreement, ties, contradictions), splits, and pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irpipe.pipeline.view import Block, Chart, Grid, Subject
from irpipe.schemas.files import read_json

_PEOPLE = 50
_RATINGS = ("overall", "alignment", "fidelity")


def judgements(subject: Subject) -> Sequence[Block]:
    """Histograms of ratings, agreement of annotators, and contradictions."""
    artifact = subject.artifact
    blocks = _ratings(subject)
    counts = subject.ask(
        "SELECT 'ties within a ranking' AS what, count(*) AS found FROM (SELECT ranking_id, rank FROM rankings GROUP BY ALL"
        " HAVING count(*) > 1) UNION ALL SELECT 'rankings', count(DISTINCT ranking_id) FROM rankings UNION ALL"
        " SELECT 'ranks that contradict the ratings', count(*) FROM contradictions",
        rankings=artifact.table("rankings"),
        contradictions=artifact.table("contradictions"),
    )
    blocks.append(Grid("Counts", ("what", "found"), [(row["what"], row["found"]) for row in counts]))
    if "agreement.json" in {file.path for file in artifact.manifest.files}:
        blocks += _agreement(read_json(artifact.file("agreement.json")))
    blocks += _by(subject, "prompt_labels", "category", "Prompts by category")
    problems = subject.ask(
        "SELECT problem, count(*) AS images FROM (SELECT unnest(problems) AS problem FROM ratings) GROUP BY ALL"
        " ORDER BY images DESC",
        ratings=artifact.table("ratings"),
    )
    if problems:
        blocks.append(
            Grid("Problems that people saw", ("problem", "images"), [(row["problem"], row["images"]) for row in problems])
        )
    return blocks


def _ratings(subject: Subject) -> list[Block]:
    """Histograms of the ratings, if there are any."""
    ratings = [
        {"rating": name, "value": row["value"], "images": row["images"]}
        for name in _RATINGS
        for row in subject.ask(
            f"SELECT round({name}::DOUBLE, 2) AS value, count(*) AS images FROM ratings WHERE {name} IS NOT NULL"
            " GROUP BY ALL ORDER BY 1",
            ratings=subject.artifact.table("ratings"),
        )
    ]
    alt = f"histograms of the ratings, scaled to 0 to 1: {', '.join(_RATINGS)}"
    return [Chart("Ratings", alt, "bars", ratings, "value", "images", panel="rating")] if ratings else []


def _agreement(figures: dict[str, Any]) -> list[Block]:
    rows = [(name, value) for name, value in figures.items() if isinstance(value, int | float)]
    blocks: list[Block] = [Grid("Agreement", ("figure", "value"), rows)] if rows else []
    people = [{"annotator": name, "agreement": entry["agreement"]} for name, entry in figures.get("by_annotator", {}).items()]
    if people:
        first = people[:_PEOPLE]
        title = f"Agreement with the others, by annotator ({len(first):,} of {len(people):,})"
        alt = f"share of pairs on which each of {len(first)} annotators agrees with the others"
        blocks.append(Chart(title, alt, "bars", first, "annotator", "agreement"))
    return blocks


def _by(subject: Subject, table: str, column: str, title: str) -> list[Block]:
    rows = subject.ask(
        f"SELECT {column}::VARCHAR AS name, count(DISTINCT prompt_id) AS prompts FROM t GROUP BY ALL ORDER BY prompts DESC",
        t=subject.artifact.table(table),
    )
    return [Grid(title, (column, "prompts"), [(row["name"], row["prompts"]) for row in rows])] if rows else []


def splits(subject: Subject) -> Sequence[Block]:
    """How many prompts each split has, and whether related prompts are divided."""
    files = subject.artifact.table("prompt_splits")
    sizes = subject.ask(
        "SELECT split::VARCHAR AS split, count(*) AS prompts, count(DISTINCT component) AS groups FROM splits"
        " GROUP BY ALL ORDER BY prompts DESC",
        splits=files,
    )
    leaks = subject.ask(
        "SELECT count(*) AS groups FROM (SELECT component FROM splits GROUP BY component HAVING count(DISTINCT split) > 1)",
        splits=files,
    )
    return [
        Grid("By split", ("split", "prompts", "groups of related prompts"), [tuple(row.values()) for row in sizes]),
        Grid("Leaks", ("what", "groups"), [("related prompts in two splits", leaks[0]["groups"])]),
    ]


def pairs(subject: Subject) -> Sequence[Block]:
    """Candidate pairs and kept pairs, by split and by rank gap, and prompts that leak between splits."""
    artifact, metrics = subject.artifact, subject.record.metrics
    rejected = sum((metrics.get("rejected_for") or {}).values())
    counts = [
        ("candidate pairs, C(k, 2) of every ranking", metrics.get("candidate_pairs")),
        ("kept", artifact.manifest.tables["pairs"].rows),
        ("rejected", rejected),
    ]
    split = subject.ask(
        "SELECT split::VARCHAR AS split, count(*) AS pairs, count(DISTINCT prompt_id) AS prompts, "
        " count(DISTINCT annotator) AS people FROM pairs GROUP BY ALL ORDER BY pairs DESC",
        pairs=artifact.table("pairs"),
    )
    leaks = subject.ask(
        "SELECT count(*) AS prompts FROM (SELECT prompt_id FROM pairs GROUP BY prompt_id HAVING count(DISTINCT split) > 1)",
        pairs=artifact.table("pairs"),
    )
    gaps = subject.ask(
        "SELECT split::VARCHAR AS split, rank_worse - rank_better AS gap, count(*) AS pairs FROM pairs GROUP BY ALL ORDER BY gap",
        pairs=artifact.table("pairs"),
    )
    leak_rows = [("prompts in two splits", leaks[0]["prompts"])]
    return [
        Grid("From rankings to pairs", ("what", "pairs"), counts),
        Grid("By split", ("split", "pairs", "prompts", "annotators"), [tuple(row.values()) for row in split]),
        Chart(
            "Pairs by gap of ranks",
            "number of pairs by the gap of the two images' ranks, a colour for each split",
            "bars",
            gaps,
            "gap",
            "pairs",
            colour="split",
        ),
        Grid("Leaks, checked", ("what", "found"), leak_rows),
    ]
