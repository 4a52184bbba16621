"""Errors, with one root and few leaves. Every message says what is wrong, where, what was expected, and what fixes it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

_MOST_LISTED = 200  # characters


class IrpipeError(Exception):
    """An error in what the user controls (input, recipe, store): exit status 2 and no traceback."""

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        lines = [what]
        lines += [f"  where:    {where}"] if where else []
        lines += [f"  expected: {expected}"] if expected else []
        lines += [f"  fix:      {fix}"] if fix else []
        super().__init__("\n".join(lines))
        self.what = what
        self.fix = fix


def combined(faults: Sequence[tuple[str, IrpipeError]]) -> IrpipeError:
    """One error of several, in their order; a single one as it is.

    Args:
        faults: at least one node and its error.
    """
    listed = numbered(faults)
    if len(listed) == 1:
        return faults[0][1]
    return type(faults[0][1])("\n".join([f"{len(listed)} things keep it from running:", *listed]))


def numbered(faults: Sequence[tuple[str, IrpipeError]]) -> list[str]:
    """Faults of nodes as a numbered list; one that several nodes have in common is told once, of the first of them."""
    nodes: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for node, error in faults:
        table = node.partition("[")[0]  # the points of a grid have their faults in common
        common = re.sub(rf"(?<![\w-])({re.escape(node)}|{re.escape(table)})(?![\w-])", "*", str(error))
        texts.setdefault(common, str(error))
        nodes.setdefault(common, []).append(table)
    items = []
    for number, (common, text) in enumerate(texts.items(), start=1):
        others = list(dict.fromkeys(nodes[common]))[1:]
        also = f"\n     also:     {', '.join(others)}" if others else ""
        items.append(f"{number:>2}. {text}".replace("\n", "\n   ") + also)
    return items


class RecipeError(IrpipeError):
    """The recipe or a setting is wrong: unknown name, wrong type, value out of range, setting without effect."""


class InputError(IrpipeError):
    """A file from outside cannot be used: missing, empty, truncated, of another format, without a column."""


class UnreadError(InputError):
    """A file from outside is too large to be read only for a plan or a status."""


class RejectedError(IrpipeError):
    """Too many rows of an input were bad, or none was good."""


class LeakError(IrpipeError):
    """Related rows are in different splits."""


class ModelError(IrpipeError):
    """Model weights are missing, or are not of the expected kind."""


class StoreError(IrpipeError):
    """The store cannot be read or written."""


class DamageError(StoreError):
    """An object's files differ from its manifest."""


class TrainingError(IrpipeError):
    """A training cannot go on: it learns nothing, or its numbers are not finite."""


class StageError(IrpipeError):
    """A stage broke its contract with the engine."""


def nearest(word: str, candidates: Iterable[str]) -> str | None:
    """The known word that is most like another one, if any is."""
    return next(iter(difflib.get_close_matches(word, sorted(candidates), n=1, cutoff=0.6)), None)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest known word, or the list of known words."""
    names = sorted(candidates)
    if (match := nearest(word, names)) is not None:
        return f"; did you mean {match!r}?"
    listed = ", ".join(names)
    return f"; known: {listed if len(listed) <= _MOST_LISTED else listed[:_MOST_LISTED] + ' ...'}" if names else ""
