"""OPTIMA's step: what a pull is, what it is worth, and who gets gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aced import methods
from aced.config import ConfigError, to_config
from aced.cost import flops
from aced.methods import bandit, coca_task
from aced.methods.bandit import BanditConfig
from aced.methods.base import StepContext
from aced.methods.frozen import TrainedCoCaConfig
from aced.methods.optima import MODULES, LayerWeights, Optima, OptimaConfig, student
from aced.models import coca
from aced.optim import optimizer, state
from aced.parallel import mesh as meshes
from tests.models import coca_by_hand, tiny_coca

B = 16
TEACHER = dataclasses.replace(
    tiny_coca.TINY,
    classes=4,
    image=dataclasses.replace(tiny_coca.TINY.image, depth=4),
    text=dataclasses.replace(tiny_coca.TINY.text, unimodal=4, multimodal=4),
)
# Image tokens and text as the teacher's; narrower, and with half of the layers.
STUDENT = dataclasses.replace(
    tiny_coca.TINY,
    image=dataclasses.replace(tiny_coca.TINY.image, width=12),
    text=dataclasses.replace(tiny_coca.TINY.text, width=16),
)
TX = optax.sgd(1e-3)


def config(teacher=TEACHER, own=STUDENT, **changes):
    changes = {"pull_steps": 2} | changes
    return OptimaConfig(
        model=student(own, teacher), teacher=TrainedCoCaConfig(model=teacher), **changes
    )


def batch(seed=0, teacher=TEACHER):
    image, text = tiny_coca.batch(B, seed, teacher)
    label = np.random.default_rng(seed).integers(0, 4, B, np.int32)
    rows = {"image": image, "text": text, "label": jnp.asarray(label), "id": jnp.arange(B)}
    return rows | ({"second/image": image[::-1]} if teacher.pictures == 2 else {})


@functools.cache
def programs(settings):
    """The method, and its compiled functions, which tests of the same settings share.

    They are the parameters that are not the model's, the step, and the losses of every module.
    """
    method = Optima(settings)

    def others(key):
        return {name: x for name, x in method.init_params(key).items() if name != "model"}

    return (
        method,
        jax.jit(others),
        jax.jit(functools.partial(method.train_step, context=StepContext(TX))),
        jax.jit(lambda *args: method._compare(*args)[2].means()),
    )


class Trial:
    """A method that takes steps; `params` are away from the special values of `init`."""

    def __init__(self, settings):
        self.method, init, self.jitted, self._losses = programs(settings)
        # Copies of the dicts, which a test may change.
        teacher = tiny_coca.params(settings.teacher.model, seed=5)
        self.teacher = {"teacher": jax.tree.map(jnp.asarray, teacher)}
        params = init(jax.random.key(3)) | {"model": tiny_coca.params(settings.model, seed=1)}
        memory = self.method.init_memory(params, B)
        self.state = state.create(params, TX, jax.random.key(1), method=memory)

    def replicate(self, mesh):
        """As a run starts, so that the second step is the first one's program."""
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.state, self.teacher = jax.device_put((self.state, self.teacher), everywhere)

    def step(self, rows):
        self.state, metrics = self.jitted(self.state, self.teacher, rows)
        return metrics

    def module_losses(self, params, rows):
        """Of every module, from the parts."""
        return self._losses(params, self.teacher["teacher"], rows)


def steps_of(settings, count):
    """The trial, the states before each step, and the steps' metrics."""
    trial = Trial(settings)
    before, metrics = [], []
    for i in range(count):
        before.append(trial.state)
        metrics.append(trial.step(batch(i)))
    return trial, before, metrics


@pytest.fixture(scope="module", name="played")
def _played():
    return steps_of(config(), 9)


@pytest.mark.slow
def test_pulls_are_of_two_steps_and_every_arm_is_tried_first(played):
    trial, _, metrics = played
    arms = [int(m["bandit/arm"]) for m in metrics]
    assert arms[:6] == [0, 0, 1, 1, 2, 2]
    assert arms[6] == arms[7]
    for m in metrics:
        on = [float(m[f"bandit/played/{module}"]) for module in MODULES]
        assert on == [float(i == m["bandit/arm"]) for i in range(3)]
    # No arm is another program.
    assert trial.jitted._cache_size() == 1


