"""One step with embeddings that come with the batch, against the same step written out by hand."""

import dataclasses

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError
from aced.cost import flops
from aced.methods.contrastive import Contrastive, prefix_of
from aced.methods.contrastive_settings import ContrastiveConfig
from aced.methods.frozen import FrozenConfig
from aced.methods.scoring import ScoringConfig

B, SIZE = 32, 8
WIDE = {"embed_dim": 40, "resolution": 16, "length": 6, "scale": 5.0}  # all unlike the learner's
CASES = [
    ("i_acid", (), {}),
    ("aced", ("reference",), {}),
    ("aced_iid", ("reference", "large"), {"kd": "sigmoid"}),
    ("aced", ("large",), {"kd": "feature"}),
    ("kd", ("large",), {"loss": "softmax"}),
]


def settings(name, teachers, **changes):
    large = {"large": by_hand.model(**WIDE)} if "large" in teachers else None
    names = teachers or ("reference",)
    return by_hand.settings(name, teachers=large, names=names, **changes)


def cached(config, names):
    """The same with the embeddings of the models `names` in a cache."""

    def one(name, item):
        if name not in names:
            return item
        model = item.model
        return dataclasses.replace(item, cache="c", scale=model.init_scale, bias=model.init_bias)

    teachers = {name: one(name, item) for name, item in config.teachers.items()}
    reference = one("reference", config.reference)
    return dataclasses.replace(config, reference=reference, teachers=teachers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "names"),
    [
        (0, ["reference"]),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (1, ["reference"]),
                (2, ["reference", "large"]),
                (2, ["large"]),  # and the reference runs
                (3, ["reference"]),  # and the teacher runs
                (3, ["large"]),
                (4, ["large"]),
            )
        ),
    ],
)
def test_a_step_with_a_cache_is_the_step_by_hand(case, names):
    name, teachers, changes = CASES[case]
    config = settings(name, teachers, **changes)
    online, method = Contrastive(config), Contrastive(cached(config, names))
    train_state, frozen = by_hand.state_of(online), by_hand.frozen_of(online)
    batch = by_hand.batch_of(online, B)
    size = SIZE if config.selection.filter_ratio else B
    ids, task, distilled, params = by_hand.step(online, train_state, frozen, batch, size)

    batch = dict(batch)
    for key in method.config.frozen.keys() - method.frozen.keys():
        prefix = prefix_of(key)
        seen = by_hand.see(online, key, frozen[key], batch)
        batch |= {f"{prefix}zimg": seen.zimg, f"{prefix}ztxt": seen.ztxt}
        for view in ("image", "text"):  # its pixels and tokens are not there
            batch.pop(f"{prefix}{view}", None)
    kept = {key: frozen[key] for key in method.frozen}
    assert set(kept) == set(online.frozen) - set(names)
    new, metrics = by_hand.jitted(method)(train_state, kept, batch)
    np.testing.assert_array_equal(metrics["picks"], batch["id"][ids])
    np.testing.assert_allclose(metrics["loss/contrastive"], task, rtol=1e-5)
    if config.distillation.weight:
        np.testing.assert_allclose(metrics["loss/distillation"], distilled, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), new.params, params
    )


@pytest.mark.parametrize(("name", "teachers", "changes"), CASES)
def test_cached_models_cost_nothing(name, teachers, changes):
    config = settings(name, teachers, **changes)
    online = Contrastive(config)
    method = Contrastive(cached(config, ("reference", "large")))
    saved = 0
    for key, item in online.frozen.items():
        scores = key == "reference" and config.reference_scores
        # The reference that scores has embedded what is distilled from already.
        saved += (
            2 * sum(flops.macs(item.model)) * (B if scores else (SIZE if config.selects else B))
        )
    size = SIZE if config.selects else B
    assert saved > 0
    assert online.flops_per_step(size) - method.flops_per_step(size) == saved
    assert method.models == {"": config.model}


@pytest.mark.slow
@pytest.mark.parametrize("is_cached", [True, False])
def test_another_scale_and_bias(is_cached):
    """Logits of 2 c - 1 instead of the model's own: the picks and the losses are those."""
    config = settings("aced", ("reference",))
    other = dataclasses.replace(config.reference.model, init_scale=2.0, init_bias=-1.0)
    online = Contrastive(
        dataclasses.replace(config, reference=FrozenConfig(checkpoint="r", model=other))
    )
    frozen = by_hand.frozen_of(online)  # its own scale is 2
    train_state, batch = by_hand.state_of(online), by_hand.batch_of(online, B)
    ids, _, distilled, _ = by_hand.step(online, train_state, frozen, batch, SIZE)
    item = dataclasses.replace(config.reference, scale=2.0, bias=-1.0)
    method = Contrastive(dataclasses.replace(config, reference=item))
    frozen["reference"] |= {"t": jnp.log(30.0), "bias": jnp.float32(3.0)}  # are not read
    if is_cached:
        method = Contrastive(
            dataclasses.replace(config, reference=dataclasses.replace(item, cache="c"))
        )
        seen = by_hand.see(online, "reference", frozen.pop("reference"), batch)
        batch = batch | {"reference/zimg": seen.zimg, "reference/ztxt": seen.ztxt}
    _, metrics = by_hand.jitted(method)(train_state, frozen, batch)
    np.testing.assert_array_equal(metrics["picks"], batch["id"][ids])
    np.testing.assert_allclose(metrics["loss/distillation"], distilled, rtol=1e-5)


def test_sigmoid_losses_need_a_bias():
    clip = FrozenConfig(model=dataclasses.replace(by_hand.model(), init_bias=None))

    def build(name, kd, loss, bias=None):
        config = settings(name, ("reference",), kd=kd, loss=loss)
        return Contrastive(
            dataclasses.replace(config, reference=dataclasses.replace(clip, bias=bias))
        )

    for name, kd, loss in (
        ("h_acid", "softmax", "sigmoid"),  # scores
        ("kd", "sigmoid", "softmax"),  # is distilled from
    ):
        with pytest.raises(ConfigError, match=r"method\.reference has no bias"):
            build(name, kd, loss)
        assert build(name, kd, loss, bias=-5.0).frozen["reference"].bias == -5.0
    for name, kd, loss in (
        ("h_acid", "softmax", "softmax"),
        ("kd", "softmax", "sigmoid"),
        ("kd", "feature", "sigmoid"),
    ):
        assert build(name, kd, loss).frozen["reference"].bias is None


def test_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="reference_scoring is for a reference that runs"):
        ContrastiveConfig(
            reference=FrozenConfig(cache="c"), reference_scoring=ScoringConfig(precision="int8")
        )
    with pytest.raises(ConfigError, match="scale must be above 0"):
        FrozenConfig(scale=-1.0)
