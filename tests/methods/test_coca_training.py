"""CoCa's pretraining step: both losses against the float64 model, and ACID on its own head."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aced import methods
from aced.config import ConfigError, to_config
from aced.cost import flops
from aced.methods.base import StepContext
from aced.methods.coca import CoCaTrainConfig, CoCaTraining
from aced.methods.contrastive_settings import DistillationConfig
from aced.methods.frozen import FrozenConfig
from aced.methods.scoring import ScoringConfig
from aced.models import coca
from aced.optim import state
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.selection import SelectionConfig, select
from tests import cached
from tests.models import coca_by_hand, tiny_coca

B = 32
TX = optax.sgd(0.1)
REFERENCE = cached.model(width=24, resolution=10, length=7)
ACID = {
    "reference": FrozenConfig(model=REFERENCE, scale=5.0),
    "selection": SelectionConfig(filter_ratio=0.75, chunks=2, strata=1, gain=10.0),
}


@pytest.fixture(scope="module", name="batch")
def _batch():
    image, text = tiny_coca.batch(B)
    rng = np.random.default_rng(1)
    other = rng.integers(0, REFERENCE.text.vocab_size, (B, 7), np.int32)
    return {
        "image": np.asarray(image),
        "text": np.asarray(text),
        "id": np.arange(B, dtype=np.int32) + 50,
        "reference/image": np.asarray(image),
        "reference/text": other,
    }


def step(settings, batch):
    method = CoCaTraining(settings)
    params = {"model": tiny_coca.params()}
    frozen = {"reference": REFERENCE.init(jax.random.key(9))}
    start = state.create(params, TX, jax.random.key(1))
    return jax.jit(functools.partial(method.train_step, context=StepContext(TX)))(
        start, frozen, batch
    )


def test_both_losses_are_those_by_hand(batch):
    model = tiny_coca.TINY
    rows = {name: x[:6] for name, x in batch.items()}
    _, metrics = step(CoCaTrainConfig(model=model), rows)
    params = jax.tree.map(np.float64, tiny_coca.params())
    found = [
        coca_by_hand.coca(params, model, np.float64(image) / 127.5 - 1, text.tolist())
        for image, text in zip(rows["image"], rows["text"], strict=True)
    ]
    zimg, ztxt, logits, reals, _ = zip(*found, strict=True)
    words = coca_by_hand.captioning_loss(logits, rows["text"].tolist(), reals)
    scale = float(np.exp(params["t"]))
    # The sum of both directions, weighted by 1, and 2 of the captioning loss.
    both = coca_by_hand.contrastive_loss(np.stack(zimg), np.stack(ztxt), scale)
    np.testing.assert_allclose(metrics["loss/captioning"], words, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/contrastive"], both / 2, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], both + 2 * words, rtol=1e-4)
    np.testing.assert_array_equal(metrics["picks"], rows["id"])


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, ACID], ids=["iid", "acid"])
def test_the_same_step_in_pieces_and_on_eight_devices(batch, changes):
    settings = CoCaTrainConfig(model=tiny_coca.TINY, **changes)
    whole, expected = step(settings, batch)
    in_pieces = dataclasses.replace(
        settings, train_micro_batch=8, score_micro_batch=16 if changes else 0
    )
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        found, metrics = step(in_pieces, meshes.global_batch(batch, mesh))
    np.testing.assert_array_equal(metrics["picks"], expected["picks"])
    for name in ("loss", "loss/contrastive", "loss/captioning"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=2e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), found.params, whole.params
    )


@pytest.mark.slow
def test_acid_chooses_by_the_contrastive_head(batch):
    settings = CoCaTrainConfig(model=tiny_coca.TINY, **ACID)
    _, metrics = step(settings, batch)
    rows = {name: jnp.asarray(x) for name, x in batch.items()}
    learner = coca.forward(
        tiny_coca.TINY, tiny_coca.params(), rows["image"], rows["text"]
    ).embeddings
    reference = REFERENCE.embed(
        REFERENCE.init(jax.random.key(9)),
        rows["reference/image"],
        rows["reference/text"],
    ).replace(scale=jnp.float32(5.0))
    key = jax.random.fold_in(jax.random.key(1), 0)
    ids = select(key, learner, reference, settings.selection, loss="softmax", size=B // 4).ids
    np.testing.assert_array_equal(metrics["picks"], np.sort(ids) + 50)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scoring",
    [ScoringConfig(text_length=4), ScoringConfig(precision="bfloat16"), ScoringConfig(patch=10)],
    ids=["short", "bfloat16", "patch"],
)
def test_cheap_scoring_reads_less_and_trains_on_all(batch, scoring):
    """Scores are those of a model that is given less; the losses are of the whole examples."""
    settings = CoCaTrainConfig(model=tiny_coca.TINY, scoring=scoring, **ACID)
    _, metrics = step(settings, batch)
    rows = {name: x[np.asarray(metrics["picks"]) - 50] for name, x in batch.items()}
    _, expected = step(CoCaTrainConfig(model=tiny_coca.TINY), rows)
    np.testing.assert_allclose(metrics["loss/captioning"], expected["loss/captioning"], rtol=1e-5)
    method = CoCaTraining(settings)
    exact = CoCaTraining(dataclasses.replace(settings, scoring=ScoringConfig()))
    cheaper = method.flops_per_step(8) < exact.flops_per_step(8)
    assert cheaper == (scoring.precision == "model")


def test_flops_are_those_of_the_parts():
    macs = flops.macs_coca(tiny_coca.TINY)
    trained = 6 * 8 * sum(macs)
    assert CoCaTraining(CoCaTrainConfig(model=tiny_coca.TINY)).flops_per_step(8) == trained
    acid = CoCaTraining(CoCaTrainConfig(model=tiny_coca.TINY, **ACID))
    seen = macs.image + macs.generative + macs.contrastive + macs.unimodal
    scored = 2 * 32 * (seen + sum(flops.macs(REFERENCE)))
    assert acid.flops_per_step(8) == trained + scored


@pytest.mark.slow
@pytest.mark.parametrize("left_out", ["contrastive", "captioning"])
def test_a_loss_of_weight_0_is_left_out_and_its_parameters_frozen(batch, left_out):
    """Exactly what the other loss has no gradient of is frozen: nothing decays untrained."""
    settings = CoCaTrainConfig(model=tiny_coca.TINY, **{f"{left_out}_weight": 0.0})
    method, params = CoCaTraining(settings), {"model": tiny_coca.params()}
    start = state.create(params, optax.sgd(1.0), jax.random.key(1))
    rows = {name: x[:8] for name, x in batch.items()}
    train_step = functools.partial(method.train_step, context=StepContext(optax.sgd(1.0)))
    after, metrics = jax.jit(train_step)(start, {}, rows)
    assert [name for name in ("contrastive", "captioning") if f"loss/{name}" in metrics] == [
        name for name in ("contrastive", "captioning") if name != left_out
    ]
    (frozen,) = method.fixed
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, after.params)
    for path, has_moved in jax.tree_util.tree_leaves_with_path(moved):
        name = rules.name_of(path)
        # The keys' bias does not change the attention, so it has no gradient.
        if not name.endswith("/k/bias"):
            assert has_moved == (re.fullmatch(frozen, name) is None), name


def test_flops_of_a_second_batch_are_those_of_its_embeddings():
    """Distillation on examples of its own reads their embeddings, and no words."""
    distils = DistillationConfig(weight=1.0, teachers=("reference",), batch="iid")
    settings = CoCaTrainConfig(model=tiny_coca.TINY, distillation=distils, **ACID)
    macs = flops.macs_coca(tiny_coca.TINY)
    seen = macs.image + macs.generative + macs.contrastive + macs.unimodal
    pair = sum(flops.macs(REFERENCE))
    # The reference has scored the second batch, too, and is not run on it again.
    expected = 6 * 8 * (sum(macs) + seen) + 2 * 32 * (seen + pair)
    assert CoCaTraining(settings).flops_per_step(8) == expected


def test_settings_that_contradict():
    with pytest.raises(ConfigError, match="no bias"):
        CoCaTrainConfig(loss="sigmoid")
    with pytest.raises(ConfigError, match="multi_resolution_every"):
        CoCaTrainConfig(multi_resolution_every=2, scoring=ScoringConfig(text_length=4))
    with pytest.raises(ConfigError, match="must be above 0"):
        CoCaTrainConfig(contrastive_weight=0.0, captioning_weight=0.0)
    with pytest.raises(ConfigError, match="coca_task"):
        CoCaTrainConfig(model=dataclasses.replace(tiny_coca.TINY, classes=3))
    assert methods.parse(to_config(CoCaTrainConfig())) == CoCaTrainConfig()
