"""A run's compiled step, with the shapes and shardings of its inputs and outputs.

Nothing here reads data or holds an array, so a step can also be compiled for machines that are not
attached (`aced.preflight`).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from aced import methods
from aced.config import ConfigError
from aced.data.reader import OPTIONAL_FIELDS
from aced.data.records import Source
from aced.data.streams import Stream
from aced.methods.base import Method, StepContext
from aced.models.base import ModelConfig
from aced.optim import durations, optimizer, schedules, state
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.micro_batch import check_pieces
from aced.train.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Program:
    """A run's step. Shapes are `jax.ShapeDtypeStruct`s with shardings."""

    method: Method
    mesh: Mesh
    batch_size: int  # b, the examples trained on per step
    candidates: int  # B, the examples read per step
    streams: dict[str, Stream]  # what is read, by key prefix; "" has the examples
    total_steps: int
    sizes: dict[str, int | None]  # what durations are resolved with
    learning_rate: schedules.Schedule
    state: PyTree  # shapes of the train state
    frozen: dict[str, PyTree]  # shapes of the frozen models' parameters, by name
    new_state: Callable[..., state.TrainState]  # of a key and the frozen models; jitted
    step: Callable  # (state, frozen, batch) -> (state, metrics); jitted, donates the state
    score_first: Callable  # `Method.score_first`; jitted, donates the state

    def batch(self, fields: Iterable[str] = ()) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of a step's input arrays, with the optional `fields` that the source has."""
        sharding = meshes.by_example(self.mesh)
        added = {
            name: (OPTIONAL_FIELDS[name].shape, OPTIONAL_FIELDS[name].dtype) for name in fields
        }
        shapes = {  # a stream of other data has none of the fields
            prefix: stream.shapes() | (added if stream.data == self.streams[""].data else {})
            for prefix, stream in self.streams.items()
        }
        return {
            f"{prefix}{name}": jax.ShapeDtypeStruct(
                (self.streams[prefix].rows, *shape), dtype, sharding=sharding
            )
            for prefix, rows in shapes.items()
            for name, (shape, dtype) in rows.items()
        }


def build(settings: TrainConfig, mesh: Mesh, data_size: int | None = None) -> Program:
    """Returns the program of a run on `mesh`, whose devices need not exist.

    Args:
        settings: of the run, with the architectures of its frozen models resolved.
        mesh: from `parallel.mesh.make_mesh`.
        data_size: examples in the data set; durations in epochs need it. None: unknown.

    Raises:
        ConfigError: sizes, durations or rules do not fit together.
    """
    method = methods.build(settings.method)
    batch_size = settings.batch_size
    candidates = method.config.super_batch_size(batch_size)
    check_batch(settings, mesh)
    sizes = sizes_of(settings, data_size)

    key = placed(_key(), meshes.replicated(mesh))
    # With jit these are traced once, for their shapes and for the program; inlining leaves the
    # program as it would be without jit.
    init_params = jax.jit(method.init_params, inline=True)
    fixed = tuple((name, 0.0) for name in method.fixed)
    config = dataclasses.replace(
        settings.optimizer, lr_rules=(*fixed, *settings.optimizer.lr_rules)
    )
    tx, learning_rate = optimizer.build(config, jax.eval_shape(init_params, key), **sizes)

    @functools.partial(jax.jit, inline=True)
    def new_state(key: jax.Array, frozen: dict[str, PyTree]) -> state.TrainState:
        params_key, step_key = jax.random.split(key)
        params = method.start(init_params(params_key), frozen)
        memory = method.init_memory(params, batch_size)
        return state.create(params, tx, step_key, ema=settings.ema_decay > 0, method=memory)

    frozen = {
        name: frozen_shapes(item.model, mesh, settings.mesh.rules)
        for name, item in method.frozen.items()
    }
    shapes = jax.eval_shape(new_state, key, frozen)
    shardings = rules.state_shardings(shapes, mesh, settings.mesh.rules)
    return Program(
        method=method,
        mesh=mesh,
        batch_size=batch_size,
        candidates=candidates,
        streams=method.streams(settings.data, candidates),
        total_steps=sizes["total_steps"],
        sizes=sizes,
        learning_rate=learning_rate,
        state=placed(shapes, shardings),
        frozen=frozen,
        new_state=jax.jit(new_state, out_shardings=shardings),
        step=jax.jit(
            functools.partial(
                method.train_step,
                context=StepContext(tx, settings.ema_decay, settings.data.members),
            ),
            donate_argnums=0,
            out_shardings=(shardings, meshes.replicated(mesh)),
        ),
        score_first=jax.jit(method.score_first, donate_argnums=0, out_shardings=shardings),
    )


