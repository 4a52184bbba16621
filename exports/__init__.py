"""Exports of artifacts to the layouts of other tools, each with a card that describes and reproduces it.

cards         the parts that all cards share: settings, rows, lineage, licence
files         the files of an exported table
dataset       tables as a folder for `datasets.load_dataset`
generator     a tuned generator as a folder for diffusers
kinds         which artifacts have which layout
markup        any text, escaped for Markdown, YAML, TOML and shell
reproduction  a recipe that reproduces a run
reward_model  a reward model as a folder for `load_reward_model`
weights       copying weights, never pickled ones
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from irpipe.exports.dataset import export_dataset
from irpipe.exports.generator import export_generator
from irpipe.exports.reward_model import export_reward_model
from irpipe.pipeline.export import export_files
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.store import Store


class Exporter(Protocol):
    def __call__(self, store: Store, record: Record, folder: Path, *, hidden: bool = False) -> None: ...


EXPORTERS: Mapping[str, Exporter] = {
    "files": export_files,
    "hf-dataset": export_dataset,
    "diffusers": export_generator,
    "reward-model": export_reward_model,
}
