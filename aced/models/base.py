"""The interface of all models: two towers (CLIP, SigLIP) and CoCa."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Int, PyTree

from aced.config import Checked, ConfigError, MayChange
from aced.data.images.transforms import ResizeConfig
from aced.data.tokenizers import Tokenizer, TokenizerConfig
from aced.models.transformer import Compute
from aced.models.vit import Images
from aced.outputs import Embeddings


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig(Checked, abc.ABC):
    """The settings of a model that embeds images and texts.

    A kind of model is a frozen dataclass that adds the fields `image` and `text` (its towers),
    `embed_dim` and `init_scale`.
    """

    # Of matrix products and activations. Parameters, norms, softmax and embeddings are float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    scan: MayChange[bool] = True  # over layers; False unrolls: same parameters, slower to compile
    # What the backward pass recomputes to save memory. "none": only elementwise operations; "full":
    # every block; "dots": everything but the products with weights.
    remat: MayChange[Literal["none", "full", "dots"]] = "none"
    # Implementation of jax.nn.dot_product_attention; None lets JAX choose; "cudnn" is for GPUs.
    # The windows of a Swin transformer, 49 tokens each, always use "xla".
    attention: MayChange[Literal["xla", "cudnn"] | None] = "xla"
    # Preprocessing, which is stored with the model.
    resize: ResizeConfig = ResizeConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    # Settings that may differ in a model that another one starts from.
    FREE_TO_START_FROM: ClassVar[tuple[str, ...]] = ()
    END_OF_TEXT: ClassVar[str]  # name of the setting that `end_of_text` returns

    def _check(self) -> None:
        if self.attention == "cudnn" and self.dtype == "float32":
            raise ConfigError(
                "attention = 'cudnn' works in half precision only, but dtype = 'float32'; set "
                "dtype = 'bfloat16' or attention = 'xla'."
            )

    def compute(self, int8: bool) -> Compute:
        """How the towers are computed; `int8`: products with the weights of blocks in 8 bits."""
        return Compute(self.dtype, self.scan, self.remat, self.attention, int8)

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
        self, params: PyTree, image: Images, text: Int[Array, "b l"], *, int8: bool = False
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
