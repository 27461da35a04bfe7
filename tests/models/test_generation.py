"""Written texts against the tree of all texts, whose probabilities come from passes without cache.

The vocabulary has three words and the end of text, and texts have four words at most, so that every
text there is can be looked at.
"""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_coca

from aced.config import ConfigError
from aced.models import coca, generation
from aced.models.coca import CoCa
from aced.models.generation import GenerationConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig

EOS, WORDS, LENGTH, B = tiny_coca.EOS, (0, 1, 2), 4, 8
SMALL = dataclasses.replace(
    tiny_coca.TINY,
    text=dataclasses.replace(tiny_coca.TINY.text, vocab_size=4, length=LENGTH),
)
NARROW = GenerationConfig(beams=2, length_penalty=1.0)


@functools.cache
def setting():
    """Images, and parameters by which a word depends on the image and on the words before it."""
    params = tiny_coca.params(SMALL, seed=14)
    multimodal = dict(params["text"]["multimodal"])
    for name, factor in (("attention", 4), ("cross", 8)):
        out = jax.tree.map(lambda x, factor=factor: factor * x, multimodal[name]["out"])
        multimodal[name] = multimodal[name] | {"out": out}
    params = {**params, "text": params["text"] | {"multimodal": multimodal}}
    image = np.random.default_rng(7).normal(scale=2, size=(B, 10, 10, 3))
    return params, jnp.asarray(image, jnp.float32)


@functools.cache
def generate(how):
    run = functools.partial(generation.generate, SMALL, how)
    return jax.jit(run)


def written(how, key=None):
    out = generate(how)(*setting(), key)
    return np.asarray(out.ids), np.asarray(out.words), np.asarray(out.score)


@functools.cache
def tree():
    """For each image, the log-probabilities of the next word after every beginning of a text."""
    params, image = setting()
    texts = list(itertools.product(WORDS, repeat=LENGTH))
    forward = jax.jit(lambda text: coca.logits(coca.forward(SMALL, params, image, text)))
    out = [{} for _ in range(B)]
    for text in texts:
        logits = np.asarray(forward(jnp.tile(jnp.array(text, jnp.int32), (B, 1))), np.float64)
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for known, rows in zip(out, log_p, strict=True):
            known.update({text[:i]: row for i, row in enumerate(rows)})
    return out


def all_texts():
    """Every text: some words and the end, or the full length without one."""
    for words in range(LENGTH):
        yield from ((*text, EOS) for text in itertools.product(WORDS, repeat=words))
    yield from itertools.product(WORDS, repeat=LENGTH)


def log_p(known, text):
    return sum(known[text[:i]][word] for i, word in enumerate(text))


def penalised(score, words, alpha):
    return score / ((5 + words) / 6) ** alpha


def filled(text):
    return [*text, *[EOS] * (LENGTH - len(text))]


@pytest.mark.slow
def test_greedy_is_the_likeliest_word_of_passes_without_cache():
    ids, words, score = written(GenerationConfig(kind="greedy"))
    for i, known in enumerate(tree()):
        text = ()
        while len(text) < LENGTH and EOS not in text:
            text = (*text, int(known[text].argmax()))
        assert ids[i].tolist() == filled(text)
        assert words[i] == len(text)
        np.testing.assert_allclose(score[i], log_p(known, text), rtol=1e-4)
    assert len(set(words.tolist())) > 1  # some end, at several places


@pytest.mark.slow
def test_a_beam_as_wide_as_the_tree_finds_the_best_of_all_texts():
    alpha = 1.5
    widest = len(WORDS) ** (LENGTH - 1)
    ids, words, score = written(GenerationConfig(beams=widest, length_penalty=alpha))
    for i, known in enumerate(tree()):
        scores = {text: penalised(log_p(known, text), len(text), alpha) for text in all_texts()}
        best = max(scores, key=scores.get)
        assert ids[i].tolist() == filled(best)
        assert words[i] == len(best)
        np.testing.assert_allclose(score[i], scores[best], rtol=1e-4)
    assert len(set(words.tolist())) > 1


def test_a_narrow_beam_is_beam_search_without_cache_and_without_early_stop():
    width, alpha = NARROW.beams, NARROW.length_penalty
    ids, _, score = written(NARROW)
    for i, known in enumerate(tree()):
        beams, ended = {(): 0.0}, {}
        for words in range(1, LENGTH + 1):
            longer = {(*t, w): s + known[t][w] for t, s in beams.items() for w in (*WORDS, EOS)}
            ended |= {t: penalised(s, words, alpha) for t, s in longer.items() if t[-1] == EOS}
            going_on = sorted((t for t in longer if t[-1] != EOS), key=longer.get, reverse=True)
            beams = {t: longer[t] for t in going_on[:width]}
        ended |= {t: penalised(s, LENGTH, alpha) for t, s in beams.items()}
        best = max(ended, key=ended.get)
        assert ids[i].tolist() == filled(best)
        np.testing.assert_allclose(score[i], ended[best], rtol=1e-4)


