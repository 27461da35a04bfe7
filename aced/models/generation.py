"""Text generation by CoCa: greedy, beam search or sampling.

Compiled once per shape of images. Keys and values of text and image are cached, so that a word
costs the forward pass of one token. Generation stops when all texts have ended; a text is padded
with the end of text.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int, Key, PyTree

from aced.bounds import NonNegativeFloat, PositiveFloat, PositiveFraction, PositiveInt
from aced.config import Checked, ConfigError
from aced.models.coca import CoCa, CoCaConfig
from aced.models.decoder import real_words
from aced.models.vit import Images
from aced.parallel import rules


@dataclasses.dataclass(frozen=True)
class GenerationConfig(Checked):
    """How texts are written."""

    # "greedy": the likeliest word, one after the other; "beam": the likeliest text that beam
    # search finds; "top_p": random words among the likeliest (arXiv 1904.09751)
    kind: Literal["greedy", "beam", "top_p"] = "beam"
    # Maximum number of words, including a prompt and the end of text; None: all positions of the
    # decoder.
    length: PositiveInt | None = None
    beams: PositiveInt = 4  # "beam": texts that are kept for each image
    # "beam": alpha of ((5 + words) / 6)^alpha, by which log-probabilities are divided (arXiv
    # 1609.08144, equation 14). 0: no penalty, which favours short texts
    length_penalty: NonNegativeFloat = 0.6
    # "top_p": the choice is among the fewest words that together have this probability
    top_p: PositiveFraction = 0.9
    temperature: PositiveFloat = 1.0  # "top_p": divides the logits, before anything else


@struct.dataclass
class Texts:
    """One text per image."""

    ids: Int[Array, "b l"]  # without the prompt; padded with the end of text
    words: Int[Array, " b"]  # number of words, including the end of text if it was reached
    # Log-probability of the words under the model, before top_p and temperature. "beam": divided
    # by the length penalty.
    score: Float[Array, " b"]


class _Line(NamedTuple):
    """The state of generating one text per image."""

    ids: Array  # [b l]
    words: Array  # [b]
    score: Array  # [b]
    ended: Array  # [b]
    logits: Array  # [b v] of the next word
    caches: PyTree
    at: Array  # length of the unfinished texts


class _Beams(NamedTuple):
    """w unfinished texts of each image, and the best finished one."""

    ids: Array  # [b w l]
    score: Array  # [b w] log-probability
    best_ids: Array  # [b l]
    best_words: Array  # [b]
    best_score: Array  # [b] with length penalty
    logits: Array  # [b*w v]
    caches: PyTree
    at: Array


@functools.partial(jax.jit, static_argnames=("config", "settings"))
def generate(
    config: CoCaConfig,
    settings: GenerationConfig,
    params: PyTree,
    image: Images,
    key: Key[Array, ""] | None = None,
    prompt: Int[Array, "b l"] | None = None,
) -> Texts:
    """Returns a text for each image, which continues its prompt, if there is one.

    Args:
        config: the model.
        settings: how words are chosen.
        params: parameters of the model.
        image: as for `CoCa.encode_image`.
        key: key for "top_p". The same key, images and batch size give the same texts.
        prompt: the beginning of each text, up to its end of text, or in full.

    Raises:
        ConfigError: the length exceeds the decoder's positions, or sampling has no key.
    """
    length = longest(config, settings)
    if (settings.kind == "top_p") != (key is not None):
        raise ConfigError("kind = 'top_p' needs a key, and only that kind does.")
    model = functools.partial(CoCa(config).apply, {"params": _ready(params, config.dtype)})
    write = _beam_search if settings.kind == "beam" else _one_by_one
    eos = config.text.eos_id
    if prompt is None:
        return write(model, settings, eos, length, image, key, None)
    given = _Prompt(prompt[:, :length], (real_words(prompt, eos) & (prompt != eos)).sum(axis=1))
    texts = write(model, settings, eos, length, image, key, given)
    place = given.words[:, None] + jnp.arange(length)
    ids = jnp.take_along_axis(texts.ids, place, axis=1, mode="fill", fill_value=eos)
    return texts.replace(ids=ids, words=texts.words - jnp.minimum(given.words, length))


class _Prompt(NamedTuple):
    """The first words of each text."""

    ids: Array  # [b l]
    words: Array  # [b]

    def force(self, logits: Float[Array, "n v"], at: Int[Array, ""]) -> Float[Array, "n v"]:
        """The logits of word `at`: only the prompt's word can follow where there is one.

        Its log-probability is then 0, so that a prompt does not count in the score. The n / b texts
        of an image are adjacent.
        """
        texts = len(logits) // len(self.words)
        place = jnp.minimum(at, self.ids.shape[1] - 1)
        word = jnp.repeat(self.ids[:, place], texts)[:, None]
        only = jnp.where(jnp.arange(logits.shape[1]) == word, 0.0, -jnp.inf)
        return jnp.where(jnp.repeat(at < self.words, texts)[:, None], only, logits)


def longest(config: CoCaConfig, settings: GenerationConfig) -> int:
    """Returns the maximum number of words in a text, including the end of text.

    Raises:
        ConfigError: the length exceeds the decoder's positions.
    """
    length = settings.length or config.text.length
    if length > config.text.length:
        raise ConfigError(
            f"length = {length} is more than the decoder's text.length = {config.text.length} "
            "positions; lower the one or raise the other."
        )
    return length


def _one_by_one(model, settings, eos, length, image, key, prompt) -> Texts:
    """Greedy and top-p."""
    logits, caches = model(image, length, method="begin")
    b = len(logits)

    def choose(line: _Line) -> _Line:
        """Appends the next word."""
        if prompt is not None:
            line = line._replace(logits=prompt.force(line.logits, line.at))
        if settings.kind == "greedy":
            word = line.logits.argmax(axis=-1)
        else:
            step_key = jax.random.fold_in(key, line.at)
            word = sample(step_key, line.logits, settings.top_p, settings.temperature)
        word = jnp.where(line.ended, eos, word.astype(jnp.int32))
        log_p = jax.nn.log_softmax(line.logits)
        word_log_p = jnp.take_along_axis(log_p, word[:, None], axis=1)[:, 0]
        return line._replace(
            ids=_written(line.ids, word, line.at),
            words=line.words + ~line.ended,
            score=line.score + jnp.where(line.ended, 0, word_log_p),
            ended=line.ended | (word == eos),
            at=line.at + 1,
        )

    def go_on(line: _Line) -> _Line:
        word = line.ids[:, line.at - 1]
        logits, caches = model(word, line.at, line.caches, method="advance")
        return choose(line._replace(logits=logits, caches=caches))

    line = _Line(
        ids=jnp.full((b, length), eos, jnp.int32),
        words=jnp.zeros(b, jnp.int32),
        score=jnp.zeros(b),
        ended=jnp.zeros(b, bool),
        logits=logits,
        caches=caches,
        at=jnp.int32(0),
    )
    line = jax.lax.while_loop(
        lambda line: (line.at < length) & ~line.ended.all(), go_on, choose(line)
    )
    return Texts(line.ids, line.words, line.score)


def sample(
    key: Key[Array, ""], logits: Float[Array, "b v"], top_p: float, temperature: float
) -> Int[Array, " b"]:
    """Samples a word per row from the fewest words with a total probability of `top_p`."""
    order = jnp.argsort(-logits, axis=-1)
    ordered = jnp.take_along_axis(logits, order, axis=-1) / temperature
    p = jax.nn.softmax(ordered)
    likelier = jnp.cumsum(p, axis=-1) - p  # total probability of likelier words
    rank = jax.random.categorical(key, jnp.where(likelier < top_p, ordered, -jnp.inf))
    return jnp.take_along_axis(order, rank[:, None], axis=-1)[:, 0]


def _beam_search(model, settings, eos, length, image, key, prompt) -> Texts:
    """Keeps the `settings.beams` likeliest unfinished texts, and the best finished one.

    A text's score only falls as it gets longer, and the penalty is at most that of the full length.
    Generation stops when no unfinished text can beat the best finished one under these bounds,
    which does not change the result.
    """
    width = settings.beams
    logits, caches = model(image, length, method="begin")
    b, vocabulary = logits.shape
    image_cache = caches["multimodal"].image  # shared by all texts of an image
    caches = _map_texts(caches, lambda x: jnp.repeat(x, width, axis=1))

    def penalty(words: Array | int) -> Array | float:
        if prompt is not None:
            words = jnp.maximum(words - prompt.words, 1)
        return ((5 + words) / 6) ** settings.length_penalty

    def keep_best(beams: _Beams, ids: Array, score: Array, words: Array) -> _Beams:
        """Replaces the best finished texts by texts [b l] with a better score."""
        better = score > beams.best_score
        return beams._replace(
            best_ids=jnp.where(better[:, None], ids, beams.best_ids),
            best_words=jnp.where(better, words, beams.best_words),
            best_score=jnp.where(better, score, beams.best_score),
        )

    def choose(beams: _Beams) -> _Beams:
        """Considers ending each text here, and continues with the likeliest others."""
        logits = beams.logits if prompt is None else prompt.force(beams.logits, beams.at)
        log_p = jax.nn.log_softmax(logits).reshape(b, width, vocabulary)
        score = beams.score[..., None] + log_p
        words = beams.at + 1
        # Texts are padded with the end of text, so a text that ends here has it already.
        first = score[..., eos].argmax(axis=1)
        best = jnp.take_along_axis(score[..., eos], first[:, None], axis=1)[:, 0]
        ending = jnp.take_along_axis(beams.ids, first[:, None, None], axis=1)[:, 0]
        beams = keep_best(beams, ending, best / penalty(words), words)

        score = score.at[..., eos].set(-jnp.inf).reshape(b, -1)
        score, place = jax.lax.top_k(score, width)
        parent, word = place // vocabulary, place % vocabulary
        ids = jnp.take_along_axis(beams.ids, parent[..., None], axis=1)
        return beams._replace(
            ids=_written(ids, word, beams.at),
            score=score,
            caches=_map_texts(beams.caches, functools.partial(_gather_parents, parent)),
            at=words,
        )

    def go_on(beams: _Beams) -> _Beams:
        word = beams.ids[..., beams.at - 1].reshape(-1)
        caches = dict(beams.caches)
        caches["multimodal"] = caches["multimodal"].replace(image=image_cache)
        logits, caches = model(word, beams.at, caches, method="advance")
        return choose(beams._replace(logits=logits, caches=_map_texts(caches, lambda x: x)))

    def unfinished(beams: _Beams) -> Array:
        could_be = beams.score[:, 0] / penalty(length)
        return (beams.at < length) & (could_be > beams.best_score).any()

    ids = jnp.full((b, width, length), eos, jnp.int32)
    beams = _Beams(
        ids=ids,
        # At first all texts of an image are equal, so only one counts.
        score=jnp.where(jnp.arange(width) == 0, 0.0, jnp.full((b, width), -jnp.inf)),
        best_ids=ids[:, 0],
        best_words=jnp.zeros(b, jnp.int32),
        best_score=jnp.full(b, -jnp.inf),
        logits=jnp.repeat(logits, width, axis=0),
        caches=caches,
        at=jnp.int32(0),
    )
    beams = jax.lax.while_loop(unfinished, go_on, choose(beams))
    # The likeliest unfinished text, cut at the full length; after an early stop it is not better.
    cut = beams.score[:, 0] / penalty(length)
    beams = keep_best(beams, beams.ids[:, 0], cut, jnp.full(b, length))
    return Texts(beams.best_ids, beams.best_words, beams.best_score)


def _ready(params: PyTree, dtype: str) -> PyTree:
    """Casts kernels to the compute dtype and gathers all parameters, once instead of per word."""

    def cast(path: tuple, x: Array) -> Array:
        return x.astype(dtype) if rules.name_of(path).endswith("kernel") else x

    return rules.gathered(jax.tree.map_with_path(cast, params))


def _gather_parents(parent: Int[Array, "b w"], x: Float[Array, "layers n *m"]) -> Array:
    """Caches of the texts' parents; gathered by image, to avoid communication of devices."""
    by_image = x.reshape(len(x), *parent.shape, *x.shape[2:])
    take = functools.partial(jnp.take, axis=1, mode="clip")
    return jax.vmap(take, in_axes=(1, 0), out_axes=1)(by_image, parent).reshape(x.shape)


def _written(ids: Int[Array, "*b l"], word: Int[Array, "*b"], at: Array) -> Int[Array, "*b l"]:
    """The texts with `word` at position `at`."""
    return jax.lax.dynamic_update_slice_in_dim(ids, word[..., None], at, axis=-1)


def _map_texts(caches: PyTree, function: Callable) -> PyTree:
    """Applies `function` to the caches of texts, and drops those of images."""
    return {
        name: cache.replace(text=jax.tree.map(function, cache.text), image=None)
        for name, cache in caches.items()
    }
