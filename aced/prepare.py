"""`python -m aced.prepare`: a folder of images and a table of captions -> a prepared data set.

    python -m aced.prepare --images=photos --captions=captions.jsonl --out=data/photos --val=800

The table is JSON lines or CSV, one caption a line; several lines of one image are several captions.
Every image is decoded in full once, here, so that training meets no broken one. What is left out is
counted and listed with its reason in `rejected.jsonl`. Images whose stored bytes are equal become
one example, the table's first, with the captions of all. The same input gives the same bytes.
"""

import collections
import dataclasses
import hashlib
import io
import os
import pathlib
import secrets
import shutil
import sys
import warnings
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import Any

import numpy as np
import tqdm
from absl import app, flags
from PIL import Image, ImageOps, UnidentifiedImageError

from aced.config import ConfigError
from aced.data import records
from aced.data.captions import (
    CaptionedImage,
    Columns,
    PrepareError,
    RejectedError,
    Rejects,
    merge,
    read_captions,
)

# What the input pipeline decodes. Pillow's other readers start programs (EPS) or are rarely used.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
SHARD_BYTES = 1 << 28  # aimed at when the number of shards is left open
REJECTED = "rejected.jsonl"


def _setting(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """The command's settings; each is a flag of the same name."""

    images: str = _setting("", "Folder of the images; paths in the table are relative to it.")
    captions: str = _setting("", "Table of captions: .jsonl or .csv (with a header), UTF-8.")
    out: str = _setting("", "Folder to make.")
    image_column: str = _setting("image", "Column of the image's path.")
    caption_column: str = _setting("caption", "Column of the caption (or a list of them).")
    label_column: str = _setting("", "Column of the class: integers, or names (sorted, numbered).")
    noisy_column: str = _setting("", "Column that says whether a pair is known to be bad.")
    extra_columns: str = _setting("", "Columns to keep as they are, separated by commas.")
    val: int = _setting(0, "Examples held out as split 'val'.")
    val_clean: bool = _setting(False, "Hold out only examples that noisy_column calls good.")
    seed: int = _setting(0, "Seed of the order and of what is held out.")
    shards: int = _setting(0, "Files a split; 0: as many as make them about 256 MiB.")
    lower: bool = _setting(False, "Put captions in lower case.")
    max_side: int = _setting(
        0,
        "Shrink images whose longer side is above this, lay transparent ones on white, and store "
        "those anew: JPEG (quality 95) where it was JPEG, else PNG. 0: keep the bytes as found.",
    )
    # The default is Pillow's, and the input pipeline's (`data.max_pixels`).
    max_pixels: int = _setting(89_478_485, "Reject images of more pixels, as found.")
    threads: int = _setting(0, "Threads that decode; 0: one a core, at least 2.")
    overwrite: bool = _setting(False, "Replace an earlier data set at --out, once all went well.")

    def __post_init__(self):
        for name in ("images", "captions", "out", "image_column", "caption_column"):
            if not getattr(self, name):
                raise ConfigError(f"--{name} is empty; set it.")
        for name in ("val", "shards", "max_side", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} must be 0 or more, got {getattr(self, name)}.")
        if self.max_pixels < 1:
            raise ConfigError(f"--max_pixels must be positive, got {self.max_pixels}.")
        if self.val_clean and not self.noisy_column:
            raise ConfigError("--val_clean needs --noisy_column, which says what is clean.")
        if pathlib.Path(self.captions).suffix not in (".jsonl", ".csv"):
            raise ConfigError(f"--captions must be a .jsonl or .csv file, got {self.captions}.")

    @property
    def columns(self) -> Columns:
        """What the table's columns are called."""
        return Columns(
            image=self.image_column,
            caption=self.caption_column,
            label=self.label_column,
            noisy=self.noisy_column,
            extra=tuple(name.strip() for name in self.extra_columns.split(",") if name.strip()),
            lower=self.lower,
        )


# --- The images ----------------------------------------------------------------------------------


def _store_anew(image: Image.Image, max_side: int) -> bytes | None:
    """The image at most `max_side` on a side and on white; None where it is that already."""
    if max(image.size) <= max_side and not image.has_transparency_data:
        return None
    form = "JPEG" if image.format == "JPEG" else "PNG"
    image = ImageOps.exif_transpose(image)  # the tag that says how to turn it is not kept
    if image.mode.startswith("I;16"):  # Pillow would clip, not scale, 16 bits to 8
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if (longer := max(image.size)) > max_side:
        size = tuple(max(1, round(side * max_side / longer)) for side in image.size)
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    out = io.BytesIO()
    image.save(out, form, quality=95)
    return out.getvalue()


def _load(key: str, root: pathlib.Path, config: PrepareConfig) -> tuple[bytes, bool]:
    """The bytes to store for image `key` and whether they are new ones.

    Raises:
        RejectedError: the file is missing, outside the folder, too large, or does not decode.
    """
    try:
        path = (root / key).resolve()
        if not path.is_relative_to(root):
            raise RejectedError("outside_folder", "a symbolic link leads out of the folder")
        if not path.is_file():
            raise RejectedError("missing_file", "no such file")
        if (size := path.stat().st_size) > records.MAX_IMAGE_BYTES:
            raise RejectedError("too_large", f"{size} bytes")
        data = path.read_bytes()
    except (OSError, RuntimeError) as error:  # unreadable; a link that leads to itself
        raise RejectedError("missing_file", str(error)) from error
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > config.max_pixels:
                raise RejectedError("too_large", f"{image.width} x {image.height} pixels")
            image.load()
            anew = _store_anew(image, config.max_side) if config.max_side else None
    except RejectedError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedError("too_large", str(error)) from error
    except UnidentifiedImageError as error:
        raise RejectedError("undecodable", f"none of {', '.join(FORMATS)}") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise RejectedError("undecodable", f"{type(error).__name__}: {error}") from error
    return (data, False) if anew is None else (anew, True)


def _load_all(
    images: Iterable[CaptionedImage], total: int, config: PrepareConfig
) -> Iterator[tuple[CaptionedImage, tuple[bytes, bool] | RejectedError]]:
    """`_load` in several threads, in order, a bounded number of images ahead."""
    root = pathlib.Path(config.images).resolve()
    threads = config.threads or max(2, os.cpu_count() or 2)

    def load(image: CaptionedImage) -> tuple[CaptionedImage, tuple[bytes, bool] | RejectedError]:
        try:
            return image, _load(image.key, root, config)
        except RejectedError as error:
            return image, error

    limit = Image.MAX_IMAGE_PIXELS
    waiting: collections.deque[futures.Future] = collections.deque()
    progress = tqdm.tqdm(total=total, unit=" images", disable=None)
    with warnings.catch_warnings(), progress, futures.ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore")  # remarks about odd files that decode nevertheless
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = config.max_pixels
        try:
            for image in images:
                waiting.append(pool.submit(load, image))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result()
                    progress.update()
            while waiting:
                yield waiting.popleft().result()
                progress.update()
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _spool(
    images: dict[str, CaptionedImage],
    config: PrepareConfig,
    rejects: Rejects,
    file: io.BufferedWriter,
) -> tuple[list[CaptionedImage], int]:
    """Appends the images' bytes to `file`, equal ones once; returns those kept, number of new."""
    kept: dict[bytes, CaptionedImage] = {}
    reencoded = 0
    for image, loaded in _load_all(images.values(), len(images), config):
        if isinstance(loaded, RejectedError):
            rejects.add(loaded, image=image.key, line=image.line)
            continue
        data, anew = loaded
        digest = hashlib.sha256(data).digest()
        if digest in kept:
            first = kept[digest]
            error = RejectedError("duplicate_image", f"the same picture as {first.key}")
            rejects.add(error, image=image.key, line=image.line)
            merge(first, image, rejects)
            continue
        image.offset, image.size = file.tell(), len(data)
        file.write(data)
        kept[digest] = image
        reencoded += anew
    return list(kept.values()), reencoded


# --- The data set --------------------------------------------------------------------------------


def _split(kept: list[CaptionedImage], config: PrepareConfig) -> dict[str, list[CaptionedImage]]:
    """The splits, each in the order of a seeded hash of the keys."""
    if not kept:
        raise PrepareError(
            "No image is left; see the counts above. Are --images and the paths in "
            f"--captions (column {config.image_column!r}) relative to the same folder?"
        )
    order = sorted(kept, key=lambda i: hashlib.sha256(f"{config.seed}:{i.key}".encode()).digest())
    eligible = [image for image in order if not (config.val_clean and image.is_noisy)]
    if config.val > len(eligible) or config.val == len(order):
        raise PrepareError(
            f"--val={config.val} leaves nothing to train on, or is more than the {len(eligible)} "
            f"examples that can be held out of {len(order)}; lower it."
        )
    held_out = {image.key for image in eligible[: config.val]}
    splits = {
        "train": [image for image in order if image.key not in held_out],
        "val": [image for image in order if image.key in held_out],
    }
    return {name: part for name, part in splits.items() if part}


def _number_labels(kept: list[CaptionedImage]) -> list[str] | None:
    """Turns labels to integers, in place; returns the names of the classes if they had any."""
    found = {image.label for image in kept} - {None}
    try:
        numbers, names = {label: int(label) for label in found}, None
    except ValueError:
        names = sorted(found)
        numbers = {label: i for i, label in enumerate(names)}
    if wrong := [label for label, number in numbers.items() if not 0 <= number < 1 << 31]:
        raise PrepareError(f"Label {wrong[0]} is negative or does not fit 32 bits.")
    for image in kept:
        image.label = None if image.label is None else numbers[image.label]
    return names


def _examples(part: list[CaptionedImage], spool: int) -> Iterator[records.Example]:
    for image in part:
        yield records.Example(
            image=os.pread(spool, image.size, image.offset),
            texts=tuple(image.texts),
            key=image.key,
            label=image.label,
            is_noisy=image.is_noisy,
            extra=image.extra,
        )


def _build(config: PrepareConfig, out: pathlib.Path) -> dict[str, Any]:
    """Makes the data set in the empty folder `out`; returns its statistics."""
    spool = out / "images.tmp"  # decoded images in the table's order, until all are known
    with (out / REJECTED).open("w", encoding="utf-8") as listing, spool.open("wb") as file:
        rejects = Rejects(listing)
        images = read_captions(config.captions, config.columns, rejects)
        kept, reencoded = _spool(images, config, rejects, file)
    statistics: dict[str, Any] = {
        "images": len(kept),
        "captions": sum(len(image.texts) for image in kept),
        "stored_anew": reencoded,
        "rejected": dict(sorted(rejects.counts.items())),
        "splits": {},
    }
    _report(statistics)
    names = _number_labels(kept)
    written = {}
    with spool.open("rb") as file:
        for name, part in _split(kept, config).items():
            size = sum(image.size for image in part)
            shards = min(len(part), config.shards or -(-size // SHARD_BYTES))
            examples = _examples(part, file.fileno())
            written[name] = records.write_split(out, name, examples, len(part), shards)
            statistics["splits"][name] = {
                "images": len(part),
                "captions": sum(len(image.texts) for image in part),
                "noisy": sum(bool(image.is_noisy) for image in part),
                "image_bytes": size,
            }
    spool.unlink()
    settings = dataclasses.asdict(config)
    for name in ("out", "overwrite", "threads"):  # they have no influence on what is in it
        del settings[name]
    records.write_description(
        out, written, statistics=statistics, settings=settings, class_names=names
    )
    return statistics


def _report(statistics: dict[str, Any]) -> None:
    print(f"{statistics['images']} images with {statistics['captions']} captions are kept,")
    print(f"{statistics['stored_anew']} of them stored anew. Left out:")
    for reason, count in statistics["rejected"].items():
        print(f"  {reason:20} {count:9}")
    if not statistics["rejected"]:
        print("  nothing")


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Makes the data set `config.out`, all of it or nothing; returns its statistics.

    Raises:
        PrepareError: the table has no such column or can't be read, `out` is taken, or nothing
          is left to train on.
    """
    out = pathlib.Path(config.out).absolute()
    for path, exists in (
        (config.images, os.path.isdir(config.images)),
        (config.captions, os.path.isfile(config.captions)),
    ):
        if not exists:
            raise PrepareError(f"{path} does not exist; correct --images or --captions.")
    if out.exists() and not config.overwrite:
        raise PrepareError(f"{out} exists; choose another --out, or replace it with --overwrite.")
    if out.exists() and not (out / records.DESCRIPTION).is_file():
        raise PrepareError(f"{out} is no data set, so it is not overwritten; choose another --out.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{secrets.token_hex(4)}")
    partial.mkdir()
    try:
        statistics = _build(config, partial)
        if out.exists():
            old = partial.with_name(f"{partial.name}.old")
            out.rename(old)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return statistics


def main(argv: list[str]) -> None:
    """Reads the flags, prepares, and says what came out and what to do next."""
    if len(argv) > 1:
        raise app.UsageError(f"Not a flag: {argv[1]}")
    values = {
        field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(PrepareConfig)
    }
    try:
        statistics = prepare(PrepareConfig(**values))
    except (PrepareError, ConfigError, records.DatasetError) as error:
        sys.exit(f"error: {error}")
    out = values["out"]
    for name, part in statistics["splits"].items():
        print(f"{out}, split {name}: " + ", ".join(f"{n} {what}" for what, n in part.items()))
    print(f"What was left out, line by line: {out}/{REJECTED}")
    if not values["val"]:
        print("The recipes evaluate on a split 'val': prepare again with --val=N to hold some out.")
    print(f"Next: python -m aced.main --config=configs/small.py:method=iid,data={out}")


if __name__ == "__main__":
    for _field in dataclasses.fields(PrepareConfig):
        _define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, str: flags.DEFINE_string}
        _define[type(_field.default)](_field.name, _field.default, _field.metadata["help"])
    app.run(main)
