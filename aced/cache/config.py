"""Which embeddings to cache: `before_caches` in a config, or flags of `python -m aced.cache`."""

import dataclasses
import pathlib
from typing import Literal

from aced.bounds import NonEmpty, NonNegativeInt, PositiveInt
from aced.cache.precision import Precision
from aced.config import Checked, expand
from aced.files import storage
from aced.flag_settings import FlagSettings, setting


@dataclasses.dataclass(frozen=True)
class CacheConfig(Checked):
    """Which embeddings to make, and how to store them."""

    model: str = setting(
        "reference",
        "Which frozen model: 'reference', a teacher's name, or open_clip:FOLDER or "
        "transformers:FOLDER, a model that the other library runs.",
    )
    out: NonEmpty = setting("", "Folder to make, on a file system that all processes share.")
    precision: Precision = setting(
        "float32",
        "Precision of the stored numbers. int8 has one float32 scale per embedding: 1.5 KB per "
        "pair of width 768. The errors of all precisions are measured and printed.",
    )
    towers: Literal["both", "image", "text"] = setting(
        "both", "Whether to embed images, texts or both."
    )
    shard_size: PositiveInt = setting(
        65_536, "Examples per file, and the most that a killed pass loses per process."
    )
    batch_size: NonNegativeInt = setting(
        0,
        "Examples per step over all devices, each with all its stored augmentations. 0: as many as "
        "have the number of pictures that the run scores at a time.",
    )
    calibration_pairs: NonNegativeInt = setting(
        4096, "Pairs to which a scale and a bias for the sigmoid loss are fitted."
    )

    def folder(self, workdir: str, key: str = "") -> pathlib.Path:
        """The expanded folder to make.

        Raises:
            ConfigError: it has a scheme; the message names the setting `key`.
        """
        out = expand(self.out, workdir)
        advice = (
            f"{storage.MOUNT} Or let the model run in every step, such as by "
            "--config=configs/smoke.py:online."
        )
        storage.check_scheme(out, key or f"{self.PREFIX}out", (), advice)
        return pathlib.Path(out)


@dataclasses.dataclass(frozen=True)
class CacheFlags(FlagSettings, CacheConfig):
    """The same settings as flags, which messages name."""
