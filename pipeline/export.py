"""Copies of artifacts for other tools."""

from __future__ import annotations

import shutil
from pathlib import Path

from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.lineage import lineage
from irpipe.pipeline.manifest import MANIFEST_FILE, Record, record_json
from irpipe.pipeline.store import Store


def export_files(store: Store, record: Record, folder: Path) -> None:
    """An artifact's files as they are, and in `lineage/` the records of everything it was made from.

    The folder appears whole or not at all.

    Raises:
        StoreError: the folder exists already.
    """
    if folder.exists():
        raise StoreError(f"{folder} exists already", mend="name a folder that does not exist yet")
    artifact = store.open(record.content_id)
    draft = folder.with_name(f"{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / "lineage").mkdir(parents=True)
    for name in (*(file.path for file in artifact.manifest.files), MANIFEST_FILE):
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.file(name), draft / name)
    for run in (*lineage(store, record).ancestors, record):
        (draft / "lineage" / f"{run.stage}-{run.key[:12]}.json").write_text(record_json(run), encoding="utf-8")
    draft.rename(folder)
