"""CoCa's text decoder, a causal transformer in two halves (arXiv 2205.01917, 3.2).

The unimodal half reads only the text and gives its embedding; the multimodal half continues from
its tokens and also reads the image. A text of l words has l + 2 tokens:

    start, word 1, ..., word l, [CLS]

`start` and [CLS] are learned vectors without ids in the vocabulary. Token i predicts word i + 1.
[CLS] attends to `start` and the words up to the end of text, but not to padding.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from aced.bounds import OneOf, PositiveInt
from aced.config import Checked, ConfigError
from aced.models import presets, transformer
from aced.models.transformer import Compute
from aced.outputs import Words, word_logits
from aced.parallel.mesh import constrain_by_example, everywhere


@dataclasses.dataclass(frozen=True)
class DecoderConfig(Checked):
    """The decoder. The defaults are those of CoCa-Base."""

    size: Annotated[str, OneOf(presets.SIZES)] = "B"  # for width, mlp and heads
    unimodal: PositiveInt = 12  # layers that read the text only
    multimodal: PositiveInt = 12  # layers that also read the image
    vocab_size: PositiveInt = 64000  # rows of the token table, and columns of the softmax
    length: PositiveInt = 64  # maximum number of words in a text
    eos_id: int = 49407  # end of text; ids after the first one are padding
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6
    width: PositiveInt | None = None  # these three override the size's numbers
    mlp: PositiveInt | None = None
    heads: PositiveInt | None = None

    def _check(self) -> None:
        _ = self.dims
        if not 0 <= self.eos_id < self.vocab_size:
            raise ConfigError(
                f"text.eos_id = {self.eos_id} is not in a vocabulary of text.vocab_size = "
                f"{self.vocab_size}; set the tokenizer's own id."
            )

    @property
    def dims(self) -> presets.Size:
        """Width, mlp and heads after the overrides; the depth is that of both halves."""
        given = {"width": self.width, "mlp": self.mlp, "heads": self.heads}
        depth = self.unimodal + self.multimodal
        return presets.resolve("text", self.size, depth=depth, **given)


def real_words(text: Int[Array, "b l"], eos_id: int) -> Bool[Array, "b l"]:
    """True for words up to and including the first end of text, False for padding."""
    ends = text == eos_id
    return jnp.cumsum(ends, axis=1) - ends == 0


class KeysValues(NamedTuple):
    """Keys and values of attention, by head."""

    keys: Float[Array, "*layers n m h e"]
    values: Float[Array, "*layers n m h e"]


@struct.dataclass
class Cache:
    """Cached keys and values of half a decoder that generates n texts about b images."""

    text: KeysValues  # [layers n length h e]; zero for words not yet generated
    image: KeysValues | None  # [layers b q h e]; None in the unimodal half


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention in the multimodal half, and one MLP, all pre-norm."""

    dims: presets.Size
    activation: str
    norm_eps: float
    multimodal: bool
    compute: Compute

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n l d"],
        cache: Cache | None,
        mask: Bool[Array, "_ 1 l m"],
        image: Float[Array, "b q e"] | None,
        at: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "n l d"], Cache | None]:
        """Returns the next layer's tokens and, given a cache, the updated cache.

        Args:
            x: tokens of n texts; the n / b texts of an image are adjacent.
            cache: the cache of this layer; None: `x` has all tokens.
            mask: attention mask.
            image: tokens of the images for the multimodal half; None: use the cache.
            at: with a cache, the position of the single token of `x` in its text.
        """
        width, heads = self.dims.width, self.dims.heads
        x = constrain_by_example(x)
        attention = transformer.Attention(width, heads, False, self.compute, name="attention")
        y = transformer.layer_norm(self.norm_eps, "norm1")(x)
        text, image_cache = KeysValues(*attention.keys_values(y)), None
        if cache is not None:
            text = jax.tree.map(
                lambda past, new: jax.lax.dynamic_update_slice_in_dim(past, new, at, axis=1),
                cache.text,
                text,
            )
        x = x + attention.read(y, *text, mask)
        if self.multimodal:
            cross = transformer.Attention(width, heads, False, self.compute, name="cross")
            y = transformer.layer_norm(self.norm_eps, "norm_cross")(x)
            if image is not None:
                image_cache = KeysValues(*cross.keys_values(image))
            keys_values = cache.image if image_cache is None else image_cache
            # The tokens of all texts of an image are its queries.
            y = cross.read(y.reshape(len(keys_values.keys), -1, width), *keys_values)
            x = x + y.reshape(x.shape)
        y = transformer.layer_norm(self.norm_eps, "norm2")(x)
        x = x + transformer.Mlp(self.dims.mlp, self.activation, self.compute, name="mlp")(y)
        self.sow(*transformer.HIDDEN, x)
        return x, None if cache is None else Cache(text, image_cache)


