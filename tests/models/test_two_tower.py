"""The whole model: settings against each other; tests/convert compares with other libraries."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError, from_config, to_config
from aced.data.tokenizers import Tokenizer, TokenizerConfig
from aced.models import two_tower
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTower, TwoTowerConfig
from aced.models.vit import ImageConfig

# 30 px are 3 whole patches of 8 and a rest; the towers differ in every number.
IMAGE = ImageConfig(size="mu", patch=8, resolution=30, depth=2, heads=4)
TEXT = TextConfig(size="mu", vocab_size=50, length=10, width=24, mlp=80, depth=2, heads=2)
SIGLIP = TwoTowerConfig(image=IMAGE, text=TEXT)


def clip(activation="quick_gelu"):
    shared = {"activation": activation, "norm_eps": 1e-5}
    image = {"pool": "cls", "pre_norm": True, "patch_bias": False}
    text = {"causal": True, "pool": "eot", "eot_id": 49, "head_bias": False}
    return TwoTowerConfig(
        image=dataclasses.replace(IMAGE, **image, **shared),
        text=dataclasses.replace(TEXT, **text, **shared),
        embed_dim=16,
        init_bias=None,
    )


def batch(b=4, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 49, (b, 10)).astype(np.int32)
    text[np.arange(b), rng.integers(2, 9, b)] = 49  # the end of text
    return jnp.asarray(rng.integers(0, 256, (b, 30, 30, 3), np.uint8)), jnp.asarray(text)


@functools.cache
def init(config):
    return jax.jit(config.init)(jax.random.key(0))


def apply(config, params, *inputs):
    return jax.jit(TwoTower(config).apply)({"params": params}, *inputs)


# --- settings ---


def loss(config, params, image, text):
    e = TwoTower(config).apply({"params": params}, image, text)
    logits = e.scale * e.zimg @ e.ztxt.T + e.bias
    return -jax.nn.log_sigmoid((2 * jnp.eye(len(text)) - 1) * logits).sum(1).mean()


@functools.cache
def gradient(config):
    return jax.jit(jax.grad(lambda p: loss(config, p, *batch())))(init(SIGLIP))


def test_parameters_are_a_plain_tree_with_stacked_layers():
    params = init(SIGLIP)
    assert type(params) is dict
    assert set(params) == {"image", "text", "t", "bias"}
    assert params["image"]["blocks"]["attention"]["q"]["kernel"].shape == (2, 32, 32)
    assert params["text"]["blocks"]["mlp"]["fc1"]["kernel"].shape == (2, 24, 80)
    # Layers start from different numbers.
    first, second = params["image"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert np.abs(first - second).max() > 0.01
    assert set(init(clip())) == {"image", "text", "t"}


def test_temperature_and_bias_start_where_they_are_set():
    config = dataclasses.replace(SIGLIP, init_scale=20.0, init_bias=-7.5)
    e = apply(config, init(config), *batch())
    assert float(e.scale) == pytest.approx(20.0, rel=1e-6)
    assert float(e.bias) == -7.5
    e = apply(clip(), init(clip()), *batch())
    assert float(e.scale) == pytest.approx(10.0, rel=1e-6)
    assert float(e.bias) == 0.0


@pytest.mark.parametrize("config", [SIGLIP, clip()], ids=["siglip", "clip"])
def test_embeddings_are_normalised_and_the_towers_work_alone(config):
    params, (image, text) = init(config), batch()
    e = apply(config, params, image, text)
    for z in (e.zimg, e.ztxt):
        assert z.shape == (4, config.width)
        assert z.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-6)
    model = TwoTower(config)

    @jax.jit
    def alone(image, text):
        zimg = model.apply({"params": params}, image, method="encode_image")
        return zimg, model.apply({"params": params}, text, method="encode_text")

    zimg, ztxt = alone(image, text)
    np.testing.assert_allclose(zimg, e.zimg, atol=1e-6)
    np.testing.assert_allclose(ztxt, e.ztxt, atol=1e-6)


def test_zero_embedding_has_no_nan():
    norm_of_zero = jax.value_and_grad(lambda z: two_tower.l2_normalize(z).sum())
    value, grad = norm_of_zero(jnp.zeros((1, 3)))
    assert float(value) == 0
    assert np.isfinite(grad).all()


@pytest.mark.slow
def test_unrolled_equals_scanned():
    unrolled = dataclasses.replace(SIGLIP, scan=False)
    params, inputs = init(SIGLIP), batch()
    jax.tree.map(np.testing.assert_array_equal, init(unrolled), params)
    ours, expected = (apply(config, params, *inputs) for config in (unrolled, SIGLIP))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        close(a, b)
    jax.tree.map(close, gradient(unrolled), gradient(SIGLIP))
    text = str(jax.jit(TwoTower(unrolled).apply).lower({"params": params}, *inputs).as_text())
    assert "stablehlo.while" not in text


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_the_work_and_not_the_gradient(remat):
    config = dataclasses.replace(SIGLIP, remat=remat)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradient(config), gradient(SIGLIP))

    def products(config):
        grad = jax.grad(lambda p: loss(config, p, *batch()))
        return str(jax.make_jaxpr(grad)(init(SIGLIP))).count("dot_general")

    # Computed again in either tower's block: q, k, v, scores, what they weigh, out, fc1, fc2; with
    # "dots" none of the six that have weights. (A jaxpr holds the body of a scan once.)
    more = products(config) - products(SIGLIP)
    assert 2 <= more <= 4 if remat == "dots" else more >= 2 * 6


@pytest.mark.slow
def test_half_precision_keeps_float32_parameters_and_close_embeddings():
    half = dataclasses.replace(SIGLIP, dtype="bfloat16", remat="dots")
    params = init(half)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    ours, expected = (apply(config, params, *batch()) for config in (half, SIGLIP))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(ours))
    for a, b in ((ours.zimg, expected.zimg), (ours.ztxt, expected.ztxt)):
        assert (a * b).sum(1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1.0, rtol=1e-6)
    grads = jax.eval_shape(jax.grad(lambda p: loss(half, p, *batch())), params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))


def test_jax_may_choose_the_implementation_of_attention():
    params = init(SIGLIP)
    ours = apply(dataclasses.replace(SIGLIP, attention=None), params, *batch())
    np.testing.assert_allclose(ours.zimg, apply(SIGLIP, params, *batch()).zimg, atol=1e-6)


def test_config_survives_the_round_trip():
    for config in (SIGLIP, clip(), two_tower.preset("ACED-F0")):
        assert from_config(TwoTowerConfig, to_config(config)) == config


def test_preset_takes_changes_and_a_tokenizer_of_its_length():
    config = two_tower.preset("CLIP-B/32", dtype="bfloat16")
    assert (config.dtype, config.tokenizer.length, config.text.causal) == ("bfloat16", 77, True)


def test_contradictory_settings_are_refused():
    with pytest.raises(ConfigError, match=r"'cudnn' .* dtype = 'float32'"):
        dataclasses.replace(SIGLIP, attention="cudnn")
    with pytest.raises(ConfigError, match="init_scale must be above 0"):
        dataclasses.replace(SIGLIP, init_scale=0.0)
    with pytest.raises(ConfigError, match="embed_dim must be at least 1, got 0"):
        dataclasses.replace(SIGLIP, embed_dim=0)


def test_tokenizer_that_the_tower_cannot_read_is_refused():
    shapes = Tokenizer(TokenizerConfig(kind="shapes", length=8))
    size = shapes.vocab_size

    def check(**changes):
        text = TextConfig(**({"size": "mu", "length": 8, "vocab_size": size} | changes))
        TwoTowerConfig(image=IMAGE, text=text).check_tokenizer(shapes)

    check()
    check(pool="eot", eot_id=shapes.eos_id)
    with pytest.raises(ConfigError, match=r"tokenizer.length = 8 .* text.length = 7"):
        check(length=7)
    with pytest.raises(ConfigError, match=f"text.vocab_size = {size - 1} .* {size} ids"):
        check(vocab_size=size - 1)
    with pytest.raises(ConfigError, match=f"text.eot_id = {shapes.eos_id + 1}"):
        check(pool="eot", eot_id=shapes.eos_id + 1)
