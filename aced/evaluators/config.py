"""The settings of an evaluation."""

import dataclasses
from typing import Literal

from aced.config import ConfigError
from aced.data.sources import DataConfig
from aced.models.generation import GenerationConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """One evaluation: what, on which data, how often. It always runs at the end of training."""

    # "retrieval" and "zeroshot" classification by the embeddings; "answers": what CoCa's head
    # chooses; "captioning": what its decoder writes
    kind: Literal["retrieval", "zeroshot", "answers", "captioning"] = "retrieval"
    data: DataConfig = DataConfig()
    batch_size: int = 256  # over all devices; rounded up to a multiple of their number
    max_examples: int | None = None  # the first so many of the data set; None: all
    # retrieval, captioning: captions per picture, where it has so many (COCO, Flickr: 5)
    captions: int = 5
    class_names: tuple[str, ...] = ()  # zeroshot; none: those that the data set brings
    templates: tuple[str, ...] = ("a photo of a {}.",)  # zeroshot: prompts, averaged per class
    generation: GenerationConfig = GenerationConfig()  # captioning: how captions are written
    # How often; none set: at the end only.
    every_steps: int | None = None
    every_examples: int | None = None  # examples trained
    every_epochs: float | None = None
    every_percent: float | None = None  # of the run, 0 to 100

    def __post_init__(self):
        if self.batch_size < 1 or self.captions < 1:
            raise ConfigError("batch_size and captions of an evaluation must be at least 1.")
        for name in ("every_steps", "every_examples", "every_epochs", "every_percent"):
            period = getattr(self, name)
            if period is not None and period <= 0:
                raise ConfigError(f"{name} must be positive, got {period}; None: at the end only.")
        if self.kind == "zeroshot" and not all("{}" in t for t in self.templates):
            raise ConfigError(f"Every template needs a {{}} for the class, got {self.templates}.")
        if self.kind == "captioning" and self.generation.kind == "top_p":
            raise ConfigError(
                "An evaluation has to give the same numbers again, which captions drawn at random "
                "do not; set generation.kind to 'greedy' or 'beam'."
            )