def check_rewards(played, modules):
    """Replayed by hand: parameters of the pull's first step and of now, on the batch of now."""
    trial, before, metrics = played
    settings = trial.method.config.bandit
    known = bandit.init(3)
    for t in range(2, len(metrics), 2):
        old, new = before[t - 2].params, before[t].params
        a, b = (np.float64(trial.module_losses(params, batch(t))) for params in (old, new))
        arm = int(metrics[t - 1]["bandit/arm"])
        fall = ((a - b) / a)[modules(arm)].mean()
        known, reward = bandit.normalise(known, jnp.float32(fall), settings)
        np.testing.assert_allclose(metrics[t]["bandit/reward"], reward, rtol=2e-3, atol=2e-4)
        known = bandit.update(known, jnp.int32(arm), reward, settings)
        mean, width = bandit.posterior(known, settings)
        for i, module in enumerate(MODULES):
            np.testing.assert_allclose(
                metrics[t][f"bandit/mean/{module}"], mean[i], rtol=2e-3, atol=2e-4
            )
            np.testing.assert_allclose(metrics[t][f"bandit/width/{module}"], width[i], rtol=1e-6)
        key = jax.random.fold_in(before[t].key, t)
        chosen = bandit.choose(before[t].method.bandit, key, settings)
        if t < 6:  # in the warm-up nothing depends on rewards
            assert metrics[t]["bandit/arm"] == chosen + 1
    # Between, nothing of it changes.
    assert metrics[3]["bandit/reward"] == metrics[2]["bandit/reward"]


def test_reward_is_the_decrease_of_all_losses_on_the_next_batch(played):
    check_rewards(played, lambda arm: slice(None))


@pytest.mark.slow
def test_a_reward_of_the_played_module_alone():
    check_rewards(steps_of(config(reward="played"), 5), lambda arm: [arm])


@pytest.mark.slow
def test_without_layerwise_losses_there_is_no_reward_of_what_was_played():
    _, _, metrics = steps_of(config(reward="played", arms="none"), 3)
    assert metrics[2]["bandit/reward"] == 0


def test_only_what_is_played_moves_its_projections(played):
    trial, before, metrics = played
    for t in range(8):
        arm = MODULES[int(metrics[t]["bandit/arm"])]
        a, b = (before[i].params["projections"] for i in (t, t + 1))
        moved = [m for m in MODULES if not np.array_equal(a[m]["kernel"], b[m]["kernel"])]
        assert moved == [arm]
    del trial


@pytest.mark.slow
def test_the_loss_is_its_parts(played):
    trial, before, metrics = played
    rows, params = batch(0), before[0].params
    compare = jax.jit(trial.method._compare)
    said, taught, errors = compare(params, trial.teacher["teacher"], rows)
    real = coca.real_words(rows["text"], tiny_coca.EOS)
    found = coca_task.losses(said, rows, real, taught, temperature=2.0)
    layers = errors.means()
    for i, module in enumerate(MODULES):
        np.testing.assert_allclose(metrics[0][f"loss/{module}"], layers[i], rtol=1e-5)
    expected = found.task + found.kl + 10 * layers[0]  # the image encoder is played first
    np.testing.assert_allclose(metrics[0]["loss"], expected, rtol=1e-5)


def test_hidden_states_are_those_by_hand():
    """The whole chain for one example in float64: states of both models, projections, MSE."""
    trial = Trial(config())
    rows, method = batch(0), trial.method
    losses = trial.module_losses(trial.state.params, rows)
    to64 = functools.partial(jax.tree.map, np.float64)
    projections = to64(trial.state.params["projections"])
    models = (
        (to64(trial.state.params["model"]), method.config.model),
        (to64(trial.teacher["teacher"]), TEACHER),
    )
    each = {module: [] for module in MODULES}
    for image, text in zip(np.asarray(rows["image"]), np.asarray(rows["text"]), strict=True):
        pixels = np.float64(image) / 127.5 - 1
        real, hidden = [], []
        for params, model in models:
            found = coca_by_hand.coca(params, model, pixels, text.tolist())
            hidden.append(found[4])
            real = np.array(found[3])
        seen = {
            "image": slice(None),
            "unimodal": np.array([True, *real, False]),  # the last is [CLS]
            "multimodal": np.array([True, *real[:-1]]),
        }
        for module in MODULES:
            for k, layer in enumerate(hidden[0][module]):
                p = projections[module]
                mapped = layer @ p["kernel"][k] + p["bias"][k]
                error = np.mean((mapped - hidden[1][module][2 * k + 1]) ** 2, axis=-1)
                each[module].extend(error[seen[module]])
    np.testing.assert_allclose(losses, [np.mean(each[m]) for m in MODULES], rtol=2e-4)


