"""Parts of the recipes' `:tiny` forms: two steps on a CPU, the embedded data, small towers.

Each recipe, or the first of its family, has a function `shrink` that calls those that it needs.
"""

import ml_collections

from aced.config import to_config
from aced.data import tokenizers
from aced.data.shapes.tasks import CLASS_NAMES
from aced.train.config import TrainConfig

BATCH_SIZE = 16
STEPS = 2
RESOLUTION = 32


def shrink_run(config: ml_collections.ConfigDict) -> None:
    """Two steps on the embedded data, which the evaluations read, too."""
    config.batch_size = BATCH_SIZE
    config.total_steps = STEPS
    config.total_examples = None
    config.total_epochs = None
    config.log_steps = 1
    config.picks_steps = 1
    config.optimizer.schedule.warmup_steps = None  # of the whole run's length
    shrink_data(config.data)
    for evaluation in config.evals.values():
        evaluation.data.source = "shapes"
        evaluation.data.shapes.split = "val"
        evaluation.data.shapes.size = 64
        evaluation.data.shapes.resolution = RESOLUTION
        evaluation.class_names = ()
        evaluation.templates = ("a {}",)


def shrink_data(data: ml_collections.ConfigDict) -> None:
    """Some of the embedded scenes."""
    data.source = "shapes"
    data.shapes.size = 1000
    data.shapes.resolution = RESOLUTION


def shrink_towers(model: ml_collections.ConfigDict) -> None:
    """Two towers of the smallest size, of the architecture that they have."""
    model.image.resolution = RESOLUTION
    if model.image.architecture == "swin":
        swin = model.image.swin
        swin.size = "mu"
        swin.patch = 4
        swin.window = 4
        swin.width = None
        swin.depths = None
        swin.heads = None
    else:
        model.image.patch = 8
        _shrink_tower(model.image)
    _shrink_tower(model.text)
    model.embed_dim = None
    use_shapes_tokenizer(model, length=16)


def _shrink_tower(tower: ml_collections.ConfigDict) -> None:
    tower.size = "mu"
    tower.width = None
    tower.depth = None
    tower.mlp = None
    tower.heads = None


def shrink_coca(model: ml_collections.ConfigDict, embedded: str, *, layers: int = 1) -> None:
    """A CoCa with `layers` layers in each part, for the task `embedded` of the embedded data."""
    model.image.resolution = RESOLUTION
    model.image.patch = 8
    _shrink_tower(model.image)
    model.image.depth = layers
    model.queries = min(model.queries, 8)
    text = model.text
    text.size = "mu"
    text.width = None
    text.mlp = None
    text.heads = None
    text.unimodal = layers
    text.multimodal = layers
    use_scenes_tokenizer(model, length=32)
    if model.classes:
        model.classes = len(CLASS_NAMES[embedded])


def train_first(
    config: ml_collections.ConfigDict,
    name: str,
    item: ml_collections.ConfigDict,
    run: ml_collections.ConfigDict | None = None,
) -> None:
    """Trains a model before the run, since no checkpoint can be taken for granted.

    Args:
        config: of the run.
        name: of the run that goes first.
        item: where `config` names the model's checkpoint; nothing is done if it names none.
        run: the run that goes first; None: a plain one of two towers.
    """
    if not item.checkpoint:
        return
    if run is None:
        run = to_config(TrainConfig())
        shrink_towers(run.method.model)
        run.method.model.init_bias = config.method.model.get("init_bias")
        if run.method.model.init_bias is None:
            run.method.loss = "softmax"
    shrink_run(run)
    config.before[name] = run
    item.checkpoint = "{workdir}/" + name
    if "model" in item:
        item.model = None


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
