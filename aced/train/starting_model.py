"""Initialises a new run's model from another run, in whole or in part."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
from absl import logging
from etils import epath
from jaxtyping import PyTree

from aced.methods.frozen import CheckpointOf, check_same_model, load_model, trained_model
from aced.optim import state
from aced.train import program
from aced.train.config import TrainConfig


def with_initial_model(
    train_state: state.TrainState, settings: TrainConfig, folder: epath.Path
) -> state.TrainState:
    """Returns the state with the model of `settings.init`, if that is set.

    Args:
        train_state: of a new run.
        settings: of the run.
        folder: workdir of the run.

    Raises:
        ConfigError: the other model has a different architecture or preprocessing.
    """
    if not settings.init.checkpoint:
        return train_state
    init = dataclasses.replace(settings.init, checkpoint=settings.init.folder(str(folder)))
    model = settings.method.model
    trained = trained_model(init.checkpoint, type(model))
    check_same_model(model, trained, init.checkpoint, model.FREE_TO_START_FROM)
    shared = model.shared_parts(trained)
    if shared is not None:
        return with_given_parts(train_state, (init, shared))
    random = train_state.params["model"]
    shardings = jax.tree.map(lambda x: x.sharding, random)
    model = load_model(init, program.placed(random, shardings))
    logging.info("The model starts from %s.", init.checkpoint)
    return _with_model(train_state, model)


def with_given_parts(
    train_state: state.TrainState, given: tuple[CheckpointOf, Sequence[str]] | None
) -> state.TrainState:
    """Returns the state with parts of another model, which may have more parts."""
    if given is None:
        return train_state
    item, names = given
    model, other = train_state.params["model"], load_model(item, None)
    parts = {name: _taken(other[name], part) for name, part in model.items() if name in names}
    logging.info("The parts %s of the model are those of %s.", ", ".join(parts), item.checkpoint)
    return _with_model(train_state, model | parts)


def _taken(other: PyTree, own: PyTree) -> PyTree:
    """The parameters of `other` for the names in `own`, placed as those of `own`."""
    if isinstance(own, Mapping):
        return {name: _taken(other[name], part) for name, part in own.items()}
    return jax.device_put(other, own.sharding)


def _with_model(train_state: state.TrainState, model: PyTree) -> state.TrainState:
    params = {**train_state.params, "model": model}
    ema = None if train_state.ema is None else jax.tree.map(lambda x: x.copy(), params)
    return train_state.replace(params=params, ema=ema)