@pytest.mark.slow
def test_a_module_of_another_scale_has_the_same_reward():
    """The teacher's image states ten times as large, and the projections onto them.

    All inputs of its blocks are normalised, so its outputs stay the same.
    """
    weights = LayerWeights(image=0.0)
    plain, large = (Trial(config(arms="all", layer_weights=weights, pull_steps=1)) for _ in "ab")
    image = large.teacher["teacher"]["image"]
    blocks = image["blocks"]
    for name, part in (("patch", image), ("position", image), ("out", None), ("fc2", None)):
        part = part or blocks[{"out": "attention", "fc2": "mlp"}[name]]
        part[name] = jax.tree.map(lambda x: 10 * x, part[name])
    maps = large.state.params["projections"]
    maps["image"] = jax.tree.map(lambda x: 10 * x, maps["image"])
    for i in range(4):
        a, b = plain.step(batch(i)), large.step(batch(i))
        np.testing.assert_allclose(b["loss/image"], 100 * a["loss/image"], rtol=1e-3)
        np.testing.assert_allclose(b["loss/multimodal"], a["loss/multimodal"], rtol=1e-3)
        np.testing.assert_allclose(a["bandit/reward"], b["bandit/reward"], rtol=0.02, atol=2e-3)
    assert a["bandit/reward"] != 0


@pytest.mark.slow
@pytest.mark.parametrize("pictures", [1, 2])
def test_the_same_steps_in_pieces_and_on_eight_devices(pictures):
    teacher = dataclasses.replace(TEACHER, pictures=pictures)
    alone, shared = Trial(config(teacher)), Trial(config(teacher, train_micro_batch=8))
    mesh = meshes.make_mesh()
    shared.replicate(mesh)
    for i in range(3):
        rows = batch(i, teacher)
        expected = alone.step(rows)
        with jax.set_mesh(mesh):
            found = shared.step(meshes.global_batch(rows, mesh))
        for name in ("loss", "loss/image", "loss/unimodal", "loss/multimodal", "loss/kl"):
            np.testing.assert_allclose(found[name], expected[name], rtol=5e-5, err_msg=name)
        assert found["bandit/arm"] == expected["bandit/arm"]
        np.testing.assert_allclose(found["bandit/reward"], expected["bandit/reward"], atol=1e-3)
    assert shared.jitted._cache_size() == 1


@pytest.mark.slow
def test_arms():
    assert config().names == MODULES
    assert config(arms="subsets").names[3:] == (
        "image+unimodal",
        "image+multimodal",
        "unimodal+multimodal",
        "image+unimodal+multimodal",
    )
    assert config(arms="all").played == ((0, 1, 2),)
    assert config(arms="none").names == ("none",)
    nothing = Trial(config(arms="none", reward="played"))
    metrics = nothing.step(batch())
    np.testing.assert_allclose(
        metrics["loss"], metrics["loss/task"] + metrics["loss/kl"], rtol=1e-6
    )
    fixed = Trial(config(bandit=BanditConfig(policy="fixed", fixed_arm=2), pull_steps=1))
    assert [int(fixed.step(batch(i))["bandit/arm"]) for i in range(4)] == [2] * 4


