"""Shrinks any recipe to two steps on a CPU: what `:tiny` behind a config file does."""

import ml_collections

from aced.cache.config import CacheConfig
from aced.config import to_config
from aced.data import tokenizers
from aced.data.shapes.tasks import CLASS_NAMES
from aced.methods.coca import CoCaTrainConfig
from aced.methods.coca_task import CoCaTaskConfig
from aced.models.coca import CoCaConfig
from aced.models.text import TextConfig
from aced.train.config import TrainConfig
from configs import coca_tasks

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
    selection.chunks = 2
    selection.strata = 1
    if config.method.score_micro_batch:
        config.method.score_micro_batch = BATCH_SIZE  # divides all our super-batches
    frozen = {"reference": config.method.reference, **config.method.teachers}
    for name, item in frozen.items():
        if item.checkpoint:
            _train_first(config, name, item)
    if config.init.checkpoint:
        _train_first(config, "start", config.init)
    return config


def shrink_dime(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """`shrink` for DIME-FM: a tiny teacher is trained, and embeds both streams, before the run."""
    _shrink_run(config)
    method = config.method
    method.model.text = to_config(TextConfig())  # the tiny teacher's takes its place
    _shrink_model(method.model)
    _train_first(config, "teacher", method.teacher)
    _shrink_data(method.sentences.data)
    method.sentences.data.shapes.seed = 7  # other scenes: nothing is paired
    method.teacher.cache = "{workdir}/pictures"
    method.sentences.cache = "{workdir}/sentences"
    for model, out, towers in (
        ("teacher", method.teacher.cache, "image"),
        ("sentences", method.sentences.cache, "text"),
    ):
        config.before_caches[model] = to_config(CacheConfig(model=model, out=out, towers=towers))
    return config


def shrink_coca(config: ml_collections.ConfigDict, task: str) -> ml_collections.ConfigDict:
    """`shrink` for what has CoCa's decoder.

    A model to start from, a teacher or an encoder is trained before the run.

    Args:
        config: of the method `coca`, `coca_task`, `optima` or `lit_decoder`.
        task: a name in `coca_tasks.TASKS`; the embedded task that stands for it is read.
    """
    embedded = coca_tasks.get(task).embedded
    _shrink_run(config)
    method = config.method
    for data in (config.data, *(evaluation.data for evaluation in config.evals.values())):
        data.shapes.task = embedded
    _shrink_coca(method.model, embedded, layers=1)
    if method.name == "coca" and method.reference.checkpoint:
        _train_first(config, "reference", method.reference)
    if config.init.checkpoint:
        first = to_config(TrainConfig(method=CoCaTrainConfig()))
        first.method.model = method.model.copy_and_resolve_references()
        first.method.model.classes = 0
        first.method.model.pictures = 1
        _add_first(config, "start", config.init, first)
    if method.name == "lit_decoder":
        _train_first(config, "encoder", method.encoder)
    if method.name == "optima":
        method.pull_steps = 1
        teacher = to_config(TrainConfig(method=CoCaTaskConfig(model=CoCaConfig(classes=2))))
        teacher.method.task = method.task
        teacher.method.model = method.model.copy_and_resolve_references()
        _shrink_coca(teacher.method.model, embedded, layers=2)
        _add_first(config, "teacher", method.teacher, teacher)
        teacher.data.shapes.task = embedded
    return config


def _train_first(
    config: ml_collections.ConfigDict, name: str, item: ml_collections.ConfigDict
) -> None:
    """Adds a plain run of a two-tower model under `name`, and points `item` at it."""
    run = to_config(TrainConfig())
    _shrink_model(run.method.model)
    run.method.model.init_bias = config.method.model.get("init_bias")
    if run.method.model.init_bias is None:
        run.method.loss = "softmax"
    _add_first(config, name, item, run)


def _add_first(
    config: ml_collections.ConfigDict,
    name: str,
    item: ml_collections.ConfigDict,
    run: ml_collections.ConfigDict,
) -> None:
    """Lets `run` go first, and points `item` at it."""
    _shrink_run(run)
    config.before[name] = run
    item.checkpoint = "{workdir}/" + name
    if "model" in item:
        item.model = None


def _shrink_run(config: ml_collections.ConfigDict) -> None:
    config.batch_size = BATCH_SIZE
    config.total_steps = STEPS
    config.total_examples = None
    config.total_epochs = None
    config.log_steps = config.picks_steps = 1
    config.optimizer.schedule.warmup_steps = None  # of the whole run's length
    _shrink_data(config.data)
    for evaluation in config.evals.values():
        evaluation.data.source = "shapes"
        evaluation.data.shapes.split = "val"
        evaluation.data.shapes.size = 64
        evaluation.data.shapes.resolution = 32
        evaluation.class_names = ()
        evaluation.templates = ("a {}",)


def _shrink_data(data: ml_collections.ConfigDict) -> None:
    data.source = "shapes"
    data.shapes.size = 1000
    data.shapes.resolution = 32


def _shrink_model(model: ml_collections.ConfigDict) -> None:
    model.image.resolution = 32
    towers = [model.text]
    if model.image.architecture == "swin":
        swin = model.image.swin
        swin.size = "mu"
        swin.patch = 4
        swin.window = 4
        swin.width = swin.depths = swin.heads = None
    else:
        towers.append(model.image)
        model.image.patch = 8
    for tower in towers:
        tower.size = "mu"
        tower.width = tower.depth = tower.mlp = tower.heads = None
    model.embed_dim = None
    use_shapes_tokenizer(model, length=16)


def _shrink_coca(model: ml_collections.ConfigDict, embedded: str, *, layers: int) -> None:
    model.image.resolution = 32
    model.image.patch = 8
    model.image.size = "mu"
    model.image.width = model.image.mlp = model.image.heads = None
    model.image.depth = layers
    model.queries = min(model.queries, 8)
    text = model.text
    text.size = "mu"
    text.width = None
    text.mlp = None
    text.heads = None
    text.unimodal = text.multimodal = layers
    use_scenes_tokenizer(model, length=32)
    if model.classes:
        model.classes = len(CLASS_NAMES[embedded])


def use_scenes_tokenizer(model: ml_collections.ConfigDict, length: int) -> None:
    """Lets a CoCa read and write the words of the embedded tasks."""
    config = tokenizers.TokenizerConfig(kind="scenes", length=length)
    model.tokenizer.kind = "scenes"
    model.tokenizer.path = ""
    model.tokenizer.length = length
    tokenizer = tokenizers.get_tokenizer(config)
    model.text.vocab_size = tokenizer.vocab_size
    model.text.eos_id = tokenizer.eos_id
    model.text.length = length


def use_shapes_tokenizer(model: ml_collections.ConfigDict, length: int) -> None:
    """Lets `model` read captions by the closed vocabulary of the embedded data set."""
    config = tokenizers.TokenizerConfig(kind="shapes", length=length)
    model.tokenizer.kind = "shapes"
    model.tokenizer.path = ""
    model.tokenizer.length = length
    model.text.vocab_size = tokenizers.get_tokenizer(config).vocab_size
    model.text.length = length
