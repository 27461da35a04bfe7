"""More text positions for a SigLIP: the same embeddings, by our own towers."""

import foreign
import jax
import numpy as np
import ours
import pytest

from aced.config import ConfigError
from aced.convert import positions, tokenizer_build, tokenizer_write
from aced.models.two_tower import TwoTower


def spread(ids, total, pad_id):
    """Ids for the extended model: the last of the old ones at the end, padding in between."""
    out = np.full((len(ids), total), pad_id, ids.dtype)
    out[:, : ids.shape[1] - 1], out[:, -1] = ids[:, :-1], ids[:, -1]
    return out


def embed(model, ids):
    apply = jax.jit(TwoTower(model.config).apply, static_argnames="method")
    return np.asarray(apply({"params": model.params}, ids, method="encode_text"))


@pytest.fixture(scope="module")
def models():
    model = ours.siglip()
    return model, positions.extend(model, 64)


def test_embeddings_are_the_same_and_new_positions_have_no_effect(models):
    model, extended = models
    tokenizer = tokenizer_write.opened(model)
    ids = tokenizer(["a red circle", "", "two blue squares " * 9, "a circle " * 7 + "red"])
    longer = spread(ids, 64, tokenizer.pad_id)
    other = longer.copy()
    other[:, 15:-1] = np.random.default_rng(0).integers(0, 30, (len(ids), 48))
    expected = embed(model, ids)
    found, changed = np.split(embed(extended, np.concatenate([longer, other])), 2)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert np.abs(expected - expected[::-1]).max() > 0.01  # texts differ
    np.testing.assert_array_equal(changed, found)


def test_width_grows_by_a_channel_a_head(models):
    model, extended = models
    text = extended.config.text
    assert (text.dims.width, text.dims.heads, text.length) == (26, 2, 64)
    assert text.dims.mlp == model.config.text.dims.mlp
    assert extended.config.width == model.config.width
    assert extended.config.tokenizer.length == 64


@pytest.mark.parametrize("tokenizer", ["shapes", "sentencepiece", "siglip", "canonical"])
def test_written_tokenizer_gives_the_ids_in_their_new_places(tokenizer):
    model = ours.siglip(tokenizer)
    mine = tokenizer_write.opened(model)
    extended = positions.extend(model, 64)
    fast = tokenizer_build.build(model.config.tokenizer, model.tokenizer)
    tokenizer_build.end_texts(fast, mine.eos_id, pad_id=mine.pad_id, unread=48)
    fast.enable_truncation(64)
    fast.enable_padding(length=64, pad_id=mine.pad_id)
    theirs = np.array([fast.encode(caption).ids for caption in foreign.CAPTIONS])
    assert theirs.shape == (len(foreign.CAPTIONS), extended.config.text.length)
    read = np.concatenate([theirs[:, :15], theirs[:, -1:]], axis=1)
    np.testing.assert_array_equal(read, mine(foreign.CAPTIONS))


def test_other_text_towers_are_refused():
    for model, total in ((ours.clip(), 64), (ours.siglip(), 16)):
        with pytest.raises(ConfigError, match=r"text.causal = False and text.pool = 'last'"):
            positions.extend(model, total)
