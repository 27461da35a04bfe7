"""Scoring ahead against a plain loop, by hand; what it reads, costs and refuses."""

import dataclasses

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aced.config import ConfigError
from aced.data.batch_spec import View
from aced.data.picks import AHEAD, CANDIDATES
from aced.data.sources import DataConfig
from aced.data.tokenizers import TokenizerConfig
from aced.methods.base import StepContext
from aced.methods.coca import CoCaTrainConfig, CoCaTraining
from aced.methods.contrastive import Contrastive
from aced.methods.contrastive_settings import ContrastiveConfig
from aced.methods.frozen import FrozenConfig
from aced.optim import state
from aced.selection import SelectionConfig
from configs import smoke
from tests.models import tiny_coca

B, SIZE, STEPS = 32, 8, 2


def super_batch(number, method):
    """Other pictures for the same texts, and other ids, in every super-batch."""
    batch = by_hand.batch_of(method, B)
    image = jnp.roll(batch["image"], 5 * number, axis=0)
    return batch | {"image": image, "id": batch["id"] + 1000 * number}


def plain_loop(method, train_state, frozen, super_batches, ahead):
    """Yields (ids trained on, parameters after the step) of each step."""
    own, config = method.config.model, method.config

    def choose(params, number):
        batch = super_batches[number]
        learner = by_hand.embed(own, params["model"], batch["image"], batch["text"])
        seen = by_hand.see(method, "reference", frozen["reference"], batch)
        signed = [(1, learner.logits64), (-1, seen.logits64)]
        state = train_state.replace(step=number)
        chosen = by_hand.choose(state, signed, config.selection, config.loss, B, SIZE)
        return np.sort(chosen)

    params = train_state.params
    waiting = [choose(params, number) for number in range(ahead)]
    for step in range(STEPS):
        rows = waiting.pop(0)
        waiting.append(choose(params, step + ahead))
        batch = jax.tree.map(lambda x: x[rows], super_batches[step])  # noqa: B023
        state = train_state.replace(params=params)
        *_, params = by_hand.step(method, state, frozen, batch, SIZE)
        yield batch["id"], params


@pytest.mark.parametrize("ahead", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_steps_equal_a_plain_loop(ahead):
    method = Contrastive(by_hand.settings("aced", score_ahead=ahead))
    train_state, frozen = by_hand.state_of(method), by_hand.frozen_of(method)
    memory = method.init_memory(train_state.params, SIZE)
    train_state = train_state.replace(step=jnp.int32(0), method=memory)
    super_batches = [super_batch(number, method) for number in range(STEPS + ahead)]
    expected = plain_loop(method, train_state, frozen, super_batches, ahead)

    score_first, step = jax.jit(method.score_first), by_hand.jitted(method)
    for number in range(ahead):
        candidates = super_batches[number]
        train_state = score_first(train_state, frozen, candidates, jnp.int32(number))
    for number, (ids, params) in enumerate(expected):
        rows, scored_ids = train_state.method[0]
        batch = jax.tree.map(lambda x: x[rows], super_batches[number])  # noqa: B023
        np.testing.assert_array_equal(batch["id"], scored_ids)
        later = super_batches[number + ahead]
        batch |= {f"{CANDIDATES}{name}": x for name, x in later.items()}
        train_state, metrics = step(train_state, frozen, batch)
        np.testing.assert_array_equal(metrics["picks"], ids)
        np.testing.assert_array_equal(metrics[AHEAD], train_state.method[-1])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            train_state.params,
            params,
        )
        trained = np.asarray(batch["is_noisy"]).mean()
        np.testing.assert_allclose(metrics["selection/noisy_share"], trained)
        scored = np.asarray(later["is_noisy"]).mean()
        np.testing.assert_allclose(metrics["selection/noisy_share_super_batch"], scored)


def streams(name="aced", **changes):
    changes = {"score_ahead": 1, "scoring": {"resolution": 16}} | changes
    method = Contrastive(by_hand.settings(name, **changes))
    return method, method.streams(DataConfig(), B)


def test_the_picks_are_read_in_full_and_the_candidates_small():
    reference = by_hand.model(resolution=48, length=6, scale=20.0)
    method, found = streams(reference=reference, reference_scoring={"resolution": 24})
    assert set(found) == {"", CANDIDATES}
    picks, candidates = found[""], found[CANDIDATES]
    assert (picks.rows, picks.picked_from, picks.ahead) == (SIZE, B, 0)
    assert (candidates.rows, candidates.picked_from, candidates.ahead) == (B, None, 1)
    views = picks.views
    assert views == {"": View.of(method.config.model), "reference/": View.of(reference)}
    assert {name: view.resolution for name, view in candidates.views.items()} == {
        "": 16,
        "reference/": 24,
    }
    assert candidates.shapes()["image"][0] == (16, 16, 3)


