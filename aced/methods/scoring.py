"""Cheap scoring: approximate embeddings of the super-batch, for selection.

A model that only scores may use larger patches (Flexi, JEST arXiv 2406.17711, section 4.3), shorter
texts, lower precision or smaller pictures. It must also be trained with this patch size and text
length: `embed_mixed` trains a fixed share of the batch with the scoring view.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from aced.bounds import PositiveInt
from aced.config import Checked, ConfigError
from aced.cost import flops
from aced.models import flexi
from aced.models.base import ModelConfig
from aced.models.vit import Images
from aced.outputs import Embeddings
from aced.parallel.mesh import constrain_by_example, data_shards


@dataclasses.dataclass(frozen=True)
class ScoringConfig(Checked):
    """How a model runs for scoring. The defaults are the model as it is trained."""

    # Pixels a side of the patches; twice the model's own gives a quarter of the tokens. None: the
    # model's own
    patch: PositiveInt | None = None
    # Pixels a side of the pictures that are read; the patches shrink in the same proportion, so the
    # tokens stay as many. Only where candidates are read apart from what is trained on
    # (method.score_ahead). None: the model's own
    resolution: PositiveInt | None = None
    # Tokens that are read of each text. The last one is the text's own last token, or an end of
    # text if the tower pools there. None: all
    text_length: PositiveInt | None = None
    # Precision of the products with weights. "model": as in training. "int8": 8 bits in the blocks
    # and the attention pooling, with scales by token and by output channel; otherwise as "model"
    precision: Literal["model", "bfloat16", "int8"] = "model"

    @property
    def exact(self) -> bool:
        """Whether the model scores as it is trained."""
        return self == ScoringConfig()

    @property
    def view(self) -> "ScoringConfig":
        """The settings that training must share: patch and text length."""
        return dataclasses.replace(self, precision="model", resolution=None)

    def check(self, model: ModelConfig, key: str = "method.scoring") -> None:
        """Checks the settings against the model that scores; `key` is their path in messages.

        Raises:
            ConfigError: a setting does not fit the model, or would cost more than the model itself.
        """
        own, patch = model.image, self.patch or model.image.patch
        length = min(model.tokenizer.length, model.text.length)
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
        self._check_resolution(model, key)
        if self.text_length is not None and self.text_length > length:
            raise ConfigError(
                f"{key}.text_length = {self.text_length} is more than the {length} tokens that the "
                f"model reads; lower it, or set it to None."
            )

    def _check_resolution(self, model: ModelConfig, key: str) -> None:
        own, patch = model.image, self.patch or model.image.patch
        if self.resolution is None:
            return
        if own.architecture != "vit":
            raise ConfigError(
                f"{key}.resolution = {self.resolution} needs image.architecture = 'vit': a tower "
                f"of architecture '{own.architecture}' reads its own resolution only; set it to "
                "None."
            )
        is_whole = self.resolution * patch % own.resolution == own.resolution % patch == 0
        if self.resolution > own.resolution or not is_whole:
            raise ConfigError(
                f"{key}.resolution = {self.resolution} must be at most image.resolution = "
                f"{own.resolution}, and its patches of {patch} * {self.resolution} / "
                f"{own.resolution} pixels must be whole and cover the picture; choose another, or "
                "None."
            )

    def seen_by(self, model: ModelConfig) -> ModelConfig:
        """The model as it scores: its patch, resolution and dtype; see `embed`."""
        own, patch = model.image, self.patch or model.image.patch
        resolution = self.resolution or own.resolution
        patch = patch * resolution // own.resolution
        return dataclasses.replace(
            model,
            image=dataclasses.replace(own, patch=patch, resolution=resolution),
            dtype="bfloat16" if self.precision == "bfloat16" else model.dtype,
        )


def macs(model: ModelConfig, scoring: ScoringConfig) -> tuple[int, int]:
    """MACs of scoring (one image, one text); see `aced.cost.flops`.

    An int8 MAC counts as one, although a chip may do two of them at a time.
    """
    return flops.macs(scoring.seen_by(model), scoring.text_length)


def embed(
    model: ModelConfig,
    scoring: ScoringConfig,
    params: PyTree,
    image: Images,
    text: Int[Array, "b l"],
) -> Embeddings:
    """Returns the embeddings of paired images and texts, computed as in `scoring`.

    The inputs and `model` are those of training, but images have `scoring.resolution`.
    Differentiable with respect to the parameters unless the precision is int8.

    Raises:
        ConfigError: the new patch does not divide the resolution.
        TypeError: a gradient is taken in int8.
    """
    seen = scoring.seen_by(model)
    image_params = flexi.resize_params(
        params["image"], model.image, seen.image.patch, seen.image.resolution
    )
    text_params, text = _shorter(params["text"], text, model, scoring.text_length)
    params = {**params, "image": image_params, "text": text_params}
    return seen.embed(params, image, text, int8=scoring.precision == "int8")


def embed_mixed(
    model: ModelConfig,
    scoring: ScoringConfig,
    every: int,
    params: PyTree,
    image: Images,
    text: Int[Array, "b l"],
) -> Embeddings:
    """Returns embeddings for training, with one in `every` examples computed as in `scoring`.

    JEST (arXiv 2406.17711) trains half of the batch in this way, and needs at least a quarter. The
    rows are in the order of the batch. Differentiable: computed in the model's own precision.

    Raises:
        ConfigError: `every` does not divide the rows of each device; see `split_every`.
    """
    first, others = split_every((image, text), every)
    scored = embed(model, scoring.view, params, *first)
    full = model.embed(params, *others)
    return full.replace(
        zimg=join_every(scored.zimg, full.zimg, every),
        ztxt=join_every(scored.ztxt, full.ztxt, every),
    )


def split_every(batch: PyTree, every: int) -> tuple[PyTree, PyTree]:
    """Splits a batch [b ...] into the examples i with i % every == 0, and the others.

    No row leaves its device if the batch is sharded by example.

    Raises:
        ConfigError: the rows of each device are not a multiple of `every`.
    """
    examples, shards = jax.tree.leaves(batch)[0].shape[0], data_shards()
    if every < 2 or examples % (every * shards):
        raise ConfigError(
            f"A batch of {examples} examples on {shards} devices cannot be split into one in "
            f"{every} and the others; set method.multi_resolution_every to at least 2, such that "
            "it divides the examples of each device."
        )
    groups = jax.tree.map(lambda x: x.reshape(examples // every, every, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[:, 0], groups)
    others = jax.tree.map(lambda x: x[:, 1:].reshape(-1, *x.shape[2:]), groups)
    return constrain_by_example(first), constrain_by_example(others)


def join_every(first: Array, others: Array, every: int) -> Array:
    """Returns the rows in their original order; the inverse of `split_every`."""
    others = others.reshape(-1, every - 1, *others.shape[1:])
    joined = jnp.concatenate([first[:, None], others], axis=1)
    return constrain_by_example(joined.reshape(-1, *first.shape[1:]))


def _shorter(
    params: PyTree, text: Int[Array, "b l"], model: ModelConfig, length: int | None
) -> tuple[PyTree, Int[Array, "b k"]]:
    """The text tower's parameters and the texts, both cut to `length` tokens."""
    last = text.shape[1] - 1
    if length is None or length > last:
        return params, text
    kept, end = text[:, :length], model.end_of_text
    if end is not None:
        ends = (kept == end).any(axis=1)
        return params, kept.at[:, -1].set(jnp.where(ends, kept[:, -1], end))
    # Keep the last token and its position embedding: the tower pools there. Pooling at the last
    # kept token instead would lose most of the gain from selection, unless trained that way.
    position = params["position"]
    position = position.at[length - 1].set(position[last])
    return params | {"position": position}, kept.at[:, -1].set(text[:, last])
