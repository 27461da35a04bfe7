"""The interface of all models: two towers (CLIP, SigLIP) and CoCa."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree, UInt8

from aced.config import Checked, ConfigError
from aced.data.tokenizers import Tokenizer
from aced.models import transformer
from aced.outputs import Embeddings


class ModelConfig(Checked, abc.ABC):
    """The settings of a model that embeds images and texts.

    A kind of model is a frozen dataclass with the fields `image` and `text` (its towers),
    `embed_dim`, `init_scale`, `dtype`, `scan`, `remat`, `attention`, `resize` and `tokenizer`.
    """

    # Settings that may differ in a model that another one starts from.
    FREE_TO_START_FROM: ClassVar[tuple[str, ...]] = ()
    END_OF_TEXT: ClassVar[str]  # the setting that `end_of_text` is

    def _check(self) -> None:
        transformer.check_attention(self.attention, self.dtype)

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Channels of both embeddings."""

    @property
    @abc.abstractmethod
    def end_of_text(self) -> int | None:
        """The id at which texts end and are pooled; None: they are pooled at the last position."""

    @abc.abstractmethod
    def build(self, int8: bool = False) -> nn.Module:
        """Returns the module, with `encode_image`, `encode_text`, `embed`, and `everything`, which
        uses all parameters.
        """

    def init(self, key: Array) -> PyTree:
        """Returns random float32 parameters, a nested dict.

        Under `jax.jit` the compiler removes the forward pass that infers shapes; under
        `jax.eval_shape` nothing is computed.
        """
        image = jnp.zeros((1, self.image.resolution, self.image.resolution, 3), jnp.uint8)
        text = jnp.zeros((1, self.text.length), jnp.int32)
        return self.build().init(key, image, text, method="everything")["params"]

    def embed(
        self,
        params: PyTree,
        image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
        text: Int[Array, "b l"],
        *,
        int8: bool = False,
    ) -> Embeddings:
        """Returns the embeddings of paired images and texts."""
        return self.build(int8).apply({"params": params}, image, text, method="embed")

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raises a ConfigError if the tokenizer does not fit the model: its length exceeds the
        positions, its vocabulary exceeds the token table, or its end-of-text id differs.
        """
        text = self.text
        if tokenizer.config.length > text.length:
            raise ConfigError(
                f"tokenizer.length = {tokenizer.config.length} is more than the model's "
                f"text.length = {text.length} positions; lower the one or raise the other."
            )
        if tokenizer.vocab_size > text.vocab_size:
            raise ConfigError(
                f"text.vocab_size = {text.vocab_size} is less than the tokenizer's "
                f"{tokenizer.vocab_size} ids; raise it to that."
            )
        if self.end_of_text not in (None, tokenizer.eos_id):
            raise ConfigError(
                f"Texts are read up to {self.END_OF_TEXT} = {self.end_of_text}, but the tokenizer "
                f"ends them with {tokenizer.eos_id}; set {self.END_OF_TEXT} to that."
            )

    def shared_parts(self, trained: "ModelConfig") -> Sequence[str] | None:
        """The parts that this model can take from a trained model of its kind; None: all."""
        del trained
