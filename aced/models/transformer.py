"""Pre-norm transformer blocks of both towers (ViT, arXiv 2010.11929).

Parameters are float32; matrix products and the residual stream are in the compute dtype; layer
norms and softmax are in float32. Blocks are stacked: every parameter has a leading axis of layers,
whether the layers are scanned or unrolled, so checkpoints do not depend on that setting.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from aced.models import int8
from aced.models.presets import Size
from aced.parallel.mesh import constrain_by_example

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}

# (collection, name) to which every block sows its output; kept only if the model is applied with
# `mutable=[HIDDEN[0]]`.
HIDDEN = ("intermediates", "hidden")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a tower is computed, which does not change names and shapes of parameters."""

    dtype: str = "float32"  # of matrix products and activations
    scan: bool = True  # False: unrolled, slower to compile
    remat: str = "none"  # what the backward pass recomputes: see `base.ModelConfig.remat`
    attention: str | None = "xla"  # implementation of jax.nn.dot_product_attention
    # Products with the weights of `Attention` and `Mlp` in 8-bit integers; forward passes only
    int8: bool = False

    def dense(self, features: int, **options: Any) -> nn.Dense:
        """A dense layer that is computed in this way."""
        dot_general = int8.dot_general if self.int8 else None
        return nn.Dense(features, dtype=self.dtype, dot_general=dot_general, **options)


def layer_norm(eps: float, name: str | None = None) -> nn.LayerNorm:
    """A layer norm in float32 for every compute dtype; without a name in `setup`."""
    return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, name=name)


class Attention(nn.Module):
    """Multi-head attention with one 2-D kernel [., width] for each of q, k, v and out."""

    width: int  # of the result; queries and tokens may have other widths
    heads: int
    causal: bool
    compute: Compute

    def setup(self):
        """Builds the submodules."""
        init = nn.initializers.xavier_uniform()
        self.q, self.k, self.v, self.out = (
            self.compute.dense(self.width, kernel_init=init) for _ in range(4)
        )

    def __call__(
        self,
        queries: Float[Array, "c q e"],
        tokens: Float[Array, "b n f"],
        mask: Bool[Array, "_ 1 _ n"] | None = None,
    ) -> Float[Array, "b q d"]:
        """Returns the attention of the queries to the tokens.

        Args:
            queries: queries of each example, or one set for all (c = 1).
            tokens: the tokens that give keys and values.
            mask: whether a query attends to a token; None: all, or the causal mask if `causal`.
        """
        return self.read(queries, *self.keys_values(tokens), mask)

    def keys_values(
        self, tokens: Float[Array, "b n f"]
    ) -> tuple[Float[Array, "b n h e"], Float[Array, "b n h e"]]:
        """Returns keys and values of the tokens, by head."""
        return self._split(self.k(tokens)), self._split(self.v(tokens))

    def read(
        self,
        queries: Float[Array, "c q f"],
        keys: Float[Array, "b n h e"],
        values: Float[Array, "b n h e"],
        mask: Bool[Array, "_ 1 _ n"] | None = None,
    ) -> Float[Array, "b q d"]:
        """As `__call__`, with keys and values."""
        q = self._split(self.q(queries))
        q = jnp.broadcast_to(q, (keys.shape[0], *q.shape[1:]))
        options = {"is_causal": self.causal, "implementation": self.compute.attention}
        x = jax.nn.dot_product_attention(q, keys, values, mask=mask, **options)
        return self.out(x.reshape(*x.shape[:2], -1))

    def _split(self, x: Float[Array, "b n d"]) -> Float[Array, "b n h e"]:
        return x.reshape(*x.shape[:-1], self.heads, self.width // self.heads)


class Mlp(nn.Module):
    """Two dense layers with an activation in between."""

    width: int
    activation: str
    compute: Compute
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns the MLP of every token."""
        # big_vision's initialisation of the bias.
        init = {"kernel_init": self.kernel_init, "bias_init": nn.initializers.normal(1e-6)}
        y = self.compute.dense(self.width, **init, name="fc1")(x)
        y = ACTIVATIONS[self.activation](y)
        return self.compute.dense(x.shape[-1], **init, name="fc2")(y)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); returns (x, None) for `nn.scan`."""

    dims: Size
    activation: str
    norm_eps: float
    causal: bool
    compute: Compute

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> tuple[Float[Array, "b n d"], None]:
        """Returns the next layer's tokens."""
        # In every layer, so that sharded parameters are gathered, and not the examples.
        x = constrain_by_example(x)
        y = layer_norm(self.norm_eps, "norm1")(x)
        width, heads = self.dims.width, self.dims.heads
        x = x + Attention(width, heads, self.causal, self.compute, name="attention")(y, y)
        y = layer_norm(self.norm_eps, "norm2")(x)
        x = x + Mlp(self.dims.mlp, self.activation, self.compute, name="mlp")(y)
        self.sow(*HIDDEN, x)
        return x, None


def _remat_policy(compute: Compute) -> Callable[..., bool] | None:
    """The rematerialisation policy of a block; None: no rematerialisation."""
    if compute.remat == "full":
        return jax.checkpoint_policies.nothing_saveable
    if compute.remat == "dots":
        # Keeps products with weights, but not the n^2 attention scores.
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if compute.scan and compute.attention != "cudnn":
        # Keeps all products. A scan would store every elementwise result, which is slower than
        # computing it again; in an unrolled loop XLA decides.
        return jax.checkpoint_policies.dots_saveable
    return None


def blocks(
    dims: Size, activation: str, norm_eps: float, causal: bool, compute: Compute
) -> nn.Module:
    """All blocks of a tower as one module "blocks" with stacked parameters, [depth, ...]."""
    stack = stacked(Block, dims.depth, compute)
    return stack(dims, activation, norm_eps, causal, compute, name="blocks")


def stacked(
    block: type[nn.Module], depth: int, compute: Compute, in_axes: tuple = ()
) -> Callable[..., nn.Module]:
    """Returns a module that applies `depth` blocks (x to (x, y)) in sequence.

    Parameters, ys and values sown into `HIDDEN` are stacked, [depth, ...]. `compute` sets the
    rematerialisation. `in_axes` are the axes of the arguments after x: 0 for stacked arguments, one
    per block, or `nn.broadcast`.
    """
    policy = _remat_policy(compute)
    if policy is not None:
        # A scan already prevents CSE between the two passes.
        block = nn.remat(block, prevent_cse=not compute.scan, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0, HIDDEN[0]: 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=1 if compute.scan else depth,
    )
