"""Are the store's bytes what its manifests say, and does running again give them again?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from irpipe.pipeline.commit import set_aside
from irpipe.pipeline.errors import DamageError, InputError
from irpipe.pipeline.external import resolve
from irpipe.pipeline.hashing import content_id, file_digest
from irpipe.pipeline.manifest import Record, describe, list_files, read_manifest
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.stage import Context, find_stage
from irpipe.pipeline.store import Store


@dataclass(frozen=True)
class Fault:
    """An object that is not what its name says, the stages whose result it was, and the first thing wrong with it."""

    content_id: str
    stages: tuple[str, ...]
    what: str


def verify(store: Store, watcher: Watcher) -> tuple[int, list[Fault]]:
    """Hash every object again. Damaged ones are moved aside, so that the next run makes them again.

    Returns:
        how many objects were checked, and the faults.
    """
    folders = sorted(store.root.glob("objects/??/*"))
    makers: dict[str, set[str]] = {}
    for record in store.records():
        makers.setdefault(record.content_id, set()).add(record.stage)
    faults = []
    with watcher.progress("verifying", len(folders), "artifacts") as bar:
        for folder in folders:
            what = next(_faults(store, folder.name), None)
            if what is not None:
                set_aside(store, folder.name)
                faults.append(Fault(folder.name, tuple(sorted(makers.get(folder.name, ()))), what))
            bar.advance(1)
    return len(folders), faults


def _faults(store: Store, name: str) -> Iterator[str]:
    folder = store.object_path(name)
    try:
        manifest = read_manifest(folder)
    except DamageError as error:
        yield error.what
        return
    named = {entry.path: entry for entry in manifest.files}
    there = list_files(folder)
    yield from (f"{path} is missing" for path in named if path not in there)
    yield from (f"{path} is not in the manifest" for path in there if path not in named)
    if content_id((entry.path, entry.size, entry.sha256) for entry in manifest.files) != name:
        yield "its manifest is of another artifact"
    with ThreadPoolExecutor() as pool:
        for path, sha in zip(there, pool.map(lambda path: file_digest(folder / path), there), strict=True):
            if sha != named[path].sha256:
                yield f"{path} has other bytes"


@dataclass(frozen=True)
class Rerun:
    """What came out when a run was done again with its own settings and inputs."""

    stage: str
    before: str
    after: str
    determinism: str

    @property
    def same(self) -> bool:
        return self.before == self.after


def rerun(store: Store, record: Record, root: Path, watcher: Watcher) -> Rerun:
    """Do a run again, beside the store's objects, and hash what comes out.

    Args:
        root: the folder that outside files are relative to.

    Raises:
        InputError: an outside file is not what it was, so there is nothing to compare.
    """
    stage = find_stage(record.stage)
    config = stage.config.model_validate({name: record.config[name] for name in record.given})
    externals = resolve(stage.name, config, root, store, watcher, remember=False)
    for name, entry in record.external.items():
        if externals.shown.get(name) != entry:
            raise InputError(f"{entry['given']} is not what it was", where=f"{record.stage}.{name}")
    trial = store.root / "work" / f"rerun-{record.key}"
    shutil.rmtree(trial, ignore_errors=True)
    (trial / "out").mkdir(parents=True)
    (trial / "scratch").mkdir()
    try:
        inputs = {kind: store.open(entry.content_id) for kind, entry in record.inputs.items()}
        context = Context(trial / "scratch", watcher.progress, lambda text: watcher.say(f"  {text}"), externals.paths)
        stage.load_run()(config, inputs, trial / "out", context)
        return Rerun(record.stage, record.content_id, describe(trial / "out").content_id, stage.determinism)
    finally:
        shutil.rmtree(trial)
