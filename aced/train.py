"""The training loop: one for all methods, read from top to bottom.

A method says which models it holds, what it reads of a record, and how one step goes; everything
else (mesh, input, optimizer, evaluation, checkpoints, metrics) is here, once.
"""

import contextlib
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from aced import (
    caching,
    distributed,
    durations,
    embedding_cache,
    evaluators,
    hardware,
    methods,
    metrics,
    ownership,
    program,
    progress,
    record,
    starting_model,
    state,
)
from aced.caching import CacheConfig
from aced.checkpoint import CheckpointConfig, Checkpointer, check_place
from aced.config import ConfigError, from_config
from aced.data import pipeline, sources
from aced.data.prefetch import DevicePrefetch
from aced.data.skipped import SkippedRecords
from aced.data.streams import SideBySide
from aced.data.tokenizers import get_tokenizer
from aced.embedding_cache import fingerprint
from aced.evaluators import suites
from aced.methods.frozen import CheckpointOf, load_model
from aced.models.kinds import kind_of
from aced.optimizer import OptimizerConfig
from aced.parallel import mesh as meshes
from aced.parallel.mesh import MeshConfig
from aced.preemption import Preemption
from aced.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A whole run. Exactly one of the `total_` durations is set."""

    seed: int = 0
    batch_size: int = 32_768  # b, the examples trained on per step over all devices
    total_steps: int | None = None
    total_examples: int | None = None  # examples trained
    total_epochs: float | None = None  # of examples read: B per step
    method: Any = dataclasses.field(default_factory=methods.ContrastiveConfig)
    data: sources.DataConfig = sources.DataConfig()
    mesh: MeshConfig = MeshConfig()
    init: CheckpointOf = CheckpointOf()  # a trained model to go on from
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = 0.0  # 0: no moving average of the parameters
    evals: dict[str, evaluators.EvalConfig] = dataclasses.field(default_factory=dict)
    # Numbers of evaluations, EVALUATION/NUMBER, by the name of their average, suite/NAME, which is
    # there at steps with all of them
    suites: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_steps: int = 50  # a line of metrics every so many steps
    picks_steps: int = 100  # a line of picks.jsonl (ids trained on) every so many; 0: none
    max_skipped_in_a_row: int = 20  # non-finite steps that stop the run
    watchdog_minutes: float = 30.0  # without a step, an evaluation or a save end the run; 0: never
    before: dict[str, Any] = dataclasses.field(default_factory=dict)  # runs to finish first
    # Then embeddings to make, for caches that the method reads.
    before_caches: dict[str, CacheConfig] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        for name in ("batch_size", "log_steps", "max_skipped_in_a_row"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be in [0, 1), got {self.ema_decay}.")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed must be in [0, 2^32), got {self.seed}.")
        if self.watchdog_minutes and self.watchdog_minutes <= self.checkpoint.timeout_minutes:
            raise ConfigError(
                f"watchdog_minutes = {self.watchdog_minutes} must be 0 (no watchdog) or above "
                f"checkpoint.timeout_minutes = {self.checkpoint.timeout_minutes}, since saves are "
                "waited for."
            )
        suites.check(self.suites, tuple(self.evals))
        averages = {f"{suites.PREFIX}/{name}" for name in self.suites}
        best = self.checkpoint.best_metric
        if best is not None and best.partition("/")[0] not in self.evals and best not in averages:
            raise ConfigError(
                f"checkpoint.best_metric = {best!r} is no number of an evaluation; set it to "
                f"NAME/NUMBER, such as retrieval/mean_r1, with NAME one of {sorted(self.evals)}, "
                f"or to the average of one of config.suites: {sorted(averages)}."
            )
        taken = {"loss", "selection", "sources", "wall", suites.PREFIX} & set(self.evals)
        if taken:
            raise ConfigError(f"An evaluation may not be called {taken.pop()!r}; rename it.")


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


def run(
    config: Any,
    workdir: str,
    devices: Sequence[jax.Device] | None = None,
    *,
    force: bool = False,
) -> dict[str, int | float]:
    """Trains to the end, or goes on where the run in `workdir` stopped.

    All processes of a run make this call, with the same arguments.

    Args:
        config: a `ConfigDict` or mapping of `TrainConfig`.
        workdir: folder of this run, local or gs://, one for all processes; holds config.json,
            checkpoints/, metrics.jsonl, picks.jsonl, skipped.jsonl and, in folders of their own,
            the runs of `config.before`.
        devices: the devices to use; None: all.
        force: take the folder over from another process that is known to be dead.

    Returns:
        The last value of every metric; nothing on processes other than the first, which has the
        files.

    Raises:
        ConfigError: a setting is wrong, or is not what the run in `workdir` started with. What
            can be told from the settings alone is checked before anything runs. Or another
            process works in `workdir`.
        TrainingError: too many non-finite steps in a row.
        SystemExit: with `preemption.EXIT_CODE` after SIGTERM, `INTERRUPTED` after Ctrl-C, when
            everything is saved.
    """
    check_place(workdir)
    folder = epath.Path(os.path.expanduser(workdir))
    _train(parse(config), folder, devices, force)
    return metrics.last_values(folder) if jax.process_index() == 0 else {}


def _train(
    settings: TrainConfig, folder: epath.Path, devices: Sequence[jax.Device] | None, force: bool
) -> int | None:
    """The run, and those before it. Returns how to exit if it was to stop in its last step."""
    mesh = meshes.make_mesh(devices, settings.mesh)
    program.check_batch(settings, mesh)
    for wanted in settings.before_caches.values():  # at once, not after the runs before it
        wanted.folder(str(folder))
    with distributed.entered_by_first(ownership.owned(str(folder / ownership.FILE), force)):
        distributed.check_shared(folder)
        for name, earlier in settings.before.items():
            logging.info("%s runs first, in %s", name, folder / name)
            if exit_code := _train(parse(earlier), folder / name, devices, force):
                logging.warning("%s is finished; start the same command again.", name)
                sys.exit(exit_code)

        # Before the watchdog: a first index of tars in a store may take hours, which is no hang.
        source = sources.open_source(settings.data)
        program.check_data(settings, source)
        with jax.set_mesh(mesh), Watchdog(settings.watchdog_minutes) as watchdog:
            for name, wanted in settings.before_caches.items():
                logging.info("Embeddings first: %s", name)
                caching.make(settings, wanted, str(folder), mesh, watchdog, force=force)
            settings = dataclasses.replace(settings, method=settings.method.resolve(str(folder)))
            return loop(set_up(settings, mesh, folder, source), watchdog)


def parse(config: Any) -> TrainConfig:
    """Returns the checked settings of a run and of all runs before it.

    Raises:
        ConfigError: a setting is unknown, wrong or missing; the message names its path.
    """
    settings = from_config(TrainConfig, config)
    method = methods.parse(settings.method).for_batch(settings.batch_size)
    settings = dataclasses.replace(settings, method=method)
    for name, evaluation in settings.evals.items():
        if method.evaluations and evaluation.kind not in method.evaluations:
            raise ConfigError(
                f"config.evals.{name}.kind is {evaluation.kind!r}, for which the method "
                f"{method.name!r} trains nothing; choose from {', '.join(method.evaluations)}."
            )
    # Both refuse what does not fit; how long an epoch is will be known with the data.
    candidates = settings.method.super_batch_size(settings.batch_size)
    sizes = {"batch_size": settings.batch_size, "data_size": candidates}
    if (total := durations.steps(settings, "total", **sizes)) < 1:
        raise ConfigError("The run has no steps; set total_steps (or _examples, _epochs) above 0.")
    for name, evaluation in settings.evals.items():
        try:
            durations.steps(evaluation, "every", **sizes, total_steps=total, default=total)
        except ConfigError as error:
            raise ConfigError(f"config.evals.{name}: {error}") from error
    for name, earlier in settings.before.items():
        try:
            parse(earlier)
        except ConfigError as error:
            raise ConfigError(f"In config.before.{name}: {error}") from error
    return settings


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its first step."""

    settings: TrainConfig
    program: program.Program
    folder: epath.Path
    sources: dict[str, sources.Source]  # of the program's streams, by key prefix
    # Embeddings of frozen models that do not run, by key prefix of the stream and within it.
    caches: dict[str, dict[str, embedding_cache.Cache]]
    start: int | None  # step that was restored; None: a new run
    state: state.TrainState
    frozen: dict[str, PyTree]
    checkpoints: Checkpointer
    evals: dict[str, tuple[int, evaluators.Evaluator]]  # period in steps, evaluator


