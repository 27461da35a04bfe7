"""Losses over the words of a text: captioning (CoCa, arXiv 2205.01917) and its distillation.

With a vocabulary of 64k the logits of a batch are far larger than the model: 2 GB for 128 texts of
64 tokens. They are computed and reduced in chunks of tokens, and recomputed for the gradient, so at
most one chunk of logits exists at any time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from aced.config import ConfigError
from aced.outputs import Words, word_logits
from aced.parallel.mesh import EXAMPLES, data_shards

CHUNK = 2048  # tokens on a device at a time: 0.5 GB of float32 logits of 64k words


@struct.dataclass
class WordLosses:
    """Averages over the real words of the whole batch."""

    cross_entropy: Float[Array, ""]
    accuracy: Float[Array, ""]  # share of the words with the largest logit
    words: Float[Array, ""]  # number of words averaged over
    kl: Float[Array, ""] | None  # None without a teacher


def word_losses(
    student: Words,
    text: Int[Array, "b l"],
    real: Bool[Array, "b l"],
    teacher: Words | None = None,
    *,
    temperature: float = 2.0,
    chunk: int = CHUNK,
) -> WordLosses:
    """Next-word cross-entropy under teacher forcing and, with a teacher, the divergence from it.

    Args:
        student: states, each made from the preceding words, and the softmax kernel.
        text: the words to predict. An id outside the vocabulary gives NaN.
        real: mask of the words that are not padding.
        teacher: another model's states for the same texts; its width may differ, and it gets no
            gradient. `kl` is KL(teacher || student) of both softmaxes at `temperature` T, times
            T^2, so that its gradient does not shrink with T (arXiv 1503.02531, section 2).
        temperature: T; only used with a teacher.
        chunk: tokens per device whose logits exist at a time.

    The softmax kernel is gathered once, and its gradient is summed over the devices once.

    Raises:
        ConfigError: chunk or temperature is not positive, or the devices cannot share the examples.
    """
    if chunk < 1 or temperature <= 0:
        raise ConfigError(
            f"chunk = {chunk} must be at least 1, and temperature = {temperature} positive."
        )
    models = {"student": student}
    if teacher is not None:
        models["teacher"] = teacher.frozen()

    def of_chunk(kernels: dict[str, Array], rows: dict[str, Array]) -> dict[str, Array]:
        scores = word_logits(rows["student"], kernels["student"])  # [c v]
        out = {"cross_entropy": cross_entropy(scores, rows["text"])}
        out["accuracy"] = (scores.argmax(axis=-1) == rows["text"]).astype(jnp.float32)
        if teacher is not None:
            targets = word_logits(rows["teacher"], kernels["teacher"])
            out["kl"] = divergence(scores, targets, temperature)
        return {name: jnp.where(rows["real"], x, 0).sum() for name, x in out.items()}

    kernels = {name: model.kernel for name, model in models.items()}
    states = {name: model.states for name, model in models.items()}
    sums = _sum_over_chunks(of_chunk, kernels, {**states, "text": text, "real": real}, chunk)
    words = real.sum(dtype=jnp.float32)
    means = {name: x / jnp.maximum(words, 1) for name, x in sums.items()}
    return WordLosses(words=words, **{"kl": None, **means})


def cross_entropy(scores: Float[Array, "c v"], words: Int[Array, " c"]) -> Float[Array, " c"]:
    """`-log softmax(scores)` of the words; NaN for ids outside the vocabulary."""
    vocabulary = jnp.arange(scores.shape[-1])
    # A masked sum instead of indexing: it needs no gather if the vocabulary is sharded.
    of_word = jnp.where(words[:, None] == vocabulary, scores, 0).sum(axis=-1)
    known = (words >= 0) & (words < scores.shape[-1])
    return jnp.where(known, jax.nn.logsumexp(scores, axis=-1) - of_word, jnp.nan)


def divergence(
    student: Float[Array, "*c v"], teacher: Float[Array, "*c v"], temperature: float
) -> Float[Array, "*c"]:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))` of logits."""
    log_p = jax.nn.log_softmax(teacher / temperature)
    log_q = jax.nn.log_softmax(student / temperature)
    return temperature**2 * (jnp.exp(log_p) * (log_p - log_q)).sum(axis=-1)


def _sum_over_chunks(
    function: Callable[[PyTree, PyTree], PyTree], shared: PyTree, rows: PyTree, chunk: int
) -> PyTree:
    """The sum over all tokens of `function(shared, rows [c ...])`, which is a tree of scalars.

    `function` sums over its c <= `chunk` rows, and rows of zeros must add nothing. `rows` is a tree
    of arrays [b l ...], sharded by example if there is a mesh.
    """

    def on_shard(shared: PyTree, rows: PyTree) -> PyTree:
        shape = jax.tree.leaves(rows)[0].shape
        tokens = shape[0] * shape[1]
        chunks = -(-tokens // chunk)
        size = -(-tokens // chunks)

        def cut(x: Array) -> Array:  # [b l ...] -> [chunks size ...], padded with zeros
            x = x.reshape(tokens, *x.shape[2:])
            x = jnp.pad(x, [(0, chunks * size - tokens)] + [(0, 0)] * (x.ndim - 1))
            return x.reshape(chunks, size, *x.shape[1:])

        # The loop already prevents CSE of the two passes.
        sum_chunk = jax.checkpoint(lambda piece: function(shared, piece), prevent_cse=False)
        sums = jax.lax.map(sum_chunk, jax.tree.map(cut, rows))
        return jax.tree.map(lambda x: x.sum(axis=0), sums)

    shards = data_shards()
    if shards == 1:
        return on_shard(shared, rows)
    examples = jax.tree.leaves(rows)[0].shape[0]
    if examples % shards:
        raise ConfigError(
            f"A batch of {examples} examples cannot be shared equally by {shards} devices; make it "
            "a multiple of their number."
        )

    def sum_of_shards(shared: PyTree, rows: PyTree) -> PyTree:
        # With this cast the kernel's gradient is summed over the devices once, here, and not for
        # every chunk.
        shared = jax.lax.pcast(shared, EXAMPLES, to="varying")
        return jax.lax.psum(on_shard(shared, rows), EXAMPLES)

    # The axis `tensor` is left to the compiler.
    return jax.shard_map(
        sum_of_shards,
        in_specs=(PartitionSpec(), PartitionSpec(EXAMPLES)),
        out_specs=PartitionSpec(),
        axis_names=set(EXAMPLES),
    )(shared, rows)
