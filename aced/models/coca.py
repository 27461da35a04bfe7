"""CoCa: an image encoder, two poolers and a decoder, trained by two losses (arXiv 2205.01917).

One forward pass gives the embeddings for the contrastive loss and the states for the captioning
loss. Parameters: image (a vision or a Swin transformer), pooler, text, t (log of the scale).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8

from aced.bounds import NonNegativeInt, PositiveFloat, PositiveInt
from aced.config import ConfigError
from aced.data.batch_spec import SECOND
from aced.data.tokenizers import Tokenizer, TokenizerConfig
from aced.models import presets, transformer, two_tower
from aced.models.base import ModelConfig
from aced.models.decoder import Cache, Decoder, DecoderConfig, real_words
from aced.models.pooler import Cascade, Head
from aced.models.swin import Swin
from aced.models.vit import ImageConfig, Images, ViT
from aced.outputs import Embeddings, Words, word_logits
from aced.parallel.mesh import constrain_by_example

MODULES = ("image", "unimodal", "multimodal")  # names of the hidden states
# Regexes of parameters with a gradient of only one of the two pretraining losses.
CONTRASTIVE_ONLY = r"t|pooler/(contrastive|head)/.*|text/(cls|(norm_cls|head)/.*)"
CAPTIONING_ONLY = r"text/(multimodal|norm|softmax)/.*"


@dataclasses.dataclass(frozen=True)
class CoCaConfig(ModelConfig):
    """A whole model. The defaults are CoCa-Base at 288 px."""

    image: ImageConfig = ImageConfig(patch=18, resolution=288, pool="none")
    text: DecoderConfig = DecoderConfig()
    # Image tokens that the generative pooler gives to the decoder. 0: no generative pooler; the
    # decoder reads the encoder's own tokens (LiT-Decoder).
    queries: NonNegativeInt = 256
    pooler_heads: PositiveInt | None = None  # heads of both poolers; None: as many as the decoder's
    # Channels of both embeddings. None: the decoder's width, without projections, which gives the
    # published numbers of parameters. A number: a projection without bias on either side.
    embed_dim: PositiveInt | None = None
    init_scale: PositiveFloat = 1 / 0.07  # scale of the logits at the start; there is no bias
    # Classes (answers) of the head that is added for a task; 0: no head
    classes: NonNegativeInt = 0
    # Channels of a hidden layer (with GELU) between the head's pooler and its classes. 0: no such
    # layer, as in CoCa; the logits are then sums of terms of one picture each, which cannot express
    # whether two pictures are alike.
    head_hidden: NonNegativeInt = 0
    pictures: Literal[1, 2] = 1  # pictures per question; 2 in NLVR2

    # The settings of the head, and the length of a task's texts.
    FREE_TO_START_FROM = ("classes", "head_hidden", "pictures", "tokenizer.length")
    END_OF_TEXT: ClassVar[str] = "text.eos_id"

    def _check(self) -> None:
        if self.image.architecture == "vit" and self.image.pool not in ("none", "all"):
            raise ConfigError(
                "CoCa pools all tokens of the image tower; set image.pool = 'none' (or 'all', with "
                f"a class token), not {self.image.pool!r}."
            )
        super()._check()
        if self.pooler_heads is not None and self.text.dims.width % self.pooler_heads:
            raise ConfigError(
                f"pooler_heads = {self.pooler_heads} must be a divisor of the decoder's width, "
                f"{self.text.dims.width}."
            )
        if (self.pictures == 2 or self.head_hidden) and not self.classes:
            raise ConfigError(
                "pictures = 2 and head_hidden are settings of the head, which exists only with "
                "classes; set classes, too."
            )

    @property
    def width(self) -> int:
        """Channels of both embeddings."""
        return self.embed_dim if self.embed_dim is not None else self.text.dims.width

    @property
    def end_of_text(self) -> int:
        """The id at which texts end."""
        return self.text.eos_id

    def build(self, int8: bool = False) -> "CoCa":
        """Returns the model's module."""
        return CoCa(self, int8)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """See `ModelConfig`; also raises a ConfigError for a tokenizer without end of text."""
        if not tokenizer.config.eos:
            raise ConfigError("A decoder has to learn where texts end; set tokenizer.eos = True.")
        super().check_tokenizer(tokenizer)

    def shared_parts(self, trained: "CoCaConfig") -> tuple[str, ...] | None:
        """The parts that can be taken from `trained`; None: all. Heads are specific to a task."""
        heads = [(c.classes, c.head_hidden, c.pictures) for c in (self, trained)]
        return None if heads[0] == heads[1] else ("image", "pooler", "text", "t")


