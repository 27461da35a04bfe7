"""The image tower: a vision transformer with a MAP head, a class token or average pooling."""

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from aced.bounds import OneOf, PositiveFloat, PositiveInt
from aced.config import Checked, ConfigError
from aced.models import presets, transformer
from aced.models.swin_config import SwinConfig
from aced.models.transformer import Compute

# Pixels, or floats that are normalised by the tower's mean and std already.
Images = UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"]


@dataclasses.dataclass(frozen=True)
class ImageConfig(Checked):
    """The image tower. The defaults are SigLIP's ViT-B/16 at 256 px."""

    # "swin": a Swin transformer (`models.swin`) with the settings of `swin`; of the other settings
    # it reads only resolution, mean and std.
    architecture: Literal["vit", "swin"] = "vit"
    size: Annotated[str, OneOf(presets.SIZES)] = "B"
    patch: PositiveInt = 16  # pixels a side
    resolution: int = 256  # pixels a side; pixels beyond the last whole patch are ignored
    # "map": attention pooling (SigLIP); "cls": class token (CLIP); "gap": average of the tokens.
    # "none" and "all" return all tokens, for a model that pools them itself (CoCa): "none" without
    # a class token, "all" with one (CLIP's).
    pool: Literal["map", "cls", "gap", "none", "all"] = "map"
    position: Literal["learned", "sincos2d"] = "learned"  # sincos2d: fixed, no parameters
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6  # CLIP: 1e-5
    pre_norm: bool = False  # layer norm before the first block (CLIP)
    patch_bias: bool = True  # CLIP: False
    width: PositiveInt | None = None  # these four override the size's numbers
    depth: PositiveInt | None = None
    mlp: PositiveInt | None = None
    heads: PositiveInt | None = None
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of pixels in [0, 1], per RGB channel
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.5, 0.5, 0.5)
    swin: SwinConfig = SwinConfig()

    def _check(self) -> None:
        self._refuse_what_is_not_read()
        if self.architecture == "swin":
            self.swin.stages(self.resolution)  # refuses a resolution that does not fit
            return
        dims = self.dims
        if self.patch > self.resolution:
            raise ConfigError(
                f"image.patch = {self.patch} must be at most image.resolution = "
                f"{self.resolution} pixels."
            )
        if self.position == "sincos2d" and (dims.width % 4 or dims.width < 8):
            raise ConfigError(
                f"image.position = 'sincos2d' needs an image.width that is a multiple of 4 and at "
                f"least 8, got {dims.width}; take 'learned' or another width."
            )

    def _refuse_what_is_not_read(self) -> None:
        shared = {"architecture", "resolution", "mean", "std"}
        unread = {"swin"}
        if self.architecture == "swin":
            unread = {field.name for field in dataclasses.fields(self)} - shared - unread
        for field in dataclasses.fields(self):
            if field.name in unread and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"image.{field.name} is not read by image.architecture = "
                    f"'{self.architecture}'; leave it at its default, or choose the other "
                    "architecture. A Swin transformer's own settings are those of image.swin."
                )

    @property
    def out_width(self) -> int:
        """Channels of the tower's embeddings without a projection."""
        return self.swin.out_width if self.architecture == "swin" else self.dims.width

    @property
    def dims(self) -> presets.Size:
        """Width, depth, mlp and heads of a vision transformer after the overrides.

        Raises:
            ConfigError: it is not a vision transformer, or these numbers do not fit together.
        """
        self._check_it_is_a_vit()
        return presets.resolve(
            "image", self.size, width=self.width, depth=self.depth, mlp=self.mlp, heads=self.heads
        )

    @property
    def grid(self) -> int:
        """Patches a side of a ViT, rounded down (27 of 14 px in 384), as a VALID convolution.

        Raises:
            ConfigError: it is not a vision transformer.
        """
        self._check_it_is_a_vit()
        return self.resolution // self.patch

    @property
    def has_cls(self) -> bool:
        """Whether a ViT has a class token, in front of the patches."""
        return self.pool in ("cls", "all")

    @property
    def out_tokens(self) -> int:
        """Tokens that come out without pooling."""
        if self.architecture == "swin":
            return self.swin.stages(self.resolution)[-1].grid ** 2
        return self.tokens

    @property
    def tokens(self) -> int:
        """Sequence length of a ViT's blocks."""
        return self.grid**2 + self.has_cls

    def _check_it_is_a_vit(self) -> None:
        if self.architecture != "vit":
            raise ConfigError(
                f"A tower with image.architecture = '{self.architecture}' has no single width, "
                "depth and number of tokens, which are needed here; set image.architecture = 'vit'."
            )


