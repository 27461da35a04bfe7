"""big_vision's SigLIP checkpoints: an .npz with the names of its two_towers model.

The file has only weights. Preprocessing, activation and tokenizer come from a preset's name or a
JSON file of our settings.
"""

import dataclasses
import pathlib
import zipfile

import jax.numpy as jnp
import numpy as np

from aced.config import from_config
from aced.convert import tables
from aced.convert.tables import Pair, same, with_axes
from aced.data.tokenizers import TokenizerConfig
from aced.models import presets, tensors, two_tower
from aced.models.saved import TOKENIZER_FILES, InteropError, Model, refuse
from aced.models.two_tower import TwoTowerConfig

WEIGHTS = "model.npz"
SETTINGS = "settings.json"
_PREFIX = "params/"
_MAX_BYTES = 1 << 36
_BLOCK = "encoderblock"
_BFLOAT16 = np.dtype("V2")  # numpy's type for bfloat16

Shape = tuple[int, ...]


def read(file: pathlib.Path, model: str, tokenizer: str, source: str) -> Model:
    """Returns the model in an .npz with a SigLIP: img/, txt/, t and b.

    Args:
        file: the checkpoint.
        model: a name of `presets.MODELS`, or a JSON file of `TwoTowerConfig`'s settings.
        tokenizer: a sentencepiece .model or a tokenizer.json; empty: that of `model`.
        source: name of the source in errors and in the model.

    Raises:
        InteropError: the file is broken, or its parameters do not fit `model`.
    """
    if not model:
        raise InteropError(
            f"{source} holds only weights; name their architecture with --model=NAME ("
            f"{', '.join(presets.MODELS)}) or --model=FILE.json, our settings in JSON."
        )
    config, content = _with_tokenizer(_settings(model), tokenizer, model)
    _check(config)
    weights = _load(file)
    config = dataclasses.replace(config, **tables.logits(weights, "t", "b", source))
    params = tables.to_params(_table(config), weights, config, source)
    return Model(config, params, content, source)


def write(model: Model, folder: pathlib.Path) -> list[str]:
    """Writes `model` into the empty `folder`: the .npz, settings and tokenizer.

    Returns:
        Notes on what the .npz does not contain.

    Raises:
        InteropError: the model has a setting that big_vision's two_towers lacks.
    """
    config = model.config
    _check(config)
    weights = tables.to_tensors(_table(config), model.params, config)
    with (folder / WEIGHTS).open("wb") as stream:
        np.savez(stream, **{_PREFIX + name: value for name, value in weights.items()})
    tensors.write_json(folder / SETTINGS, dataclasses.asdict(config))
    if model.tokenizer:
        (folder / config.tokenizer.path).write_bytes(model.tokenizer)
    return [
        f"big_vision reads only {WEIGHTS}, and takes preprocessing and tokenizer from its own "
        f"config; {SETTINGS} has them for our --model flag"
    ]


def _settings(model: str) -> TwoTowerConfig:
    if model in presets.MODELS:
        return two_tower.preset(model)
    if not model.endswith(".json"):
        raise InteropError(
            f"--model = {model!r} must be one of {', '.join(presets.MODELS)}, or a .json file."
        )
    return from_config(TwoTowerConfig, tensors.read_json(pathlib.Path(model)), model)


def _with_tokenizer(
    config: TwoTowerConfig, tokenizer: str, model: str
) -> tuple[TwoTowerConfig, bytes]:
    """Returns `config` with the tokenizer's path as in `Model`, and the content of its file."""
    # A relative path in the JSON file starts at its folder.
    own = config.tokenizer.path and str(pathlib.Path(model).parent / config.tokenizer.path)
    tokens, path = config.tokenizer, tokenizer or own
    if tokenizer:
        kind = "hf" if tokenizer.endswith(".json") else "sentencepiece"
        # SigLIP lower-cases; ids and padding come from the file.
        tokens = TokenizerConfig(kind=kind, path=tokenizer, length=config.text.length)
    if not path:
        return config, b""
    try:
        content = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise InteropError(f"The tokenizer of {model} cannot be read: {error}") from error
    tokens = dataclasses.replace(tokens, path=TOKENIZER_FILES[tokens.kind])
    return dataclasses.replace(config, tokenizer=tokens), content


def _check(config: TwoTowerConfig) -> None:
    image, text = config.image, config.text
    problems = tables.differences_from_siglip(config) | {
        "activations must be 'gelu_tanh'": {image.activation, text.activation} != {"gelu_tanh"},
        "norm_eps must be 1e-6": {image.norm_eps, text.norm_eps} != {1e-6},
    }
    refuse("big_vision's two_towers", problems)