def preset(name: str, **changes: Any) -> CoCaConfig:
    """Returns `presets.COCA[name]`, with `changes`; its tokenizer is cut to its length.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in presets.COCA:
        raise ConfigError(f"model must be one of {', '.join(presets.COCA)}, got {name!r}.")
    image, text = (presets.COCA[name][part] for part in ("image", "text"))
    fields = {
        "image": dataclasses.replace(CoCaConfig.image, **image),
        "text": DecoderConfig(**text),
        "tokenizer": TokenizerConfig(length=DecoderConfig.length),
    }
    return CoCaConfig(**(fields | changes))


def inputs(model: CoCaConfig, batch: dict[str, Array]) -> tuple[tuple[Array, ...], Array]:
    """Returns the pictures of a batch, one or two per example, and its texts."""
    images = tuple(batch[f"{prefix}image"] for prefix in ("", SECOND)[: model.pictures])
    return images, batch["text"]


@struct.dataclass
class Output:
    """Outputs of CoCa for a batch of pairs."""

    embeddings: Embeddings  # L2-normalised, float32, with the model's scale; bias zero
    words: Words  # state i predicts word i from the words before it
    real: Bool[Array, "b l"]  # False for padding
    # If requested, the outputs of all blocks by the names in `MODULES`, in the compute dtype:
    # image [L b n d], of the patches; unimodal [L b l+2 d], of start, words and [CLS];
    # multimodal [L b l d], of start and all words but the last.
    hidden: dict[str, Float[Array, "L b n d"]] | None = None


class CoCa(nn.Module):
    """Maps images and texts to `Output`."""

    config: CoCaConfig
    int8: bool = False  # products with the blocks' weights in 8 bits: forward passes only

    def setup(self):
        """Builds the submodules."""
        config, text = self.config, self.config.text
        compute = config.compute(self.int8)
        if config.image.architecture == "swin":
            self.image = Swin(config.image, None, compute, pooled=False)
        else:
            self.image = ViT(config.image, None, compute)
        heads = config.pooler_heads or text.dims.heads
        self.pooler = Cascade(
            config.queries, text.dims.width, heads, text.norm_eps, config.embed_dim, compute
        )
        self.text = Decoder(text, config.embed_dim, compute)
        if config.classes:
            self.head = Head(config.classes, config.head_hidden, text.dims.heads, compute)
        # The logarithm is learned, so that the scale stays positive.
        self.t = self.param("t", nn.initializers.constant(math.log(config.init_scale)), ())

    def encode_image(self, image: Images) -> Float[Array, "b d"]:
        """Returns zimg, L2-normalised, float32.

        Raises:
            ValueError: the images do not have `image.resolution` pixels a side.
        """
        return _normalized(self._pool(image)[1])

    def encode_text(self, text: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """Returns ztxt, L2-normalised, float32.

        Raises:
            ValueError: the texts are longer than `text.length`.
        """
        return _normalized(self.text.encode(text)[1])

    def embed(self, image: Images, text: Int[Array, "b l"]) -> Embeddings:
        """Returns the embeddings, without running the multimodal half."""
        return self._embeddings(self._pool(image)[1], self.text.encode(text)[1])

    def __call__(self, image: Images, text: Int[Array, "b l"]) -> Output:
        """Returns the output for paired images and texts, without hidden states: see `forward`."""
        pooled, zimg = self._pool(image)
        tokens, ztxt = self.text.encode(text)
        return Output(
            embeddings=self._embeddings(zimg, ztxt),
            words=self.text.decode(tokens, pooled),
            real=real_words(text, self.config.text.eos_id),
        )

    def answer(
        self, image: UInt8[Array, "b k h w 3"], text: Int[Array, "b l"]
    ) -> Float[Array, "b c"]:
        """Returns the head's logits for texts about k pictures each; see `answer`."""
        b, k = image.shape[:2]
        # Pictures of an example stay on its device.
        pooled = self._pool(image.reshape(b * k, *image.shape[2:]))[0]
        tokens = jnp.repeat(self.text.encode(text)[0], k, axis=0)
        states = self.text.decode(tokens, pooled).states
        real = real_words(text, self.config.text.eos_id)
        return self.head(states.reshape(b, k, *states.shape[1:]), real)

    def everything(self, image: UInt8[Array, "b h w 3"], text: Int[Array, "b l"]) -> None:
        """Uses all parameters, including those of the head."""
        self(image, text)
        if self.config.classes:
            self.answer(jnp.stack([image] * self.config.pictures, axis=1), text)

    def begin(self, image: Images, length: int) -> tuple[Float[Array, "b v"], dict[str, Cache]]:
        """See `Decoder.begin`."""
        return self.text.begin(self._pool(image)[0], length)

    def advance(
        self, word: Int[Array, " n"], at: Int[Array, ""], caches: dict[str, Cache]
    ) -> tuple[Float[Array, "n v"], dict[str, Cache]]:
        """See `Decoder.advance`."""
        return self.text.advance(word, at, caches)

    def _pool(self, image: Array) -> tuple[Array, Array]:
        return self.pooler(self.image(image))

    def _embeddings(self, zimg: Array, ztxt: Array) -> Embeddings:
        scale, bias = two_tower.logit_parameters(self.variables["params"])
        return Embeddings(zimg=_normalized(zimg), ztxt=_normalized(ztxt), scale=scale, bias=bias)