def patchify(image: Array, patch: int) -> Array:
    """Cuts [b h w c] into patches [b h/patch*w/patch patch patch c], in row-major order."""
    b, h, w, c = image.shape
    rows, columns = h // patch, w // patch
    x = image[:, : rows * patch, : columns * patch]
    x = x.reshape(b, rows, patch, columns, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, rows * columns, patch, patch, c)


def read_pixels(image: Images, config: ImageConfig, patch: int) -> Float[Array, "b n p"]:
    """Returns the normalised pixels of every patch of `patch` pixels a side, in row-major order.

    Raises:
        ValueError: the image does not have the config's resolution.
    """
    expected = (config.resolution, config.resolution, 3)
    if image.shape[1:] != expected:
        raise ValueError(
            f"The image tower expects images of shape [b, {', '.join(map(str, expected))}], "
            f"found {image.shape}; resize them, or set image.resolution."
        )
    x = patchify(image, patch)
    if image.dtype == jnp.uint8:
        # After `patchify`, which moves a quarter of the bytes in uint8.
        mean, std = np.float32(config.mean), np.float32(config.std)
        x = x.astype(jnp.float32) * (1 / (255 * std)) - mean / std
    return x.reshape(*x.shape[:2], -1)


def sincos2d(grid: int, width: int) -> np.ndarray:
    """Fixed positions [grid*grid, width] of MoCo v3 (arXiv 2104.02057), as in big_vision."""
    y, x = np.mgrid[:grid, :grid].reshape(2, -1)
    omega = 10_000.0 ** -(np.arange(width // 4) / (width // 4 - 1))
    angles = [np.outer(x, omega), np.outer(y, omega)]
    parts = [f(angle) for angle in angles for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


class MapHead(nn.Module):
    """Multi-head attention pooling by one learned probe, then an MLP (Set Transformer; SigLIP)."""

    config: ImageConfig
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Returns one vector for each sequence of tokens."""
        config, d = self.config, x.shape[-1]

        def init(key: jax.Array) -> jax.Array:
            return nn.initializers.xavier_uniform()(key, (1, d))[0]

        # 1-D, so that optimizers for matrices skip it.
        probe = self.param("probe", init).reshape(1, 1, d)
        heads = config.dims.heads
        attention = transformer.Attention(d, heads, False, self.compute, name="attention")
        x = attention(probe, x)  # [b 1 d]
        y = transformer.layer_norm(config.norm_eps, "norm")(x)
        mlp = transformer.Mlp(config.dims.mlp, config.activation, self.compute, name="mlp")
        return (x + mlp(y))[:, 0]


class ViT(nn.Module):
    """Maps images to embeddings, not yet normalised."""

    config: ImageConfig
    embed_dim: int | None  # None: no projection, the embedding has the tower's width (SigLIP)
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, image: Images) -> Float[Array, "b *n d"]:
        """Returns the float32 embeddings of `image`, or of every token [b n d] without pooling.

        Raises:
            ValueError: the image does not have the config's resolution.
        """
        config, dims = self.config, self.config.dims
        x = self._embed(image)  # [b n width]
        if config.pre_norm:
            x = transformer.layer_norm(config.norm_eps, "norm_pre")(x)
        x = x.astype(self.compute.dtype)
        x, _ = transformer.blocks(dims, config.activation, config.norm_eps, False, self.compute)(x)
        if config.pool == "cls":
            x = x[:, 0]  # before the norm, which is by token
        x = transformer.layer_norm(config.norm_eps, "norm")(x)
        if config.pool == "gap":
            x = x.mean(axis=1)
        if config.pool == "map":
            x = MapHead(config, self.compute, name="map")(x)
        if self.embed_dim is not None:
            x = nn.Dense(self.embed_dim, use_bias=False, dtype=self.compute.dtype, name="head")(x)
        return x.astype(jnp.float32)

    def _embed(self, image: Array) -> Array:
        """Embeds patches, with class token and positions, [b n width]."""
        config, width = self.config, self.config.dims.width
        patch = nn.Dense(
            width, use_bias=config.patch_bias, dtype=self.compute.dtype, name="patch"
        )  # a 2-D kernel [patch*patch*3, width]: the strided convolution of ViT, as one product
        x = patch(read_pixels(image, config, config.patch))
        if config.has_cls:
            cls = self.param("cls", nn.initializers.zeros, (width,)).astype(x.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, width)), x], axis=1)
        return x + self._positions()

    def _positions(self) -> Array:
        config, width = self.config, self.config.dims.width
        if config.position == "learned":
            init = nn.initializers.normal(width**-0.5)
            return self.param("position", init, (config.tokens, width))
        fixed = sincos2d(config.grid, width)
        # A class token gets no position, as in big_vision.
        return jnp.asarray(np.pad(fixed, ((config.tokens - len(fixed), 0), (0, 0))))
