"""Are the store's bytes what its manifests say, and does running again give them again?"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from irpipe.pipeline.commit import set_aside
from irpipe.pipeline.errors import DamageError
from irpipe.pipeline.hashing import content_id, file_digest
from irpipe.pipeline.manifest import list_files, read_manifest
from irpipe.pipeline.plan import Planner
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.runner import Runner
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
    """What came out when a stage ran again."""

    stage: str
    before: str
    after: str
    determinism: str

    @property
    def same(self) -> bool:
        return self.before == self.after


def rerun(planner: Planner, target: str) -> Iterator[Rerun]:
    """Run every stage up to a target again, in a store of its own, and compare what comes out."""
    store = planner.store
    trial = Store(store.root / "work" / "rerun")
    shutil.rmtree(trial.root, ignore_errors=True)
    try:
        runner = Runner(Planner(planner.recipe, trial, planner.watcher, remember=False))
        runner.run(target)
        for node in planner.recipe.chain(target):
            before, after = (place.newest(planner.recipe.name, node.stage.name) for place in (store, trial))
            if before is not None and after is not None:
                yield Rerun(node.stage.name, before.content_id, after.content_id, node.stage.determinism)
    finally:
        _remove_trial(trial)


def _remove_trial(trial: Store) -> None:
    from irpipe.pipeline.commit import remove

    if trial.root.exists():
        remove(trial.root)
