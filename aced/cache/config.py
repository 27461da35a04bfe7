"""The settings of `python -m aced.cache`."""

import dataclasses
import pathlib

from aced.cache.precision import Precision
from aced.config import ConfigError, expand
from aced.files import storage


@dataclasses.dataclass(frozen=True)
class CacheConfig:
    """Which embeddings to make, and how to keep them."""

    model: str = "reference"  # "reference", or the name of a teacher
    out: str = ""  # folder to make
    precision: Precision = "float32"
    towers: str = "both"  # or "image" or "text" alone
    shard_size: int = 65_536  # examples of a file; what a killed pass loses at most, per process
    batch_size: int = 0  # examples embedded at a time over all devices; 0: as the run scores
    calibration_pairs: int = 4096  # that a scale and a bias are fitted to

    def __post_init__(self):
        if not self.out:
            raise ConfigError("--out is empty; give the folder to make.")
        if self.shard_size < 1:
            raise ConfigError(f"--shard_size must be at least 1, got {self.shard_size}.")
        if self.batch_size < 0 or self.calibration_pairs < 0:
            raise ConfigError("--batch_size and --calibration_pairs must be 0 or more.")

    def folder(self, workdir: str) -> pathlib.Path:
        """The expanded folder to make; a ConfigError if it has a scheme."""
        out = expand(self.out, workdir)
        advice = (
            f"{storage.MOUNT} Or let the model run in every step, such as by "
            "--config=configs/smoke.py:online."
        )
        storage.check_scheme(out, "--out", (), advice)
        return pathlib.Path(out)
