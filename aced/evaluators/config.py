"""The settings of an evaluation."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Interval, MinLen

from aced.bounds import NonNegativeInt, OneOf, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError
from aced.data.sources import DataConfig
from aced.models.generation import GenerationConfig

KINDS: dict[str, type] = {}  # filled in aced/evaluators/__init__.py, with what reads EvalConfig


@dataclasses.dataclass(frozen=True)
class ProbeConfig(Checked):
    """How the head of a linear probe is trained, after ELEVATER's protocol (arXiv 2204.08790).

    From there: all data, standardised features, a head that starts from the texts of the classes,
    learning rate and weight decay searched on a fifth of the training data. The grid, the optimizer
    (SGD with momentum), batch size and number of epochs are assumptions.
    """

    data: DataConfig = DataConfig()  # what the head is trained on
    max_examples: PositiveInt | None = None  # only this many, from the first on; None: all
    # "text": as the zero-shot classifier, exactly; "zeros": needs no class names
    start: Literal["text", "zeros"] = "text"
    learning_rates: Annotated[tuple[float, ...], MinLen(1)] = (1e-3, 1e-2, 1e-1, 1.0)
    # Of the head's matrix.
    weight_decays: Annotated[tuple[float, ...], MinLen(1)] = (0.0, 1e-4, 1e-3, 1e-2)
    # Of the training data, drawn at random, for the search.
    validation_percent: Annotated[float, Interval(gt=0, lt=100)] = 20.0
    epochs: PositiveInt = 50  # at most; where to stop is searched, too
    batch_size: PositiveInt = 128  # pictures a step
    momentum: float = 0.9
    seed: int = 0  # of the search's split and of the order of pictures


@dataclasses.dataclass(frozen=True)
class EvalConfig(Checked):
    """One evaluation: what, on which data, how often. It always runs at the end of training."""

    # "retrieval" and "zeroshot" classification by the embeddings; "linear_probe": classification by
    # a head that is trained on pictures' embeddings; "answers": what CoCa's head chooses;
    # "captioning": what its decoder writes; "words": what its decoder answers to a question;
    # "associations": which pictures belong to a cue
    kind: Annotated[str, OneOf(KINDS)] = "retrieval"
    data: DataConfig = DataConfig()
    batch_size: PositiveInt = 256  # over all devices; rounded up to a multiple of their number
    max_examples: PositiveInt | None = None  # only this many, from the first on; None: all
    # How pictures become squares; "model": as in its training
    resize: Literal["model", "squash", "crop"] = "model"
    # retrieval, captioning: captions per picture, at most (COCO, Flickr: 5)
    captions: PositiveInt = 5
    # zeroshot, linear_probe: where a picture's class is. "label": its number, one for each picture;
    # "captions": its captions are the names of the classes that it shows, several or one
    classes_in: Literal["label", "captions"] = "label"
    # zeroshot, linear_probe, answers, words; none: those that the data set brings. An empty name
    # leaves the class and its pictures out, as of ObjectNet's classes those that ImageNet lacks
    class_names: tuple[str, ...] = ()
    # Prompts, averaged per class; none: those that the data set brings, or else "a photo of a {}."
    templates: tuple[str, ...] = ()
    # zeroshot, with one class per picture: the classes to choose from. "named": all that have a
    # name; "occurring": those of the data set's labels, where they are numbered in a longer list,
    # as the 200 of ImageNet-A or -R among 1,000
    classes: Literal["named", "occurring"] = "named"
    probe: ProbeConfig = ProbeConfig()  # linear_probe
    generation: GenerationConfig = GenerationConfig()  # captioning, words: how texts are written
    # captioning: also CIDEr-D and BLEU-4 by the words of the Penn Treebank tokenizer, as published
    # for COCO. Needs Java and the extra `captions`
    penn_treebank: bool = False
    # How often the examples are resampled for intervals of 95 %, NAME_low and NAME_high of every
    # number (1000 is usual); 0: no intervals. Retrieval resamples pictures, and keeps all of them
    # as candidates
    bootstrap: NonNegativeInt = 0
    # How often; none set: at the end only.
    every_steps: PositiveInt | None = None
    every_examples: PositiveInt | None = None  # examples trained
    every_epochs: PositiveFloat | None = None
    every_percent: PositiveFloat | None = None  # of the run, 0 to 100

    def _check(self) -> None:
        for name, data in (("data", self.data), ("probe.data", self.probe.data)):
            if data.augmentations:
                raise ConfigError(
                    f"{name}.augmentations = {data.augmentations} is for training, and evaluations "
                    f"see whole pictures; set it to 0, and {name}.augment to its defaults."
                )
        if self.kind in ("zeroshot", "linear_probe") and not all("{}" in t for t in self.templates):
            raise ConfigError(f"Every template needs a {{}} for the class, got {self.templates}.")
        if self.kind in ("captioning", "words") and self.generation.kind == "top_p":
            raise ConfigError(
                "An evaluation has to give the same numbers again, which texts drawn at random "
                "do not; set generation.kind to 'greedy' or 'beam'."
            )
