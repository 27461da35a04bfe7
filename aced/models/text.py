"""The text tower: SigLIP's (bidirectional, last token) or CLIP's (causal, end-of-text token)."""

import dataclasses
from typing import Annotated, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from aced.bounds import OneOf, PositiveInt
from aced.config import Checked, ConfigError
from aced.models import presets, transformer
from aced.models.transformer import Compute
from aced.parallel.mesh import everywhere


@dataclasses.dataclass(frozen=True)
class TextConfig(Checked):
    """The text tower. The defaults are SigLIP's B."""

    size: Annotated[str, OneOf(presets.SIZES)] = "B"
    vocab_size: PositiveInt = 32000  # rows of the token table; CLIP: 49408
    length: PositiveInt = 64  # maximum number of ids in a text; CLIP: 77
    # "last": the last position, padding or not (SigLIP pads to the full length);
    # "eot": the first position that holds eot_id (CLIP)
    pool: Literal["last", "eot"] = "last"
    eot_id: int = 49407  # read by pool="eot" only
    causal: bool = False  # CLIP: True
    activation: Literal["gelu_tanh", "gelu", "quick_gelu"] = "gelu_tanh"
    norm_eps: float = 1e-6  # CLIP: 1e-5
    head_bias: bool = True  # of the projection to the embedding; CLIP: False
    width: PositiveInt | None = None  # these four override the size's numbers
    depth: PositiveInt | None = None
    mlp: PositiveInt | None = None
    heads: PositiveInt | None = None

    def _check(self) -> None:
        _ = self.dims  # refuses sizes that do not fit together before the model is built
        if self.pool == "eot" and not 0 <= self.eot_id < self.vocab_size:
            raise ConfigError(
                f"text.pool = 'eot' reads the token text.eot_id = {self.eot_id}, which is not in a "
                f"vocabulary of text.vocab_size = {self.vocab_size}; set the tokenizer's own id."
            )

    @property
    def dims(self) -> presets.Size:
        """Width, depth, mlp and heads after the overrides."""
        return presets.resolve(
            "text", self.size, width=self.width, depth=self.depth, mlp=self.mlp, heads=self.heads
        )


class TextTower(nn.Module):
    """Maps token ids to embeddings, not yet normalised."""

    config: TextConfig
    embed_dim: int
    compute: Compute = Compute()

    @nn.compact
    def __call__(self, text: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Returns the float32 embeddings of `text`; an id beyond the vocabulary gives NaN.

        Raises:
            ValueError: the texts are longer than the tower's positions.
        """
        config, dims = self.config, self.config.dims
        length = text.shape[1]
        if length > config.length:
            raise ValueError(
                f"The text tower has {config.length} positions and expects ids of shape "
                f"[b, l <= {config.length}], found {text.shape}; truncate the texts, or set "
                f"text.length."
            )
        init = nn.initializers.normal(dims.width**-0.5)
        # Gathered on every device; otherwise the gradients of all tokens would be gathered.
        table = everywhere(self.param("token", init, (config.vocab_size, dims.width)))
        positions = self.param("position", init, (config.length, dims.width))
        x = jnp.take(table, text, axis=0, mode="fill") + positions[:length]
        blocks = transformer.blocks(
            dims, config.activation, config.norm_eps, config.causal, self.compute
        )
        x, _ = blocks(x.astype(self.compute.dtype))
        # Pools before the norm, which is by token.
        if config.pool == "last":
            x = x[:, -1]
        else:
            x = x[jnp.arange(x.shape[0]), jnp.argmax(text == config.eot_id, axis=1)]
        x = transformer.layer_norm(config.norm_eps, "norm")(x)
        head = nn.Dense(
            self.embed_dim, use_bias=config.head_bias, dtype=self.compute.dtype, name="head"
        )
        return head(x).astype(jnp.float32)
