"""CoCa-Base: one forward pass for a contrastive and a captioning loss (arXiv 2205.01917).

Command:  python -m aced.main --config=configs/coca_base.py --workdir=gs://BUCKET/coca_base \\
              --config.data.array_record.path=/data/pairs
          Then, on a task (vqa, snli_ve, nlvr2, coco_caption):
          python -m aced.main --config=configs/coca_base.py:task=vqa --workdir=gs://BUCKET/vqa \\
              --config.init.checkpoint=gs://BUCKET/coca_base \\
              --config.data.array_record.path=/data/vqa
Hardware: 256 TPU v5e chips (assumed).
Cost:     8.49e21 FLOPs, 23,938 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   unknown; the paper's numbers are of image-text data that are not public.

From the paper: 288 px in patches of 18, 65,536 pairs per step for 500,000 steps, Adafactor,
decoupled weight decay 0.01, 2 % of warm-up to 8e-4, then linear decay; contrastive weight 1 of the
sum of both directions, captioning weight 2; for the tasks, configs/coca_tasks.py. Assumed: CLIP's
vocabulary of 49,408 words in a table of 64,000 rows, since the paper's SentencePiece model is not
public; decay times the learning rate; Adafactor's first moment 0.9; gradients clipped at 1.
`:acid=PATH` selects each batch from five times as many pairs, with the reference in PATH.
Arguments: `task`, `acid`, `tiny`.
"""

import ml_collections

from aced.config import ConfigError, parse_arg, to_config
from aced.evaluators import EvalConfig
from aced.methods.coca import CoCaTrainConfig
from aced.methods.coca_task import CoCaTaskConfig
from aced.models import coca
from aced.train.config import TrainConfig
from configs import coca_tasks, methods, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return of_model("CoCa-Base", arg)


def of_model(model: str, arg: str) -> ml_collections.ConfigDict:
    """The recipes of a size: pretraining, or with `task=` fine-tuning."""
    arg = parse_arg(arg, tiny=False, task="", acid="")
    if arg.task and arg.acid:
        raise ConfigError("`acid` chooses pairs for pretraining; leave it out with `task`.")
    config = finetuning(model, arg.task) if arg.task else pretraining(model)
    if arg.acid:
        config.method.reference.checkpoint = arg.acid
        methods.apply(config, "h_acid", filter_ratio=0.8, weight=0.0)
    return shrink(config, arg.task) if arg.tiny else config


def pretraining(model: str) -> ml_collections.ConfigDict:
    """Pretraining on pairs with both losses."""
    config = to_config(TrainConfig())
    config.batch_size = 65_536
    config.total_steps = 500_000
    config.data.source = "array_record"
    config.data.array_record.path = "/data/pairs"
    config.method = to_config(CoCaTrainConfig(model=coca.preset(model)))
    config.method.model.dtype = "bfloat16"
    config.method.model.remat = "full"
    optimizer = config.optimizer
    optimizer.name = "adafactor"
    optimizer.weight_decay = 0.01
    optimizer.decay_follows = "lr"  # with "schedule", matrices would shrink by 1 % per step
    schedule = optimizer.schedule
    schedule.kind = "linear"
    schedule.peak = 8e-4
    schedule.warmup_percent = 2.0
    config.checkpoint.every_steps = 1_000
    config.evals.retrieval = to_config(EvalConfig(kind="retrieval", every_percent=10.0))
    held_out = config.evals.retrieval.data
    held_out.source = "array_record"
    held_out.array_record.path = config.data.array_record.get_ref("path")  # follows the data
    held_out.array_record.split = "val"
    return config


def finetuning(model: str, task: str) -> ml_collections.ConfigDict:
    """Fine-tuning of a pretrained model on a task, with a new head."""
    config = to_config(TrainConfig())
    found = coca_tasks.get(task)
    own = coca.preset(model, **found.heads)
    config.method = to_config(CoCaTaskConfig(model=own, task=found.kind))
    config.method.model.dtype = "bfloat16"
    config.method.model.remat = "full"
    coca_tasks.apply(config, task)
    config.init.checkpoint = "/data/" + model.lower().replace("-", "_")
    return config


def shrink(config: ml_collections.ConfigDict, task: str) -> ml_collections.ConfigDict:
    """The tiny form; what a task starts from, or the reference, is trained first."""
    coca_tasks.shrink(config, task or "coco_caption")
    if task:
        pretrained = to_config(TrainConfig(method=CoCaTrainConfig()))
        pretrained.method.model = config.method.model.copy_and_resolve_references()
        pretrained.method.model.classes = 0
        pretrained.method.model.pictures = 1
        tiny.train_first(config, "start", config.init, pretrained)
    else:
        tiny.train_first(config, "reference", config.method.reference)
    return config
