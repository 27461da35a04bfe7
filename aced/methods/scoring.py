"""Cheap scoring: embeddings of the super-batch that are good enough to choose by.

A model that only scores may see larger patches (Flexi, JEST arXiv 2406.17711, 4.3), the beginning
of the text, or compute in fewer bits. It does well at another patch size or text length only if it
is trained so, too: `embed_mixed` trains a fixed share of the batch through the scoring view.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt8

from aced.bounds import PositiveInt
from aced.config import Checked, ConfigError
from aced.cost import flops
from aced.models import flexi
from aced.models.base import ModelConfig
from aced.outputs import Embeddings
from aced.parallel.mesh import constrain_by_example, data_shards


@dataclasses.dataclass(frozen=True)
class ScoringConfig(Checked):
    """How a model is run when it only scores. The defaults are the model as it is trained."""

    # Pixels a side of the patches; twice the model's own: a quarter of the tokens. None: its own
    patch: PositiveInt | None = None
    # Tokens that are read of each text, the last of which is the text's own last one or an end of
    # text, whichever the tower looks for. None: all
    text_length: PositiveInt | None = None
    # Of the products with weights. "model": as it is trained. "int8": in the blocks and the
    # attention pooling, with scales by token and by output channel; the rest as it is trained
    precision: Literal["model", "bfloat16", "int8"] = "model"

    @property
    def exact(self) -> bool:
        """Whether the model scores as it is trained."""
        return self == ScoringConfig()

    @property
    def view(self) -> "ScoringConfig":
        """What of it the model has to be trained on: what it sees, not how it computes."""
        return dataclasses.replace(self, precision="model")

    def check(self, model: ModelConfig, key: str = "method.scoring") -> None:
        """Refuses what does not fit to `model`, or would cost more than `model` itself.

        Args:
            model: the model that scores.
            key: where these settings stand, for error messages.

        Raises:
            ConfigError: see above.
        """
        own, patch, length = model.image, self.patch or model.image.patch, _text_length(model)
        if self.patch is not None and own.architecture != "vit":
            raise ConfigError(
                f"{key}.patch = {patch} needs image.architecture = 'vit': a tower of architecture "
                f"'{own.architecture}' cannot be read at another patch size; set it to None."
            )
        if patch < own.patch or (patch != own.patch and own.resolution % patch):
            raise ConfigError(
                f"{key}.patch = {patch} must divide image.resolution = {own.resolution} and be no "
                f"less than the model's image.patch = {own.patch}; choose another, or None."
            )
        if self.text_length is not None and self.text_length > length:
            raise ConfigError(
                f"{key}.text_length = {self.text_length} is more than the {length} tokens that the "
                f"model reads; lower it, or set it to None."
            )


def macs(model: ModelConfig, scoring: ScoringConfig) -> tuple[int, int]:
    """MACs of one forward pass of (one image, one text) as it scores; see `aced.cost.flops`.

    One in int8 counts as one, although a chip may do two of them at a time.
    """
    return flops.macs(_seen(model, scoring), scoring.text_length)


def embed(
    model: ModelConfig,
    scoring: ScoringConfig,
    params: PyTree,
    image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
    text: Int[Array, "b l"],
) -> Embeddings:
    """Returns the embeddings of paired images and texts as `scoring` has them computed.

    Args:
        model: the model as it is trained.
        scoring: with the defaults, this is the model itself.
        params: the model's own parameters, whatever `scoring` makes of them.
        image: as for the model.
        text: as for the model; longer than `scoring.text_length` are cut.

    Differentiable with respect to the parameters unless the precision is int8.

    Raises:
        ConfigError: the new patch does not divide the resolution.
        TypeError: a gradient is taken in int8.
    """
    seen = _seen(model, scoring)
    image_params = flexi.resize_params(params["image"], model.image, seen.image.patch)
    text_params, text = _shorter(params["text"], text, model, scoring.text_length)
    params = {**params, "image": image_params, "text": text_params}
    int8 = scoring.precision == "int8"
    return seen.embed(params, image, text, int8=int8)


def embed_mixed(
    model: ModelConfig,
    scoring: ScoringConfig,
    every: int,
    params: PyTree,
    image: UInt8[Array, "b h w 3"] | Float[Array, "b h w 3"],
    text: Int[Array, "b l"],
) -> Embeddings:
    """Returns embeddings to train on: of each `every` examples the first as scoring sees it.

    JEST (arXiv 2406.17711) needs at least a quarter of the batch trained so, and trains half.
    The rows are in the order of the batch. Differentiable: computed in the model's own precision.

    Args:
        model: the model as it is trained.
        scoring: patch and text length are read, the precision is not.
        every: 2 for half of the batch, 4 for a quarter.
        params: the model's own parameters.
        image: as for the model.
        text: as for the model.

    Raises:
        ConfigError: the batch cannot be cut so; see `split_every`.
    """
    first, others = split_every((image, text), every)
    as_scored = embed(model, scoring.view, params, *first)
    full = model.embed(params, *others)
    return full.replace(
        zimg=join_every(as_scored.zimg, full.zimg, every),
        ztxt=join_every(as_scored.ztxt, full.ztxt, every),
    )


def split_every(batch: PyTree, every: int) -> tuple[PyTree, PyTree]:
    """Cuts a batch into the examples i with i % every == 0, and the others.

    Args:
        batch: tree of arrays [b ...], sharded by example where there is a mesh.
        every: at least 2.

    No row leaves its device.

    Raises:
        ConfigError: the rows of each device are not a multiple of `every`.
    """
    examples, shards = jax.tree.leaves(batch)[0].shape[0], data_shards()
    if every < 2 or examples % (every * shards):
        raise ConfigError(
            f"A batch of {examples} examples on {shards} devices cannot have one in {every} "
            f"trained as scoring sees it; set method.multi_resolution_every to at least 2, such "
            f"that it divides the examples of each device."
        )
    groups = jax.tree.map(lambda x: x.reshape(examples // every, every, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[:, 0], groups)
    others = jax.tree.map(lambda x: x[:, 1:].reshape(-1, *x.shape[2:]), groups)
    return constrain_by_example(first), constrain_by_example(others)


def join_every(first: Array, others: Array, every: int) -> Array:
    """Returns the rows that `split_every` has parted, in their order; the inverse of it."""
    others = others.reshape(-1, every - 1, *others.shape[1:])
    joined = jnp.concatenate([first[:, None], others], axis=1)
    return constrain_by_example(joined.reshape(-1, *first.shape[1:]))


def _seen(model: ModelConfig, scoring: ScoringConfig) -> ModelConfig:
    """The model with the patch and the dtype of `scoring`."""
    patch = scoring.patch or model.image.patch
    return dataclasses.replace(
        model,
        image=dataclasses.replace(model.image, patch=patch),
        dtype="bfloat16" if scoring.precision == "bfloat16" else model.dtype,
    )


def _text_length(model: ModelConfig) -> int:
    """Tokens that the text tower is given."""
    return min(model.tokenizer.length, model.text.length)


def _shorter(
    params: PyTree, text: Int[Array, "b l"], model: ModelConfig, length: int | None
) -> tuple[PyTree, Int[Array, "b k"]]:
    """The text tower's parameters and the texts, for `length` tokens of each."""
    last = text.shape[1] - 1
    if length is None or length > last:
        return params, text
    kept, end = text[:, :length], model.end_of_text
    if end is not None:
        ends = (kept == end).any(axis=1)
        return params, kept.at[:, -1].set(jnp.where(ends, kept[:, -1], end))
    # The last token and its position stay: that is where the tower has learned to collect what it
    # has read, and it has not elsewhere. Read at the last kept place, a tower that was not trained
    # so loses most of what selection gains.
    position = params["position"]
    position = position.at[length - 1].set(position[last])
    return params | {"position": position}, kept.at[:, -1].set(text[:, last])
