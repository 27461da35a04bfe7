"""Runs a vision transformer at another patch size or resolution (FlexiViT, arXiv 2212.08013).

Twice the patch size gives a quarter of the tokens. The patch embedding's kernel is resized so that
it gives the old products on resized patches, and the positions are resized like a picture. No
parameters are added, but a model is good only at patch sizes it was trained at, so the new
parameters are differentiable functions of the model's own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from aced.config import ConfigError
from aced.models.vit import ImageConfig


@functools.cache
def resize_matrix(old: int, new: int) -> np.ndarray:
    """Returns the float64 matrix [new, old] that resizes a line of `old` pixels.

    Bilinear between pixel centres, as `jax.image.resize`: the triangle is widened for smaller
    outputs (antialiasing) and cut at the border.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    width = max(old / new, 1.0)
    distance = np.abs(centres[:, None] - np.arange(old)) / width
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(axis=1, keepdims=True)


@functools.cache
def patch_matrix(old: int, new: int) -> np.ndarray:
    """Returns the float64 matrix [new, old] that resizes a line of a patch embedding's kernel.

    The pseudo-inverse of the transposed resize (2212.08013, 3.4): it gives the kernel w' with
    products <resize(x), w'> nearest to <x, w> over all patches x, and equal for new >= old.
    """
    return np.linalg.pinv(resize_matrix(old, new).T)


def _resize_square(matrix: np.ndarray, x: Float[Array, "o o ..."]) -> Float[Array, "n n ..."]:
    """Applies `matrix` [n, o] to rows and columns. The pseudo-inverse of a Kronecker product is
    that of its factors, so two small products replace a large one.
    """
    matrix = jnp.asarray(matrix, jnp.float32)
    return jnp.einsum("ai,bj,ij...->ab...", matrix, matrix, x, precision=jax.lax.Precision.HIGHEST)


def resize_params(
    params: PyTree, config: ImageConfig, patch: int, resolution: int | None = None
) -> PyTree:
    """Returns the parameters of the image tower `config` for patches of `patch` pixels a side.

    The result is linear in the parameters. Normalising pixels commutes with resizing, because all
    pixels are normalised in the same way.

    Args:
        params: of the tower.
        config: the tower as it was trained.
        patch: the new patch size.
        resolution: pixels a side of the pictures to be read; None: the tower's own.

    Raises:
        ConfigError: `patch` or `resolution` is new, and the patch does not divide the resolution,
            or the tower is not a vision transformer.
    """
    resolution = resolution or config.resolution
    if (patch, resolution) == (config.patch, config.resolution):
        return params
    if config.architecture != "vit":
        raise ConfigError(
            f"A tower with image.architecture = '{config.architecture}' cannot be read at another "
            "patch size or resolution, because its windows are sized for its own patches."
        )
    if patch < 1 or resolution % patch:
        raise ConfigError(
            f"A patch of {patch} pixels does not divide a resolution of {resolution}; take one "
            "that does."
        )
    new = dict(params)
    if patch != config.patch:
        kernel = params["patch"]["kernel"]  # [old*old*3, d]: rows, columns, channels
        square = kernel.reshape(config.patch, config.patch, -1)
        resized = _resize_square(patch_matrix(config.patch, patch), square)
        resized = resized.reshape(patch * patch * 3, kernel.shape[-1])
        new["patch"] = params["patch"] | {"kernel": resized}
    if config.position == "learned" and resolution // patch != config.grid:
        new["position"] = _resize_positions(params["position"], config, resolution // patch)
    return new


def _resize_positions(
    positions: Float[Array, "n d"], config: ImageConfig, side: int
) -> Float[Array, "m d"]:
    """Positions of a grid of `side` patches a side; a class token keeps its own."""
    split = config.tokens - config.grid**2
    cls, grid = positions[:split], positions[split:]
    square = grid.reshape(config.grid, config.grid, -1)
    resized = _resize_square(resize_matrix(config.grid, side), square)
    return jnp.concatenate([cls, resized.reshape(-1, positions.shape[-1])])
