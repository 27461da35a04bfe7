"""Multiply-adds against published figures, and against what XLA counts in the compiled model."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from aced.cost import flops
from aced.models import presets, two_tower
from aced.models.presets import Size
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTower, TwoTowerConfig
from aced.models.vit import ImageConfig


@pytest.mark.parametrize(
    ("name", "gmacs", "tolerance"),
    [
        ("ACED-F0", 3.30, 0.002),  # arXiv 2411.18674, image + text; the sizes are derived
        ("ACED-F1", 7.14, 0.001),
        ("ACED-F2", 10.29, 0.005),
        ("CLIP-B/32", 14.8 / 2, 0.004),  # open_clip's published GFLOP per pair, two per MAC
        ("CLIP-B/16", 41 / 2, 0.004),
        ("SigLIP-B/16-256", 57.8 / 2, 0.004),
        ("CLIP-L/14", 175 / 2, 0.004),
        ("CLIP-g/14", 581 / 2, 0.004),
    ],
)
def test_published_multiply_adds(name, gmacs, tolerance):
    assert sum(flops.macs(two_tower.preset(name))) / 1e9 == pytest.approx(gmacs, rel=tolerance)


@pytest.mark.parametrize("size", presets.SIZES)
def test_multiply_adds_of_every_size_by_hand(size):
    # A vision transformer's rule of thumb, exact for the weights of the blocks: every weight is
    # used once for every token. Attention scores: q.k and the sum of v, each tokens^2 * width.
    width, depth, mlp, _ = dataclasses.astuple(presets.SIZES[size])
    weights = depth * (4 * width**2 + 2 * width * mlp)
    text = flops.macs_text(TextConfig(size=size), embed_dim=7)
    assert text == 64 * weights + depth * 2 * 64**2 * width + 7 * width
    image = flops.macs_image(ImageConfig(size=size, pool="gap"), embed_dim=None)
    assert image == 256 * (weights + 3 * 16**2 * width) + depth * 2 * 256**2 * width


@pytest.mark.parametrize("pool", ["map", "cls", "gap"])
def test_multiply_adds_are_what_xla_counts(pool):
    # Wide enough that XLA's elementwise operations, which we leave out, are a few percent.
    size = {"width": 128, "mlp": 512, "heads": 2, "depth": 2}
    config = TwoTowerConfig(
        image=ImageConfig(patch=14, resolution=90, pool=pool, **size),
        text=TextConfig(vocab_size=11, length=24, pool="last", **size),
        embed_dim=64,
        scan=False,  # XLA counts the body of a loop once
    )
    model, b = TwoTower(config), 4
    params = jax.eval_shape(config.init, jax.random.key(0))
    inputs = {
        "encode_image": jax.ShapeDtypeStruct((b, 90, 90, 3), jnp.float32),
        "encode_text": jax.ShapeDtypeStruct((b, 24), jnp.int32),
    }
    for (method, x), macs in zip(inputs.items(), flops.macs(config), strict=True):
        run = jax.jit(lambda p, x, method=method: model.apply({"params": p}, x, method=method))
        counted = run.lower(params, x).compile().cost_analysis()["flops"] / 2 / b
        assert 1.0 <= counted / macs < 1.06


def test_step_is_the_sum_of_its_passes():
    # Learner of 10 MACs: trains on 3 (forward 2, backward 4 FLOPs per MAC), scores 15; a
    # reference of 100 MACs sees 15, a teacher of 1000 sees 3.
    assert flops.step_flops([(10, 3)]) == 3 * 10 * 6
    total = flops.step_flops([(10, 3)], [(10, 15), (100, 15), (1000, 3)])
    assert total == 3 * 10 * 6 + 15 * 10 * 2 + 15 * 100 * 2 + 3 * 1000 * 2


def test_jest_costs_four_forward_passes_per_trained_example_without_a_cache():
    # JEST, arXiv 2406.17711: IID is 3 forward passes. f = 0.8, so B = 5 b, with the sub-batch's
    # forward computed again: 2.67 times IID cached, 4.33 with a reference of the learner's size.
    iid = flops.step_flops([(1, 100)])
    assert flops.step_flops([(1, 100)], [(1, 500)]) / iid == pytest.approx(2.667, abs=1e-3)
    uncached = flops.step_flops([(1, 100)], [(1, 500), (1, 500)])
    assert uncached / iid == pytest.approx(4.333, abs=1e-3)


def test_blocks_of_one_token():
    assert flops.macs_blocks(Size(2, 3, 5, 1), tokens=1) == 3 * (4 * 4 + 2 * 2 * 5 + 2 * 2)