@pytest.mark.slow
def test_a_student_starts_from_the_teachers_layers():
    wide = dataclasses.replace(
        TEACHER,
        image=dataclasses.replace(TEACHER.image, depth=2),
        text=dataclasses.replace(TEACHER.text, unimodal=2, multimodal=1),
    )
    theirs = tiny_coca.params(TEACHER, seed=5)
    trial = Trial(config(own=wide))
    start = trial.method.start(trial.state.params, {"teacher": theirs})["model"]
    for name, own, other, layers in (
        ("image", start["image"]["blocks"], theirs["image"]["blocks"], [1, 3]),
        ("unimodal", start["text"]["unimodal"], theirs["text"]["unimodal"], [1, 3]),
        ("multimodal", start["text"]["multimodal"], theirs["text"]["multimodal"], [3]),
    ):
        found, expected = own["mlp"]["fc1"]["kernel"], other["mlp"]["fc1"]["kernel"]
        np.testing.assert_array_equal(found, expected[jnp.asarray(layers)], err_msg=name)
    for part in ("token", "softmax", "position"):
        jax.tree.map(np.testing.assert_array_equal, start["text"][part], theirs["text"][part])
    jax.tree.map(np.testing.assert_array_equal, start["head"], theirs["head"])
    # From a narrower teacher only parameters without an axis of the width are copied.
    trial = Trial(config())
    own = trial.state.params["model"] | {"t": jnp.float32(0)}  # not the teacher's
    random = trial.state.params | {"model": own}
    narrow = trial.method.start(random, {"teacher": theirs})["model"]
    np.testing.assert_array_equal(narrow["text"]["token"], random["model"]["text"]["token"])
    np.testing.assert_array_equal(narrow["t"], theirs["t"])
    off = Optima(config(own=wide, init_from_teacher=False))
    same = off.start(random, {"teacher": theirs})
    assert same is random


@pytest.mark.slow
def test_a_teacher_whose_embeddings_have_a_width_of_their_own():
    """The student embeds as its teacher does, so the two projections are there in both."""
    teacher = dataclasses.replace(TEACHER, embed_dim=10)
    settings = config(teacher=teacher)
    trial = Trial(settings)
    init = jax.jit(trial.method.init_params)(jax.random.key(0))
    start = trial.method.start(init, trial.teacher)
    assert settings.model.embed_dim == 10
    shapes = [jax.tree.map(jnp.shape, tree) for tree in (start, trial.state.params)]
    assert shapes[0] == shapes[1]
    assert np.isfinite(trial.step(batch(teacher=teacher))["loss"])


@pytest.mark.slow
def test_biases_of_projections_are_not_decayed():
    trial = Trial(config())
    names = {"bias": 0, "kernel": 0}
    settings = optimizer.OptimizerConfig(weight_decay=0.5)
    tx, _ = optimizer.build(settings, trial.state.params, total_steps=10, batch_size=B)

    @jax.jit
    def decayed(params):
        zeros, ones = (jax.tree.map(f, params) for f in (jnp.zeros_like, jnp.ones_like))
        return tx.update(zeros, tx.init(ones), ones)[0]

    updates = decayed(trial.state.params)
    for path, update in jax.tree.leaves_with_path(updates["projections"]):
        kind = "bias" if jax.tree_util.keystr(path, simple=True).endswith("bias") else "kernel"
        names[kind] += 1
        assert bool((update != 0).all()) == (kind == "kernel"), path
    assert min(names.values()) > 0


def test_contradictory_settings_are_refused():
    with pytest.raises(ConfigError, match=r"fixed_arm = 3, but method.arms = 'single'"):
        config(bandit=BanditConfig(policy="fixed", fixed_arm=3))
    with pytest.raises(ConfigError, match="pull_steps must be at least 1"):
        config(pull_steps=0)
    other = dataclasses.replace(STUDENT, image=dataclasses.replace(STUDENT.image, patch=5))
    with pytest.raises(ConfigError, match="token by token"):
        student(other, TEACHER)
    deep = dataclasses.replace(STUDENT, text=dataclasses.replace(STUDENT.text, unimodal=5))
    with pytest.raises(ConfigError, match="unimodal module has 5 layers"):
        student(deep, TEACHER)
    with pytest.raises(ConfigError, match="checkpoint is empty"):
        OptimaConfig().resolve("")
    assert methods.parse(to_config(OptimaConfig())) == OptimaConfig()


def test_flops_are_those_of_the_parts():
    settings = config()
    method = Optima(settings)
    own, other = (coca_task.macs("answers", m) for m in (settings.model, TEACHER))
    grid, words = 4, settings.model.tokenizer.length
    words = min(words, settings.model.text.length)
    maps = 2 * grid * 12 * 24 + 2 * (words + 2 + words) * 16 * 32
    step = flops.step_flops([(own + maps, 10)], [(other, 10)])
    assert method.flops_per_step(10) == step + 2 * 2 * 10 * (own + maps + other) // 2
