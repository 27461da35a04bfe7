"""A Swin transformer as the image tower: attention in windows, at decreasing resolutions.

Liu et al., arXiv 2103.14030. Between the stages, two by two tokens are merged into one of twice the
width. Every second block shifts its windows by half a window, to connect neighbouring windows.
Parameters, norms and softmax are float32, as in `transformer`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from aced.models import transformer
from aced.models.swin_config import SwinConfig, SwinStage
from aced.models.transformer import Compute
from aced.models.vit import ImageConfig, Images, read_pixels
from aced.parallel.mesh import constrain_by_example

# The original's initialisation of all matrices but the patch embedding, and of the position bias.
_INIT = nn.initializers.normal(0.02)


def partition(x: Float[Array, "b h w d"], window: int) -> Float[Array, "b windows tokens d"]:
    """Cuts square maps into windows of `window` tokens a side, in row-major order."""
    b, side, _, d = x.shape
    n = side // window
    x = x.reshape(b, n, window, n, window, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, n * n, window * window, d)


def join(x: Float[Array, "b windows tokens d"], window: int) -> Float[Array, "b h w d"]:
    """The inverse of `partition`."""
    b, windows, _, d = x.shape
    n = round(windows**0.5)
    x = x.reshape(b, n, n, window, window, d).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, n * window, n * window, d)


def shift_mask(stage: SwinStage) -> Bool[np.ndarray, "windows tokens tokens"]:
    """Attention masks of the shifted windows (2103.14030, figure 4).

    The map is rolled up and left, so the last windows of a row or column hold tokens from both of
    its ends, which are not neighbours.
    """
    at, n = np.arange(stage.padded), stage.padded // stage.window
    # Bands of the rolled map: whole windows, the map's end, its wrapped beginning.
    band = (at >= stage.padded - stage.window).astype(int) + (at >= stage.padded - stage.shift)
    region = (3 * band[:, None] + band).reshape(n, stage.window, n, stage.window)
    region = region.transpose(0, 2, 1, 3).reshape(n * n, -1)  # as `partition`
    return region[:, :, None] == region[:, None, :]


def relative_index(window: int) -> Int[np.ndarray, "tokens tokens"]:
    """The row in the table of position biases for each query and key of a window.

    Row (dy + window - 1) * (2 * window - 1) + dx + window - 1 belongs to a key dy rows above and
    dx columns left of its query.
    """
    y, x = np.mgrid[:window, :window].reshape(2, -1)
    dy, dx = y[:, None] - y, x[:, None] - x
    return (dy + window - 1) * (2 * window - 1) + dx + window - 1


class WindowAttention(nn.Module):
    """Multi-head attention within each window, with a learned bias by relative position."""

    stage: SwinStage
    shifted: bool
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b windows tokens d"]) -> Float[Array, "b windows tokens d"]:
        """Returns the attention output of every token."""
        stage, d = self.stage, x.shape[-1]

        def dense(name: str) -> nn.Dense:
            return self.compute.dense(d, kernel_init=_INIT, name=name)

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:-1], stage.heads, d // stage.heads)

        table = self.param("position", _INIT, ((2 * stage.window - 1) ** 2, stage.heads))
        bias = table[relative_index(stage.window)].transpose(2, 0, 1)[None]  # [1 heads n n]
        mask = shift_mask(stage)[:, None] if self.shifted else None  # [windows 1 n n]

        @jax.vmap  # over examples, which share bias and mask
        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return jax.nn.dot_product_attention(q, k, v, bias, mask, implementation="xla")

        q, k, v = split(dense("q")(x)), split(dense("k")(x)), split(dense("v")(x))
        return dense("out")(attend(q, k, v).reshape(x.shape))


class SwinBlock(nn.Module):
    """x + attention(norm(x)) by windows, then x + mlp(norm(x))."""

    config: SwinConfig
    stage: SwinStage
    shifted: bool
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h w d"]:
        """Returns the next layer's map of tokens."""
        x = constrain_by_example(x)  # as in `transformer.Block`
        config, stage = self.config, self.stage
        shifted = self.shifted and stage.shift > 0
        y = transformer.layer_norm(config.norm_eps, "norm1")(x)
        # The last windows are padded with zeros, which are not masked, as in the original's code
        # for detection: their keys and values are the projections' biases.
        pad = stage.padded - stage.grid
        y = jnp.pad(y, ((0, 0), (0, pad), (0, pad), (0, 0)))
        if shifted:
            y = jnp.roll(y, (-stage.shift, -stage.shift), axis=(1, 2))
        attention = WindowAttention(stage, shifted, self.compute, name="attention")
        y = join(attention(partition(y, stage.window)), stage.window)
        if shifted:
            y = jnp.roll(y, (stage.shift, stage.shift), axis=(1, 2))
        x = x + y[:, : stage.grid, : stage.grid]
        y = transformer.layer_norm(config.norm_eps, "norm2")(x)
        mlp = transformer.Mlp(stage.mlp, config.activation, self.compute, _INIT, name="mlp")
        return x + mlp(y)


