"""Towers can be exported for batches of any size."""

import jax
import jax.numpy as jnp
import pytest
from jax import export

from aced.models.swin_config import SwinConfig
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig

VIT = {"size": "mu", "patch": 8, "resolution": 16}
IMAGES = {
    "map": ImageConfig(pool="map", **VIT),
    "cls": ImageConfig(pool="cls", pre_norm=True, **VIT),
    "gap": ImageConfig(pool="gap", **VIT),
    "swin": ImageConfig(
        architecture="swin",
        resolution=32,
        swin=SwinConfig(window=2, width=8, depths=(2, 2), heads=(1, 2)),
    ),
}


@pytest.mark.parametrize(
    ("image", "pool"), [("map", "last"), ("cls", "eot"), ("gap", "last"), ("swin", "last")]
)
def test_any_batch(image, pool):
    config = TwoTowerConfig(
        image=IMAGES[image],
        text=TextConfig(size="mu", vocab_size=50, length=8, pool=pool, eot_id=1),
        embed_dim=16,
    )
    tower = config.build()
    (b,) = export.symbolic_shape("b")
    side = config.image.resolution
    params = jax.eval_shape(config.init, jax.random.key(0))

    @jax.jit
    def embed(params, image, text):
        return tower.apply({"params": params}, image, text)

    exported = export.export(embed, platforms=("cpu", "cuda", "tpu"))(
        params,
        jax.ShapeDtypeStruct((b, side, side, 3), jnp.uint8),
        jax.ShapeDtypeStruct((b, 8), jnp.int32),
    )
    shapes = {str(x.shape[0]) for x in exported.out_avals if x.ndim == 2}
    assert shapes == {"b"}
