"""The training loop, shared by all methods.

A method defines its models, the fields it reads and its train step. Everything else (mesh, input,
optimizer, evaluation, checkpoints, metrics) is here.
"""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from aced.checkpoints.checkpointer import Checkpointer
from aced.config import ConfigError, Settings, expand
from aced.cost import hardware
from aced.data import pipeline, sources
from aced.data.picks import AHEAD
from aced.data.prefetch import DevicePrefetch
from aced.errors import UserError
from aced.evaluators import suites
from aced.files import ownership, storage
from aced.metrics import history, progress, sinks
from aced.metrics.skipped import SkippedRecords
from aced.metrics.writer import Budget, Writer
from aced.optim import state
from aced.parallel import distributed
from aced.parallel import mesh as meshes
from aced.parallel.preemption import Preemption
from aced.parallel.watchdog import Watchdog
from aced.train import ahead, caches, overlap, plan, program, starts, summary
from aced.train.config import TrainConfig, hyper_parameters, parse
from aced.train.early_stop import EarlyStop
from aced.train.gallery import Gallery
from aced.train.profiling import Profiler
from aced.train.setup import Run, input_batches, opened, set_up

_WAITS = (
    "Step %d: the devices waited for data in %.0f%% of the time. If processor cores are idle, "
    "raise data.num_threads (now %d); docs/guides/troubleshooting.md has what else helps."
)


class TrainingError(UserError, RuntimeError):
    """The run cannot continue; the message has the reason and the remedy."""


def run(
    config: Settings,
    workdir: str,
    devices: Sequence[jax.Device] | None = None,
    *,
    force: bool = False,
) -> dict[str, int | float]:
    """Trains to the end, resuming the run in `workdir` if there is one.

    All processes of a run make this call, with the same arguments.

    Args:
        config: settings as in a config file; parsed into a `TrainConfig`.
        workdir: folder of this run, local or gs://, shared by all processes. Holds config.json,
            checkpoints/, metrics.jsonl, picks.jsonl, skipped.jsonl and a subfolder for each run
            of `config.before`.
        devices: the devices to use; None: all.
        force: take the folder over from another process that is known to be dead.

    Returns:
        The last value of every metric on process 0; an empty dict on the others.

    Raises:
        ConfigError: a setting is wrong or differs from the run in `workdir`, another process works
            in `workdir`, or evaluation images are also trained on (`overlap`). Checks that need
            only the settings run before anything else.
        TrainingError: too many non-finite steps in a row.
        SystemExit: with `preemption.EXIT_CODE` after SIGTERM, `INTERRUPTED` after Ctrl-C, once
            everything is saved.
    """
    workdir = expand(workdir)
    storage.check_scheme(workdir, "--workdir", ("gs",))
    storage.check_package(workdir)
    folder = epath.Path(workdir)
    settings = parse(config)
    for name, wanted in settings.before_caches.items():  # now, before earlier runs spend hours
        wanted.folder(str(folder), key=f"config.before_caches.{name}.out")
    phases = plan.plan(settings, folder)
    if jax.process_index() == 0:
        logging.info("The plan of %s:\n%s", folder, plan.table(phases))
    with distributed.entered_by_first(overlap.checked(settings)):
        _train(settings, folder, devices, force, phases)
    return history.last_values(folder) if jax.process_index() == 0 else {}


def _train(
    settings: TrainConfig,
    folder: epath.Path,
    devices: Sequence[jax.Device] | None,
    force: bool,
    phases: Sequence[plan.Phase],
) -> int | None:
    """Trains this run and those before it. Returns the exit code if preempted in the last step."""
    mesh = meshes.make_mesh(devices, settings.mesh)
    program.check_batch(settings, mesh)
    sinks.check(settings.metrics.to)
    with distributed.entered_by_first(ownership.owned(str(folder / ownership.FILE), force)):
        distributed.check_shared(folder)
        for name, earlier in settings.before.items():
            logging.info("%s runs first, in %s", name, folder / name)
            if exit_code := _train(parse(earlier), folder / name, devices, force, phases):
                logging.warning("%s is finished; start the same command again.", name)
                sys.exit(exit_code)

        # Before the watchdog starts: indexing tars in a store for the first time may take hours.
        source = opened(settings.data)
        program.check_data(settings, source)
        with jax.set_mesh(mesh), Watchdog(settings.watchdog_minutes) as watchdog:
            for name, wanted in settings.before_caches.items():
                logging.info("Caching embeddings first: %s", name)
                later = plan.later_flops(phases, wanted.folder(str(folder)))
                caches.make(
                    settings,
                    wanted,
                    str(folder),
                    mesh,
                    watchdog,
                    force=force,
                    later_flops=later,
                )
            settings = dataclasses.replace(settings, method=settings.method.resolve(str(folder)))
            later = plan.later_flops(phases, folder)
            return loop(set_up(settings, mesh, folder, source), watchdog, later)