class Pair(nn.Module):
    """A regular and a shifted block; returns (x, None) for `nn.scan`."""

    config: SwinConfig
    stage: SwinStage
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> tuple[Float[Array, "b h w d"], None]:
        """Returns the map of tokens after both."""
        x = SwinBlock(self.config, self.stage, False, self.compute, name="regular")(x)
        return SwinBlock(self.config, self.stage, True, self.compute, name="shifted")(x), None


class Stage(nn.Module):
    """Merges the tokens of an earlier stage, and applies pairs of blocks."""

    config: SwinConfig
    stage: SwinStage
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b grid grid d"]:
        """Returns the stage's map of tokens."""
        if x.shape[1] != self.stage.grid:
            x = self._merge(x)
        pairs = transformer.stacked(Pair, self.stage.depth // 2, self.compute)
        x, _ = pairs(self.config, self.stage, self.compute, name="blocks")(x)
        return x

    def _merge(self, x: Array) -> Array:
        """Merges two by two tokens into one of twice the width, columns first."""
        x = jnp.concatenate([x[:, i::2, j::2] for j in range(2) for i in range(2)], axis=-1)
        x = transformer.layer_norm(self.config.norm_eps, "norm_merge")(x)
        merge = nn.Dense(
            self.stage.width,
            use_bias=False,
            dtype=self.compute.dtype,
            kernel_init=_INIT,
            name="merge",
        )
        return merge(x)


class Swin(nn.Module):
    """Maps images to embeddings, not yet normalised, or to the tokens of the last stage."""

    config: ImageConfig
    embed_dim: int | None  # None: no projection, the embedding has the last stage's width
    compute: Compute = Compute()
    pooled: bool = True  # False: all tokens come out, as of a ViT with pool = "none"

    @nn.compact
    def __call__(self, image: Images) -> Float[Array, "b d"] | Float[Array, "b n d"]:
        """Returns the float32 embeddings or tokens of `image`; see `vit.read_pixels`.

        Raises:
            ValueError: the image does not have the config's resolution.
        """
        swin, stages = self.config.swin, self.config.swin.stages(self.config.resolution)
        compute = dataclasses.replace(self.compute, attention="xla")
        x = read_pixels(image, self.config, swin.patch)
        x = nn.Dense(stages[0].width, dtype=compute.dtype, name="patch")(x)
        x = transformer.layer_norm(swin.norm_eps, "norm_patch")(x).astype(compute.dtype)
        x = x.reshape(x.shape[0], stages[0].grid, stages[0].grid, -1)
        for i, stage in enumerate(stages):
            x = Stage(swin, stage, compute, name=f"stage{i}")(x)
        x = transformer.layer_norm(swin.norm_eps, "norm")(x)
        if not self.pooled:
            return x.reshape(x.shape[0], -1, x.shape[-1]).astype(jnp.float32)
        x = x.mean(axis=(1, 2))
        if self.embed_dim is not None:
            x = nn.Dense(self.embed_dim, use_bias=False, dtype=compute.dtype, name="head")(x)
        return x.astype(jnp.float32)
