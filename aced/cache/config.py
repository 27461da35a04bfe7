"""The settings of `python -m aced.cache`."""

import dataclasses
import pathlib
from typing import Literal

from aced.bounds import NonEmpty, NonNegativeInt, PositiveInt
from aced.cache.precision import Precision
from aced.config import expand
from aced.files import storage
from aced.flag_settings import FlagSettings, setting


@dataclasses.dataclass(frozen=True)
class CacheConfig(FlagSettings):
    """Which embeddings to make, and how to keep them."""

    model: str = setting(
        "reference",
        "Which frozen model: 'reference', a teacher's name, or open_clip:FOLDER or "
        "transformers:FOLDER, a model that the other library runs.",
    )
    out: NonEmpty = setting("", "Folder to make, on a file system that all processes share.")
    precision: Precision = setting(
        "float32",
        "Of the stored numbers. int8 has one float32 scale per embedding: 1.5 KB a pair of width "
        "768. The error of each is measured and printed, whichever is kept.",
    )
    towers: Literal["both", "image", "text"] = setting("both", "Which embeddings.")
    # What a killed pass loses at most, per process.
    shard_size: PositiveInt = setting(65_536, "Examples of a file.")
    batch_size: NonNegativeInt = setting(
        0, "Examples at a time over all devices; 0: as the run scores."
    )
    calibration_pairs: NonNegativeInt = setting(
        4096, "Pairs that a scale and a bias for the sigmoid loss are fitted to."
    )

    def folder(self, workdir: str) -> pathlib.Path:
        """The expanded folder to make; a ConfigError if it has a scheme."""
        out = expand(self.out, workdir)
        advice = (
            f"{storage.MOUNT} Or let the model run in every step, such as by "
            "--config=configs/smoke.py:online."
        )
        storage.check_scheme(out, "--out", (), advice)
        return pathlib.Path(out)