def loop(run: Run, watchdog: Watchdog, later_flops: int | float = 0) -> int | None:
    """Trains the remaining steps. Returns the exit code if preempted after the last one.

    `later_flops` is the cost of the phases of the plan after this run.

    At most two steps are in flight; only a line of metrics, an evaluation or a checkpoint waits
    for the devices. All processes take the same branches.
    """
    settings, prog, start = run.settings, run.program, run.start or 0
    early_stop = EarlyStop.resumed(settings.early_stop, run.folder, run.start)
    if start >= prog.total_steps or early_stop.reached:
        logging.info(
            "%s is finished: it has %d steps. Nothing is trained or evaluated again; raise "
            "config.%s to continue it.",
            run.folder,
            start,
            "early_stop.patience" if early_stop.reached else "total_steps",
        )
        run.checkpoints.close()
        return None
    starts.write(run.folder, prog, run.sources[""], start)
    budget = _budget(prog)
    peak = hardware.peak_flops(prog.mesh.devices.flat[0].device_kind)
    shown = hyper_parameters(settings)
    skipped = SkippedRecords(run.folder, jax.process_index())
    counters = pipeline.InputCounters(on_skip=skipped)
    with (
        Preemption() as preemption,
        run.checkpoints as checkpoints,
        Writer(run.folder, budget, run.start, settings.metrics, shown) as writer,
        progress.Progress(
            prog.total_steps,
            name=run.folder.name,
            start=start,
            flops=budget.flops,
            later_flops=later_flops,
        ) as line,
        skipped,
        input_batches(run, start, counters) as host_batches,
        DevicePrefetch(host_batches, prog.mesh) as batches,
        host_batches.picks as picks,  # closed first: the threads of the input may wait for it
        Profiler(settings.profile, run.folder, start, prog.total_steps) as profiler,
        Gallery(settings, run.sources[""], prog.total_steps, writer.show) as gallery,
    ):
        train_state, previous = ahead.begin(run, counters, picks), None
        meter = progress.Meter(budget, start, peak=peak and peak * prog.mesh.size)
        last_scores = {}
        if run.start is not None and jax.process_index() == 0 and summary.is_run(run.folder):
            last_scores = history.last_values(run.folder)
        for step in range(start + 1, prog.total_steps + 1):
            with contextlib.ExitStack() as around:
                around.enter_context(jax.profiler.StepTraceAnnotation("train", step_num=step))
                batch = batches.next(previous and previous["loss"])
                if previous is None:  # the first call compiles
                    batches.take_waited()  # until the input had started
                    around.enter_context(meter.compiling())
                train_state, out = prog.step(train_state, run.frozen, batch)
            if prog.method.ahead:
                picks.put(out.pop(AHEAD))
            if profiler.is_due(step):
                jax.block_until_ready(out)  # a trace has whole steps
                with meter.paused():
                    profiler.switch()
            if previous is not None:
                _check_finite(step - 1, previous, settings, writer)
            previous, last, measured = out, step == prog.total_steps, {}
            due = [name for name, (every, _) in run.evals.items() if step % every == 0 or last]

            # Numbers.
            if step % settings.log_steps == 0 or due or last:
                measured = jax.device_get(out)
                del measured["picks"]
                meter.spend("data", batches.take_waited())
                measured |= {
                    "learning_rate": prog.learning_rate(step - 1 - int(measured["skipped"])),
                    **left_out(settings.data, counters),
                    **meter.measure(step),
                }
            line.show(step, measured, always=bool(due))
            if settings.picks_steps and (step % settings.picks_steps == 0 or last):
                writer.write_picks(step, np.asarray(out["picks"]))
            if gallery.is_due(step):
                gallery.show(step, np.asarray(out["picks"]).tolist())
            preempted = preemption.reached(step)
            if due:
                jax.block_until_ready(out)  # steps in flight count as training time
                save = functools.partial(
                    _save_now, writer, checkpoints, step, train_state, measured
                )
                if saved := preempted and not last:  # the evaluation may outlast the grace period
                    save()
                    measured = {}
                with meter.paused(), _saving_after_failure(None if saved else save):
                    found = evaluate(run, due, train_state, watchdog)
                    early_stop.update(found)
                    if early_stop.reached and not last:
                        found, last = _with_others(run, found, due, train_state, watchdog), True
                if scores := summary.evaluation(found, last_scores):
                    line.write(step, scores)
                measured |= found
                last_scores |= found
            if measured:
                writer.write(step, measured)
                _warn(step, measured, run)

            # Checkpoints. Metrics reach the disk before the checkpoint that claims them.
            force = last or preempted or bool(due and settings.checkpoint.keep_best)
            if force or settings.checkpoint.is_due(step):
                writer.claim(step)
            checkpoints.save(step, train_state, measured, force=force)
            if preempted and not last:
                checkpoints.wait()
                logging.warning("Step %d is saved; start the same command again.", step)
                sys.exit(preemption.exit_code)
            watchdog.alive()
            if last:
                break
        if previous is not None:
            _check_finite(step, previous, settings, writer)
    return preemption.exit_code if preempted else None


