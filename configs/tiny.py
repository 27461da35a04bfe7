"""Shrinks any recipe to two steps on a CPU: what `:tiny` behind a config file does."""

import ml_collections

from aced.config import to_config
from aced.data import tokenizers
from aced.train import TrainConfig

BATCH_SIZE = 16
STEPS = 2


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns `config` with the same method on tiny models, the embedded data and two steps.

    Frozen models and starting points that the recipe reads from checkpoints are trained first,
    by the same loop, since no checkpoint can be taken for granted.
    """
    _shrink_run(config)
    _shrink_model(config.method.model)
    selection = config.method.selection
    selection.chunks, selection.strata = 2, 1
    if config.method.score_micro_batch:
        config.method.score_micro_batch = BATCH_SIZE  # divides all our super-batches
    frozen = {"reference": config.method.reference, **config.method.teachers}
    for name, item in frozen.items():
        if item.checkpoint:
            _train_first(config, name, item)
    if config.init.checkpoint:
        _train_first(config, "start", config.init)
    return config


def _train_first(
    config: ml_collections.ConfigDict, name: str, item: ml_collections.ConfigDict
) -> None:
    """Adds a plain run of the same model under `name`, and points `item` at it."""
    run = to_config(TrainConfig())
    _shrink_run(run)
    _shrink_model(run.method.model)
    run.method.model.init_bias = config.method.model.init_bias
    config.before[name] = run
    item.checkpoint = "{workdir}/" + name
    if "model" in item:
        item.model = None


def _shrink_run(config: ml_collections.ConfigDict) -> None:
    config.batch_size = BATCH_SIZE
    config.total_steps, config.total_examples, config.total_epochs = STEPS, None, None
    config.log_steps = config.picks_steps = 1
    config.data.source = "shapes"
    config.data.shapes.size = 1000
    config.data.shapes.resolution = 32
    for evaluation in config.evals.values():
        evaluation.data.source = "shapes"
        evaluation.data.shapes.split = "val"
        evaluation.data.shapes.size = 64
        evaluation.data.shapes.resolution = 32
        evaluation.class_names, evaluation.templates = (), ("a {}",)


def _shrink_model(model: ml_collections.ConfigDict) -> None:
    model.image.size = model.text.size = "mu"
    for tower in (model.image, model.text):
        tower.width = tower.depth = tower.mlp = tower.heads = None
    model.image.patch, model.image.resolution = 8, 32
    model.embed_dim = None
    use_shapes_tokenizer(model, length=16)


def use_shapes_tokenizer(model: ml_collections.ConfigDict, length: int) -> None:
    """Lets `model` read captions by the closed vocabulary of the embedded data set."""
    config = tokenizers.TokenizerConfig(kind="shapes", length=length)
    model.tokenizer.kind, model.tokenizer.path, model.tokenizer.length = "shapes", "", length
    model.text.vocab_size = tokenizers.get_tokenizer(config).vocab_size
    model.text.length = length