def set_up(settings: TrainConfig, mesh: Mesh, folder: epath.Path, source: sources.Source) -> Run:
    """Opens the caches, builds or restores the state, loads the frozen models.

    Raises:
        ConfigError: sizes do not fit together, or the run in `folder` had other settings.
        CacheError: embeddings are missing, damaged, or of another model or other data.
        CheckpointError: a checkpoint is missing or of another shape.
    """
    prog = program.build(settings, mesh, len(source))
    opened = {
        prefix: sources.open_source(stream.data) if prefix else source
        for prefix, stream in prog.streams.items()
    }
    for prefix, stream in prog.streams.items():
        stream.check(opened[prefix])
    caches = {
        prefix: {
            name: embedding_cache.open_for(item, opened[prefix], stream.data, load_model)
            for name, item in stream.caches.items()
        }
        for prefix, stream in prog.streams.items()
    }
    for prefix, model in prog.method.models.items():
        _warn_of_rest(prefix.rstrip("/") or "method.model", model.image)
        try:
            kind_of(model).check_tokenizer(model, get_tokenizer(model.tokenizer))
        except ConfigError as error:
            raise ConfigError(
                f"The model {prefix.rstrip('/') or 'method.model'}: {error}"
            ) from error

    frozen = {
        name: load_model(item, prog.frozen[name]) for name, item in prog.method.frozen.items()
    }

    # The record of a run: what it was started with, which a run that goes on may not change.
    digests = {f"{name}'s weights": fingerprint.of_placed(p) for name, p in frozen.items()}
    for prefix, model in prog.method.models.items():
        name = f"{prefix.rstrip('/') or 'model'}'s tokenizer"
        digests[name] = fingerprint.of_tokenizer(model.tokenizer)
    for prefix, stream in caches.items():
        for name, cache in stream.items():
            digests[f"{prefix}{name}".rstrip("/")] = cache.description.digest
    record.check(folder, settings, source.fingerprint, digests)

    # Where it starts from: its newest checkpoint, another run's model, or nothing.
    checkpoints = Checkpointer(folder, settings.checkpoint)
    restored = checkpoints.restore_or(prog.state)
    if restored is None:
        start = None
        train_state = prog.new_state(jax.random.key(settings.seed), frozen)
        train_state = starting_model.with_initial_model(train_state, settings, folder)
        train_state = starting_model.with_given_parts(train_state, prog.method.given)
    else:
        train_state, start = restored
        logging.info("%s goes on after step %d of %d.", folder, start, prog.total_steps)
    if start is None or start < prog.total_steps:  # a finished run is what it was
        record.write(folder, settings, source.fingerprint, digests)

    # Evaluations.
    evals = {
        name: (
            durations.steps(item, "every", **prog.sizes, default=prog.total_steps),
            evaluators.build(item, prog.method.config.model, mesh),
        )
        for name, item in settings.evals.items()
    }
    return Run(
        settings=settings,
        program=prog,
        folder=folder,
        sources=opened,
        caches=caches,
        start=start,
        state=train_state,
        frozen=frozen,
        checkpoints=checkpoints,
        evals=evals,
    )