def evaluate(
    run: Run, names: Sequence[str], train_state: state.TrainState, watchdog: Watchdog
) -> dict[str, float]:
    """Runs the evaluations `names`. Returns their numbers, as "NAME/NUMBER", and suite averages."""
    found = {}
    for name in names:
        with progress.announced(f"Evaluating {name}", seconds=10.0):
            values = run.evals[name][1](train_state.eval_params["model"])
        watchdog.alive()
        found |= {f"{name}/{key}": value for key, value in values.items()}
    return found | suites.averages(found, run.settings.suites)


def _with_others(
    run: Run,
    found: Mapping[str, float],
    due: Sequence[str],
    train_state: state.TrainState,
    watchdog: Watchdog,
) -> dict[str, float]:
    """The numbers `found` by the evaluations `due`, and those of all others."""
    others = evaluate(run, [name for name in run.evals if name not in due], train_state, watchdog)
    numbers = {**found, **others}
    return numbers | suites.averages(numbers, run.settings.suites)  # of both parts


def _budget(prog: program.Program) -> Budget:
    """The cost of a step, and of what is before the first one."""
    return Budget(
        examples_trained=prog.batch_size,
        examples_scored=prog.candidates if prog.method.config.selects else 0,
        flops=prog.method.flops_per_step(prog.batch_size),
        scored_before=prog.method.ahead * prog.candidates,
        flops_before=prog.method.flops_before(prog.batch_size),
    )


def _save_now(
    writer: Writer,
    checkpoints: Checkpointer,
    step: int,
    train_state: state.TrainState,
    measured: dict[str, Any],
) -> None:
    """Writes the metrics and the checkpoint of this step, and waits until both are on disk."""
    if measured:
        writer.write(step, measured)
    writer.claim(step)
    checkpoints.save(step, train_state, measured, force=True)
    checkpoints.wait()


@contextlib.contextmanager
def _saving_after_failure(save: Callable[[], None] | None) -> Iterator[None]:
    """Calls `save` if an evaluation fails, so that no training is lost; None: already saved.

    All processes save together, so only an error that all of them raise leads to a save.
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


def left_out(data: sources.DataConfig, counters: pipeline.InputCounters) -> dict[str, int]:
    """Records skipped, by mixture member, and filtered, by reason, over all processes."""
    counts = {"wall/records_skipped": counters.skipped}
    counts |= {f"wall/records_skipped/{name}": counters.by_source[name] for name in data.members}
    reasons = data.filters.reasons
    counts |= {f"wall/records_filtered/{name}": counters.filtered[name] for name in reasons}
    return {name: distributed.total(count) for name, count in counts.items()}


def _warn(step: int, measured: dict[str, Any], run: Run) -> None:
    """Logs what the numbers of a step give reason to change, at most every ten minutes."""
    if progress.waits_for_data(measured):
        share, threads = measured["wall/data_share"], run.settings.data.num_threads
        logging.log_every_n_seconds(logging.WARNING, _WAITS, 600, step, 100 * share, threads)
    if warning := run.program.method.warning(measured):
        logging.log_every_n_seconds(logging.WARNING, "Step %d: %s", 600, step, warning)


def _check_finite(
    step: int, out: dict[str, jax.Array], settings: TrainConfig, writer: Writer
) -> None:
    in_a_row = int(out["skipped_in_a_row"])
    if in_a_row < settings.max_skipped_in_a_row:
        return
    picks = np.asarray(out["picks"])
    writer.write_picks(step, picks)
    raise TrainingError(
        f"The loss or its gradient was not finite in {in_a_row} steps in a row, up to step {step}, "
        f"and every update was skipped. Look at the examples of that step (the last line of "
        f"{history.PICKS_FILE}; the first are {picks[:4].tolist()}), or lower "
        "optimizer.schedule.peak. Newer checkpoints hold the last good parameters."
    )
