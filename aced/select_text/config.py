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
    """Which sentences are chosen, from which corpus, with which teacher."""

    corpus: tuple[str, ...] = setting(
        (),
        "Sentences: .txt, .txt.gz, .jsonl, .jsonl.gz or .parquet files (paths, globs, {0..9}), or "
        "folders of data sets, whose captions are read. May be given repeatedly.",
    )
    out: NonEmpty = setting("", "Folder to make: a data set of sentences, without images.")
    method: Literal["nearest", "random", "captions"] = setting(
        "nearest",
        "nearest: the k nearest sentences of every image, first neighbours before second ones. "
        "random: uniform over the distinct sentences. captions: uniform over the distinct captions "
        "of data sets, those of the images, which --corpus must name.",
    )
    budget: PositiveInt = setting(1_000_000, "Most sentences to choose.")
    k: PositiveInt = setting(8, "Nearest sentences of an image that are considered.")
    teacher: str = setting("", "Workdir of a run, or a model folder, with the text tower.")
    which: Literal["last", "best"] = setting("last", "Which checkpoint of a run.")
    parameters: Literal["params", "ema"] = setting(
        "params", "Parameters of a run, or their exponential moving average."
    )
    features: str = setting(
        "", "The teacher's features of the images: a folder that python -m aced.cache wrote."
    )
    class_names: str = setting(
        "", "File with class names, one per line, which are put into templates and come first."
    )
    templates: str = setting(
        "", "File with templates, one per line, with {} for the class name. Empty: our own."
    )
    templates_per_class: NonNegativeInt = setting(
        0, "Number of random templates per class; 0: all templates."
    )
    column: str = setting("text", "Field of JSON lines, or column of parquet files.")
    split: str = setting("train", "Split of a data set.")
    min_characters: int = setting(2, "Shorter sentences are left out, after normalisation.")
    max_characters: int = setting(1000, "Longer sentences are left out, after normalisation.")
    max_line_bytes: int = setting(1 << 20, "Longer lines and values are left out without parsing.")
    seed: Annotated[int, Interval(ge=0, lt=2**63)] = setting(0, "Seed of all random choices.")
    block: PositiveInt = setting(65_536, "Sentences per step, over all devices.")
    tile: PositiveInt = setting(2048, "Images and sentences that a device compares at once.")
    save_minutes: PositiveFloat = setting(
        10.0, "Time between two saves; a stopped selection resumes from the last one."
    )
    shards: NonNegativeInt = setting(0, "Files of the data set; 0: one per four million sentences.")
    compare: bool = setting(
        True,
        "With a teacher: measure at the end how similar images are to the nearest chosen sentence, "
        "and to the nearest one of a random sample of the same size. Takes a pass over both.",
    )

    def _check(self) -> None:
        storage.check_scheme(self.out, "--out", ())
        storage.check_scheme(self.features, "--features", ())
        if bool(self.teacher) != bool(self.features):
            raise ConfigError("--teacher and --features belong together; set both or none.")
        if self.method == "nearest" and not self.teacher:
            raise ConfigError("--method=nearest needs --teacher and --features.")
        if (self.templates or self.templates_per_class) and not self.class_names:
            raise ConfigError("--templates are never read without --class_names; set it, too.")
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
