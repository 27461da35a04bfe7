"""CoCa's attentional poolers: learned queries that read an image's tokens (arXiv 2205.01917, 3.2).

They are cascaded: the queries of the generative pooler read the image's tokens, and the single
query of the contrastive pooler reads the generative pooler's output. The generative pooler changes
the width from the image encoder's to the decoder's.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from aced.models import transformer
from aced.models.transformer import Compute


class Pooler(nn.Module):
    """One multi-head attention layer with learned queries, "probe" [queries width]."""

    queries: int
    width: int  # of the result; the tokens may have another width
    heads: int
    compute: Compute

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n e"], mask: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b q d"]:
        """Returns the pooled tokens; `mask` excludes tokens."""
        # With variance 1, since similar queries would give similar outputs.
        init = nn.initializers.normal(1.0)
        probe = self.param("probe", init, (self.queries, self.width))
        attention = transformer.Attention(
            self.width, self.heads, False, self.compute, name="attention"
        )
        return attention(probe[None], tokens, None if mask is None else mask[:, None, None])


class Cascade(nn.Module):
    """The generative pooler, a layer norm, and the contrastive pooler on top of both."""

    queries: int  # of the generative pooler; 0: no such pooler, the tokens are used unchanged
    width: int
    heads: int
    norm_eps: float
    embed_dim: int | None  # None: the embedding has the decoder's width, without a projection
    compute: Compute

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n e"]
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b z"]]:
        """Returns the tokens for the decoder, and the image's embedding, not yet normalised."""
        pooled = tokens
        if self.queries:
            pooler = Pooler(self.queries, self.width, self.heads, self.compute, name="generative")
            pooled = transformer.layer_norm(self.norm_eps, "norm")(pooler(tokens))
        pooled = pooled.astype(self.compute.dtype)
        z = Pooler(1, self.width, self.heads, self.compute, name="contrastive")(pooled)[:, 0]
        if self.embed_dim is not None:
            z = nn.Dense(self.embed_dim, use_bias=False, dtype=self.compute.dtype, name="head")(z)
        return pooled, z.astype(jnp.float32)


class Head(nn.Module):
    """A classification head over the decoder's outputs: a pooler and a linear layer.

    The pooled outputs of several pictures are concatenated (CoCa).
    """

    classes: int
    hidden: int  # channels of a layer before the classes; 0: none
    heads: int
    compute: Compute

    @nn.compact
    def __call__(
        self, states: Float[Array, "b k l d"], real: Bool[Array, "b l"]
    ) -> Float[Array, "b c"]:
        """Returns float32 logits from the decoder's outputs for k pictures with the same text.

        `real` is False for padding.
        """
        b, k, length, width = states.shape
        rows = states.reshape(b * k, length, width)
        pooler = Pooler(1, width, self.heads, self.compute, name="pooler")
        x = pooler(rows, jnp.repeat(real, k, axis=0)).reshape(b, k * width)
        if self.hidden:
            x = nn.gelu(nn.Dense(self.hidden, dtype=self.compute.dtype, name="fc1")(x))
        return nn.Dense(self.classes, name="classifier")(x.astype(jnp.float32))
