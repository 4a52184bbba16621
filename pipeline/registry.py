"""Entry points by group, of irpipe and of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points

STAGES = "irpipe.stages"
VIEWS = "irpipe.views"
MODELS = "irpipe.models"  # name = "package:folder.folder", a folder of the package that holds a model
SCORERS = "irpipe.scorers"
REWARD_MODELS = "irpipe.reward_models"
EXTRACTORS = "irpipe.extractors"
EXECUTORS = "irpipe.executors"


@cache
def declared(group: str) -> Mapping[str, EntryPoint]:
    """The entry points of a group by name. Nothing is imported until one of them is loaded."""
    return {point.name: point for point in entry_points(group=group)}
