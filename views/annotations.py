"""What people said: ratings, agreement, ties, contradictions; and the pairs made of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from irpipe.pipeline.view import Block, Chart, Grid, Shown
from irpipe.schemas.files import read_json

_PEOPLE = 50
_RATINGS = ("overall", "alignment", "fidelity")


def judgements(shown: Shown) -> Sequence[Block]:
    """Histograms of ratings, how far people agree, and what contradicts itself."""
    artifact = shown.artifact
    ratings = [
        {"rating": name, "value": row["value"], "images": row["images"]}
        for name in _RATINGS
        for row in shown.ask(
            f"SELECT round({name}::DOUBLE, 2) AS value, count(*) AS images FROM ratings WHERE {name} IS NOT NULL"
            " GROUP BY ALL ORDER BY 1",
            ratings=artifact.table("ratings"),
        )
    ]
    blocks: list[Block] = []
    if ratings:
        blocks.append(
            Chart(
                "Ratings",
                f"histograms of the ratings, scaled to 0 to 1: {', '.join(_RATINGS)}",
                "bars",
                ratings,
                "value",
                "images",
                panel="rating",
            )
        )
    counts = shown.ask(
        "SELECT 'ties within a ranking' AS what, count(*) AS found FROM (SELECT ranking_id, rank FROM rankings GROUP BY ALL"
        " HAVING count(*) > 1) UNION ALL SELECT 'rankings', count(DISTINCT ranking_id) FROM rankings UNION ALL"
        " SELECT 'ranks that contradict the ratings', count(*) FROM contradictions",
        rankings=artifact.table("rankings"),
        contradictions=artifact.table("contradictions"),
    )
    blocks.append(Grid("Counts", ("what", "found"), [(row["what"], row["found"]) for row in counts]))
    if "agreement.json" in {file.path for file in artifact.manifest.files}:
        blocks += _agreement(read_json(artifact.file("agreement.json")))
    blocks += _by(shown, "prompt_labels", "category", "Prompts by category")
    problems = shown.ask(
        "SELECT problem, count(*) AS images FROM (SELECT unnest(problems) AS problem FROM ratings) GROUP BY ALL"
        " ORDER BY images DESC",
        ratings=artifact.table("ratings"),
    )
    if problems:
        blocks.append(
            Grid("Problems that people saw", ("problem", "images"), [(row["problem"], row["images"]) for row in problems])
        )
    return blocks


def _agreement(told: dict[str, Any]) -> list[Block]:
    whole = [(name, value) for name, value in told.items() if isinstance(value, int | float)]
    blocks: list[Block] = [Grid("Agreement", ("figure", "value"), whole)] if whole else []
    people = [{"annotator": name, "agreement": of["agreement"]} for name, of in told.get("by_annotator", {}).items()]
    if people:
        first = people[:_PEOPLE]
        title = f"Agreement with the others, by annotator ({len(first):,} of {len(people):,})"
        alt = f"share of pairs on which each of {len(first)} annotators agrees with the others"
        blocks.append(Chart(title, alt, "bars", first, "annotator", "agreement"))
    return blocks


def _by(shown: Shown, table: str, column: str, title: str) -> list[Block]:
    rows = shown.ask(
        f"SELECT {column}::VARCHAR AS name, count(DISTINCT prompt_id) AS prompts FROM t GROUP BY ALL ORDER BY prompts DESC",
        t=shown.artifact.table(table),
    )
    return [Grid(title, (column, "prompts"), [(row["name"], row["prompts"]) for row in rows])] if rows else []


def splits(shown: Shown) -> Sequence[Block]:
    """How many prompts each split has, and whether related prompts are divided."""
    files = shown.artifact.table("prompt_splits")
    sizes = shown.ask(
        "SELECT split::VARCHAR AS split, count(*) AS prompts, count(DISTINCT component) AS groups FROM splits"
        " GROUP BY ALL ORDER BY prompts DESC",
        splits=files,
    )
    leaks = shown.ask(
        "SELECT count(*) AS groups FROM (SELECT component FROM splits GROUP BY component HAVING count(DISTINCT split) > 1)",
        splits=files,
    )
    return [
        Grid("By split", ("split", "prompts", "groups of related prompts"), [tuple(row.values()) for row in sizes]),
        Grid("Leaks", ("what", "groups"), [("related prompts in two splits", leaks[0]["groups"])]),
    ]


def pairs(shown: Shown) -> Sequence[Block]:
    """What could be a pair and what became one, by split and by gap of ranks, and whether a prompt leaks between splits."""
    artifact, told = shown.artifact, shown.record.metrics
    lost = sum((told.get("rejected_for") or {}).values())
    kept = [
        ("candidate pairs, C(k, 2) of every ranking", told.get("candidate_pairs")),
        ("kept", artifact.manifest.tables["pairs"].rows),
        ("rejected", lost),
    ]
    split = shown.ask(
        "SELECT split::VARCHAR AS split, count(*) AS pairs, count(DISTINCT prompt_id) AS prompts, "
        " count(DISTINCT annotator) AS people FROM pairs GROUP BY ALL ORDER BY pairs DESC",
        pairs=artifact.table("pairs"),
    )
    leaks = shown.ask(
        "SELECT count(*) AS prompts FROM (SELECT prompt_id FROM pairs GROUP BY prompt_id HAVING count(DISTINCT split) > 1)",
        pairs=artifact.table("pairs"),
    )
    gaps = shown.ask(
        "SELECT split::VARCHAR AS split, rank_worse - rank_better AS gap, count(*) AS pairs FROM pairs GROUP BY ALL ORDER BY gap",
        pairs=artifact.table("pairs"),
    )
    checked = [("prompts in two splits", leaks[0]["prompts"])]
    return [
        Grid("From rankings to pairs", ("what", "pairs"), kept),
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
        Grid("Leaks, checked", ("what", "found"), checked),
    ]
