"""The size table against transformers' parameter counts, by shapes only."""

import importlib.util
import json
import math
import pathlib

import jax
import pytest

from aced.config import ConfigError
from aced.models import presets, two_tower
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig
from tests.convert import foreign

GOLDEN = pathlib.Path(__file__).parent / "golden"
COUNTS = json.loads((GOLDEN / "counts.json").read_text(encoding="utf-8"))


def counts(config):
    shapes = jax.eval_shape(config.init, jax.random.key(0))
    assert all(leaf.dtype == "float32" for leaf in jax.tree.leaves(shapes))

    def count(tree):
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))

    return {"image": count(shapes["image"]), "text": count(shapes["text"]), "total": count(shapes)}


@pytest.mark.parametrize("size", presets.SIZES)
def test_parameters_of_every_size_as_in_siglip(size):
    config = TwoTowerConfig(image=ImageConfig(size=size), text=TextConfig(size=size))
    assert counts(config) == COUNTS["siglip"][size]


@pytest.mark.parametrize("size", presets.SIZES)
def test_parameters_of_every_size_as_in_clip(size):
    clip = presets.MODELS["CLIP-B/16"]
    config = TwoTowerConfig(
        image=ImageConfig(**(clip["image"] | {"size": size})),
        text=TextConfig(**(clip["text"] | {"size": size})),
        embed_dim=512,
        init_bias=None,
    )
    assert counts(config) == COUNTS["clip"][size]


@pytest.mark.parametrize("name", presets.MODELS)
def test_parameters_of_named_models(name):
    assert counts(two_tower.preset(name)) == COUNTS["models"][name]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_golden_counts_match_transformers():
    foreign.transformers()
    spec = importlib.util.spec_from_file_location("make_counts", GOLDEN / "make_counts.py")
    make_counts = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_counts)
    assert make_counts.make() == COUNTS


def test_overrides_replace_single_numbers():
    dims = ImageConfig(size="Ti", depth=3, mlp=100).dims
    assert dims == presets.Size(width=192, depth=3, mlp=100, heads=3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageConfig(size="XXL"), "size must be 'mu' or 'Ti'"),
        (lambda: TextConfig(size="XXL"), "size must be 'mu' or 'Ti'"),
        (lambda: TextConfig(width=100, heads=3), "text.width = 100 .* text.heads = 3"),
        (lambda: ImageConfig(depth=0), "depth must be at least 1, got 0"),
        (lambda: two_tower.preset("ACED-F9"), "model must be one of ACED-F0"),
    ],
)
def test_contradictory_sizes_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
