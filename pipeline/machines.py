"""What a recipe says of other machines: the team's remote, and where shards are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from irpipe.pipeline.errors import RecipeError, did_you_mean

REMOTE, EXECUTOR = "remote", "executor"  # tables of irpipe.toml that are no nodes


class RemoteSettings(BaseModel):
    """The table [remote].

    Attributes:
        url: where it lies: file:///folder, s3://bucket/path, or another address. None: nowhere.
        push: whether each run is pushed after it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    url: str | None = None
    push: bool = False


class ExecutorSettings(BaseModel):
    """The table [executor]; what a stage's own settings say goes before it.

    Attributes:
        name: inline, processes, ray, or one that a package declares. None: by a stage's num_processes.
        address: of the cluster; auto: the one that this machine is part of; local: one of this machine alone.
        workers: how many make shards on a cluster. None: as many as it has room for.
        num_cpus, num_gpus, memory_gb: what one worker takes of the cluster.
        share: how workers on other machines get what they read and give what they make. folder: the store's folder lies at the
            same path everywhere. remote: inputs come from the remote, and results back through the cluster. auto: folder where
            they see it, else remote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str | None = None
    address: str = "auto"
    workers: Annotated[int, Field(ge=1, le=100_000)] | None = None
    num_cpus: Annotated[float, Field(gt=0, le=1024)] = 1.0
    num_gpus: Annotated[float, Field(ge=0, le=64)] = 0.0
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    share: Literal["auto", "folder", "remote"] = "auto"


@dataclass(frozen=True)
class Machines:
    """Where the shards of a run may be made.

    Attributes:
        processes: how many make shards side by side.
        store, remote: of the run, for executors on other machines.
        say: prints one line for the user.
    """

    processes: int = 1
    settings: ExecutorSettings = field(default_factory=ExecutorSettings)
    store: Path | None = None
    remote: str | None = None
    say: Callable[[str], None] = lambda _: None


Settings = TypeVar("Settings", RemoteSettings, ExecutorSettings)


def read_settings(kind: type[Settings], name: str, table: Mapping[str, Any]) -> Settings:
    """A table of irpipe.toml that is no node.

    Raises:
        RecipeError: a setting is unknown or wrong.
    """
    unknown = [key for key in table if key not in kind.model_fields]
    if unknown:
        raise RecipeError(f"[{name}] has no setting {unknown[0]!r}{did_you_mean(unknown[0], kind.model_fields)}")
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        faults = [f"[{name}] {'.'.join(map(str, item['loc']))} = {item['input']!r}: {item['msg']}" for item in error.errors()]
        raise RecipeError("\n".join(faults).replace("Input should be", "should be")) from None
