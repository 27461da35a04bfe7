"""Gives a SigLIP more text positions, without changing its embeddings.

pipeline("zero-shot-image-classification") of transformers pads the texts of every SigLIP to 64 ids.
SiglipModel attends to all of them and pools at the last one. A model that was trained with L < 64
ids is converted to one with 64:

- Positions 0 to L - 2 stay, and position L - 1 becomes the last one. The positions in between are
  new, and receive no attention.
- Layer norms subtract the mean of their input, so the residual stream may be shifted to mean zero.
  Channels of zeros can then be appended to it: they change a layer norm only by a factor, for which
  its scale and epsilon are corrected.
- One channel is appended per head. These channels are large at new positions and zero elsewhere.
  One more channel of every key is their sum with a negative weight, and one more channel of every
  query is constant. The attention to a new position is then at most exp(-_GAP) of the usual, which
  is less than the rounding error.
"""

import dataclasses
import math

import numpy as np

from aced.config import ConfigError
from aced.models.saved import Model, Params

_MARK = 1e4  # in the appended channels at new positions; finite in half precision
_GAP = 100.0  # in nats, if the mark outweighs everything else at its position


def extend(model: Model, total: int) -> Model:
    """Returns a model of `total` text positions with the embeddings of `model`.

    Its text tower is wider by one channel per head. Embeddings are equal up to rounding if the last
    of the L ids of a text is moved to the last position. The ids in between have no effect.

    Args:
        model: a model whose text tower is bidirectional and pools at the last position.
        total: the new number of positions and ids, more than `tokenizer.length`.

    Raises:
        ConfigError: the text tower is of another kind, or `total` is too small.
    """
    text, own = model.config.text, model.config.tokenizer.length
    if text.causal or text.pool != "last" or total <= own:
        raise ConfigError(
            f"Positions can be added to a text tower with text.causal = False and text.pool = "
            f"'last', and more than its tokenizer.length = {own}; found {text.causal}, "
            f"{text.pool!r} and {total}."
        )
    dims = text.dims
    wider = dataclasses.replace(
        text,
        **dataclasses.asdict(dims) | {"width": dims.width + dims.heads},
        length=total,
        norm_eps=text.norm_eps * dims.width / (dims.width + dims.heads),
    )
    tokenizer = dataclasses.replace(model.config.tokenizer, length=total)
    config = dataclasses.replace(model.config, text=wider, tokenizer=tokenizer)
    params = model.params | {"text": _tower(model.params["text"], own, total, dims.heads)}
    return dataclasses.replace(model, config=config, params=params)


def _tower(tower: Params, own: int, total: int, heads: int) -> Params:
    """The parameters of the wider text tower."""
    width = tower["token"].shape[1]
    position = np.zeros((total, width + heads), np.float32)
    shifted = _shifted(tower["position"], heads)
    position[: own - 1], position[-1] = shifted[: own - 1], shifted[own - 1]
    position[own - 1 : -1, width:] = _MARK
    blocks, mlp = tower["blocks"], tower["blocks"]["mlp"]
    norm1 = _norm(blocks["norm1"], heads)
    norm1["scale"][..., width:] = 1.0  # passes the mark on to the keys
    return {
        "token": _shifted(tower["token"], heads),
        "position": position,
        "blocks": {
            "norm1": norm1,
            "attention": _attention(blocks["attention"], heads),
            "norm2": _norm(blocks["norm2"], heads),
            "mlp": {
                "fc1": _widened(mlp["fc1"], heads),
                "fc2": {name: _shifted(x, heads) for name, x in mlp["fc2"].items()},
            },
        },
        "norm": _norm(tower["norm"], heads),
        "head": _widened(tower["head"], heads),
    }


def _attention(attention: Params, heads: int) -> Params:
    """Attention with one more channel in every head of queries, keys and values."""
    width = attention["q"]["kernel"].shape[-1]
    channels = width // heads + 1
    parts = {name: _widened(attention[name], heads) for name in "qkv"}
    # The logits are divided by the root of the number of channels.
    parts["q"] = {
        name: x * np.float32(math.sqrt(channels / (channels - 1))) for name, x in parts["q"].items()
    }
    out = {}
    for name, part in parts.items():
        out[name] = {kind: _with_channel(x, heads) for kind, x in part.items()}
    out["q"]["bias"][..., channels - 1 :: channels] = math.sqrt(channels)
    # A mark that outweighs all else is sqrt(width / heads) after the layer norm.
    weight = -_GAP / math.sqrt(channels - 1)
    out["k"]["kernel"][..., width:, channels - 1 :: channels] = weight / heads
    kernel = _with_channel(np.moveaxis(attention["out"]["kernel"], -2, -1), heads)
    out["out"] = {
        "kernel": _shifted(np.moveaxis(kernel, -1, -2), heads),
        "bias": _shifted(attention["out"]["bias"], heads),
    }
    return out


def _with_channel(x: np.ndarray, heads: int) -> np.ndarray:
    """Appends a zero to every head of the last axis."""
    split = x.reshape(*x.shape[:-1], heads, -1)
    return _appended(split, 1).reshape(*x.shape[:-1], -1)


def _shifted(x: np.ndarray, heads: int) -> np.ndarray:
    """Values that are added to the residual stream: mean zero, and zero in appended channels."""
    mean = x.mean(axis=-1, keepdims=True, dtype=np.float64)
    return _appended((x - mean).astype(np.float32), heads)


def _widened(dense: Params, heads: int) -> Params:
    """A dense layer with zero weights for the appended channels of its input."""
    kernel = np.moveaxis(_appended(np.moveaxis(dense["kernel"], -2, -1), heads), -1, -2)
    return {"kernel": kernel, "bias": dense["bias"].copy()}


def _norm(norm: Params, heads: int) -> Params:
    """A layer norm over more channels, which lower the standard deviation by a known factor."""
    width = norm["scale"].shape[-1]
    scale = norm["scale"] * np.float32(math.sqrt(width / (width + heads)))
    return {"scale": _appended(scale, heads), "bias": _appended(norm["bias"], heads)}


def _appended(x: np.ndarray, count: int) -> np.ndarray:
    """Appends zeros to the last axis."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, count)])
