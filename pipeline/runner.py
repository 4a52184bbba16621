"""plan -> reuse | run -> commit."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from irpipe.pipeline.code import code_digest
from irpipe.pipeline.commit import attempt, begin, commit, recover, remove
from irpipe.pipeline.cpus import set_threads, threads, usable_cpus
from irpipe.pipeline.environment import git, numerics, packages, surroundings
from irpipe.pipeline.errors import InputError, IrpipeError, RecipeError, StageError, StoreError, combined
from irpipe.pipeline.journal import Journal
from irpipe.pipeline.lineage import stages_behind
from irpipe.pipeline.machines import Machines
from irpipe.pipeline.manifest import InputEntry, Manifest, Record, to_json
from irpipe.pipeline.memory import stage_memory_errors
from irpipe.pipeline.plan import Planner, Step, input_entry, open_inputs
from irpipe.pipeline.processes import alone, count, end_with_parent, together
from irpipe.pipeline.progress import Watcher, duration, size
from irpipe.pipeline.recipe import Recipe
from irpipe.pipeline.remote import Remote
from irpipe.pipeline.requirements import not_reachable, to_download
from irpipe.pipeline.settings import Config, given_names, shown_config
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import Context, ProgressMaker, Report, find_stage, registered
from irpipe.pipeline.store import Store, disk_errors, write_durably
from irpipe.pipeline.team import push_results, take
from irpipe.pipeline.trials import announced, naming_the_search, with_trials
from irpipe.pipeline.wiring import Node, Wiring

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Runner:
    """Runs the stages of one recipe up to a target."""

    planner: Planner
    remote: Remote | None = None  # whose results are taken before a run
    push: bool = False  # whether the remote gets them after it

    @property
    def recipe(self) -> Recipe:
        return self.planner.recipe

    @property
    def store(self) -> Store:
        return self.planner.store

    def follow(self, target: str) -> None:
        """Take part in a run of the target that another process, the first of several, begins.

        Raises:
            RecipeError: the stage is work for one process.
        """
        end_with_parent()
        self._refuse_alone(self.recipe.chain(target)[-1])
        step = self.planner.plan(target)[-1]
        while step.key is None or not (self.store.is_locked(step.key) and (self.store.work_path(step.key) / "scratch").is_dir()):
            if step.state == "reuse":
                return
            time.sleep(_POLL_SECONDS)
            step = self.planner.plan(target)[-1]
        scratch = self.store.work_path(step.key) / "scratch"
        inputs = open_inputs(self.store, step.inputs)
        context = self._context(step, scratch, Watcher().progress, lambda _: None)
        with tempfile.TemporaryDirectory() as nowhere, stage_memory_errors(step.name, step.node.config):
            step.node.stage.load_run()(step.node.config, inputs, Path(nowhere), context)

    def _refuse_alone(self, target: Node) -> None:
        if not target.stage.processes:
            raise RecipeError(
                f"{target.name} is work for one process",
                fix="leave out --processes; irpipe cite names num_processes or num_workers",
            )

    def run(self, target: str, *, only: bool = False) -> Record:
        """Make the target, running what is missing upstream and reusing the rest.

        Args:
            only: run nothing but the target; the artifacts that it reads must exist.

        Raises:
            RecipeError, InputError, StoreError, ...: see `irpipe.pipeline.errors`. Finished work is kept.
        """
        runner, last = self, None
        while not only and (trial := runner.recipe.next_trial(target)) is not None:
            if trial == last:
                raise StageError(f"the trial {trial} was made, and is not known after it", fix="report this, with irpipe.toml")
            runner, last = runner._search(trial), trial
        return runner._run_known(target, only)

    def _run_known(self, target: str, only: bool) -> Record:
        """See `run`. All trials of searches that the target reads are known, or the next ones are missing."""
        entries: dict[str, InputEntry] = {}
        if count() > 1:
            self._refuse_alone(self.recipe.chain(target)[-1])
        set_threads()  # before numpy or torch is loaded
        with disk_errors(self.store.root), self.store.in_use():
            if self.remote is not None:
                take(self.planner, self.remote, target)
            steps = self.planner.plan(target)  # all that is missing is an error now, not after hours
            self._refuse(step for step in steps if not (only and step.name != target))
            self._tell_plan(steps)
            for node in [step.node for step in steps]:
                step = self.planner.examine(node, entries)
                if step.state == "run" and only and step.name != target:
                    raise StoreError(
                        f"{target} reads {step.name}, which does not exist yet: {'; '.join(step.reasons)}",
                        fix=f"irpipe run {step.name}, or leave out --only",
                    )
                with nullcontext() if node.name == target else alone():  # the other processes meet at the target only
                    record = self._reuse(step) if step.record else self._make(step)
                self.store.point(self.recipe.name, node.name, record)
                entries[step.name] = input_entry(node, record)
            if self.remote is not None and self.push:
                push_results(self.planner, self.remote, [target])
        self.planner.watcher.event(
            "done",
            stage=target,
            key=record.key,
            content_id=record.content_id,
            metrics=dict(record.metrics),
            rows=dict(record.rows),
            path=str(self.store.object_path(record.content_id)),
        )
        return record

    def _search(self, trial: str) -> Runner:
        """Run the next trial of a search; a runner of the recipe that knows its result, and with it the trial after it.

        Raises:
            RecipeError: several processes, which would each have to follow the search.
        """
        if count() > 1:
            raise RecipeError("a search is followed by one process", fix="the same command without --processes first")
        self.planner.watcher.say(announced(self.recipe, trial))
        with naming_the_search(self.recipe, trial):
            replace(self, planner=replace(self.planner, force=None)).run(trial)
        known = with_trials(self.recipe, self.store)
        return replace(self, planner=replace(self.planner, recipe=known, _by_stage={}))

    def _tell_plan(self, steps: Sequence[Step]) -> None:
        """Say which stages are reused, and which run, why, and how long they took before."""
        watcher = self.planner.watcher
        watcher.event("plan", steps=[step.as_json for step in steps])
        due = [step for step in steps if step.state != "reuse"]
        if not due:
            return
        seconds = sum(step.expected_seconds or 0.0 for step in due)
        complete = all(step.expected_seconds is not None for step in due)
        time_ = f", {'about' if complete else 'more than'} {duration(seconds)}" if seconds else ""
        watcher.say(f"plan: {len(steps) - len(due)} of {len(steps)} stages are reused, {len(due)} to run{time_}")
        for step in due:
            for line in step.lines:
                watcher.say(f"  {line}")

    def _refuse(self, steps: Iterable[Step]) -> None:
        """Forbidden files and models that cannot be had are errors before anything runs.

        Raises:
            IrpipeError: all of them at once.
        """
        faults: list[tuple[str, IrpipeError]] = []
        for step in steps:
            faults += [(step.name, fault) for fault in self._forbidden(step)]
            if step.state != "reuse":
                found = map(not_reachable, to_download(step.externals))
                faults += [(step.name, fault) for fault in found if fault is not None]
        if faults:
            raise combined(faults)

    def _forbidden(self, step: Step) -> Iterator[RecipeError]:
        """No setting may name an artifact with ground truth, unless the stage is an evaluation; the recipe checks the wiring."""
        for name, entry in step.externals.entries.items():
            if entry["artifacts"] and not step.node.stage.evaluation:
                stages = stages_behind(self.store, entry["artifacts"]) & set(registered())
                if any(find_stage(stage).truth for stage in stages):
                    yield RecipeError(f"{step.name}.{name} may not be made from ground truth: only evaluation stages may read it")

    def _reuse(self, step: Step) -> Record:
        record = step.record
        assert record is not None
        watcher = self.planner.watcher
        self._clear_work(step.name, record.key)
        watcher.event("reused", stage=step.name, key=record.key, content_id=record.content_id, notes=list(step.notes))
        watcher.say(f"{step.name}: reused {record.content_id[:12]}{step.told_notes}")
        return record

    def _make(self, step: Step) -> Record:
        key, watcher = step.key, self.planner.watcher
        assert key is not None
        with self.store.lock(key, lambda: watcher.say(f"{step.name}: another process is making it (irpipe status); waiting")):
            record = self._finished(step, key)
            if record is not None:
                watcher.event("reused", stage=step.name, key=key, content_id=record.content_id, notes=[])
                watcher.say(f"{step.name}: reused {record.content_id[:12]}, which another process finished")
                return record
            return self._run(step, key)

    def _finished(self, step: Step, key: str) -> Record | None:
        """The result that another process made meanwhile, or that a killed one had finished; None with `force`."""
        if self.planner.force == step.name:
            return None
        record = recover(self.store, key) or self.store.lookup(key)
        if record is not None and self.planner.strict_code and self.planner.code_changed(step.node.stage, record):
            return None
        return record

    def _clear_work(self, node: str, key: str) -> None:
        """Remove finished work: of this key, if a kill came after publishing, and of failed runs that kept nothing."""
        for work in self.store.children("work"):
            unfinished = attempt(self.store, work.name)
            published = work.name == key or (unfinished is None and self.store.record(work.name) is not None)
            mine = unfinished is not None and (unfinished.node, unfinished.recipe) == (node, self.recipe.name)
            if published or (mine and not any(work.glob("scratch/*"))):
                with self.store.lock_if_free(work.name) as free:
                    if free:
                        remove(work)

    def _run(self, step: Step, key: str) -> Record:
        stage, watcher = step.node.stage, Journal(self.store.log_path(key), self.planner.watcher)
        watcher.event(
            "started",
            stage=step.name,
            key=key,
            reasons=list(step.reasons),
            notes=list(step.notes),
            pid=os.getpid(),
            command=["irpipe", *sys.argv[1:]],
        )
        watcher.say(f"{step.name}: runs, since {'; '.join(step.reasons)}{step.told_notes}")
        code = code_digest(stage.package)
        out, scratch = begin(self.store, key, code, anew=self.planner.force == step.name)
        state = {"stage": stage.name, "node": step.name, "recipe": self.recipe.name, "pid": os.getpid(), "started": _now()}
        attempt_file = self.store.work_path(key) / "attempt.json"
        write_durably(attempt_file, to_json(state))
        started, clock = _now(), time.monotonic()
        context = self._context(step, scratch, watcher.progress, lambda text: watcher.say(f"  {text}"))
        try:
            with together(*self._workers(step), self._command(step)), stage_memory_errors(step.name, step.node.config):
                report = stage.load_run()(step.node.config, open_inputs(self.store, step.inputs), out, context)
                workers = _workers(step.node.config)
            _check(step.name, report)
            self._check_unchanged(step)
            make_record = partial(self._record, step, key, report, started, clock, code, workers)
            before = self.store.record(key)
            record = commit(self.store, key, make_record, watcher)
        except BaseException as error:
            self._keep_error(attempt_file, state, error)
            self._say_how_to_go_on(step, key, watcher, error, time.monotonic() - clock)
            raise
        self._announce_result(step, record, before, watcher)
        return record

    def _context(self, step: Step, scratch: Path, progress: ProgressMaker, say: Callable[[str], None]) -> Context:
        """The surroundings of a run."""
        machines = Machines(settings=self.recipe.executor, store=self.store.root, remote=self.recipe.remote.url)
        return Context(scratch, progress, say, step.externals.paths, step.externals.models, machines)

    def _announce_result(self, step: Step, record: Record, before: Record | None, watcher: Journal) -> None:
        """Say how many rows were kept and rejected, and whether the same key gave another result before."""
        watcher.event(
            "ended",
            stage=step.name,
            key=record.key,
            content_id=record.content_id,
            rows=dict(record.rows),
            metrics=dict(record.metrics),
            seconds=record.seconds,
        )
        if before is not None and before.content_id != record.content_id:
            otherwise = "; ".join(surroundings(before, record)) or "on the same machine, packages and threads"
            watcher.say(f"  the same key gave another result before: {before.content_id[:12]} ({otherwise})")
        written = self.store.open(record.content_id).manifest.size
        reasons = record.metrics.get("rejected_for") or {}
        why = f" ({', '.join(f'{reason}: {count:,}' for reason, count in reasons.items())})" if reasons else ""
        watcher.say(
            f"{step.name}: kept {record.rows['kept']:,}, rejected {record.rows['rejected']:,}{why} -> {record.content_id[:12]}"
            f" ({size(written)}, {duration(record.seconds)})"
        )

    def _workers(self, step: Step) -> tuple[int, int | None]:
        """The processes of a run, this one included, and their threads: none are started where a launcher or the command did."""
        return step.node.stage.workers(step.node.config) if count() == 1 else (1, None)

    def _command(self, step: Step) -> list[str]:
        """The arguments of `irpipe` for another process of the same run."""
        wired = Wiring(self.recipe)
        wired.visit(step.name)
        overrides = self.recipe.overrides_for(wired)
        flags = ["--force"] if self.planner.force == step.name else []
        flags += ["--strict-code"] if self.planner.strict_code else []
        return ["run", step.name, *flags, *(part for override in overrides for part in ("--set", override))]

    def _keep_error(self, path: Path, state: dict[str, object], error: BaseException) -> None:
        """Write the error beside the kept work, for `irpipe status`."""
        if path.parent.exists():
            try:
                write_durably(path, to_json({**state, "error": error_line(error)}))
            except OSError:
                self.planner.watcher.say("  the error could not be written beside the kept work")

    def _say_how_to_go_on(self, step: Step, key: str, watcher: Journal, error: BaseException, seconds: float) -> None:
        """Say where the work is kept, and the command that continues it."""
        watcher.keep("failed", stage=step.name, error=error_line(error))
        scratch = self.store.work_path(key) / "scratch"
        kept = scratch.is_dir() and any(scratch.iterdir())
        work = f"what it had saved is kept in {scratch}" if kept else "nothing of it is kept"
        watcher.say(f"{step.name}: ended early after {duration(seconds)}; {work}")
        # What is wrong with an input, a model or a setting stays so; a disk, a signal or a fault of the code may not.
        helps = kept or isinstance(error, StoreError) or not isinstance(error, IrpipeError)
        again = f"   go on: {shlex.join(['irpipe', *sys.argv[1:]])}" if helps else ""
        watcher.say(f"  log: irpipe log {step.name}{again}")

    def _check_unchanged(self, step: Step) -> None:
        """A file from outside that changed during the run would give an artifact under a wrong key."""
        now = self.planner.externals(step.node, again=True).digests
        if any(step.externals.digests[name] != value for name, value in now.items()):
            raise InputError(f"a file that {step.name} reads changed while it ran", fix="run the same command again")

    def _record(
        self,
        step: Step,
        key: str,
        report: Report,
        started: str,
        clock: float,
        code: str,
        workers: Mapping[str, int],
        manifest: Manifest,
    ) -> Record:
        rows = report.rows
        return Record(
            key=key,
            content_id=manifest.content_id,
            stage=step.node.stage.name,
            node=step.name,
            stage_version=step.node.stage.version,
            recipe=self.recipe.name,
            config=shown_config(step.node.config),
            given=given_names(step.node.config),
            inputs=step.inputs,
            external=step.externals.entries,
            code_digest=code,
            packages=packages(),
            git=git(self.recipe.root),
            host=platform.node(),
            device=f"{platform.machine()}, {usable_cpus()} CPUs",
            command=tuple(sys.argv),
            started=started,
            ended=_now(),
            seconds=round(time.monotonic() - clock, 3),
            rows={"read": rows.read, "kept": rows.kept, "rejected": rows.rejected},
            metrics=report.metrics,
            numerics=numerics(step.node.stage.determinism_of(step.node.config)),
            **workers,
        )


def _workers(config: Config) -> dict[str, int]:
    """How many processes worked on a run, and with how many threads each computed. Call it while they work together."""
    if isinstance(config, MapConfig) and config.num_processes > 1:
        return {"processes": config.num_processes, "threads": 1}
    return {"processes": count(), "threads": threads()}


def error_line(error: BaseException) -> str:
    """An error in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return error.what if isinstance(error, IrpipeError) else f"{type(error).__name__}: {error}"


def _check(name: str, report: object) -> None:
    if not isinstance(report, Report):
        raise StageError(f"{name} returned {type(report).__name__}", expected="Report(Rows(read, kept, rejected), metrics)")
    rows = report.rows
    if rows.kept + rows.rejected != rows.read:
        raise StageError(f"{name} read {rows.read} rows but kept {rows.kept} and rejected {rows.rejected}")
    try:
        json.dumps(report.metrics, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StageError(f"{name} reports a metric that is not JSON: {error}") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
