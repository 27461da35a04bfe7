"""The classes of pictures in tars, in the format of CLIP_benchmark's evaluation sets.

    classnames.txt     one class name per line, beside the tars or in the folder above them
    zeroshot_classification_templates.txt    prompts with {c} for the class, at the same place
    test/nshards.txt   the number of tars
    test/0.tar:        s0.cls  s0.webp  s1.cls  s1.webp  ...

KEY.cls is the number of the class, as text. Sets whose pictures show several classes have KEY.npy
instead, a vector of zeros and ones over the classes. DataComp's sets with groups (WILDS, GeoDE,
Dollar Street) have both: there KEY.npy holds whole numbers, such as that of the region.
"""

import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from aced.data.records import DatasetError
from aced.files import encoding, storage

MEMBERS = (".cls", ".npy")
NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
COUNT = "nshards.txt"
_NUMBER = re.compile(r"[+-]?\d{1,10}")


def class_names(paths: Sequence[str]) -> tuple[str, ...] | None:
    """The class names by number, or None if these tars have no `NAMES`.

    Raises:
        DatasetError: the list is not UTF-8 or has an empty line.
        StorageError: the list cannot be read.
    """
    return _lines(paths, NAMES, "the name of a class, from class 0 on")


def templates(paths: Sequence[str]) -> tuple[str, ...] | None:
    """The prompts, with {} for the class, or None if these tars have no `TEMPLATES`.

    Raises:
        DatasetError: the list is not UTF-8 or has an empty line.
        StorageError: the list cannot be read.
    """
    lines = _lines(paths, TEMPLATES, "a prompt with {c} for the class")
    return lines and tuple(line.replace("{c}", "{}") for line in lines)


def check_count(folder: str, tars: int) -> None:
    """Raises a DatasetError if `COUNT` in `folder` states another number of tars.

    A file that is missing or holds no number is ignored.
    """
    if (file := storage.stat(f"{folder.rstrip('/')}/{COUNT}")) is None:
        return
    text = storage.read(file.path, 0, file.size).strip()
    if text.isdigit() and len(text) < 10 and int(text) != tars:
        raise DatasetError(
            f"{folder} holds {tars} tars, but {file.path} states {int(text)}; copy the data set "
            "again."
        )


def _lines(paths: Sequence[str], name: str, what: str) -> tuple[str, ...] | None:
    """The lines of the file `name` beside the tars or in the folder above them."""
    folder = storage.common_folder(paths)
    for place in (folder, folder.rpartition("/")[0]):
        if place.endswith("/") or (file := storage.stat(f"{place}/{name}")) is None:
            continue  # a bucket has no folder above
        try:
            lines = encoding.decode(storage.read(file.path, 0, file.size)).splitlines()
        except ValueError as error:
            raise DatasetError(f"{file.path}: {error}.") from error
        lines = tuple(line.strip() for line in lines)
        if "" in lines:
            raise DatasetError(
                f"{file.path}, line {lines.index('') + 1} is empty; every line is {what}."
            )
        return lines
    return None


def number(parts: Mapping[str, bytes]) -> int:
    """The number of the class in KEY.cls, one of the members `parts` by kind; -1 if unknown.

    Raises:
        ValueError: the member is missing or not a number of a class.
    """
    text = encoding.decode(_part(parts, ".cls")).strip()
    if not _NUMBER.fullmatch(text) or not -1 <= int(text) < 1 << 31:
        raise ValueError(f"its KEY.cls is not the number of a class: {text!r:.100}")
    return int(text)


def shown(member: str, parts: Mapping[str, bytes], names: Sequence[str]) -> list[str]:
    """The names of the classes in `member`, one of `MEMBERS`; none for class -1, which is unknown.

    `parts` has the members of the example by kind, and `names` the names of all classes by number.

    Raises:
        ValueError: the member is missing, damaged, or does not fit the names.
    """
    if member == ".cls":
        if (label := number(parts)) >= len(names):
            raise ValueError(f"class {label} of its KEY.cls has no name; {NAMES} has {len(names)}")
        return [names[label]] if label >= 0 else []
    vector = _vector(_part(parts, ".npy"))
    if not np.isin(vector, (0, 1)).all():
        raise ValueError(f"its KEY.npy is not a vector of zeros and ones: {vector[:10]}")
    if len(vector) != len(names):
        raise ValueError(f"its KEY.npy has {len(vector)} classes; {NAMES} has {len(names)}")
    return [names[i] for i in np.flatnonzero(vector)]


def entry(parts: Mapping[str, bytes], index: int) -> int:
    """Entry `index` of the vector of whole numbers in KEY.npy.

    Raises:
        ValueError: the member is missing or damaged, or has no such entry.
    """
    vector = _vector(_part(parts, ".npy"))
    if index >= len(vector) or vector[index] != int(vector[index]):
        raise ValueError(f"its KEY.npy has no whole number at entry {index}: {vector[:10]}")
    return int(vector[index])


def _part(parts: Mapping[str, bytes], member: str) -> bytes:
    if (data := parts.get(member[1:])) is None:
        raise ValueError(f"it has no KEY{member}")
    return data


def _vector(data: bytes) -> Float[np.ndarray, " n"]:
    """Parses a vector of finite numbers in a .npy file.

    NumPy parses only the header; its own reader would allocate as much as a damaged header asks.
    """
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) == (1, 0):
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
        else:
            shape, _, kind = np.lib.format.read_array_header_2_0(file)
        if kind.kind not in "biuf" or len(shape) != 1:
            raise ValueError(f"{kind}, shape {shape}")
        vector = np.frombuffer(data, kind, offset=file.tell())
        if len(vector) != shape[0] or not np.isfinite(vector).all():
            raise ValueError(f"{len(vector)} of {shape[0]} values, or values that are not finite")
    except Exception as error:  # NumPy raises nearly anything for damaged headers
        raise ValueError(f"its KEY.npy is not a vector of numbers: {error}") from error
    return vector.astype(np.float64)
