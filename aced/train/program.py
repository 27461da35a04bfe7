"""What is compiled: a run's step, with the shape and the place on the mesh of all that it touches.

Nothing here reads data or holds an array, so that a step can be compiled for machines that are not
there (`aced.preflight`) as it is compiled for those that are (`aced.train`).
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

    def batch(self, fields: Iterable[str] = ()) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes of all arrays of a step, with the optional `fields` that the source has."""
        place = meshes.by_example(self.mesh)
        added = {name: ((), OPTIONAL_FIELDS[name].dtype) for name in fields}
        return {
            f"{prefix}{name}": jax.ShapeDtypeStruct((stream.rows, *shape), dtype, sharding=place)
            for prefix, stream in self.streams.items()
            for name, (shape, dtype) in (stream.shapes() | ({} if prefix else added)).items()
        }


def build(settings: TrainConfig, mesh: Mesh, data_size: int | None = None) -> Program:
    """Returns the program of a run on `mesh`, whose devices need not exist.

    Args:
        settings: of the run; the architectures of its frozen models are known.
        mesh: from `parallel.mesh.make_mesh`.
        data_size: examples of the data set; None: not known, which durations in epochs need.

    Raises:
        ConfigError: sizes, durations or rules do not fit together.
    """
    method = methods.build(settings.method)
    batch_size, candidates = (
        settings.batch_size,
        method.config.super_batch_size(settings.batch_size),
    )
    check_batch(settings, mesh)
    # An epoch is a pass over the data, of which a step reads B and trains on b.
    epoch = None if data_size is None else max(1, data_size * batch_size // candidates)
    sizes = {"batch_size": batch_size, "data_size": epoch}
    sizes["total_steps"] = durations.steps(settings, "total", **sizes)

    key = placed(_key(), meshes.replicated(mesh))  # as the key that a run starts with
    # What is jitted is traced once, for its shapes as for the program that is compiled, which
    # inlining leaves as it would be without.
    init_params = jax.jit(method.init_params, inline=True)
    fixed = tuple((name, 0.0) for name in method.fixed)
    how = dataclasses.replace(settings.optimizer, lr_rules=(*fixed, *settings.optimizer.lr_rules))
    tx, learning_rate = optimizer.build(how, jax.eval_shape(init_params, key), **sizes)

    @functools.partial(jax.jit, inline=True)
    def new_state(key: jax.Array, frozen: dict[str, PyTree]) -> state.TrainState:
        params_key, step_key = jax.random.split(key)
        params = method.start(init_params(params_key), frozen)
        memory = method.init_memory(params)
        return state.create(params, tx, step_key, ema=settings.ema_decay > 0, method=memory)

    frozen = {
        name: frozen_shapes(item.model, mesh, settings.mesh.rules)
        for name, item in method.frozen.items()
    }
    shapes = jax.eval_shape(new_state, key, frozen)
    places = rules.state_shardings(shapes, mesh, settings.mesh.rules)
    return Program(
        method=method,
        mesh=mesh,
        batch_size=batch_size,
        candidates=candidates,
        streams=method.streams(settings.data, candidates),
        total_steps=sizes["total_steps"],
        sizes=sizes,
        learning_rate=learning_rate,
        state=placed(shapes, places),
        frozen=frozen,
        new_state=jax.jit(new_state, out_shardings=places),
        step=jax.jit(
            functools.partial(
                method.train_step,
                context=StepContext(tx, settings.ema_decay, settings.data.members),
            ),
            donate_argnums=0,
            out_shardings=(places, meshes.replicated(mesh)),
        ),
    )


def model_shapes(model: ModelConfig, mesh: Mesh, extra_rules: rules.Rules) -> PyTree:
    """The shapes of a model's parameters, as they are trained, and where they lie."""
    shapes = jax.eval_shape(model.init, _key())
    return placed(shapes, rules.shardings(shapes, mesh, extra_rules))


def frozen_shapes(model: ModelConfig, mesh: Mesh, extra_rules: rules.Rules) -> PyTree:
    """The shapes of a frozen model's parameters.

    Kernels are held in the model's compute type: that is what every product reads them in, so a
    bfloat16 model takes half the memory and gives the same numbers to the last bit. Not that of
    the patches, which scoring may have to resize in float32, nor that of answers, which float32
    logits are made with: they are small.
    """

    def held(path: tuple, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        name = rules.name_of(path)
        in_float32 = name.endswith(("patch/kernel", "classifier/kernel"))
        is_product = name.endswith("kernel") and not in_float32
        dtype = model.dtype if is_product else x.dtype
        return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

    return jax.tree.map_with_path(held, model_shapes(model, mesh, extra_rules))


def _key() -> jax.ShapeDtypeStruct:
    """Of a random key: an array could not be made on devices that are not there."""
    return jax.eval_shape(jax.random.key, 0)


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    """The shapes with their shardings."""
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, shardings
    )


def check_batch(settings: TrainConfig, mesh: Mesh) -> None:
    """Refuses batches that the devices of `mesh` cannot share, whole or in micro-batches.

    Raises:
        ConfigError: see above.
    """
    shards, method = meshes.example_shards(mesh), settings.method
    candidates = method.super_batch_size(settings.batch_size)
    for what, size in (("batch_size", settings.batch_size), ("The super-batch", candidates)):
        if size % shards:
            raise ConfigError(
                f"{what} = {size} cannot be shared by {shards} devices; make it a multiple."
            )
    if method.selects:
        check_pieces(candidates, method.score_micro_batch, shards, "method.score_micro_batch")
    check_pieces(settings.batch_size, method.train_micro_batch, shards, "method.train_micro_batch")


def check_data(settings: TrainConfig, source: Source) -> None:
    """Refuses steps that read more examples than `source` has: each would be its copy's negative.

    Raises:
        ConfigError: see above.
    """
    candidates = settings.method.super_batch_size(settings.batch_size)
    if candidates <= len(source):
        return
    what, lower = f"batch_size = {settings.batch_size}", "batch_size"
    if candidates != settings.batch_size:
        what += f", with method.selection.filter_ratio, reads super-batches of {candidates}"
        lower += " or method.selection.filter_ratio"
    raise ConfigError(
        f"{what} examples, but the data set {source.name} has only {len(source)}: a step would "
        "have examples more than once, each the wrong partner of its copy. "
        f"Lower {lower}, or train on more data."
    )
