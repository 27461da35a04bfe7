"""Reads and writes weights as safetensors, in one file or several with an index; never pickle."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from aced.models.saved import InteropError

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_FLOATS = ("F16", "BF16", "F32", "F64")
MAX_JSON_BYTES = 1 << 30  # tokenizer.json of a large vocabulary has tens of megabytes


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a JSON file.

    Raises:
        InteropError: the file is missing, too large, not JSON, or not an object.
    """
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise InteropError(f"{file} has more than {MAX_JSON_BYTES:,} bytes; is it JSON?")
        content = json.loads(file.read_text(encoding="utf-8"))
    except InteropError:
        raise
    except (OSError, ValueError) as error:
        raise InteropError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise InteropError(f"{file} is not a JSON object.")
    return content


def to_json(content: dict[str, Any]) -> bytes:
    """Returns indented JSON."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes `to_json(content)`."""
    file.write_bytes(to_json(content))


def read_safetensors(folder: pathlib.Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Returns the floating-point tensors of a folder as float32, without integer tensors.

    The files `names` are tried in order; NAME.index.json lists the files of split weights.

    Raises:
        InteropError: none of the files exists, a file is broken, or the folder has only pickles.
    """
    for name in names:
        if (folder / name).is_file():
            return dict(_tensors(folder / name))
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_shards(folder, index)
    refuse_pickles((file.name for file in folder.iterdir()), str(folder))
    raise InteropError(f"{folder} has no weights; looked for {', '.join(names)}.")


def refuse_pickles(names: Iterable[str], place: str) -> None:
    """Raises an InteropError with advice if one of the files `names` in `place` is a pickle."""
    pickles = [name for name in names if pathlib.PurePath(name).suffix in _PICKLES]
    if pickles:  # names weights before the state of an optimizer
        first = min(pickles, key=lambda name: ("model" not in name, name))
        raise InteropError(
            f"{place} has its weights in {first}, a pickle or a similar format, which can run any "
            "code when it is opened and is therefore not read. Get the safetensors file of the "
            "same model (on the hub it may be in a pull request: --revision=refs/pr/N), or, if you "
            "trust the file, load it with its own library and save it again: "
            'model.save_pretrained("FOLDER", safe_serialization=True).'
        )


def _read_shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, np.ndarray]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise InteropError(f"{index} has no weight_map.")
    out: dict[str, np.ndarray] = {}
    for shard in sorted(set(map(str, where.values()))):
        if pathlib.PurePath(shard).name != shard or not shard.endswith(".safetensors"):
            raise InteropError(
                f"{index} names {shard!r}, which is not a .safetensors file beside it."
            )
        if not (folder / shard).is_file():
            raise InteropError(f"{index} names {shard}, which is missing; copy it, too.")
        out |= dict(_tensors(folder / shard))
    missing = sorted(set(where) - set(out) - _integer_names(folder, set(where.values())))
    if missing:
        raise InteropError(f"{index} names tensors that its files do not have: {missing[:4]}.")
    return out


def _tensors(file: pathlib.Path) -> Iterator[tuple[str, np.ndarray]]:
    with open_safetensors(file) as reader:
        for name in reader.keys():  # noqa: SIM118 - not a dict
            if reader.get_slice(name).get_dtype() in _FLOATS:
                yield name, np.asarray(reader.get_tensor(name), np.float32)


def _integer_names(folder: pathlib.Path, shards: set[str]) -> set[str]:
    """Names of integer tensors: position ids, which transformers once saved."""
    out: set[str] = set()
    for shard in shards:
        with open_safetensors(folder / shard) as reader:
            kinds = {name: reader.get_slice(name).get_dtype() for name in reader.keys()}  # noqa: SIM118
        out |= {name for name, kind in kinds.items() if kind not in _FLOATS}
    return out


@contextlib.contextmanager
def open_safetensors(file: pathlib.Path) -> Iterator[Any]:
    """Opens a safetensors file; errors become InteropErrors."""
    try:
        with safetensors.safe_open(file, framework="numpy") as reader:
            yield reader
    except (safetensors.SafetensorError, OSError) as error:
        raise InteropError(f"{file} is not a complete safetensors file: {error}") from error


def write_safetensors(file: pathlib.Path, tensors: dict[str, np.ndarray], form: str) -> None:
    """Writes float32 tensors; `form` is the "format" in the header (transformers requires "pt")."""
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, file, {"format": form})
