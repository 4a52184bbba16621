"""The declaration of a stage, and the context that its ``run`` receives."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from irpipe.pipeline.errors import RecipeError, StageError, did_you_mean
from irpipe.pipeline.machines import Machines
from irpipe.pipeline.registry import STAGES, declared
from irpipe.pipeline.settings import Config, FilePath, Group, Role, Sources, given, group, setting

if TYPE_CHECKING:
    from irpipe.pipeline.progress import Progress
    from irpipe.pipeline.shards import Worker
    from irpipe.pipeline.store import Artifact

# What a declaration needs comes from here, settings included.
__all__ = ["Config", "FilePath", "First", "Group", "Inputs", "Many", "Role", "Sources", "Stage", "given", "group", "setting"]


@dataclass(frozen=True)
class Rows:
    """Rows in and out of a run. ``kept + rejected = read`` is checked by the runner."""

    read: int
    kept: int
    rejected: int


@dataclass(frozen=True)
class Report:
    """The result of a stage's ``run``: row counts and metrics (JSON values)."""

    rows: Rows
    metrics: dict[str, Any] = field(default_factory=dict)


class ProgressMaker(Protocol):
    def __call__(self, what: str, total: int | None, unit: str) -> AbstractContextManager[Progress]: ...


@dataclass(frozen=True)
class Model:
    """A model whose identity is known.

    Attributes:
        name: its hub id, the name an installed package ships it by, or `folder:` (`file:`) and 12 digits of its content.
        revision: the commit on the hub, or the digest of the content.
        folder: where its files lie, or the one file; None while they are the hub's.
        setting: that names it, and what it says, for errors.
    """

    name: str
    revision: str
    folder: Path | None
    setting: str = field(default="", compare=False)
    given: str = field(default="", compare=False)

    @property
    def shown(self) -> str:
        """The model as people know it: what they wrote, or else its name."""
        return self.given or self.name

    @property
    def location(self) -> dict[str, str | None]:
        """The arguments that every `from_pretrained` takes."""
        if self.folder is not None:
            return {"pretrained_model_name_or_path": str(self.folder)}
        return {"pretrained_model_name_or_path": self.name, "revision": self.revision}


@dataclass(frozen=True)
class Context:
    """What a run may use besides its settings and inputs.

    Attributes:
        work: a folder of this key that survives a kill, for shards and checkpoints.
        progress: ``with context.progress("embedding", total, "prompts") as bar: bar.advance(n)``.
        say: prints one line for the user.
        sources: the resolved files (or artifacts) of each external setting.
        models: the models of each setting that names some.
        machines: where shards may be made.
    """

    work: Path
    progress: ProgressMaker
    say: Callable[[str], None]
    sources: Mapping[str, tuple[Path, ...]]
    models: Mapping[str, tuple[Model, ...]] = field(default_factory=dict)
    machines: Machines = field(default_factory=Machines)

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
        """Make shards that survive a kill; those of an earlier attempt are used again. See `pipeline/shards.py`.

        Args:
            worker: writes the result of one shard to a path.
            shards: the worker's argument for each shard, by the name of its file.
            what: the title of the bar, and the folder in `work`: "embedding".
            unit: what is counted: "prompts"; size: how many of them a shard holds.
            processes: how many make shards side by side; executor: where, by name, if not where the recipe says.

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
                lambda missing: make_executor(executor, replace(self.machines, processes=min(processes, missing), say=self.say)),
                lambda name: bar.advance(size(shards[name])),
            )


@dataclass(frozen=True)
class Many:
    """In `reads`: all artifacts of a kind that the recipe names for the stage, at least one, each by its node's name."""

    kind: str


@dataclass(frozen=True)
class First:
    """In `reads`: the first of some kinds that a node of the recipe writes; the first kind where no node writes any."""

    kinds: tuple[str, ...]


