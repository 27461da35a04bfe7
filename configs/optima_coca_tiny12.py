"""OPTIMA: CoCa-Large into a student of 12 layers, module by module (arXiv 2310.04550).

Command:  python -m aced.main --config=configs/optima_coca_tiny12.py:task=vqa \\
              --workdir=gs://BUCKET/optima --config.data.array_record.path=/data/vqa \\
              --config.method.teacher.checkpoint=gs://BUCKET/vqa
          The teacher is a run of configs/coca_large.py:task=vqa. Tasks: vqa, snli_ve, nlvr2,
          coco_caption.
Hardware: 16 TPU v5e chips (assumed).
Cost:     2.08e18 FLOPs, 5.87 v5e chip-hours at 50 % MFU (assumed).
          Derived by aced/cost/flops.py.
Expect:   unknown; we had access to the paper's abstract and introduction only.

From the paper: the teacher, the tasks, modules as arms, the decrease of the loss as reward, and
Thompson sampling on recent history. Our choice: everything else, including the student's sizes, the
weights of the losses, pulls of 100 steps, the discount 0.98 and a learning rate of 1e-4; steps and
batch are those of CoCa's fine-tuning. Arguments: `task`, `tiny`.
"""

import ml_collections

from aced.config import parse_arg, to_config
from aced.methods.coca_task import CoCaTaskConfig
from aced.methods.optima import OptimaConfig
from aced.models import coca
from aced.models.coca import CoCaConfig
from aced.train.config import TrainConfig
from configs import coca_tasks, tiny


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    return of_student("coca_tiny12", arg)


def of_student(model: str, arg: str) -> ml_collections.ConfigDict:
    """The recipe for a student."""
    arg = parse_arg(arg, tiny=False, task="vqa")
    config = to_config(TrainConfig())
    task = coca_tasks.get(arg.task)
    config.method = to_config(OptimaConfig(model=coca.preset(model, **task.heads), task=task.kind))
    method = config.method
    coca_tasks.apply(config, arg.task)
    config.optimizer.schedule.peak = 1e-4
    config.optimizer.lr_rules = ()  # nothing is pretrained
    method.model.dtype = "bfloat16"
    method.model.remat = "full"
    method.teacher.checkpoint = f"/data/coca_large_{arg.task}"
    # For pre-flight before the teacher exists; its run must agree.
    method.teacher.model = to_config(coca.preset("CoCa-Large", dtype="bfloat16", **task.heads))
    return shrink(config, arg.task) if arg.tiny else config


def shrink(config: ml_collections.ConfigDict, task: str) -> ml_collections.ConfigDict:
    """The tiny form, whose teacher, of twice the layers, is trained first."""
    coca_tasks.shrink(config, task)
    method = config.method
    method.pull_steps = 1
    teacher = to_config(TrainConfig(method=CoCaTaskConfig(model=CoCaConfig(classes=2))))
    teacher.method.task = method.task
    teacher.method.model = method.model.copy_and_resolve_references()
    embedded = coca_tasks.get(task).embedded
    tiny.shrink_coca(teacher.method.model, embedded, layers=2)
    teacher.data.shapes.task = embedded
    tiny.train_first(config, "teacher", method.teacher, teacher)
    return config
