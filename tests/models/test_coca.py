"""CoCa against float64 loops; what each of its tokens sees; settings; sizes."""

import dataclasses
import functools
import math

import coca_by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_coca
from jax.sharding import PartitionSpec as P
from tiny_coca import EOS, TINY

from aced.config import ConfigError, from_config, to_config
from aced.data.tokenizers import Tokenizer, TokenizerConfig
from aced.losses import captioning, contrastive
from aced.models import coca, decoder, presets
from aced.models.coca import CoCa, CoCaConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig

LENGTH = TINY.text.length
# Half of these tests would be the compiler's time.


@functools.cache
def forward(config=TINY, hidden=True):
    """The model as a function of images and texts."""
    params = tiny_coca.params(config)

    def run(image, text):
        return coca.forward(config, params, image, text, hidden=hidden)

    return jax.jit(run)


def by_hand(config, image, text):
    """The oracle's answers for every pair."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), tiny_coca.params(config))
    mean, std = np.array(config.image.mean), np.array(config.image.std)
    pixels = (np.asarray(image) / 255 - mean) / std
    pairs = zip(pixels, np.asarray(text).tolist(), strict=True)
    return list(zip(*(coca_by_hand.coca(p, config, *pair) for pair in pairs), strict=True))


@pytest.mark.parametrize("embed_dim", [None, 12])
def test_forward_and_losses_by_hand(embed_dim):
    config = dataclasses.replace(TINY, embed_dim=embed_dim)
    image, text = tiny_coca.batch()
    out = forward(config)(image, text)
    zimg, ztxt, logits, real, hidden = by_hand(config, image, text)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5)
    close(out.embeddings.zimg, zimg)
    close(out.embeddings.ztxt, ztxt)
    close(coca.logits(out), logits)
    np.testing.assert_array_equal(out.real, real)
    for module in coca.MODULES:
        expected = np.stack([np.stack(one[module]) for one in hidden], axis=1)
        close(out.hidden[module], expected)

    losses = captioning.word_losses(out.words, text, out.real, chunk=5)
    expected = coca_by_hand.captioning_loss(logits, np.asarray(text), real)
    close(losses.cross_entropy, expected)
    # Half of each direction is ours, the sum of both is CoCa's.
    expected = coca_by_hand.contrastive_loss(np.stack(zimg), np.stack(ztxt), 5.0)
    close(2 * contrastive.softmax_loss(out.embeddings), expected)
    close(out.embeddings.scale, 5.0)
    assert out.embeddings.bias == 0


@pytest.mark.slow
def test_hidden_states_are_kept_on_request_only():
    image, text = tiny_coca.batch()
    out, plain = forward()(image, text), forward(hidden=False)(image, text)
    assert plain.hidden is None
    np.testing.assert_allclose(coca.logits(plain), coca.logits(out), rtol=1e-5, atol=1e-5)
    shapes = {module: states.shape for module, states in out.hidden.items()}
    assert shapes == {
        "image": (2, 3, 4, 24),
        "unimodal": (2, 3, LENGTH + 2, 32),
        "multimodal": (2, 3, LENGTH, 32),
    }


@pytest.mark.slow
def test_hidden_states_have_gradients_layer_by_layer():
    image, text = tiny_coca.batch()

    def loss(params, module, layer):
        out = coca.forward(TINY, params, image, text, hidden=True)
        return out.hidden[module][layer].sum()

    first_layer = jax.grad(lambda params: loss(params, "unimodal", 0))
    grads = jax.jit(first_layer)(tiny_coca.params())
    reached = grads["text"]["unimodal"]["mlp"]["fc1"]["kernel"]
    assert np.any(reached[0])
    assert not np.any(reached[1])
    assert not any(np.any(x) for x in jax.tree.leaves(grads["image"]))


@pytest.mark.slow
def test_scoring_does_without_the_multimodal_half():
    image, text = tiny_coca.batch()
    params = tiny_coca.params()
    del (params := {**params, "text": dict(params["text"])})["text"]["multimodal"]
    apply = jax.jit(
        functools.partial(CoCa(TINY).apply, {"params": params}),
        static_argnames="method",
    )
    expected = forward()(image, text).embeddings
    found = apply(image, text, method="embed")
    for name in ("zimg", "ztxt", "scale", "bias"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    np.testing.assert_allclose(apply(image, method="encode_image"), expected.zimg, atol=1e-6)
    np.testing.assert_allclose(apply(text, method="encode_text"), expected.ztxt, atol=1e-6)


@pytest.mark.slow
def test_scoring_in_int8_stays_near():
    image, text = tiny_coca.batch()
    exact, params = forward()(image, text).embeddings, tiny_coca.params()
    apply = functools.partial(CoCa(TINY, int8=True).apply, {"params": params}, method="embed")
    found = jax.jit(apply)(image, text)
    for a, b in ((exact.zimg, found.zimg), (exact.ztxt, found.ztxt)):
        assert ((a * b).sum(-1) > 0.99).all()
        assert not np.array_equal(a, b)


# --- what sees what ---


@pytest.mark.parametrize("place", range(LENGTH))
def test_decoder_is_causal(place):
    image, text = tiny_coca.batch()
    row = 1  # without end of text: all words are real
    other = text.at[row, place].set((text[row, place] - EOS) % 16 + EOS + 1)
    a, b = forward()(image, text), forward()(image, other)
    changed = np.abs(np.asarray(coca.logits(a) - coca.logits(b))).max(axis=-1)
    assert not changed[[0, 2]].any()
    assert not changed[row, : place + 1].any()  # logits i are made of the words before i
    assert (changed[row, place + 1 :] > 1e-4).all()
    assert np.abs(a.embeddings.ztxt - b.embeddings.ztxt)[row].max() > 1e-4
    np.testing.assert_array_equal(a.embeddings.zimg, b.embeddings.zimg)


@pytest.mark.parametrize("place", range(3, LENGTH))
def test_padding_reaches_neither_cls_nor_the_loss(place):
    image, text = tiny_coca.batch()  # the first text ends at 2
    for value in (EOS, 9):
        other = text.at[0, place].set(value)
        a, b = forward()(image, text), forward()(image, other)
        np.testing.assert_array_equal(a.embeddings.ztxt, b.embeddings.ztxt)
        np.testing.assert_array_equal(a.real, b.real)
        np.testing.assert_array_equal(coca.logits(a)[0, :3], coca.logits(b)[0, :3])
        np.testing.assert_array_equal(
            a.hidden["unimodal"][:, 0, -1], b.hidden["unimodal"][:, 0, -1]
        )


def test_cls_sees_every_real_word_and_the_end_of_text():
    image, text = tiny_coca.batch()
    ztxt = forward()(image, text).embeddings.ztxt
    for place in range(3):
        other = text.at[0, place].set(9).at[0, 2].set(EOS if place < 2 else 9)
        found = forward()(image, other).embeddings.ztxt
        assert np.abs(found - ztxt)[0].max() > 1e-4


def test_padding_cut_off_is_padding_unseen():
    image, text = tiny_coca.batch()
    whole, cut = forward()(image, text), forward()(image[:1], text[:1, :4])
    np.testing.assert_allclose(cut.embeddings.ztxt, whole.embeddings.ztxt[:1], atol=1e-5)
    np.testing.assert_allclose(coca.logits(cut), coca.logits(whole)[:1, :4], atol=1e-4)


def test_image_affects_all_words_but_not_the_text_embedding():
    image, text = tiny_coca.batch()
    a, b = forward()(image, text), forward()(image.at[:, 2, 3].set(255 - image[:, 2, 3]), text)
    assert (np.abs(coca.logits(a) - coca.logits(b)).max(axis=-1) > 1e-4).all()
    np.testing.assert_array_equal(a.embeddings.ztxt, b.embeddings.ztxt)
    assert (np.abs(a.embeddings.zimg - b.embeddings.zimg).max(axis=-1) > 1e-4).all()


def test_unknown_ids_give_nan():
    image, text = tiny_coca.batch()
    out = forward()(image, text.at[1, 2].set(TINY.text.vocab_size))
    assert np.isnan(out.embeddings.ztxt[1]).all()
    assert np.isfinite(out.embeddings.ztxt[0]).all()


def test_longer_texts_name_both_shapes():
    with pytest.raises(ValueError, match=r"7 positions .* \[b, l <= 7\], found \(3, 8\)"):
        forward()(tiny_coca.batch()[0], jnp.zeros((3, 8), jnp.int32))


def test_real_words_end_with_the_first_end_of_text():
    text = jnp.array([[5, 3, 0, 3, 9], [3, 3, 3, 3, 3], [1, 2, 4, 5, 6], [1, 2, 4, 5, 3]])
    expected = [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0], [1] * 5, [1] * 5]
    np.testing.assert_array_equal(decoder.real_words(text, 3), np.array(expected, bool))


# --- settings that change no number ---


@functools.cache
def gradient():
    """Both losses of parameters and pairs, and their gradient by the parameters."""

    def loss(params, image, text):
        out = coca.forward(TINY, params, image, text)
        caption = captioning.word_losses(out.words, text, out.real, chunk=6).cross_entropy
        return caption + contrastive.softmax_loss(out.embeddings)

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.slow
def test_unrolled_is_scanned():
    image, text = tiny_coca.batch()
    params = tiny_coca.params()
    config = dataclasses.replace(TINY, scan=False)
    run = jax.jit(functools.partial(coca.forward, config, hidden=True))
    found, expected = run(params, image, text), forward()(image, text)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_sharded_is_unsharded():
    params = tiny_coca.params()
    expected_value, expected = gradient()(params, *tiny_coca.batch(b=8))
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params = jax.device_put(params, rules.shardings(params, mesh))
        pairs = jax.device_put(tiny_coca.batch(b=8), meshes.by_example(mesh))
        value, found = gradient()(params, *pairs)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)
    assert all(np.any(x) for x in jax.tree.leaves(expected))  # every parameter is used


@pytest.mark.slow
def test_half_precision_keeps_parameters_and_embeddings_float32():
    half = dataclasses.replace(TINY, dtype="bfloat16")
    shapes = jax.eval_shape(half.init, jax.random.key(0))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(shapes))
    image, text = tiny_coca.batch()
    params = tiny_coca.params()
    run = jax.jit(functools.partial(coca.forward, half, hidden=True))
    out = run(params, image, text)
    exact = forward()(image, text)
    assert out.words.states.dtype == out.hidden["multimodal"].dtype == jnp.bfloat16
    assert out.embeddings.zimg.dtype == coca.logits(out).dtype == jnp.float32
    error = np.linalg.norm(out.embeddings.ztxt - exact.embeddings.ztxt)
    assert 1e-5 < error < 0.2  # not float32 in disguise


# --- sizes ---


@functools.cache
def shapes_of(name):
    config = coca.preset(name)
    return jax.eval_shape(config.init, jax.random.key(0))


def count(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ("name", "image", "text"), [("CoCa-Base", 86e6, 297e6), ("CoCa-Large", 303e6, 484e6)]
)
def test_published_parameter_counts(name, image, text):
    """arXiv 2205.01917, table 1: the image encoder, and the decoder with both of its tables.

    The two poolers (4.9 and 8.7 millions) are in neither of the published numbers.
    """
    shapes = shapes_of(name)
    assert count(shapes["image"]) == pytest.approx(image, rel=0.01)
    assert count(shapes["text"]) == pytest.approx(text, rel=0.01)
    assert count(shapes["pooler"]) > 0.01 * text


def test_parameter_count_of_the_full_model():
    """Published as 1B and 1.1B, which is what these numbers are if cut after one decimal."""
    shapes = shapes_of("CoCa")
    assert count(shapes["image"]) == pytest.approx(1.0e9, rel=0.013)
    assert count(shapes["text"]) == pytest.approx(1.18e9, rel=0.001)
    # With one of its two tables of 64,000 words: 1.09B, and 2.1B in all, as published.
    one_table = count(shapes["text"]) - 64000 * 1408
    assert one_table == pytest.approx(1.1e9, rel=0.01)
    assert one_table + count(shapes["image"]) == pytest.approx(2.1e9, rel=0.01)


@pytest.mark.parametrize(
    ("name", "layers", "width"), [("coca_tiny12", (12, 6, 6), 512), ("coca_tiny6", (6, 3, 3), 384)]
)
def test_students(name, layers, width):
    config = coca.preset(name, dtype="bfloat16")
    assert config.dtype == "bfloat16"
    assert (config.image.dims.depth, config.text.unimodal, config.text.multimodal) == layers
    assert config.image.dims.width == config.text.dims.width == config.width == width


@pytest.mark.parametrize("name", presets.COCA)
def test_every_parameter_has_its_place(name):
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=4, tensor=2))
    shapes = shapes_of(name)
    placed = rules.shardings(shapes, mesh)
    by_name = {rules.name_of(p): s.spec for p, s in jax.tree.leaves_with_path(placed)}
    assert by_name["text/softmax/kernel"] == P("fsdp", "tensor")
    assert by_name["text/token"] == P(None, "fsdp")
    assert by_name["text/multimodal/cross/k/kernel"] == P(None, "fsdp", "tensor")
    assert by_name["pooler/generative/attention/out/kernel"] == P("tensor", "fsdp")
    assert by_name["text/start"] == by_name["text/cls"] == P(None)
    parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)), shapes, placed)
    assert sum(jax.tree.leaves(parts)) < 0.2 * count(shapes)


# --- settings ---


def test_config_round_trip():
    assert from_config(CoCaConfig, to_config(TINY)) == TINY
    assert coca.preset("CoCa-Base").image == CoCaConfig().image
    assert coca.preset("CoCa-Base").text == CoCaConfig().text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ImageConfig()}, r"with a class token\), not 'map'"),
        ({"queries": -1}, "queries must be at least 0"),
        ({"pooler_heads": 3}, "pooler_heads = 3 must be a divisor .* 32"),
        ({"embed_dim": 0}, "embed_dim must be at least 1, got 0"),
        ({"init_scale": 0.0}, "init_scale must be above 0"),
        ({"head_hidden": -1}, "head_hidden must be at least 0, got -1"),
        ({"head_hidden": 8}, "head_hidden are settings of the head, .* set classes, too"),
        ({"attention": "cudnn"}, "half precision only"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unimodal": 0}, "unimodal must be at least 1"),
        ({"eos_id": 20}, "text.eos_id = 20 is not in a vocabulary of text.vocab_size = 20"),
        ({"heads": 5}, "text.width = 32 cannot be shared by text.heads = 5"),
    ],
)
def test_contradictory_decoders_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(TINY.text, **changes)


def test_two_towers_need_a_pooling():
    with pytest.raises(ConfigError, match=r"image\.pool = 'none' gives no embedding"):
        TwoTowerConfig(image=TINY.image)


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"CoCa-Base, .* got 'CoCa-Huge'"):
        coca.preset("CoCa-Huge")


def test_tokenizers_that_do_not_fit_are_refused():
    tokenizer = Tokenizer(TokenizerConfig(kind="shapes", length=7))
    fitting = dataclasses.replace(TINY.text, vocab_size=tokenizer.vocab_size, eos_id=1)
    dataclasses.replace(TINY, text=fitting).check_tokenizer(tokenizer)
    for changes, message in (
        ({"length": 6}, "tokenizer.length = 7 is more than .* text.length = 6"),
        ({"vocab_size": 20}, "text.vocab_size = 20 is less than"),
        ({"eos_id": 2}, "text.eos_id = 2, but the tokenizer ends them with 1"),
    ):
        config = dataclasses.replace(TINY, text=dataclasses.replace(fitting, **changes))
        with pytest.raises(ConfigError, match=message):
            config.check_tokenizer(tokenizer)