def _normalized(z: Float[Array, "b d"]) -> Float[Array, "b d"]:
    return two_tower.l2_normalize(constrain_by_example(z))


def forward(
    config: CoCaConfig,
    params: PyTree,
    image: Images,
    text: Int[Array, "b l"],
    *,
    hidden: bool = False,
) -> Output:
    """Returns the output for paired images and texts of l words, including end of text and padding.

    With `hidden` it has the outputs of all blocks, for layerwise distillation.

    Raises:
        ValueError: the images have another resolution, or the texts exceed the positions.
    """
    if not hidden:
        return CoCa(config).apply({"params": params}, image, text)
    output, states = _with_hidden(config, params, "__call__", image, text)
    return output.replace(hidden=states)


def answer(
    config: CoCaConfig,
    params: PyTree,
    images: Sequence[UInt8[Array, "b h w 3"]],
    text: Int[Array, "b l"],
) -> Float[Array, "b c"]:
    """Returns float32 logits of the `classes` answers or labels.

    Each text of l words, including end of text and padding, is about one or two pictures.

    Raises:
        ValueError: the number of pictures is not `pictures`.
    """
    return CoCa(config).apply(
        {"params": params}, _side_by_side(config, images), text, method="answer"
    )


def answer_with_hidden(
    config: CoCaConfig,
    params: PyTree,
    images: Sequence[UInt8[Array, "b h w 3"]],
    text: Int[Array, "b l"],
) -> tuple[Float[Array, "b c"], dict[str, Float[Array, "L _ n d"]]]:
    """Returns the result of `answer`, and the outputs of all blocks as `Output.hidden`.

    With k pictures, the hidden states of image and multimodal decoder have b * k rows, those of an
    example side by side; the unimodal decoder reads each text once.
    """
    return _with_hidden(config, params, "answer", _side_by_side(config, images), text)


def _side_by_side(config: CoCaConfig, images: Sequence[Array]) -> UInt8[Array, "b k h w 3"]:
    if len(images) != config.pictures:
        raise ValueError(f"The head reads {config.pictures} pictures, got {len(images)}.")
    return jnp.stack(images, axis=1)


def _with_hidden(config: CoCaConfig, params: PyTree, method: str, *args: Array) -> Any:
    collection, name = transformer.HIDDEN
    variables = {"params": params}
    output, kept = CoCa(config).apply(variables, *args, method=method, mutable=[collection])
    image, text = kept[collection]["image"], kept[collection]["text"]
    stacks = image["blocks"], text["unimodal"], text["multimodal"]
    return output, {m: stack[name][0] for m, stack in zip(MODULES, stacks, strict=True)}


def logits(output: Output) -> Float[Array, "b l v"]:
    """Float32 logits of every word, for small vocabularies; losses do not need them at once."""
    return word_logits(output.words.states, output.words.kernel)
