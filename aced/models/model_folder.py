"""Our model folder: besides a run, the format of references, teachers and starting points.

model.json         format, version, settings, source, SHA-256 of the other files and of itself
model.safetensors  float32 parameters, named as in our tree: "image/blocks/norm1/scale"
tokenizer.json     or tokenizer.model: the tokenizer's file, where its kind has one
"""

import dataclasses
import hashlib
import pathlib
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from aced.config import flatten, from_config
from aced.files import own_files
from aced.models import tensors
from aced.models.saved import (
    TOKENIZER_FILES,
    InteropError,
    Model,
    check_shapes,
    expected_shapes,
    flat,
    nested,
)
from aced.models.two_tower import TwoTowerConfig

FILE = "model.json"
WEIGHTS = "model.safetensors"
_FORMAT, _VERSION = "aced-model", 1


def is_model_folder(folder: str) -> bool:
    """Whether `folder` is a model folder."""
    return (pathlib.Path(folder) / FILE).is_file()


def write(model: Model, folder: pathlib.Path) -> None:
    """Writes `model` into the empty `folder`."""
    leaves = {name: np.asarray(x) for name, x in flat(model.params).items()}
    tensors.write_safetensors(folder / WEIGHTS, leaves, "aced")
    about = {
        "format": _FORMAT,
        "version": _VERSION,
        "source": model.source,
        "weights_sha256": _sha256(folder / WEIGHTS),
        "model": flatten(dataclasses.asdict(model.config)),
    }
    if model.tokenizer:
        (folder / model.config.tokenizer.path).write_bytes(model.tokenizer)
        about["tokenizer_sha256"] = _sha256(folder / model.config.tokenizer.path)
    (folder / FILE).write_bytes(own_files.dumps(about))


def read_config(folder: str) -> TwoTowerConfig:
    """Returns the settings of the model in `folder`, with the full path of its tokenizer.

    For config files, too: `config.method.model = to_config(model_folder.read_config(PATH))`.

    Raises:
        ConfigError: it is not a model folder, has another version, or names a file outside.
    """
    return _config(pathlib.Path(folder), _about(pathlib.Path(folder)))


def read(folder: str) -> Model:
    """Returns the model in `folder`.

    Raises:
        InteropError: see `read_config` and `read_params`; or the tokenizer's file is missing.
    """
    config = read_config(folder)
    content = b""
    if config.tokenizer.path:
        content = pathlib.Path(config.tokenizer.path).read_bytes()
        plain = dataclasses.replace(config.tokenizer, path=TOKENIZER_FILES[config.tokenizer.kind])
        config = dataclasses.replace(config, tokenizer=plain)
    source = _about(pathlib.Path(folder)).get("source")
    return Model(config, read_params(folder), content, str(source or folder))


def read_params(folder: str, shapes: PyTree | None = None) -> PyTree:
    """Returns the parameters of the model in `folder`, as float32 arrays on the host.

    Given `shapes`, `ShapeDtypeStruct`s with shardings, types are converted, and arrays are placed.

    Raises:
        InteropError: the weights were changed, or have other names, shapes or types than
            model.json or `shapes`.
    """
    path = pathlib.Path(folder)
    about = _about(path)
    _check_sha256(path / WEIGHTS, about.get("weights_sha256"))
    config = _config(path, about)
    with tensors.open_safetensors(path / WEIGHTS) as reader:
        names = set(reader.keys())
        params = {name: reader.get_tensor(name) for name in names & set(expected_shapes(config))}
    if names != set(params):
        raise InteropError(
            f"{path / WEIGHTS} has unknown parameters: {sorted(names - set(params))[:4]}."
        )
    check_shapes(config, nested(params), str(path / WEIGHTS))
    if shapes is None:
        return nested(params)
    return _placed(params, shapes, path)


def _placed(params: dict[str, np.ndarray], shapes: PyTree, path: pathlib.Path) -> PyTree:
    targets = flat(shapes)
    if {k: v.shape for k, v in targets.items()} != {k: v.shape for k, v in params.items()}:
        raise InteropError(f"{path} holds a model of another size; see its {FILE}.")

    def place(name: str, target: jax.ShapeDtypeStruct) -> jax.Array:
        array = params[name].astype(target.dtype)
        # Every process reads the file and provides the parts of its devices.
        return jax.make_array_from_callback(
            target.shape, target.sharding, lambda index: array[index]
        )

    return nested({name: place(name, target) for name, target in targets.items()})


def _about(folder: pathlib.Path) -> dict[str, Any]:
    with own_files.reading(folder / FILE, "copy the folder again", InteropError):
        if (folder / FILE).stat().st_size > tensors.MAX_JSON_BYTES:
            raise ValueError(f"it has more than {tensors.MAX_JSON_BYTES:,} bytes")
        about = own_files.loads((folder / FILE).read_bytes())
    if about.get("format") != _FORMAT:
        raise InteropError(
            f"{folder / FILE} does not have the format {_FORMAT!r}; write it with "
            "python -m aced.convert."
        )
    if about.get("version") != _VERSION:
        raise InteropError(
            f"{folder / FILE} has version {about.get('version')!r}, but this program reads "
            f"{_VERSION}; convert the model again, or update the program."
        )
    return about


def _config(folder: pathlib.Path, about: dict[str, Any]) -> TwoTowerConfig:
    settings = about.get("model")
    if not isinstance(settings, dict):
        raise InteropError(f"{folder / FILE} has no settings under 'model'.")
    tree = nested({key.replace(".", "/"): value for key, value in settings.items()})
    name = settings.get("tokenizer.path") or ""
    if name:
        if not isinstance(name, str) or pathlib.PurePath(name).name != name:
            raise InteropError(
                f"{folder / FILE}: tokenizer.path = {name!r} must name a file in this folder."
            )
        if not (folder / name).is_file():
            raise InteropError(f"{folder} has no {name}, the tokenizer that its {FILE} names.")
        _check_sha256(folder / name, about.get("tokenizer_sha256", ...))
        tree["tokenizer"]["path"] = str(folder / name)
    return from_config(TwoTowerConfig, tree, f"{folder / FILE}:model")


def _check_sha256(file: pathlib.Path, written: Any) -> None:
    """Raises an InteropError if the checksum is not `written` (`...` for older folders)."""
    digest = _sha256(file)
    if written not in (digest, ...):
        raise InteropError(
            f"{file} does not match {FILE} (its SHA-256 is {digest[:12]}, not "
            f"{str(written)[:12]}); copy the folder again."
        )


def _sha256(file: pathlib.Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InteropError(f"{file} cannot be read: {error}") from error
