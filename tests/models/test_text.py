"""What the text tower looks at: causality, padding, pooling, limits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.models.text import TextConfig, TextTower

EOT = 19
SIGLIP = TextConfig(size="mu", vocab_size=20, length=8, depth=2)
CLIP = dataclasses.replace(SIGLIP, causal=True, pool="eot", eot_id=EOT, head_bias=False)
TEXT = jnp.array([[3, 5, 7, EOT, 0, 0, 0, 0], [2, EOT, 0, 0, 0, 0, 0, 0]])


@functools.cache
def build(config, seed=0):
    """The tower as a function of the text alone, and its parameters; built once per config."""
    model = TextTower(config, embed_dim=12)
    params = jax.jit(model.init)(jax.random.key(seed), TEXT)["params"]
    return jax.jit(lambda text: model.apply({"params": params}, text)), params


def test_causal_tower_sees_nothing_after_the_end_of_text():
    encode, _ = build(CLIP)
    other = TEXT.at[0, 4:].set(jnp.array([9, EOT, 11, 4])).at[1, 2:].set(13)
    np.testing.assert_array_equal(encode(TEXT), encode(other))


@pytest.mark.parametrize("position", range(4))
def test_causal_tower_sees_all_up_to_the_end_of_text(position):
    encode, _ = build(CLIP)
    # Changing the end of text itself moves it to a later place, which must show as well.
    other = TEXT.at[0, position].set(15).at[0, 6].set(EOT)
    assert np.abs(encode(TEXT) - encode(other))[0].max() > 1e-4


@pytest.mark.parametrize("position", range(8))
def test_siglip_tower_sees_every_position_padding_included(position):
    encode, _ = build(SIGLIP)
    other = TEXT.at[:, position].set(15)
    assert np.abs(encode(TEXT) - encode(other)).max(axis=1).min() > 1e-4


def test_end_of_text_is_its_first_place():
    # A causal text cut right after its end of text has it in the last place.
    encode, params = build(CLIP)
    last = TextTower(dataclasses.replace(CLIP, pool="last"), embed_dim=12)
    expected = jax.jit(last.apply)({"params": params}, TEXT[:1, :4])
    np.testing.assert_allclose(encode(TEXT)[:1], expected, rtol=1e-5, atol=1e-6)


def test_examples_do_not_see_each_other():
    encode, _ = build(SIGLIP)
    alone = jnp.concatenate([encode(TEXT[:1]), encode(TEXT[1:])])
    np.testing.assert_allclose(encode(TEXT), alone, rtol=1e-5, atol=1e-6)


def test_shorter_texts_take_the_first_positions():
    encode, params = build(SIGLIP)
    shorter = dataclasses.replace(SIGLIP, length=5)
    cut = params | {"position": params["position"][:5]}
    expected = jax.jit(TextTower(shorter, embed_dim=12).apply)({"params": cut}, TEXT[:, :5])
    np.testing.assert_allclose(encode(TEXT[:, :5]), expected, rtol=1e-5, atol=1e-6)


def test_longer_texts_name_both_shapes():
    encode, _ = build(SIGLIP)
    with pytest.raises(ValueError, match=r"8 positions .* \[b, l <= 8\], found \(2, 9\)"):
        encode(jnp.zeros((2, 9), jnp.int32))


def test_unknown_ids_give_nan():
    encode, _ = build(SIGLIP)
    z = encode(TEXT.at[0, 2].set(20))
    assert np.isnan(z[0]).all()
    assert np.isfinite(z[1]).all()


def test_head_bias_is_a_setting():
    assert set(build(SIGLIP)[1]["head"]) == {"kernel", "bias"}
    assert set(build(CLIP)[1]["head"]) == {"kernel"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pool": "eot", "eot_id": 20}, "text.eot_id = 20, which is not in .* = 20"),
        ({"length": 0}, "length must be at least 1"),
        ({"vocab_size": 0}, "vocab_size must be at least 1"),
    ],
)
def test_contradictory_settings_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(SIGLIP, **changes)