def test_candidates_are_read_for_what_scores_and_nothing_else():
    alone = {"score_ahead": 1, "scoring": {}}
    _, found = streams("i_acid", **alone, reference=by_hand.model(resolution=16, patch=8))
    assert list(found[CANDIDATES].views) == [""]  # the learner does not score
    assert found[CANDIDATES].shapes()["image"][0] == (16, 16, 3)
    assert list(found[""].views) == [""]

    def cached(name):
        item = FrozenConfig(cache="embeddings", model=by_hand.model())
        settings = by_hand.settings(name, score_ahead=1).with_frozen({"reference": item})
        return Contrastive(settings).streams(DataConfig(), B)

    found = cached("i_acid")
    assert not found[CANDIDATES].views  # no picture is decoded
    assert list(found[CANDIDATES].caches) == ["reference/"]
    assert not found[""].caches
    found = cached("aced")
    assert list(found[""].caches) == ["reference/"]  # it teaches


def test_a_reference_in_the_loss_reads_the_picks_in_full():
    """It runs, so no cache is read, although the distillation reads its embeddings again."""
    _, found = streams("aced", loss="softmax", reference_shift=True)
    assert list(found[""].views) == ["", "reference/"]
    assert not found[""].caches


def test_flops_include_what_is_scored_before_the_first_step():
    ahead, _ = streams("h_acid", score_ahead=2, scoring={})
    plain = Contrastive(by_hand.settings("h_acid"))
    assert ahead.flops_per_step(SIZE) == plain.flops_per_step(SIZE)
    scorers = sum(scorer.macs(B) for scorer in plain.scorers.values())
    assert (plain.flops_before(SIZE), ahead.flops_before(SIZE)) == (0, 2 * 2 * scorers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": SelectionConfig(filter_ratio=0.0)}, "score_ahead = 1 needs selection"),
        ({"score_ahead": 3}, "at most 2, got 3"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    selection = {"selection": SelectionConfig(score="hard_learner")}
    with pytest.raises(ConfigError, match=message):
        ContrastiveConfig(**{"score_ahead": 1} | selection | changes)


def test_distillation_on_other_candidates_is_refused():
    with pytest.raises(ConfigError, match="batch = 'iid' distils on candidates that were not"):
        by_hand.settings("aced_iid", score_ahead=1)


@pytest.mark.parametrize("name", ["scoring", "reference_scoring"])
def test_small_pictures_need_score_ahead(name):
    with pytest.raises(ConfigError, match=rf"method\.{name}\.resolution needs method.score_ahead"):
        by_hand.settings("h_acid", **{name: {"resolution": 16}})


def test_a_coca_trains_on_the_picks_and_scores_the_candidates():
    selection = SelectionConfig(score="hard_learner", filter_ratio=0.75, chunks=2, strata=1)
    tokenizer = TokenizerConfig(length=tiny_coca.TINY.text.length)
    model = dataclasses.replace(tiny_coca.TINY, tokenizer=tokenizer)
    method = CoCaTraining(CoCaTrainConfig(model=model, score_ahead=1, selection=selection))
    tx = optax.sgd(0.1)

    def step(params, key, batch):
        memory = method.init_memory(params, SIZE)
        train_state = state.create(params, tx, key, method=memory)
        return method.train_step(train_state, {}, batch, StepContext(tx))

    batch = {
        f"{prefix}{name}": jax.ShapeDtypeStruct((stream.rows, *shape), dtype)
        for prefix, stream in method.streams(DataConfig(), B).items()
        for name, (shape, dtype) in stream.shapes().items()
    }
    assert batch["image"].shape[0] == SIZE
    assert batch[f"{CANDIDATES}image"].shape[0] == B
    key = jax.eval_shape(jax.random.key, 0)
    params = jax.eval_shape(method.init_params, key)
    new_state, metrics = jax.eval_shape(step, params, key, batch)
    assert metrics["picks"].shape == (SIZE,)
    assert metrics[AHEAD].shape == (2, SIZE)
    assert new_state.method.shape == (1, 2, SIZE)
    assert "loss/captioning" in metrics


@pytest.mark.parametrize("name", ["cabs_dm", "cabs_fm"])
def test_candidates_of_a_selection_by_concepts_are_captions_alone(name):
    settings = by_hand.settings(name, concepts=smoke.CONCEPTS, score_ahead=1)
    found = Contrastive(settings).streams(DataConfig(), B)
    assert set(found[CANDIDATES].shapes()) == {"id", "concepts"}
    assert "concepts" not in found[""].shapes()
