"""Results of an evaluation of scorers."""

from __future__ import annotations

import pyarrow as pa

from irpipe.schemas.table import Column, Table


def _share(name: str, doc: str) -> Column:
    return Column(name, pa.float64(), doc, nullable=True)


SCORERS = Table(
    "scorers",
    "Each scorer against people: ImageReward's table 3 in long form.",
    (
        Column("scorer", pa.string(), "Who scored; oracle: the truth itself, which nobody can better but by chance."),
        Column(
            "figure", pa.string(), "accuracy (over pairs), accuracy_by_prompt (mean of the prompts'), recall@k, filter@k, ..."
        ),
        Column("value", pa.float64(), "The figure, a share."),
        _share("low", "Lower end of its 95 % interval, by bootstrap over prompts."),
        _share("high", "Upper end."),
        Column("count", pa.int64(), "Pairs or records it is over."),
    ),
)
GROUPS = Table(
    "groups",
    "Accuracy on parts of the pairs.",
    (
        Column("scorer", pa.string(), "Who scored."),
        Column("part", pa.string(), "rank_gap, category or annotator."),
        Column("label", pa.string(), "Which."),
        Column("pairs", pa.int64(), "How many."),
        Column("accuracy", pa.float64(), "Pooled over them."),
    ),
)
CALIBRATION = Table(
    "calibration",
    "How often a scorer is right against how sure it is.",
    (
        Column("scorer", pa.string(), "Who scored."),
        Column("sure", pa.float64(), "Mean of sigmoid(|difference of raw scores|)."),
        Column("right", pa.float64(), "Share of those pairs that it orders as people do."),
        Column("pairs", pa.int64(), "How many."),
    ),
)
GENERATORS = Table(
    "generators",
    "Generators by each scorer; the layout of ImageReward's table 1.",
    (
        Column("scorer", pa.string(), "Who scored; people: the given ranking."),
        Column("generator", pa.string(), "The model."),
        _share("mean", "Mean score, over a prompt's images and then over prompts."),
        Column("wins", pa.int64(), "How often its best image beats another generator's.", nullable=True),
        _share("human", "People's figure, higher is better, where one is given."),
    ),
)
CORRELATIONS = Table(
    "correlations",
    "How alike two scorers score the images of the split's prompts (HPS, figure 6).",
    (
        Column("scorer", pa.string(), "One of them."),
        Column("other", pa.string(), "The other."),
        Column("figure", pa.string(), "pearson or spearman over all images; ..._within_prompts: mean over prompts."),
        _share("value", "From -1 to 1; null where a scorer gives one score to all."),
        Column("count", pa.int64(), "Images, or prompts, that it is over."),
    ),
)
BEST_OF = Table(
    "best_of",
    "What picking the best of n by a scorer gives, by the oracle.",
    (
        Column("scorer", pa.string(), "Who picks; oracle: the truth; random: chance."),
        Column("n", pa.int32(), "Images to pick from; 1 is no choice."),
        Column("prompts", pa.int64(), "Prompts with at least so many images."),
        Column("utility", pa.float64(), "Expected worth of the pick, mean over prompts."),
        Column("alignment", pa.float64(), "Expected alignment of the pick."),
        Column("fidelity", pa.float64(), "Expected fidelity of the pick."),
    ),
)
AGREEMENT = Table(
    "agreement",
    "Agreement with people on pairs, as HPS's table 3 has it: over people, of each one's.",
    (
        Column("who", pa.string(), "Whose agreement with each person: the other people's, or a scorer's."),
        Column("mean", pa.float64(), "Mean over people of the share of their pairs that are ordered alike."),
        _share("deviation", "Standard deviation over people (n - 1)."),
        Column("people", pa.int64(), "How many people."),
        Column("comparisons", pa.int64(), "Pairs of votes, or votes, that it is over."),
    ),
)
VOTES = Table(
    "votes",
    "Votes on images of two generators that were shown side by side: the user study of HPS, figure 3.",
    (
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("first", pa.uint64(), "One image.", distinct=True),
        Column("second", pa.uint64(), "The other.", distinct=True),
        Column("generator", pa.string(), "What made the first."),
        Column("other", pa.string(), "What made the second."),
        Column("votes", pa.int64(), "Votes for the first."),
        Column("other_votes", pa.int64(), "Votes for the second."),
    ),
)
REJECTED_EVALUATION_PAIRS = Table(
    "rejected",
    "Pairs that were not counted.",
    (
        Column("pair_id", pa.uint64(), "Id of the pair.", distinct=True),
        Column("reason", pa.string(), "Why."),
    ),
)