def loop(run: Run, watchdog: Watchdog) -> int | None:
    """Takes the steps that are left. Returns how to exit if it was to stop after the last one.

    At most two steps are in flight; only a line of metrics, an evaluation or a checkpoint waits
    for the devices. All processes take the same way through it.
    """
    settings, prog, start = run.settings, run.program, run.start or 0
    if start >= prog.total_steps:
        logging.warning(
            "%s is finished: it has %d steps. Nothing is trained or evaluated again; more of "
            "config.total_steps goes on with it.",
            *(run.folder, start),
        )
        run.checkpoints.close()
        return None
    budget = metrics.Budget(
        examples_trained=settings.batch_size,
        examples_scored=prog.candidates if settings.method.selects else 0,
        flops=prog.method.flops_per_step(settings.batch_size),
    )
    peak = hardware.peak_flops(prog.mesh.devices.flat[0].device_kind)
    skipped = SkippedRecords(run.folder, jax.process_index())
    counters = pipeline.InputCounters(on_skip=skipped)
    with (
        Preemption() as preemption,
        run.checkpoints as checkpoints,
        metrics.Writer(run.folder, budget, run.start) as writer,
        progress.Progress(prog.total_steps) as line,
        skipped,
        input_batches(run, start, counters) as host_batches,
        DevicePrefetch(host_batches, prog.mesh) as batches,
    ):
        meter = progress.Meter(budget, start, peak=peak and peak * prog.mesh.size)
        train_state, previous = run.state, None
        for step in range(start + 1, prog.total_steps + 1):
            batch = batches.next(previous and previous["loss"])
            with meter.compiling() if previous is None else contextlib.nullcontext():
                train_state, out = prog.step(train_state, run.frozen, batch)
            if previous is not None:
                _check_finite(step - 1, previous, settings, writer)
            previous, last, measured = out, step == prog.total_steps, {}

            # Numbers.
            if step % settings.log_steps == 0 or last:
                measured = jax.device_get(out)
                del measured["picks"]
                meter.spend("data", batches.take_waited())
                measured |= {
                    "learning_rate": prog.learning_rate(step - 1 - int(measured["skipped"])),
                    **left_out(settings.data, counters),
                    **meter.measure(step),
                }
            if settings.picks_steps and (step % settings.picks_steps == 0 or last):
                writer.write_picks(step, np.asarray(out["picks"]))
            due = [name for name, (every, _) in run.evals.items() if step % every == 0 or last]
            preempted = preemption.reached(step)
            if due:
                jax.block_until_ready(out)  # steps in flight are training's time
                save = functools.partial(
                    _save_now, writer, checkpoints, step, train_state, measured
                )
                if saved := preempted and not last:  # evaluations may take longer than there is
                    save()
                    measured = {}
                with meter.paused(), _saving_after_failure(None if saved else save):
                    measured |= evaluate(run, due, train_state, watchdog)
            if measured:
                writer.write(step, measured)
                line.show(step, measured)
                if warning := prog.method.warning(measured):
                    logging.log_every_n_seconds(logging.WARNING, "Step %d: %s", 600, step, warning)

            # Checkpoints. The metrics are on disk before the checkpoint that claims them.
            force = last or preempted or bool(due and settings.checkpoint.keep_best)
            if force or settings.checkpoint.is_due(step):
                writer.claim(step)
            checkpoints.save(step, train_state, measured, force=force)
            if preempted and not last:
                checkpoints.wait()
                logging.warning("Step %d is saved; start the same command again.", step)
                sys.exit(preemption.exit_code)
            watchdog.alive()
        if previous is not None:
            _check_finite(prog.total_steps, previous, settings, writer)
    return preemption.exit_code if preempted else None


