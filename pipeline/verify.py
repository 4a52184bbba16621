"""Verification: hash the store again, and repeat runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from irpipe.pipeline.commit import faults, set_aside
from irpipe.pipeline.cpus import threads
from irpipe.pipeline.environment import numerics, packages, surroundings
from irpipe.pipeline.errors import InputError, IrpipeError, RecipeError
from irpipe.pipeline.external import resolve
from irpipe.pipeline.hashing import stage_key
from irpipe.pipeline.manifest import Record, describe
from irpipe.pipeline.plugins import with_plugins
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.settings import Config, hashed_config, nested, shown_config
from irpipe.pipeline.stage import Context, Inputs, Stage, find_stage
from irpipe.pipeline.store import Store


@dataclass(frozen=True)
class Fault:
    """A damaged object or record: its name, the stages that made it, and its first fault."""

    name: str
    stages: tuple[str, ...]
    what: str


def verify(store: Store, watcher: Watcher) -> tuple[int, list[Fault]]:
    """Hash every object again and read every record. Damaged ones are moved aside; the next run makes them again.

    Returns:
        how many objects were checked, and the faults.
    """
    folders = store.objects()
    makers: dict[str, set[str]] = {}
    for record in store.records():
        makers.setdefault(record.content_id, set()).add(record.node)
    damaged = []
    with watcher.progress("verifying", len(folders), "artifacts") as bar:
        for folder in folders:
            fault = next(faults(folder), None)
            if fault is not None:
                nodes = tuple(sorted(makers.get(folder.name, ())))
                damaged.append(Fault(folder.name, nodes, f"{fault}; {_set_aside(store, folder)}"))
            bar.advance(1)
    checked = {folder.name for folder in folders}
    for name, stages in sorted(makers.items()):
        if name not in checked:
            damaged.append(Fault(name, tuple(sorted(stages)), "it is missing; the next run makes it again"))
    for path in store.record_files():
        fault = record_fault(store, path)
        if fault is not None:
            damaged.append(Fault(path.name, (), f"the run's record {fault}; {_set_aside(store, path)}"))
    return len(folders), damaged


def _set_aside(store: Store, path: Path) -> str:
    if not store.owns(path):
        return "it lies behind a link, and stays"
    set_aside(store, path)
    return "moved aside"


def record_fault(store: Store, path: Path) -> str | None:
    """What is wrong with a run's record, or None: it must be whole, under its own key, and the key that of what it tells."""
    record = store.record(path.stem)
    return "cannot be read, was changed, or is another run's" if record is None else key_fault(record)


def key_fault(record: Record) -> str | None:
    """What is wrong with the key of a run's record, or None: it must be that of the settings and inputs that the record tells."""
    try:
        stage = find_stage(record.stage)
        if stage.version != record.stage_version:
            return None  # its key is of another version's settings
        rebuilt = _config_of(stage, record)
        if json.loads(json.dumps(shown_config(rebuilt))) != record.config:
            return None  # a default has changed since, or a setting is new
        config = hashed_config(rebuilt)
    except IrpipeError:
        return None  # of another release, or of a package that is not installed
    inputs = {slot: entry.content_id for slot, entry in record.inputs.items()}
    digests = {name: _counted(name, entry) for name, entry in record.external.items()}
    key = stage_key(stage.name, stage.version, config, inputs, digests)
    return None if key == record.key else "is not of what it tells: its key is that of other settings or inputs"


def _counted(name: str, entry: Any) -> Any:
    """What an external entry of a record counts with towards its key (see `resolve` and `with_plugins`)."""
    return [entry["given"], entry["digest"]] if ":" in name else entry["digest"]


@dataclass(frozen=True)
class Rerun:
    """The result of repeating a run with its own settings and inputs."""

    stage: str
    before: str
    after: str | None
    determinism: str
    problem: str | None  # why it could not be repeated
    otherwise: str = ""  # what was otherwise around it

    @property
    def differs(self) -> bool:
        """Whether the result differs although the stage is bitwise."""
        return self.after != self.before and self.determinism == "bitwise"

    def __str__(self) -> str:
        if self.after is None:
            return f"{self.stage}: cannot be compared: {self.problem}"
        if self.before == self.after:
            return f"{self.stage}: the same ({self.determinism})"
        otherwise = self.otherwise or "packages, processor and threads are the same"
        return f"{self.stage}: {self.before[:12]} before, {self.after[:12]} now ({self.determinism}; {otherwise})"


def rerun(store: Store, record: Record, root: Path, watcher: Watcher) -> Rerun:
    """Repeat a run outside the store's objects, and hash its result.

    Args:
        root: the folder that outside files are relative to.
    """
    trial = store.root / "work" / f"rerun-{record.key}"
    shutil.rmtree(trial, ignore_errors=True)
    (trial / "out").mkdir(parents=True)
    (trial / "scratch").mkdir()
    try:
        stage = find_stage(record.stage)
        config = _config_of(stage, record)
        folders = [store.object_path(entry.content_id) for entry in record.inputs.values()]
        externals = with_plugins(stage, config, folders, resolve(stage.name, config, root, store, watcher, remember=False))
        changed = [name for name, entry in record.external.items() if externals.entries.get(name) != entry]
        if changed:
            raise InputError(f"{record.external[changed[0]]['given']} is not what it was")
        inputs = Inputs({slot: (entry.node, store.open(entry.content_id)) for slot, entry in record.inputs.items()})
        context = Context(
            trial / "scratch", watcher.progress, lambda text: watcher.say(f"  {text}"), externals.paths, externals.models
        )
        stage.load_run()(config, inputs, trial / "out", context)
        after, determinism = describe(trial / "out").content_id, stage.determinism_of(config)
        now = replace(record, threads=threads(), processes=1, packages=packages(), numerics=numerics(determinism))
        return Rerun(record.node, record.content_id, after, determinism, None, "; ".join(surroundings(record, now)))
    except IrpipeError as error:
        return Rerun(record.node, record.content_id, None, "bitwise", error.what)
    finally:
        shutil.rmtree(trial)


def _config_of(stage: Stage, record: Record) -> Config:
    """The settings of a run.

    Raises:
        RecipeError: the stage does not know them any more.
    """
    try:
        return stage.config.model_validate(nested({name: record.config[name] for name in record.given}))
    except (ValidationError, KeyError) as error:
        raise RecipeError(f"its settings are of another release: {error}") from None
