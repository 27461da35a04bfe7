"""The model that a new run starts from: another run's, or parts of one."""

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
    """The state, its model taken over from the run that `settings.init` names, if it names one.

    Args:
        train_state: of a new run.
        settings: of the run.
        folder: its workdir.

    Raises:
        ConfigError: that model is of another architecture or preprocessing.
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
    old = train_state.params["model"]
    places = jax.tree.map(lambda x: x.sharding, old)
    model = load_model(init, program.placed(old, places))
    logging.info("The model starts from %s.", init.checkpoint)
    return _with_model(train_state, model)


def with_given_parts(
    train_state: state.TrainState, given: tuple[CheckpointOf, Sequence[str]] | None
) -> state.TrainState:
    """The state, parts of its model taken over from another one that is perhaps larger."""
    if given is None:
        return train_state
    item, names = given
    model, theirs = train_state.params["model"], load_model(item, None)
    parts = {name: _taken(theirs[name], part) for name, part in model.items() if name in names}
    logging.info("%s of the model are those of %s.", ", ".join(parts), item.checkpoint)
    return _with_model(train_state, model | parts)


def _taken(theirs: PyTree, ours: PyTree) -> PyTree:
    """Their parameters under our names; what else they have, such as a pooling head, is left."""
    if isinstance(ours, Mapping):
        return {name: _taken(theirs[name], part) for name, part in ours.items()}
    return jax.device_put(theirs, ours.sharding)


def _with_model(train_state: state.TrainState, model: PyTree) -> state.TrainState:
    params = {**train_state.params, "model": model}
    ema = None if train_state.ema is None else jax.tree.map(lambda x: x.copy(), params)
    return train_state.replace(params=params, ema=ema)
