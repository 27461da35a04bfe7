"""CoCa's fine-tuning (arXiv 2205.01917): `apply(config, "vqa")`.

Adafactor, weight decay 0.1, gradients clipped at 1, cosine to 0 after 1,000 steps of warm-up.
Assumed: the decay follows the learning rate, and the resolution stays that of pretraining. Our
choice: `vqa_words`, VQA with answers that the decoder writes, with the settings of `vqa`.
"""

import dataclasses
from typing import Literal

import ml_collections

from aced.config import ConfigError, to_config
from aced.evaluators import EvalConfig
from configs import tiny


@dataclasses.dataclass(frozen=True)
class Task:
    """A task's recipe, and which of the embedded tasks stands for it in `:tiny`."""

    steps: int
    batch_size: int
    encoder_lr: float
    head_lr: float | None  # of the new head; None: the task has no head
    classes: int
    pictures: int
    embedded: str  # see `aced.data.shapes.scenes.tasks`
    words: bool = False  # whether answers are written, without a head

    @property
    def kind(self) -> Literal["answers", "captioning", "words"]:
        """The task of the method `coca_task`."""
        if self.words:
            return "words"
        return "answers" if self.classes else "captioning"

    @property
    def heads(self) -> dict[str, int]:
        """Settings of `CoCaConfig` for this task."""
        return {"classes": self.classes, "pictures": self.pictures}


TASKS = {
    "vqa": Task(100_000, 64, 2e-5, 5e-4, 3129, 1, "questions"),
    "vqa_words": Task(100_000, 64, 2e-5, None, 0, 1, "questions", words=True),
    "snli_ve": Task(50_000, 128, 5e-5, 1e-3, 3, 1, "entailment"),
    "nlvr2": Task(50_000, 64, 2e-5, 5e-4, 2, 2, "two_pictures"),
    "coco_caption": Task(50_000, 128, 1e-5, None, 0, 1, "captions"),
}


def get(name: str) -> Task:
    """Returns the task called `name`."""
    if name not in TASKS:
        raise ConfigError(f"Task {name!r} is unknown; known: {', '.join(TASKS)}.")
    return TASKS[name]


def apply(config: ml_collections.ConfigDict, name: str) -> None:
    """Completes `config`, whose method and model are set up for the task `name`."""
    task = get(name)
    config.batch_size = task.batch_size
    config.total_steps = task.steps
    config.data.source = "array_record"
    config.data.array_record.path = f"/data/{name}"
    optimizer = config.optimizer
    optimizer.name = "adafactor"
    optimizer.weight_decay = 0.1
    optimizer.clip_norm = 1.0
    optimizer.decay_follows = "lr"
    schedule = optimizer.schedule
    schedule.kind = "cosine"
    schedule.peak = task.encoder_lr
    schedule.warmup_steps = 1_000
    if task.head_lr:
        optimizer.lr_rules = (("model/head/.*", task.head_lr / task.encoder_lr),)
    config.evals.val = to_config(EvalConfig(kind=task.kind, batch_size=64, every_percent=10.0))
    held_out = config.evals.val.data
    held_out.source = "array_record"
    held_out.array_record.path = config.data.array_record.get_ref("path")  # follows the data
    held_out.array_record.split = "val"
    config.checkpoint.every_steps = 1_000


def shrink(config: ml_collections.ConfigDict, name: str) -> None:
    """Gives `config` the tiny form of the task called `name`: the embedded task like it."""
    embedded = get(name).embedded
    tiny.shrink_run(config)
    tiny.shrink_coca(config.method.model, embedded)
    config.data.shapes.task = embedded
    for evaluation in config.evals.values():
        evaluation.data.shapes.task = embedded
