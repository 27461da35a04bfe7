"""The training loop: one for all methods, read from top to bottom.

A method says which models it holds, what it reads of a record, and how one step goes; everything
else (mesh, input, optimizer, evaluation, checkpoints, metrics) is here, once.
"""

import dataclasses
import difflib
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from aced import durations, evaluators, methods, metrics, optimizer, progress, schedules, state
from aced.checkpoint import CheckpointConfig, Checkpointer, load_params
from aced.config import ConfigError, from_config, to_config
from aced.data import pipeline, records, sources
from aced.data.prefetch import DevicePrefetch
from aced.data.skipped import SkippedRecords
from aced.methods.frozen import FrozenConfig
from aced.models import two_tower
from aced.optimizer import OptimizerConfig
from aced.parallel import mesh as meshes
from aced.preemption import EXIT_CODE, Preemption


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
    init: FrozenConfig = FrozenConfig()  # go on from this model; only its .checkpoint etc. are read
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: float = 0.0  # 0: no moving average of the parameters
    evals: dict[str, evaluators.EvalConfig] = dataclasses.field(default_factory=dict)
    checkpoint: CheckpointConfig = CheckpointConfig()
    log_steps: int = 50  # a line of metrics every so many steps
    log_picks: bool = True  # picks.jsonl: the ids trained on, with every line of metrics
    max_skipped_in_a_row: int = 20  # non-finite steps that stop the run
    before: dict[str, Any] = dataclasses.field(default_factory=dict)  # runs to finish first


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why and what to do."""


def run(config: Any, workdir: str) -> dict[str, float]:
    """Trains to the end, or goes on where the run in `workdir` stopped.

    Args:
        config: a `ConfigDict` or mapping of `TrainConfig`.
        workdir: folder of this run, local or gs://; holds config.json, checkpoints/,
            metrics.jsonl, picks.jsonl, skipped.jsonl and, in folders of their own, the runs of
            `config.before`.

    Returns:
        The last value of every metric.

    Raises:
        ConfigError: a setting is wrong. All settings are checked before anything runs.
        TrainingError: too many non-finite steps in a row.
        SystemExit: with `preemption.EXIT_CODE`, after SIGTERM, when everything is saved.
    """
    settings = parse(config)
    folder = epath.Path(workdir)
    for name, earlier in settings.before.items():
        logging.info("%s runs first, in %s", name, folder / name)
        run(earlier, str(folder / name))

    method = methods.build(settings.method, workdir)
    settings = dataclasses.replace(settings, method=method.config)
    _dump_config(settings, folder)
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        loop(prepare(settings, method, mesh, folder))
    return metrics.last_values(folder)


def parse(config: Any) -> TrainConfig:
    """Returns the checked settings of a run and of all runs before it.

    Raises:
        ConfigError: a setting is unknown, wrong or missing; the message names its path.
    """
    settings = from_config(TrainConfig, config)
    for name, earlier in settings.before.items():
        try:
            parse(earlier)
        except ConfigError as error:
            raise ConfigError(f"In config.before.{name}: {error}") from error
    return dataclasses.replace(settings, method=methods.parse(settings.method))


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that is ready for its first step."""

    settings: TrainConfig
    method: Any
    mesh: Mesh
    folder: epath.Path
    source: records.Source
    total_steps: int
    start: int | None  # step that was restored; None: a new run
    state: state.TrainState
    frozen: dict[str, PyTree]
    step: Callable  # (state, frozen, batch) -> (state, metrics), jitted; donates the state
    learning_rate: schedules.Schedule
    checkpoints: Checkpointer
    evals: dict[str, tuple[int, evaluators.Evaluator]]  # period in steps, evaluator

    @property
    def candidates(self) -> int:
        """B, the examples read for each step."""
        return self.method.super_batch_size(self.settings.batch_size)