def sizes_of(settings: TrainConfig, data_size: int | None) -> dict[str, int | None]:
    """What durations are resolved with: examples per step and epoch, and the steps of the run.

    Raises:
        ConfigError: the length of the run is in epochs, and `data_size` is None.
    """
    b = settings.batch_size
    # An epoch is one pass over the data; a step reads B examples and trains on b.
    candidates = settings.method.super_batch_size(b)
    epoch = None if data_size is None else max(1, data_size * b // candidates)
    sizes = {"batch_size": b, "data_size": epoch}
    return sizes | {"total_steps": durations.steps(settings, "total", **sizes)}


def model_shapes(model: ModelConfig, mesh: Mesh, extra_rules: rules.Rules) -> PyTree:
    """The shapes and shardings of a model's parameters, as they are trained."""
    shapes = jax.eval_shape(model.init, _key())
    return placed(shapes, rules.shardings(shapes, mesh, extra_rules))


def frozen_shapes(model: ModelConfig, mesh: Mesh, extra_rules: rules.Rules) -> PyTree:
    """The shapes and shardings of a frozen model's parameters.

    Kernels are stored in the model's compute type, which every product casts them to anyway: a
    bfloat16 model takes half the memory, with bitwise equal results. The patch kernel, which
    scoring may resize in float32, and the classifier's, whose logits are float32, are small and
    stay as they are.
    """

    def held(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = rules.name_of(path)
        in_float32 = name.endswith(("patch/kernel", "classifier/kernel"))
        dtype = model.dtype if name.endswith("kernel") and not in_float32 else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return jax.tree.map_with_path(held, model_shapes(model, mesh, extra_rules))


def _key() -> jax.ShapeDtypeStruct:
    """The shape of a random key; a key itself cannot be made on devices that do not exist."""
    return jax.eval_shape(jax.random.key, 0)


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    """The shapes with their shardings."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def check_batch(settings: TrainConfig, mesh: Mesh) -> None:
    """Raises a ConfigError if the devices cannot share the batch or its micro-batches equally."""
    shards, method = meshes.example_shards(mesh), settings.method
    candidates = method.super_batch_size(settings.batch_size)
    for name, size in (("batch_size", settings.batch_size), ("The super-batch", candidates)):
        if size % shards:
            raise ConfigError(
                f"{name} = {size} cannot be shared by {shards} devices; make it a multiple."
            )
    if method.selects:
        check_pieces(candidates, method.score_micro_batch, shards, "method.score_micro_batch")
    check_pieces(settings.batch_size, method.train_micro_batch, shards, "method.train_micro_batch")


def check_data(settings: TrainConfig, source: Source) -> None:
    """Raises a ConfigError if a step reads more examples than `source` has.

    Such a batch repeats examples, and each copy would be a negative of the other.
    """
    candidates = settings.method.super_batch_size(settings.batch_size)
    if candidates <= len(source):
        return
    cause, remedy = f"batch_size = {settings.batch_size}", "batch_size"
    if candidates != settings.batch_size:
        cause += f", with method.selection.filter_ratio, reads super-batches of {candidates}"
        remedy += " or method.selection.filter_ratio"
    raise ConfigError(
        f"{cause} examples, but the data set {source.name} has only {len(source)}: a step would "
        "have examples more than once, each the wrong partner of its copy. "
        f"Lower {remedy}, or train on more data."
    )
