"""What a stage declares, and the context its ``run`` is handed."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from irpipe.pipeline.errors import RecipeError, StageError, did_you_mean
from irpipe.pipeline.registry import STAGES, declared

if TYPE_CHECKING:
    from irpipe.pipeline.progress import Progress
    from irpipe.pipeline.shards import Worker
    from irpipe.pipeline.store import Artifact

# How a setting counts towards the key of a run:
#   result     its value changes the result: hashed
#   execution  it changes only how the result is reached (device, workers): recorded, not hashed
#   neutral    added after a release: left out of the hash while it has its default, so that old artifacts stay valid
#   external   names files from outside (or artifacts): their content is hashed, their names are not
#   model      a model (or several), as `hub/name@revision`, a local folder, or the name of one that an installed package
#              ships: the revision or the folder's content is hashed
Role = Literal["result", "execution", "neutral", "external", "model"]


# A path in a recipe is a TOML string, relative to the folder of irpipe.toml.
def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("the path is empty")
    return value


FilePath = Annotated[Path, Strict(False), BeforeValidator(_not_empty)]
Sources = Annotated[tuple[str, ...], Strict(False)]


class Config(BaseModel):
    """The settings of one stage: typed, frozen, without unknown names. Fields are made with `setting`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, validate_default=True)

    def unused(self) -> dict[str, str]:
        """Settings that have no effect beside the others, and why. Giving one is an error; none counts towards the key."""
        return {}

    def replaced(self) -> set[str]:
        """Settings that a given source replaces (vectors over an embedder). They may stand; none counts towards the key."""
        return set()

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Self:
        for name, why in self.unused().items():
            if given(self, name):
                raise ValueError(f"{name} has no effect: {why}")
        return self


def setting(default: Any = ..., *, meaning: str, source: str | None = None, role: Role = "result", **limits: Any) -> Any:
    """A field of a `Config`.

    Args:
        default: the default, or nothing for a setting that must be given.
        meaning: what it means, with its unit and special values, as people read it in ``irpipe cite``.
        source: where the default comes from (paper, section; released code), if it has one.
        role: how it counts towards the key.
        limits: pydantic's own constraints (``ge``, ``le``, ...).
    """
    return Field(default, description=meaning, json_schema_extra={"source": source, "role": role}, **limits)


def role_of(config: type[BaseModel], name: str) -> Role:
    """The role a setting was declared with."""
    extra = config.model_fields[name].json_schema_extra
    return extra["role"] if isinstance(extra, dict) else "result"  # type: ignore[return-value]


def source_of(config: type[BaseModel], name: str) -> str | None:
    """The source a setting's default was declared with."""
    extra = config.model_fields[name].json_schema_extra
    return extra["source"] if isinstance(extra, dict) else None  # type: ignore[return-value]


def hashed_names(config: Config, roles: Sequence[Role]) -> list[str]:
    """The settings of some roles that have an effect beside the others."""
    idle = {*config.unused(), *config.replaced()}
    return [name for name in type(config).model_fields if role_of(type(config), name) in roles and name not in idle]


def given(config: BaseModel, name: str) -> bool:
    """Whether a setting was set by somebody, rather than left at its default."""
    return name in config.model_fields_set


@dataclass(frozen=True)
class Rows:
    """Rows in and out of a run. ``kept + rejected = read`` is checked by the runner."""

    read: int
    kept: int
    rejected: int


@dataclass(frozen=True)
class Report:
    """What a stage's ``run`` returns: how many rows, and figures that people want to see (JSON values)."""

    rows: Rows
    metrics: dict[str, Any] = field(default_factory=dict)


class ProgressMaker(Protocol):
    def __call__(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Progress]: ...


@dataclass(frozen=True)
class Model:
    """A model whose identity is known.

    Attributes:
        name: its hub id, the name an installed package ships it by, or `folder:` and 12 digits of its content.
        revision: the commit on the hub, or the digest of the folder.
        folder: where its files lie; None while they are the hub's.
    """

    name: str
    revision: str
    folder: Path | None

    @property
    def location(self) -> dict[str, str | None]:
        """The arguments that every `from_pretrained` takes."""
        if self.folder is not None:
            return {"pretrained_model_name_or_path": str(self.folder)}
        return {"pretrained_model_name_or_path": self.name, "revision": self.revision}


