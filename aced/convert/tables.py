"""Tables that map other libraries' tensors to our parameters and back.

A table is a list of `Pair`s. Blocks are stacked in our tree, `[depth, ...]`, and numbered in
theirs, where `{}` in a name stands for the number.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np

from aced.models.saved import InteropError, Params, flat, nested
from aced.models.two_tower import TwoTowerConfig

Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One of their tensors and our parameters in it."""

    theirs: str
    ours: tuple[str, ...]
    to_ours: Callable[[np.ndarray], Arrays]
    to_theirs: Callable[..., np.ndarray]


def same(theirs: str, ours: str) -> Pair:
    """The same array in both."""
    return Pair(theirs, (ours,), lambda x: (x,), lambda x: x)


def transposed(theirs: str, ours: str) -> Pair:
    """A matrix, [out, in] in torch and [in, out] in our tree."""
    return Pair(theirs, (ours,), lambda x: (_checked(x, theirs, 2).T,), lambda x: x.T)


def with_axes(theirs: str, ours: str, count: int) -> Pair:
    """An array with `count` more leading axes of length 1 in theirs."""

    def to_ours(x: np.ndarray) -> Arrays:
        if x.shape[:count] != (1,) * count:
            raise InteropError(
                f"{theirs} has the shape {list(x.shape)}; its first length must be 1."
            )
        return (x.reshape(x.shape[count:]),)

    return Pair(theirs, (ours,), to_ours, lambda x: x.reshape((1,) * count + x.shape))


def linear(theirs: str, ours: str) -> list[Pair]:
    """torch.nn.Linear and flax.linen.Dense."""
    kernel = transposed(f"{theirs}.weight", f"{ours}/kernel")
    return [kernel, same(f"{theirs}.bias", f"{ours}/bias")]


def norm(theirs: str, ours: str) -> list[Pair]:
    """A layer norm in torch and in flax."""
    return [same(f"{theirs}.weight", f"{ours}/scale"), same(f"{theirs}.bias", f"{ours}/bias")]


def fused(weight: str, bias: str, ours: Iterable[str]) -> list[Pair]:
    """Several linear layers of the same input, stacked in one matrix."""
    parts = tuple(ours)

    def split(x: np.ndarray) -> Arrays:
        if x.shape[0] % len(parts):
            raise InteropError(
                f"{weight} has the shape {list(x.shape)}, which does not split into {len(parts)}."
            )
        return tuple(np.split(x, len(parts)))

    return [
        Pair(
            weight,
            tuple(f"{part}/kernel" for part in parts),
            lambda x: tuple(part.T for part in split(_checked(x, weight, 2))),
            lambda *xs: np.concatenate([x.T for x in xs]),
        ),
        Pair(bias, tuple(f"{part}/bias" for part in parts), split, lambda *xs: np.concatenate(xs)),
    ]


def convolution(theirs: str, ours: str, patch: int) -> Pair:
    """The patch embedding: [width, 3, patch, patch] in torch, [patch*patch*3, width] here."""

    def to_ours(x: np.ndarray) -> Arrays:
        if x.shape[1:] != (3, patch, patch):
            raise InteropError(
                f"{theirs} has the shape {list(x.shape)}, expected [width, 3, {patch}, {patch}]."
            )
        return (x.transpose(2, 3, 1, 0).reshape(-1, len(x)),)

    def to_theirs(x: np.ndarray) -> np.ndarray:
        return x.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)

    return Pair(theirs, (ours,), to_ours, to_theirs)


def _checked(x: np.ndarray, name: str, axes: int) -> np.ndarray:
    if x.ndim != axes:
        raise InteropError(f"{name} has the shape {list(x.shape)}, expected {axes} axes.")
    return x


def to_params(
    table: list[Pair], tensors: dict[str, np.ndarray], config: TwoTowerConfig, source: str
) -> Params:
    """Returns our parameters, whose shapes `Model` checks.

    Raises:
        InteropError: a tensor is missing or not in the table.
    """
    out: dict[str, np.ndarray] = {}
    unread = dict(tensors)
    for pair in table:
        layers = _layers(pair, config)
        names = [pair.theirs] if layers is None else [pair.theirs.format(i) for i in range(layers)]
        missing = [name for name in names if name not in unread]
        if missing:
            raise InteropError(f"{source} has no tensor {missing[0]!r}; is it another model?")
        converted = [pair.to_ours(unread.pop(name)) for name in names]
        for ours, arrays in zip(pair.ours, zip(*converted, strict=True), strict=True):
            if len({x.shape for x in arrays}) > 1:
                raise InteropError(f"{source}: the blocks of {pair.theirs} differ in shape.")
            array = arrays[0] if layers is None else np.stack(arrays)
            out[ours] = np.asarray(array, np.float32, order="C")
    if unread:
        name = min(unread)
        raise InteropError(
            f"{source} has {len(unread)} tensors that our model does not have, such as {name!r} "
            f"{list(unread[name].shape)}; without them the embeddings would differ."
        )
    return nested(out)


def logits(
    tensors: dict[str, np.ndarray], log_scale: str, bias: str | None, source: str
) -> dict[str, float | None]:
    """Returns `init_scale` and `init_bias`: the trained values of these tensors (None: no bias).

    Raises:
        InteropError: a tensor is missing or not a single number.
    """

    def number(name: str) -> float:
        if name not in tensors or tensors[name].size != 1:
            raise InteropError(
                f"{source} has no number {name!r}; is it another kind of model, or one tower only?"
            )
        return float(tensors[name].reshape(()))

    return {
        "init_scale": math.exp(number(log_scale)),
        "init_bias": None if bias is None else number(bias),
    }


def differences_from_siglip(config: TwoTowerConfig) -> dict[str, bool]:
    """Settings that SigLIP's architecture fixes, for `refuse`; True for those that differ."""
    image, text = config.image, config.text
    return {
        "image.architecture must be 'vit'": image.architecture != "vit",
        "image.pool must be 'map'": image.pool != "map",
        "image.position must be 'learned'": image.position != "learned",
        "image.pre_norm must be False": image.pre_norm,
        "image.patch_bias must be True": not image.patch_bias,
        "embed_dim must be None": config.embed_dim is not None,
        "init_bias must be a number": config.init_bias is None,
        "text.pool must be 'last'": text.pool != "last",
        "text.causal must be False": text.causal,
        "text.head_bias must be True": not text.head_bias,
    }


def to_tensors(table: list[Pair], params: Params, config: TwoTowerConfig) -> dict[str, np.ndarray]:
    """Returns their tensors by name.

    Raises:
        InteropError: one of our parameters is not in the table.
    """
    leaves = {name: np.asarray(x, np.float32) for name, x in flat(params).items()}
    out: dict[str, np.ndarray] = {}
    for pair in table:
        layers = _layers(pair, config)
        arrays = [leaves.pop(name) for name in pair.ours]
        if layers is None:
            out[pair.theirs] = pair.to_theirs(*arrays)
        else:
            for i in range(layers):
                out[pair.theirs.format(i)] = pair.to_theirs(*(x[i] for x in arrays))
    if leaves:
        raise InteropError(f"The format cannot hold the parameters {sorted(leaves)}.")
    return out


def _layers(pair: Pair, config: TwoTowerConfig) -> int | None:
    """The number of blocks that the pair stands for, or None outside blocks."""
    if "{}" not in pair.theirs:
        return None
    tower = config.image if pair.ours[0].startswith("image/") else config.text
    return tower.dims.depth
