"""Which artifacts have which layout: by the kind that their stage writes, and by their tables."""

from __future__ import annotations

from collections.abc import Iterator

from irpipe.pipeline.errors import IrpipeError, StoreError
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.stage import Stage, find_stage, registered
from irpipe.pipeline.store import Artifact, Store
from irpipe.schemas import generator, reward_model


def kind_of(record: Record) -> str:
    """The kind of artifact that a run wrote.

    Raises:
        RecipeError: the package that declares its stage is not installed.
    """
    return find_stage(record.stage).writes


def is_generator(kind: str) -> bool:
    """Whether a kind is a tuned generator's."""
    return kind == generator.KIND


def is_reward_model(kind: str) -> bool:
    """Whether a kind is a reward model's."""
    return kind == reward_model.KIND


def has_rows(artifact: Artifact) -> bool:
    """Whether any table has rows: `datasets` cannot load one without."""
    return any(table.rows for table in artifact.manifest.tables.values())


def refuse(store: Store, record: Record, to: str) -> StoreError:
    """The error for an artifact without a layout: the kinds that have it, and the layouts that this one has."""
    kind = kind_of(record)
    return StoreError(
        f"{record.stage} writes {kind!r}, which cannot be exported to {to}",
        where=record.content_id[:12],
        expected=f"an artifact of {', '.join(_fitting(store, to)) or 'another kind'}",
        fix=" or ".join(f"--to {way}" for way in _ways(kind, store.open(record.content_id))),
    )


def _ways(kind: str, artifact: Artifact) -> Iterator[str]:
    """Every layout that an artifact has."""
    yield "files"
    if has_rows(artifact):
        yield "hf-dataset"
    if is_generator(kind):
        yield "diffusers"
    if is_reward_model(kind):
        yield "reward-model"


def _fitting(store: Store, to: str) -> list[str]:
    """Stages whose artifacts have a layout; for datasets, those with artifacts in the store, since only these show tables."""
    if to == "hf-dataset":
        with_rows = {
            record.stage
            for record in store.records()
            if store.holds(record.content_id) and has_rows(store.open(record.content_id))
        }
        return sorted(with_rows)
    fits = is_generator if to == "diffusers" else is_reward_model
    return sorted(stage.name for stage in _installed() if fits(stage.writes))


def _installed() -> Iterator[Stage]:
    """Stages that can be loaded; another package's broken stage is skipped."""
    for name in registered():
        try:
            yield find_stage(name)
        except IrpipeError:
            continue