@dataclass(frozen=True)
class Context:
    """What a run may use of its surroundings.

    Attributes:
        work: a folder of this key's own that survives a kill: shards and checkpoints go there.
        progress: ``with context.progress("embedding", total, "prompts") as bar: bar.advance(n)``.
        say: one line for the person who watches.
        sources: the resolved files (or artifacts) of each external setting.
        models: the models of each setting that names some.
    """

    work: Path
    progress: ProgressMaker
    say: Callable[[str], None]
    sources: Mapping[str, tuple[Path, ...]]
    models: Mapping[str, tuple[Model, ...]] = field(default_factory=dict)

    def map(
        self,
        worker: Worker,
        shards: Mapping[str, Any],
        what: str,
        unit: str,
        *,
        size: Callable[[Any], int] = lambda _: 1,
        processes: int = 1,
        executor: str | None = None,
    ) -> list[Path]:
        """Make shards that survive a kill, each whole: those of an earlier attempt are used again. See `pipeline/shards.py`.

        Args:
            worker: writes the result of one shard to a path.
            shards: what each is made of, by the name of its file.
            what: the title of the bar, and the folder in `work`: "embedding".
            unit: what is counted: "prompts"; size: how many of them a shard holds.
            processes: how many make shards side by side; executor: where, by name, if not on this machine.

        Returns:
            the results, in the order of `shards`.

        Raises:
            Exception: what a worker raised, an `IrpipeError` as it is.
        """
        from irpipe.pipeline.shards import make_executor, map_shards

        with self.progress(what, sum(size(shard) for shard in shards.values()), unit) as bar:
            return map_shards(
                worker,
                shards,
                self.work / what.replace(" ", "-"),
                lambda missing: make_executor(executor, min(processes, missing)),
                lambda name: bar.advance(size(shards[name])),
            )


@dataclass(frozen=True)
class Trials:
    """What a stage needs of another one: several runs of it, each under settings of its own.

    Attributes:
        kind: the kind of artifact the tried stage writes; the recipe says which stage that is.
        of: from the stage's config to the settings that each trial lays over the tried stage's.
    """

    kind: str
    of: Callable[[Any], Sequence[Mapping[str, Any]]]


def trial_name(stage: str, settings: Mapping[str, Any]) -> str:
    """``train-rm[learning_rate=1e-05]``: a trial as people and plans name it."""
    return f"{stage}[{', '.join(f'{name}={value}' for name, value in settings.items())}]"


Determinism = Literal["bitwise", "numeric"]
Reads = Sequence[str] | Callable[[Any], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The declaration of one step.

    Attributes:
        name: as in the recipe and on the command line, ``build-pairs``.
        version: raised whenever the same settings and inputs would give another result.
        reads: kinds of artifact it reads; a function where that depends on its settings.
        reads_if_upstream: kinds it reads only where another of its inputs was made from them.
        trials: runs of another stage that it reads, each under the kind `kind[settings]`.
        extra: the extra of its package that its work needs installed.
        processes: whether several processes may work on one run of it together.
        writes: the kind of artifact it writes.
        determinism: ``bitwise`` if two runs on one machine give the same bytes, else ``numeric``; a function where that
            depends on its settings.
        config: its settings.
        run: ``module:function``, imported only when it runs.
        truth: whether it writes what no trained stage may see; only evaluations may be made of it, however indirectly.
        evaluation: whether it only judges, so that it may read the truth.
    """

    name: str
    version: int
    reads: Reads = ()
    reads_if_upstream: Sequence[str] = ()
    trials: Trials | None = None
    extra: str | None = None
    processes: bool = False
    writes: str
    determinism: Determinism | Callable[[Any], Determinism] = "bitwise"
    config: type[Config]
    run: str
    truth: bool = False
    evaluation: bool = False

    def kinds_read(self, config: Config) -> tuple[str, ...]:
        """The kinds this stage reads under a config, without those taken only at hand."""
        return tuple(self.reads(config) if callable(self.reads) else self.reads)

    def determinism_of(self, config: Config) -> Determinism:
        """Whether two runs under a config give the same bytes."""
        return self.determinism(config) if callable(self.determinism) else self.determinism

    def load_run(self) -> Callable[[Config, Mapping[str, Artifact], Path, Context], Report]:
        """Import the stage's work.

        Raises:
            StageError: the extra it needs is not installed.
        """
        module, _, function = self.run.partition(":")
        try:
            run: Callable[..., Report] = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if self.extra is None or str(error.name).startswith(module.partition(".")[0]):
                raise
            raise StageError(
                f"{self.name} needs the package {error.name}, which is not installed", fix=f"pip install 'irpipe[{self.extra}]'"
            ) from None
        return run

    @property
    def package(self) -> str:
        """The package (or the lone module) that holds the stage's code."""
        module = self.run.partition(":")[0]
        return module.rpartition(".")[0] or module


def registered() -> Mapping[str, EntryPoint]:
    """Every installed stage by name: irpipe's own and other packages' alike."""
    return declared(STAGES)


def find_stage(name: str) -> Stage:
    """The declaration of an installed stage.

    Raises:
        RecipeError: no installed package declares a stage of that name.
        StageError: what the package names is not a stage, or is called otherwise.
    """
    points = registered()
    if name not in points:
        raise RecipeError(
            f"there is no stage {name!r}{did_you_mean(name, points)}",
            fix=f"install the package that declares it under the entry-point group {STAGES!r}",
        )
    try:
        stage = points[name].load()
    except ImportError as error:
        raise StageError(f"the stage {name!r} cannot be imported: {error}", where=points[name].value) from error
    if not isinstance(stage, Stage) or stage.name != name:
        raise StageError(f"the entry point {name!r} = {points[name].value!r} is not a stage of that name")
    return stage