def prepare(settings: TrainConfig, method: Any, mesh: Mesh, folder: epath.Path) -> Run:
    """Opens the data, builds or restores the state, loads the frozen models.

    Raises:
        ConfigError: sizes do not fit together.
        CheckpointError: a checkpoint is missing or of another shape.
    """
    everywhere = meshes.replicated(mesh)

    # Input and durations. An epoch is a pass over the data, of which a step reads B, trains on b.
    source = sources.open_source(settings.data)
    candidates = method.super_batch_size(settings.batch_size)
    _check_batch(settings.batch_size, candidates, mesh)
    data_size = max(1, len(source) * settings.batch_size // candidates)
    sizes = {"batch_size": settings.batch_size, "data_size": data_size}
    sizes["total_steps"] = total_steps = durations.steps(settings, "total", **sizes)

    # Model, optimizer, step.
    key = jax.random.key(settings.seed)
    shapes = jax.eval_shape(method.init_params, key)
    tx, learning_rate = optimizer.build(settings.optimizer, shapes, **sizes)
    step = jax.jit(
        functools.partial(method.train_step, tx=tx, ema_decay=settings.ema_decay),
        donate_argnums=0,
        out_shardings=everywhere,
    )

    def new_state(key: jax.Array) -> state.TrainState:
        params_key, step_key = jax.random.split(key)
        params = method.init_params(params_key)
        return state.create(params, tx, step_key, ema=settings.ema_decay > 0)

    # Where it starts from: its newest checkpoint, another run's model, or nothing.
    frozen = {name: load_model(item, everywhere) for name, item in method.frozen.items()}
    checkpoints = Checkpointer(folder, settings.checkpoint)
    restored = checkpoints.restore_or(_on(everywhere, jax.eval_shape(new_state, key)))
    if restored is None:
        start = None
        train_state = jax.jit(new_state, out_shardings=everywhere)(key)
        train_state = _with_initial_model(train_state, settings, folder, everywhere)
    else:
        train_state, start = restored
        logging.info("%s goes on after step %d of %d.", folder, start, total_steps)

    # Evaluations.
    evals = {
        name: (
            durations.steps(item, "every", **sizes, default=total_steps),
            evaluators.build(item, method.config.model, mesh),
        )
        for name, item in settings.evals.items()
    }
    return Run(
        settings, method, mesh, folder, source, total_steps, start, train_state, frozen, step,
        learning_rate, checkpoints, evals,
    )  # fmt: skip


def loop(run: Run) -> None:
    """Takes the steps that are left.

    At most two steps are in flight; only a line of metrics, an evaluation or a checkpoint waits
    for the devices.
    """
    settings, start = run.settings, run.start or 0
    budget = metrics.Budget(
        examples_trained=settings.batch_size,
        examples_scored=run.candidates if run.method.scores else 0,
        flops=run.method.flops_per_step(settings.batch_size),
    )
    peak = progress.peak_flops(jax.devices()[0].device_kind)
    counters = pipeline.InputCounters(on_skip=SkippedRecords(run.folder, jax.process_index()))
    with (
        run.checkpoints as checkpoints,
        metrics.Writer(run.folder, budget, run.start) as writer,
        progress.Progress(run.total_steps) as line,
        Preemption() as preemption,
        _batches(run, start, counters) as host_batches,
        DevicePrefetch(host_batches, run.mesh) as batches,
    ):
        meter = progress.Meter(budget, start, peak=peak and peak * run.mesh.size)
        train_state, before = run.state, None
        for step in range(start + 1, run.total_steps + 1):
            batch = batches.next(before and before["loss"])
            train_state, out = run.step(train_state, run.frozen, batch)
            if before is not None:
                _check_finite(int(before["skipped_in_a_row"]), step - 1, settings)
            before, last, measured = out, step == run.total_steps, {}

            # Numbers.
            if step % settings.log_steps == 0 or last:
                measured = jax.device_get(out)
                picks = measured.pop("picks")
                if settings.log_picks:
                    writer.write_picks(step, picks)
                meter.spend("data", batches.take_waited())
                measured |= {
                    "learning_rate": run.learning_rate(step - 1 - measured["skipped"]),
                    "wall/records_skipped": counters.skipped,
                    **meter.measure(step),
                }
            due = [name for name, (every, _) in run.evals.items() if step % every == 0 or last]
            for name in due:
                with meter.paused():
                    values = run.evals[name][1](train_state.eval_params["model"])
                measured |= {f"{name}/{key}": value for key, value in values.items()}
            if measured:
                writer.write(step, measured)
                line.show(step, measured)

            # Checkpoints. The metrics are on disk before the checkpoint that claims them.
            force = last or preemption.requested or bool(due and settings.checkpoint.keep_best)
            if force or step % settings.checkpoint.every_steps == 0:
                writer.flush()
            checkpoints.save(step, train_state, measured, force=force)
            if preemption.requested and not last:
                checkpoints.wait()
                logging.warning("Step %d is saved; start the same command again.", step)
                sys.exit(EXIT_CODE)
        if before is not None:
            _check_finite(int(before["skipped_in_a_row"]), run.total_steps, settings)


def _batches(run: Run, start: int, counters: pipeline.InputCounters) -> pipeline.Batches:
    return pipeline.train_batches(
        run.source,
        run.settings.data,
        run.method.views,
        batch_size=run.candidates,
        seed=run.settings.seed,
        start_step=start,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        counters=counters,
    )


def load_model(item: FrozenConfig, sharding: jax.sharding.Sharding) -> PyTree:
    """The parameters of another run's model, as `item` (resolved) describes it.

    Raises:
        CheckpointError: there is no such checkpoint, or its parameters have other shapes.
    """
    shapes = jax.eval_shape(functools.partial(two_tower.init, item.model), jax.random.key(0))
    wanted = _on(sharding, shapes)
    return load_params(item.checkpoint, wanted, which=item.which, key=item.parameters, part="model")


def _with_initial_model(
    train_state: state.TrainState,
    settings: TrainConfig,
    folder: epath.Path,
    sharding: jax.sharding.Sharding,
) -> state.TrainState:
    """The state, its model taken over from the run that `settings.init` names."""
    if not settings.init.checkpoint:
        return train_state
    init = dataclasses.replace(settings.init, model=settings.method.model)
    model = load_model(init.resolve(str(folder)), sharding)
    logging.info("The model starts from %s.", init.checkpoint)
    params = {**train_state.params, "model": model}
    ema = None if train_state.ema is None else jax.tree.map(jax.numpy.copy, params)
    return train_state.replace(params=params, ema=ema)


def _on(sharding: jax.sharding.Sharding, shapes: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)


def _check_batch(batch_size: int, candidates: int, mesh: Mesh) -> None:
    for what, size in (("config.batch_size", batch_size), ("The super-batch", candidates)):
        if size % mesh.size:
            raise ConfigError(
                f"{what} = {size} cannot be shared by {mesh.size} devices; make it a multiple."
            )


def _check_finite(skipped_in_a_row: int, step: int, settings: TrainConfig) -> None:
    if skipped_in_a_row >= settings.max_skipped_in_a_row:
        raise TrainingError(
            f"The loss or its gradient was not finite in {skipped_in_a_row} steps in a row, up to "
            f"step {step}, and each update was skipped. Lower config.optimizer.schedule.peak, or "
            "look at the data of those steps (picks.jsonl); the newest checkpoint is from before "
            "or has the last good parameters."
        )


def _dump_config(settings: TrainConfig, folder: epath.Path) -> None:
    """Writes config.json; a run that goes on says what has changed since."""
    if jax.process_index() != 0:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    text = to_config(settings).to_json_best_effort(indent=2)
    if file.exists() and (old := file.read_text()) != text:
        changes = difflib.unified_diff(old.splitlines(), text.splitlines(), "then", "now", n=0)
        logging.warning("%s has changed:\n%s", file, "\n".join(changes))
    file.write_text(text)