def _load(file: pathlib.Path) -> dict[str, np.ndarray]:
    """The floating-point arrays by name; blocks that are stacked are numbered instead."""
    try:
        with zipfile.ZipFile(file) as archive:
            if sum(item.file_size for item in archive.infolist()) > _MAX_BYTES:
                raise InteropError(f"{file} unpacks to more than {_MAX_BYTES:,} bytes.")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name.removeprefix(_PREFIX): archive[name] for name in archive.files}
    except InteropError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise InteropError(f"{file} is not an .npz of plain arrays: {error}") from error
    out: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if value.dtype == _BFLOAT16:
            value = value.view(jnp.bfloat16).astype(np.float32)
        if name.split("/")[0] == "opt" or not np.issubdtype(value.dtype, np.floating):
            continue  # the optimizer's state and the step of a training checkpoint
        if f"/{_BLOCK}/" in name:
            for i, layer in enumerate(value):
                out[name.replace(f"/{_BLOCK}/", f"/{_BLOCK}_{i}/")] = layer
        else:
            out[name] = value
    return out


def _table(config: TwoTowerConfig) -> list[Pair]:
    head, dims, patch = "img/MAPHead_0", config.image.dims, config.image.patch
    attention = f"{head}/MultiHeadDotProductAttention_0"
    patches = (-1, dims.width), (patch, patch, 3, dims.width)
    return [
        _reshaped("img/embedding/kernel", "image/patch/kernel", *patches),
        same("img/embedding/bias", "image/patch/bias"),
        with_axes("img/pos_embedding", "image/position", 1),
        *_encoder("img/Transformer", "image", dims),
        with_axes(f"{head}/probe", "image/map/probe", 2),
        *_attention(attention, "image/map/attention", dims.width, dims.heads),
        *_norm(f"{head}/LayerNorm_0", "image/map/norm"),
        *_mlp(f"{head}/MlpBlock_0", "image/map/mlp"),
        same("txt/Embed_0/embedding", "text/token"),
        with_axes("txt/pos_embedding", "text/position", 1),
        *_encoder("txt/Encoder_0", "text", config.text.dims),
        same("txt/head/kernel", "text/head/kernel"),
        same("txt/head/bias", "text/head/bias"),
        with_axes("t", "t", 1),
        with_axes("b", "bias", 1),
    ]


def _encoder(theirs: str, ours: str, dims: presets.Size) -> list[Pair]:
    layer, block = f"{theirs}/{_BLOCK}_{{}}", f"{ours}/blocks"
    return [
        *_norm(f"{layer}/LayerNorm_0", f"{block}/norm1"),
        *_attention(
            f"{layer}/MultiHeadDotProductAttention_0", f"{block}/attention", dims.width, dims.heads
        ),
        *_norm(f"{layer}/LayerNorm_1", f"{block}/norm2"),
        *_mlp(f"{layer}/MlpBlock_0", f"{block}/mlp"),
        *_norm(f"{theirs}/encoder_norm", f"{ours}/norm"),
    ]


def _attention(theirs: str, ours: str, width: int, heads: int) -> list[Pair]:
    """flax's kernels have an axis of heads: [d heads d/heads], and [heads d/heads d] for out."""
    out: list[Pair] = []
    for name, short in {"query": "q", "key": "k", "value": "v"}.items():
        source, target = f"{theirs}/{name}", f"{ours}/{short}"
        out += [
            _reshaped(f"{source}/kernel", f"{target}/kernel", (width, -1), (width, heads, -1)),
            _reshaped(f"{source}/bias", f"{target}/bias", (-1,), (heads, -1)),
        ]
    shapes = (-1, width), (heads, -1, width)
    kernel = _reshaped(f"{theirs}/out/kernel", f"{ours}/out/kernel", *shapes)
    return [*out, kernel, same(f"{theirs}/out/bias", f"{ours}/out/bias")]


def _mlp(theirs: str, ours: str) -> list[Pair]:
    return [
        same(f"{theirs}/Dense_{i}/{part}", f"{ours}/fc{i + 1}/{part}")
        for i in range(2)
        for part in ("kernel", "bias")
    ]


def _norm(theirs: str, ours: str) -> list[Pair]:
    return [same(f"{theirs}/{part}", f"{ours}/{part}") for part in ("scale", "bias")]


def _reshaped(theirs: str, ours: str, shape: Shape, their_shape: Shape) -> Pair:
    """A pair with equal values in other shapes, in which one length may be -1, to be inferred."""

    def to_ours(x: np.ndarray) -> tables.Arrays:
        if x.ndim != len(their_shape):
            raise InteropError(f"{theirs} has the shape {list(x.shape)}, expected {their_shape}.")
        return (x.reshape(shape),)

    return Pair(theirs, (ours,), to_ours, lambda x: x.reshape(their_shape))