class Inputs(Mapping[str, "Artifact"]):
    """The artifacts that a run reads. ``inputs[kind]`` is the one of a kind; ``inputs.all(kind)`` are those of a `Many`.

    Args:
        slots: the name of the node that made it, and the artifact, by kind; those of a `Many` by ``kind[node]``.
    """

    def __init__(self, slots: Mapping[str, tuple[str, Artifact]]) -> None:
        self._slots = slots

    def __getitem__(self, slot: str) -> Artifact:
        return self._slots[slot][1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def all(self, kind: str) -> dict[str, Artifact]:
        """The artifacts of a kind by the names of the nodes that made them, sorted: the order in a recipe counts for nothing."""
        return dict(sorted((node, artifact) for slot, (node, artifact) in self._slots.items() if kind_in(slot) == kind))


def slot_of(kind: str, node: str, *, many: bool) -> str:
    """The name under which a run reads a node's artifact: its kind, or ``kind[node]`` where it may read several.

    Results show the names of the nodes of a `Many`, so the name counts towards the key also where only one is read.
    """
    return f"{kind}[{node}]" if many else kind


def kind_in(slot: str) -> str:
    """The kind in the name of an input."""
    return slot.partition("[")[0]


Determinism = Literal["bitwise", "numeric"]
Plugins = Callable[[Any, Sequence[Path]], Mapping[str, Sequence[str]]]
Reads = Sequence[str | Many | First] | Callable[[Any], Sequence[str | Many | First]]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The declaration of one step.

    Attributes:
        name: as in the recipe and on the command line, ``build-pairs``.
        version: raised whenever the same settings and inputs would give another result.
        reads: kinds of artifact it reads, one artifact of each, or several (`Many`), or the first that the recipe has a node for
            (`First`); a function where that depends on its settings.
        reads_if_upstream: kinds it reads only where they are ancestors of another input.
        extra: the extra of its package that its work needs installed.
        processes: whether several processes may work on one run of it together; a function from its settings to how many do,
            and with how many threads each (None: their share of the processors), where neither the command nor a launcher says.
        plugins: from its settings and the folders of what it reads (artifacts and models) to the names of the entry points, by
            group, that its work loads. Those of other packages count towards the key, by version and files.
        writes: the kind of artifact it writes.
        determinism: ``bitwise`` if two runs on one machine give the same bytes, else ``numeric``; a function where that
            depends on its settings.
        config: its settings.
        run: ``module:function``, imported only when it runs.
        truth: whether it writes ground truth: only evaluation stages may read that, or anything made from it.
        evaluation: whether it only evaluates, so that it may read ground truth.
    """

    name: str
    version: int
    reads: Reads = ()
    reads_if_upstream: Sequence[str] = ()
    extra: str | Callable[[Any], str | None] | None = None
    processes: bool | Callable[[Any], tuple[int, int | None]] = False
    plugins: Plugins | None = None
    writes: str
    determinism: Determinism | Callable[[Any], Determinism] = "bitwise"
    config: type[Config]
    run: str
    truth: bool = False
    evaluation: bool = False

    def kinds_read(self, config: Config, written: Container[str] = ()) -> dict[str, bool]:
        """The kinds this stage reads under a config, and whether it takes several of each; without `reads_if_upstream`.

        Args:
            written: the kinds that the recipe's nodes write, by which a `First` is chosen.
        """
        reads = self.reads(config) if callable(self.reads) else self.reads
        kinds: dict[str, bool] = {}
        for read in reads:
            if isinstance(read, First):
                kinds[next((kind for kind in read.kinds if kind in written), read.kinds[0])] = False
            else:
                kinds[read.kind if isinstance(read, Many) else read] = isinstance(read, Many)
        return kinds

    def workers(self, config: Config) -> tuple[int, int | None]:
        """How many processes work on one run of it together, and the threads of each, where nobody says otherwise."""
        return self.processes(config) if callable(self.processes) else (1, None)

    def determinism_of(self, config: Config) -> Determinism:
        """Whether two runs under a config give the same bytes."""
        return self.determinism(config) if callable(self.determinism) else self.determinism

    def extra_of(self, config: Config) -> str | None:
        """The extra of irpipe that a run under a config needs."""
        chosen = self.extra
        return chosen(config) if callable(chosen) else chosen

    def load_run(self) -> Callable[[Config, Inputs, Path, Context], Report]:
        """Import the stage's work.

        Raises:
            StageError: the extra it needs is not installed.
        """
        module, _, function = self.run.partition(":")
        try:
            run: Callable[..., Report] = getattr(importlib.import_module(module), function)
        except ModuleNotFoundError as error:
            if not isinstance(self.extra, str) or str(error.name).startswith(module.partition(".")[0]):
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
        StageError: the entry point is not a stage, or has another name.
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