class Decoder(nn.Module):
    """Both halves, the token table and the softmax, which share no parameters."""

    config: DecoderConfig
    embed_dim: int | None  # None: the embedding has the decoder's width, without a projection
    compute: Compute = Compute()

    def setup(self):
        """Builds the submodules."""
        config, dims = self.config, self.config.dims
        init = nn.initializers.normal(dims.width**-0.5)
        self.token = self.param("token", init, (config.vocab_size, dims.width))
        self.position = self.param("position", init, (config.length, dims.width))
        self.start = self.param("start", init, (dims.width,))
        self.cls = self.param("cls", init, (dims.width,))
        self.unimodal = self._half(config.unimodal, multimodal=False)
        self.norm_cls = transformer.layer_norm(config.norm_eps)
        if self.embed_dim is not None:
            self.head = nn.Dense(self.embed_dim, use_bias=False, dtype=self.compute.dtype)
        self.multimodal = self._half(config.multimodal, multimodal=True)
        self.norm = transformer.layer_norm(config.norm_eps)
        shape = (dims.width, config.vocab_size)
        self.softmax = self.param("softmax", lambda key: {"kernel": init(key, shape)})

    def _half(self, layers: int, multimodal: bool) -> nn.Module:
        config, axes = self.config, (0, *(nn.broadcast,) * 3)
        stack = transformer.stacked(DecoderBlock, layers, self.compute, axes)
        return stack(config.dims, config.activation, config.norm_eps, multimodal, self.compute)

    def encode(self, text: Int[Array, "b l"]) -> tuple[Float[Array, "b l d"], Float[Array, "b z"]]:
        """Returns the unimodal half's tokens, for `decode`, and the embeddings of the texts.

        The tokens are `start` and all words but the last. The embeddings are float32, not yet
        normalised. An id beyond the vocabulary gives NaN.

        Raises:
            ValueError: the texts are longer than the decoder's positions.
        """
        b, length = text.shape
        if length > self.config.length:
            raise ValueError(
                f"The decoder has {self.config.length} positions and expects ids of shape "
                f"[b, l <= {self.config.length}], found {text.shape}; truncate the texts, or set "
                f"text.length."
            )
        # The table is gathered like every layer's parameters; otherwise its gradient would need
        # the tokens of all devices, and those would be gathered.
        table = everywhere(self.token)
        words = jnp.take(table, text, axis=0, mode="fill") + self.position[:length]
        ends = jnp.broadcast_to(jnp.stack([self.start, self.cls]), (b, 2, words.shape[-1]))
        x = jnp.concatenate([ends[:, :1], words, ends[:, 1:]], axis=1).astype(self.compute.dtype)
        # The other tokens do not attend to [CLS], which is the last.
        real = jnp.pad(real_words(text, self.config.eos_id), [(0, 0), (1, 1)], constant_values=True)
        is_cls = jnp.arange(length + 2) == length + 1
        mask = _causal(length + 2) & (~is_cls[:, None] | real[:, None, None, :])
        x, _ = self.unimodal(x, None, mask, None, None)
        z = self.norm_cls(x[:, -1])
        if self.embed_dim is not None:
            z = self.head(z)
        return x[:, :length], z.astype(jnp.float32)

    def decode(self, tokens: Float[Array, "b l d"], image: Float[Array, "b q e"]) -> Words:
        """Applies the multimodal half to the unimodal half's tokens and the image."""
        x, _ = self.multimodal(tokens, None, _causal(tokens.shape[1]), image, None)
        return self._words(x)

    def begin(
        self, image: Float[Array, "b q e"], length: int
    ) -> tuple[Float[Array, "b v"], dict[str, Cache]]:
        """Returns the logits of the first word, and the caches for texts of `length` words."""
        dims = self.config.dims

        def empty(layers: int) -> Cache:
            shape = (layers, len(image), length, dims.heads, dims.width // dims.heads)
            zeros = jnp.zeros(shape, self.compute.dtype)
            return Cache(KeysValues(zeros, zeros), None)

        config = self.config
        caches = {"unimodal": empty(config.unimodal), "multimodal": empty(config.multimodal)}
        x = jnp.broadcast_to(self.start, (len(image), 1, dims.width))
        return self._advance(x, jnp.int32(0), caches, image)

    def advance(
        self, word: Int[Array, " n"], at: Int[Array, ""], caches: dict[str, Cache]
    ) -> tuple[Float[Array, "n v"], dict[str, Cache]]:
        """Returns the logits of word `at` + 1, given word `at` (the first is 1), and the caches."""
        x = jnp.take(self.token, word, axis=0, mode="fill") + self.position[at - 1]
        return self._advance(x[:, None], at, caches, None)

    def _advance(self, x, at, caches, image):
        length = caches["unimodal"].text.keys.shape[2]
        mask = (jnp.arange(length) <= at)[None, None, None]
        x = x.astype(self.compute.dtype)
        x, unimodal = self.unimodal(x, caches["unimodal"], mask, None, at)
        x, multimodal = self.multimodal(x, caches["multimodal"], mask, image, at)
        if image is None:  # it has not changed
            multimodal = multimodal.replace(image=caches["multimodal"].image)
        words = self._words(x)
        logits = word_logits(words.states[:, 0], words.kernel)
        return logits, {"unimodal": unimodal, "multimodal": multimodal}

    def _words(self, x: Float[Array, "n l d"]) -> Words:
        return Words(self.norm(x).astype(self.compute.dtype), self.softmax["kernel"])


def _causal(tokens: int) -> Bool[Array, "1 1 l l"]:
    return jnp.tril(jnp.ones((tokens, tokens), bool))[None, None]
