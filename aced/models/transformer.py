"""The pre-norm transformer blocks that both towers are made of (ViT, arXiv 2010.11929).

Parameters are float32; matrix products and the residual stream are in the compute dtype; layer
norms and softmax are in float32. Blocks are stacked: every parameter has a leading axis of layers,
whether the layers are scanned or unrolled, so checkpoints do not depend on that setting.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from aced.config import ConfigError
from aced.models import int8
from aced.models.presets import Size
from aced.parallel.mesh import constrain_by_example

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
}

# Where every block leaves its output, (collection, name): kept by those alone who ask for it, by
# applying the model with `mutable=[HIDDEN[0]]`.
HIDDEN = ("intermediates", "hidden")


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a tower is computed. Nothing here changes a parameter's shape or name."""

    dtype: str = "float32"  # of matrix products and activations
    scan: bool = True  # False: unrolled, slower to compile
    remat: str = "none"  # what the backward pass recomputes: see `TwoTowerConfig.remat`
    attention: str | None = "xla"  # implementation of jax.nn.dot_product_attention
    # Products with the weights of `Attention` and `Mlp` in 8-bit integers; forward passes only
    int8: bool = False

    @property
    def dot_general(self) -> Callable[..., jax.Array] | None:
        """What `nn.Dense` multiplies with; None: its own."""
        return int8.dot_general if self.int8 else None


def check_attention(attention: str | None, dtype: str) -> None:
    """Refuses an implementation that does not work in `dtype`.

    Raises:
        ConfigError: see above.
    """
    if attention == "cudnn" and dtype == "float32":
        raise ConfigError(
            "attention = 'cudnn' works in half precision only, but dtype = 'float32'; set "
            "dtype = 'bfloat16' or attention = 'xla'."
        )


def layer_norm(eps: float, name: str | None = None) -> nn.LayerNorm:
    """A layer norm in float32, whatever the compute dtype; without a name in `setup`."""
    return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, name=name)


class Attention(nn.Module):
    """Multi-head attention with one 2-D kernel [., width] for each of q, k, v and out."""

    width: int  # of the result; queries and tokens may have others
    heads: int
    causal: bool
    compute: Compute

    def setup(self):
        """Names the four products; their parameters appear on first use."""

        def dense() -> nn.Dense:
            return nn.Dense(
                self.width,
                dtype=self.compute.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                dot_general=self.compute.dot_general,
            )

        self.q, self.k, self.v, self.out = dense(), dense(), dense(), dense()

    def __call__(
        self,
        queries: Float[Array, "c q e"],
        tokens: Float[Array, "b n f"],
        mask: Bool[Array, "_ 1 _ n"] | None = None,
    ) -> Float[Array, "b q d"]:
        """Returns what the queries read from the tokens; one set of queries (c = 1) serves all.

        Args:
            queries: of each example, or of all.
            tokens: what is read.
            mask: which query may read which token; None: all, or all before it if `causal`.
        """
        return self.read(queries, *self.keys_values(tokens), mask)

    def keys_values(
        self, tokens: Float[Array, "b n f"]
    ) -> tuple[Float[Array, "b n h e"], Float[Array, "b n h e"]]:
        """Returns keys and values of the tokens, by head: what there is to read from them."""
        return self._split(self.k(tokens)), self._split(self.v(tokens))

    def read(
        self,
        queries: Float[Array, "c q f"],
        keys: Float[Array, "b n h e"],
        values: Float[Array, "b n h e"],
        mask: Bool[Array, "_ 1 _ n"] | None = None,
    ) -> Float[Array, "b q d"]:
        """Returns what the queries read; see `__call__`."""
        q = self._split(self.q(queries))
        q = jnp.broadcast_to(q, (len(keys), *q.shape[1:]))
        x = jax.nn.dot_product_attention(
            q,
            keys,
            values,
            mask=mask,
            is_causal=self.causal,
            implementation=self.compute.attention,
        )
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

        def dense(features: int, name: str) -> nn.Dense:
            return nn.Dense(
                features,
                dtype=self.compute.dtype,
                kernel_init=self.kernel_init,
                bias_init=nn.initializers.normal(1e-6),  # big_vision's
                dot_general=self.compute.dot_general,
                name=name,
            )

        y = ACTIVATIONS[self.activation](dense(self.width, "fc1")(x))
        return dense(x.shape[-1], "fc2")(y)


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
        # Said once per layer: parameters that are shared over a mesh are gathered for the examples
        # that are here, and never the other way round.
        x = constrain_by_example(x)
        y = layer_norm(self.norm_eps, "norm1")(x)
        width, heads = self.dims.width, self.dims.heads
        x = x + Attention(width, heads, self.causal, self.compute, name="attention")(y, y)
        y = layer_norm(self.norm_eps, "norm2")(x)
        x = x + Mlp(self.dims.mlp, self.activation, self.compute, name="mlp")(y)
        self.sow(*HIDDEN, x)
        return x, None


def _kept_for_the_backward_pass(compute: Compute) -> Callable[..., bool] | None:
    """What of a block's values is kept; None: all that is asked for."""
    if compute.remat == "full":
        return jax.checkpoint_policies.nothing_saveable
    if compute.remat == "dots":
        # The products with weights: not the attention scores, n^2 in memory.
        return jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    if compute.scan and compute.attention != "cudnn":
        # All products. Of elementwise work a scan would store every intermediate result, which is
        # slower than to compute it again; unrolled, XLA sees to that by itself.
        return jax.checkpoint_policies.dots_saveable
    return None


def blocks(
    dims: Size, *, activation: str, norm_eps: float, causal: bool, compute: Compute
) -> nn.Module:
    """All blocks of a tower as one module "blocks"; its parameters are stacked, [depth, ...]."""
    stack = stacked(Block, dims.depth, compute)
    return stack(dims, activation, norm_eps, causal, compute, name="blocks")


def stacked(
    block: type[nn.Module], depth: int, compute: Compute, in_axes: tuple = ()
) -> Callable[..., nn.Module]:
    """Returns a module like `block` (x to (x, y)) that is `depth` of them, one on another.

    Its parameters are stacked, [depth, ...], as are every block's y and what it sows into
    `HIDDEN`; the backward pass keeps what `compute` says. `in_axes` is said of the arguments
    after x: 0 where each block has its own, stacked, or `nn.broadcast`.
    """
    policy = _kept_for_the_backward_pass(compute)
    if policy is not None:
        # A scan already hides the two passes from CSE.
        block = nn.remat(block, prevent_cse=not compute.scan, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0, HIDDEN[0]: 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=1 if compute.scan else depth,
    )