def _warn_of_rest(name: str, tower: Any) -> None:
    """Says what a model never looks at; some are made so (So400m/14 at 384 px)."""
    if rest := tower.resolution % tower.patch:
        logging.warning(
            "%s: image.resolution = %d is no multiple of patch = %d; the last %d pixels of each "
            "row and column are not looked at.",
            *(name, tower.resolution, tower.patch, rest),
        )


def evaluate(
    run: Run, names: Sequence[str], train_state: state.TrainState, watchdog: Watchdog
) -> dict[str, float]:
    """The numbers of these evaluations, as "<evaluation>/<number>", and the suites of them."""
    found = {}
    for name in names:
        values = run.evals[name][1](train_state.eval_params["model"])
        watchdog.alive()
        found |= {f"{name}/{key}": value for key, value in values.items()}
    return found | suites.averages(found, run.settings.suites)


def _save_now(
    writer: metrics.Writer,
    checkpoints: Checkpointer,
    step: int,
    train_state: state.TrainState,
    measured: dict[str, Any],
) -> None:
    """Everything of this step, on disk when it returns."""
    if measured:
        writer.write(step, measured)
    writer.claim(step)
    checkpoints.save(step, train_state, measured, force=True)
    checkpoints.wait()


@contextlib.contextmanager
def _saving_after_failure(save: Callable[[], None] | None) -> Iterator[None]:
    """An evaluation that fails must not cost what was trained; None: that is saved already.

    Only where all processes fail alike is the state saved, since they save together.
    """
    try:
        yield
    except Exception as error:
        if save is None or isinstance(error, ConfigError) or jax.process_count() == 1:
            if save is not None:
                save()
            logging.error(
                "An evaluation failed; the step before it is saved. Correct config.evals and start "
                "again, or evaluate with python -m aced.evaluate."
            )
        raise


def input_batches(run: Run, start: int, counters: pipeline.InputCounters) -> SideBySide:
    """This process's part of what is read for the steps after `start`."""
    prog = run.program
    return SideBySide(
        {
            prefix: pipeline.train_batches(
                run.sources[prefix],
                stream.data,
                stream.views,
                batch_size=stream.rows,
                seed=run.settings.seed,
                start_step=start,
                rows=meshes.local_rows(prog.mesh, stream.rows),
                counters=counters,
                caches=run.caches[prefix],
            )
            for prefix, stream in prog.streams.items()
        }
    )


def left_out(data: sources.DataConfig, counters: pipeline.InputCounters) -> dict[str, int]:
    """What the input left out so far in all processes: by member of a mixture, and by filter."""
    counts = {"wall/records_skipped": counters.skipped}
    counts |= {f"wall/records_skipped/{name}": counters.by_source[name] for name in data.members}
    reasons = data.filters.reasons
    counts |= {f"wall/records_filtered/{name}": counters.filtered[name] for name in reasons}
    return {name: distributed.total(count) for name, count in counts.items()}


def _check_finite(
    step: int, out: dict[str, jax.Array], settings: TrainConfig, writer: metrics.Writer
) -> None:
    in_a_row = int(out["skipped_in_a_row"])
    if in_a_row < settings.max_skipped_in_a_row:
        return
    picks = np.asarray(out["picks"])
    writer.write_picks(step, picks)
    raise TrainingError(
        f"The loss or its gradient was not finite in {in_a_row} steps in a row, up to step {step}, "
        f"and every update was skipped. Look at the examples of that step (the last line of "
        f"{metrics.PICKS_FILE}; the first are {picks[:4].tolist()}), or lower "
        "optimizer.schedule.peak. Newer checkpoints hold the last good parameters."
    )