@pytest.mark.slow
def test_a_prompt_is_continued():
    """Of any length, none included: what follows is the likeliest that can follow it."""
    rng, known = np.random.default_rng(0), tree()
    given = [tuple(rng.integers(0, 3, i % LENGTH).tolist()) for i in range(B)]
    prompt = jnp.array([filled(words) for words in given], jnp.int32)
    params, image = setting()
    alpha, widest = 1.5, len(WORDS) ** (LENGTH - 1)
    for how in (
        GenerationConfig(kind="greedy"),
        GenerationConfig(beams=widest, length_penalty=alpha),
    ):
        out = generation.generate(SMALL, how, params, image, prompt=prompt)
        for i, (log_ps, start) in enumerate(zip(known, given, strict=True)):

            def score(text, start=start, log_ps=log_ps):
                return log_p(log_ps, text) - log_p(log_ps, start)

            if how.kind == "greedy":
                best = start
                while len(best) < LENGTH and EOS not in best:
                    best = (*best, int(log_ps[best].argmax()))
                expected = score(best)
            else:
                follow = [text for text in all_texts() if text[: len(start)] == start]
                follow = [text for text in follow if len(text) > len(start)]
                scores = {t: penalised(score(t), len(t) - len(start), alpha) for t in follow}
                best = max(scores, key=scores.get)
                expected = scores[best]
            answer = best[len(start) :]
            assert out.ids[i].tolist() == filled(answer)
            assert out.words[i] == len(answer)
            np.testing.assert_allclose(out.score[i], expected, rtol=1e-4, atol=1e-5)


def truncated(log_p, top_p, temperature):
    """The distribution that top-p draws from, by hand."""
    p = np.exp(log_p / temperature)
    p /= p.sum()
    out, total = np.zeros_like(p), 0.0
    for word in np.argsort(-p):
        if total < top_p:
            out[word] = p[word]
        total += p[word]
    return out / out.sum()


@pytest.mark.slow
def test_sampled_texts_have_the_frequencies_of_the_truncated_distribution():
    top_p, temperature = 0.8, 1.3
    how = GenerationConfig(kind="top_p", length=2, top_p=top_p, temperature=temperature)
    params, image = setting()
    known, draws = tree()[0], 4000
    many = jnp.tile(image[:1], (draws, 1, 1, 1))
    out = generate(how)(params, many, jax.random.key(0))
    texts = [tuple(ids[:words]) for ids, words in zip(out.ids.tolist(), out.words, strict=True)]
    first = truncated(known[()], top_p, temperature)
    expected = {(EOS,): first[EOS]}
    for word in WORDS:
        for following, p in enumerate(truncated(known[(word,)], top_p, temperature)):
            expected[(word, following)] = first[word] * p
    assert math.isclose(sum(expected.values()), 1)
    assert set(texts) <= {text for text, p in expected.items() if p > 0}
    for text, p in expected.items():
        assert abs(texts.count(text) - draws * p) <= 4.5 * math.sqrt(draws * p * (1 - p)) + 1e-9
    # Scores are of the model itself, not of what was drawn from.
    scores = [log_p(known, text) for text in texts]
    np.testing.assert_allclose(out.score, scores, rtol=1e-4, atol=1e-5)
    same, other = (generate(how)(params, many, jax.random.key(seed)).ids for seed in (0, 1))
    np.testing.assert_array_equal(same, out.ids)
    assert (other != out.ids).any()


def test_sample_keeps_the_word_that_crosses_the_limit():
    p = np.array([[0.1, 0.5, 0.15, 0.25]])
    logits = jnp.asarray(np.tile(np.log(p), (2000, 1)), jnp.float32)
    limits = {0.3: {1}, 0.49: {1}, 0.51: {1, 3}, 0.76: {1, 2, 3}, 1.0: {0, 1, 2, 3}}
    for top_p, words in limits.items():
        found = generation.sample(jax.random.key(0), logits, top_p, 1.0)
        assert set(found.tolist()) == words


@pytest.mark.parametrize("how", [GenerationConfig(kind="greedy"), NARROW], ids=lambda how: how.kind)
def test_writing_stops_when_all_texts_have_ended(how, monkeypatch):
    """Counted are the passes of a model that ends its texts with the third word."""
    passes = []
    original = CoCa.advance

    def counted(self, word, at, caches):
        jax.debug.callback(lambda: passes.append(1))
        logits, caches = original(self, word, at, caches)
        return logits.at[:, EOS].add(jnp.where(at == 2, 50, -50)), caches

    monkeypatch.setattr(CoCa, "advance", counted)
    params, image = setting()
    run = functools.partial(generation.generate, dataclasses.replace(SMALL, init_scale=2.0), how)
    out = jax.jit(run)(params, image)  # anew, with the counter in it
    jax.effects_barrier()
    assert out.words.max() == 3
    assert len(passes) == 2


@pytest.mark.slow
def test_sharded_is_unsharded():
    expected = written(NARROW)
    params, image = setting()
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, rules.shardings(params, mesh))
        out = generate(NARROW)(params, jax.device_put(image, meshes.by_example(mesh)))
    np.testing.assert_array_equal(out.ids, expected[0])
    np.testing.assert_allclose(out.score, expected[2], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"beams": 0}, "beams must be at least 1"),
        ({"length_penalty": -1.0}, "length_penalty must be at least 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**changes)


def test_texts_longer_than_the_decoder_and_missing_keys_are_refused():
    with pytest.raises(ConfigError, match=r"length = 5 is more than .* text.length = 4"):
        written(GenerationConfig(length=5))
    with pytest.raises(ConfigError, match="'top_p' needs a key"):
        written(GenerationConfig(kind="top_p"))
    with pytest.raises(ConfigError, match="'top_p' needs a key"):
        written(GenerationConfig(kind="greedy"), jax.random.key(0))
