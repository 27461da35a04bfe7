"""The settings of `python -m aced.prepare`; each is a flag of the same name."""

import dataclasses
import os
import pathlib
from typing import Annotated, Any

from annotated_types import Interval

from aced.bounds import NonEmpty, NonNegativeInt, PositiveInt
from aced.config import ConfigError
from aced.data.captions import GIVEN, check_names
from aced.files import storage
from aced.flag_settings import FlagSettings, setting
from aced.prepare.captions import Columns

EMBEDDED = "DirectRunner"  # in this process, without a server: see runner.py
DASK = "DaskRunner"  # ours: see dask_runner.py

# Beyond this, bands of the search (duplicates.py) are so short that nearly all images share one.
_MOST_BITS = 7


@dataclasses.dataclass(frozen=True)
class PrepareConfig(FlagSettings):
    """What is read, what is left out, and what is written where."""

    images: str = setting("", "Folder of the images; paths in the table are relative to it.")
    captions: str = setting("", "Table of captions: .jsonl or .csv (with a header), UTF-8.")
    out: NonEmpty = setting(
        "", "Folder to make: local, or gs:// or s3:// if the package for it is installed."
    )
    follow_links: bool = setting(
        False,
        "Also read images behind symbolic links that lead out of --images, as those of DVC and of "
        "the Hugging Face hub's cache do.",
    )
    tars: str = setting(
        "", "Instead of --images and --captions: WebDataset tars. A folder, file, glob or {0..9}."
    )
    parquet: str = setting(
        "",
        "Instead of --images and --captions: parquet files with the bytes of the images in "
        "--image_column.",
    )
    split: str = setting(
        "train", "Split of a folder of parquet files that are named by splits, as on the hub."
    )
    image_column: NonEmpty = setting(
        "image", "Column of the image's path or, in parquet, of its bytes."
    )
    caption_column: str = setting(
        "",
        "Column of the caption or of a list of captions; for tars, a field of KEY.json. Empty: "
        "'caption' or, for tars, KEY.txt.",
    )
    more_captions: str = setting(
        "",
        "Further columns of captions, each with its kind, for data.caption_weights: KIND=COLUMN, "
        "separated by commas, such as synthetic=syn_text; for tars, fields of KEY.json; each line "
        "of KEY.txt is then a caption. Captions in --caption_column have the kind 'given'.",
    )
    kind_column: str = setting(
        "",
        "Column of a table with the kind of the line's caption, such as given or synthetic. Empty "
        "fields are 'given'.",
    )
    label_column: str = setting(
        "", "Column of the class: integers or, in a table, names (numbered in sorted order)."
    )
    second_column: str = setting(
        "",
        "Column of the second picture of examples about two pictures: its path or, in parquet, "
        "its bytes.",
    )
    answers_column: str = setting(
        "",
        "Column with the list of answers that people gave to the question in the caption (VQA has "
        "ten), for soft accuracy and soft targets. It needs --separate.",
    )
    separate: bool = setting(
        False,
        "Keep every line or record as an example with its own label, such as several questions "
        "about one picture. Otherwise those about one picture become one example.",
    )
    noisy_column: str = setting("", "Column that is true for pairs that are known to be bad.")
    clean_column: str = setting(
        "",
        "COLUMN=VALUE: lines with this value are clean. A picture is clean if all its lines are. "
        "Clean pictures that are not held out are written a second time, as the split 'clean', to "
        "train a reference on.",
    )
    extra_columns: str = setting("", "Columns to keep unchanged, separated by commas.")
    val: NonNegativeInt = setting(0, "Examples held out as split 'val'.")
    val_clean: bool = setting(
        False,
        "Hold out only examples that are not noisy and, with --clean_column, that are clean.",
    )
    seed: int = setting(0, "Seed of the order and of the choice of held-out examples.")
    shards: NonNegativeInt = setting(0, "Files per split; 0: as many as give about 256 MiB each.")
    lower: bool = setting(False, "Convert captions to lower case.")
    max_side: NonNegativeInt = setting(
        0,
        "Shrink images whose longer side is above this, put transparent ones on white, and encode "
        "these again: as JPEG (quality 95) if they were JPEG, else as PNG. 0: keep the bytes.",
    )
    # The default is Pillow's, and the input pipeline's (`data.max_pixels`).
    max_pixels: PositiveInt = setting(89_478_485, "Reject images with more pixels.")
    thumbnails: NonNegativeInt = setting(
        0, "Store a small copy of each larger image, with this length of its shorter side. 0: none."
    )
    near_duplicates: Annotated[int, Interval(ge=-1, le=_MOST_BITS)] = setting(
        -1,
        "Leave out an image that is a rescaled or recompressed copy of an earlier one: the 64-bit "
        "perceptual hashes differ in at most this many bits, 0 to 7 (2 finds most), and their "
        "shapes and colours agree. -1: keep them.",
    )
    near_duplicate_captions: bool = setting(
        False, "Add the captions of a near-duplicate that is left out to the image that is kept."
    )
    threads: NonNegativeInt = setting(
        0, "Decoding threads in each worker. 0: one per core, at least 2; with a --runner, 1."
    )
    runner: str = setting(
        EMBEDDED,
        "DaskRunner, or another of Beam's: DataflowRunner, FlinkRunner, SparkRunner, ...; the "
        "default works in this process. Flags that are not listed here are passed on to Beam.",
    )
    overwrite: bool = setting(
        False, "Replace an earlier data set at --out, after the new one is complete."
    )

    def _check(self) -> None:
        given = [name for name in ("captions", "tars", "parquet") if getattr(self, name)]
        if len(given) > 1:
            raise ConfigError(f"--{given[0]} and --{given[1]} are two inputs; give one of them.")
        if self.images and given and not self.captions:
            raise ConfigError(f"--images is for --captions; --{given[0]} has its own images.")
        if self.follow_links and given and not self.captions:
            raise ConfigError(f"--follow_links is for --images; --{given[0]} has its own images.")
        if not self.tars and not self.parquet:
            for name in ("images", "captions"):
                if not getattr(self, name):
                    raise ConfigError(f"--{name} is empty; set it.")
        elif self.noisy_column or self.extra_columns or self.clean_column or self.kind_column:
            raise ConfigError(
                "--noisy_column, --clean_column, --kind_column and --extra_columns need a table: "
                "--captions."
            )
        for kind, column in self.columns.more:
            check_names((kind,), "--more_captions")
            if not column:
                raise ConfigError(
                    f"--more_captions={self.more_captions} must be KIND=COLUMN, such as "
                    "synthetic=syn_text, separated by commas."
                )
        if self.split != "train" and not self.parquet:
            raise ConfigError("--split needs a folder of parquet files: --parquet.")
        if self.tars and self.second_column:
            raise ConfigError("--second_column needs a table or parquet files, not --tars.")
        if self.near_duplicates >= 0 and (self.second_column or self.separate):
            raise ConfigError(
                "--near_duplicates compares only first pictures, and would leave out examples that "
                "--second_column or --separate keep apart; leave it at -1."
            )
        if self.near_duplicate_captions and self.near_duplicates < 0:
            raise ConfigError("--near_duplicate_captions needs --near_duplicates, which is off.")
        if self.thumbnails and 0 < self.max_side <= self.thumbnails:
            raise ConfigError(
                f"--thumbnails={self.thumbnails} must be below --max_side={self.max_side}, the "
                "largest side of any image; lower it, or leave it out."
            )
        if self.val_clean and not self.noisy_column and not self.clean_column:
            raise ConfigError(
                "--val_clean needs --noisy_column or --clean_column, which defines what is clean."
            )
        if self.clean_column and not all(self.columns.clean):
            raise ConfigError(
                f"--clean_column={self.clean_column} must be COLUMN=VALUE, such as vendor=google."
            )
        if self.answers_column and (not self.separate or self.tars):
            raise ConfigError(
                "--answers_column belongs to one question an example, of a table or of parquet: "
                "add --separate."
            )
        storage.check_scheme(self.out, "--out", storage.STORES)
        for name in ("images", "captions", "tars", "parquet"):
            path = getattr(self, name)
            storage.check_scheme(path, f"--{name}", storage.STORES, storage.DOWNLOAD)
        if self.captions and pathlib.PurePath(self.captions).suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"--captions must be a .jsonl or .csv file, got {self.captions}.")
        self._check_shared()

    def _check_shared(self) -> None:
        """Raises a ConfigError for a path that workers in other folders would not find."""
        for name in ("out", "images", "captions", "tars", "parquet") if self.runs_elsewhere else ():
            path = getattr(self, name)
            if path and not storage.is_remote(path) and not os.path.isabs(path):
                raise ConfigError(f"--{name}={path} must be absolute with --runner={self.runner}.")

    @property
    def runs_elsewhere(self) -> bool:
        """Whether other processes do the work."""
        return self.runner != EMBEDDED

    @property
    def place(self) -> str:
        """Name of an image's position in the input, in `rejected.jsonl`."""
        return "line" if self.captions else "record"

    @property
    def columns(self) -> Columns:
        """Names of the columns of the table or of parquet files."""
        column, _, value = self.clean_column.partition("=")
        return Columns(
            image=self.image_column,
            caption=self.caption_column or "caption",
            kind=self.kind_column,
            more=tuple(map(_kind_and_column, _listed(self.more_captions))),
            label=self.label_column,
            noisy=self.noisy_column,
            clean=(column.strip(), value.strip()),
            second=self.second_column,
            answers=self.answers_column,
            extra=tuple(_listed(self.extra_columns)),
            lower=self.lower,
        )

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """Caption columns of parquet, or fields of KEY.json in tars (KEY.txt if empty)."""
        more = tuple(column for _, column in self.columns.more)
        if not self.tars:
            return (self.columns.caption, *more)
        return (self.caption_column or ".txt", *more) if self.caption_column or more else ()

    @property
    def caption_kinds(self) -> tuple[str, ...]:
        """The kinds of `caption_columns`; empty: all captions are given ones."""
        more = tuple(kind for kind, _ in self.columns.more)
        return (GIVEN, *more) if more else ()

    @property
    def decoders(self) -> int:
        """Decoding threads per worker. Most runners start a worker process per core."""
        if self.runs_elsewhere:
            return self.threads or 1
        return self.threads or max(2, os.cpu_count() or 2)

    def of_contents(self) -> dict[str, Any]:
        """The settings that change the data set; the input's fingerprint covers the split."""
        settings = dataclasses.asdict(self)
        for name in ("out", "overwrite", "threads", "runner", "split"):
            del settings[name]
        return settings


def _listed(text: str) -> list[str]:
    """The names in a flag, separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _kind_and_column(text: str) -> tuple[str, str]:
    kind, _, column = text.partition("=")
    return kind.strip(), column.strip()
