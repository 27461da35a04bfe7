"""The settings of `python -m aced.select_text`; each is a flag of the same name."""

import dataclasses
from typing import Annotated, Any, Literal

from annotated_types import Interval

from aced.bounds import NonEmpty, NonNegativeInt, PositiveFloat, PositiveInt
from aced.config import ConfigError
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.methods.frozen import CheckpointOf
from aced.select_text.corpus import CorpusConfig


@dataclasses.dataclass(frozen=True)
class SelectTextConfig(FlagSettings):
    """What is chosen from what, by whom, and where it is written."""

    corpus: tuple[str, ...] = setting(
        (),
        "Sentences: .txt, .txt.gz, .jsonl, .jsonl.gz or .parquet files (paths, globs, {0..9}), or "
        "folders of data sets, of which the captions are read. May be repeated.",
    )
    out: NonEmpty = setting("", "Folder to make: a data set of sentences, without images.")
    method: Literal["nearest", "random", "captions"] = setting(
        "nearest",
        "nearest: the k nearest sentences of every image, first neighbours before second ones. "
        "random: uniform over the distinct sentences. captions: the same of the captions of "
        "data sets, which --corpus has to name: those of the images themselves.",
    )
    budget: PositiveInt = setting(1_000_000, "Sentences to choose at most.")
    k: PositiveInt = setting(8, "Neighbours of an image that are looked at.")
    teacher: str = setting("", "Workdir of a run, or a model folder, with the text tower.")
    which: Literal["last", "best"] = setting("last", "Which checkpoint of a run.")
    parameters: Literal["params", "ema"] = setting("params", "Of a run.")
    features: str = setting(
        "", "The teacher's features of the images: a folder that python -m aced.cache wrote."
    )
    class_names: str = setting(
        "", "File with the names of classes, one a line: they come first, put in templates."
    )
    templates: str = setting("", "File with templates, one a line, {} for the name; else ours.")
    templates_per_class: NonNegativeInt = setting(
        0, "Templates of a class, at random; 0: all of them."
    )
    column: str = setting("text", "Field of JSON lines, column of parquet files.")
    split: str = setting("train", "Split of a data set.")
    min_characters: int = setting(2, "Shorter sentences are left out, after normalisation.")
    max_characters: int = setting(1000, "Longer sentences are left out, after normalisation.")
    max_line_bytes: int = setting(1 << 20, "Longer lines and values are left out, unread.")
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = setting(0, "Of all that is random.")
    block: PositiveInt = setting(65_536, "Sentences of a step, over all devices.")
    tile: PositiveInt = setting(2048, "Images and sentences that a device compares at once.")
    save_minutes: PositiveFloat = setting(10.0, "Time between two saves, from which it goes on.")
    shards: NonNegativeInt = setting(0, "Files of the data set; 0: one per four million sentences.")
    compare: bool = setting(
        True,
        "With a teacher: measure at the end how near the nearest chosen sentence is to an image, "
        "and that of a random sample of the same size. Costs a pass over both.",
    )

    def _check(self) -> None:
        storage.check_scheme(self.out, "--out", ())
        storage.check_scheme(self.features, "--features", ())
        if bool(self.teacher) != bool(self.features):
            raise ConfigError("--teacher and --features belong together; set both or none.")
        if self.method == "nearest" and not self.teacher:
            raise ConfigError("--method=nearest needs --teacher and --features.")
        if (self.templates or self.templates_per_class) and not self.class_names:
            raise ConfigError("--templates are never read without --class_names; set that.")
        self.corpus_config  # noqa: B018 - refuses what does not fit

    @property
    def corpus_config(self) -> CorpusConfig:
        """The settings of the corpus."""
        return CorpusConfig(
            paths=self.corpus,
            column=self.column,
            split=self.split,
            min_characters=self.min_characters,
            max_characters=self.max_characters,
            max_line_bytes=self.max_line_bytes,
        )

    @property
    def checkpoint(self) -> CheckpointOf:
        """The teacher."""
        return CheckpointOf(self.teacher, self.which, self.parameters)

    def of_contents(self) -> dict[str, Any]:
        """The settings that change the result; files and models have fingerprints instead."""
        names = ["method", "budget", "seed", "shards", "compare"]
        if self.method == "nearest" or self.teacher:
            names.append("k")
        return {name: getattr(self, name) for name in names}
