"""CoCa's tasks: answers about one or two pictures, and captions, against numbers by hand."""

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
from aced.data.sources import DataConfig
from aced.methods import coca_task
from aced.methods.base import StepContext
from aced.methods.coca_task import Answers, CoCaTask, CoCaTaskConfig
from aced.models import coca
from aced.optim import state
from aced.parallel import mesh as meshes
from tests.models import tiny_coca

CLASSES, B = 4, 8
ONE = dataclasses.replace(tiny_coca.TINY, classes=CLASSES)
TWO = dataclasses.replace(ONE, pictures=2)
HIDDEN = dataclasses.replace(TWO, head_hidden=5)
TX = optax.sgd(0.1)


def batch_of(model, labels=True):
    image, text = tiny_coca.batch(B, config=model)
    batch = {"image": image, "text": text, "id": jnp.arange(B) + 7}
    if model.pictures == 2:
        batch["second/image"] = image[::-1]
    if labels:
        batch["label"] = jnp.array([0, 3, 1, 2, -1, 0, 1, -1])
    return batch


def step(method, batch, params=None, sources=()):
    params = params or {"model": tiny_coca.params(method.config.model)}
    start = state.create(params, TX, jax.random.key(1))
    context = StepContext(TX, sources=sources)
    return jax.jit(functools.partial(method.train_step, context=context))(start, {}, batch)


def test_answers_average_over_known_labels():
    rng = np.random.default_rng(0)
    logits, taught = (np.float32(rng.normal(size=(B, CLASSES))) for _ in range(2))
    batch = batch_of(ONE)
    found = coca_task.losses(
        Answers(jnp.asarray(logits)),
        batch,
        coca.real_words(batch["text"], tiny_coca.EOS),
        Answers(jnp.asarray(taught)),
        temperature=3.0,
    )
    label = np.asarray(batch["label"])
    known = label >= 0
    p, q = (np.exp(np.float64(x)) for x in (logits, logits))
    p = p / p.sum(axis=1, keepdims=True)
    assert found.task == pytest.approx(-np.log(p[known, label[known]]).mean(), rel=1e-5)
    assert found.accuracy == pytest.approx((p.argmax(axis=1) == label)[known].mean())
    p, q = (np.exp(np.float64(x) / 3) for x in (taught, logits))
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    assert found.kl == pytest.approx(9 * (p * np.log(p / q)).sum(axis=1)[known].mean(), rel=1e-5)


def test_the_words_of_a_question_are_not_predicted():
    eos = tiny_coca.EOS
    text = jnp.array([[0, 1, 2, eos], [0, eos, eos, eos], [0, 1, 2, 0]])
    found = coca_task.predicted(tiny_coca.TINY, {"text": text, "given": jnp.array([2, 0, 4])})
    assert found.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert coca_task.predicted(tiny_coca.TINY, {"text": text}).sum() == 4 + 2 + 4


@pytest.mark.slow
def test_of_a_question_and_its_answer_the_answer_is_predicted():
    """By hand in float64: the words after the question, end of text included."""
    model = dataclasses.replace(tiny_coca.TINY)
    batch = batch_of(model, labels=False)
    batch["given"] = jnp.array([0, 1, 2, 3, 1, 0, 2, 9])
    config = CoCaTaskConfig(model=model, task="words")
    params = tiny_coca.params(model)
    _, out = step(CoCaTask(config), batch, {"model": params})
    logits = np.float64(coca.logits(coca.forward(model, params, batch["image"], batch["text"])))
    losses = []
    for row, text, given in zip(logits, batch["text"].tolist(), batch["given"], strict=True):
        end = text.index(tiny_coca.EOS) + 1 if tiny_coca.EOS in text else len(text)
        for i in range(int(given), end):
            losses.append(np.log(np.exp(row[i]).sum()) - row[i, text[i]])
    assert out["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    with pytest.raises(ConfigError, match=r"task = 'words' reads no method\.model\.classes"):
        CoCaTaskConfig(model=ONE, task="words")


def test_several_right_answers_are_soft_targets():
    """By hand; an example without answers has its label, one without both is left out."""
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(B, CLASSES)))
    batch = batch_of(ONE)
    ids, degrees = np.full((B, 3), -1, np.int32), np.zeros((B, 3), np.float32)
    ids[0, :3], degrees[0, :3] = (2, 0, 1), (1.0, 0.6, 0.3)
    ids[4, 0], degrees[4, 0] = 3, 0.9  # its label is unknown
    batch |= {"answer_ids": jnp.asarray(ids), "answer_scores": jnp.asarray(degrees)}
    real = coca.real_words(batch["text"], tiny_coca.EOS)
    found = coca_task.losses(Answers(jnp.asarray(logits)), batch, real)
    targets = np.zeros((B, CLASSES))
    for i, label in enumerate(np.asarray(batch["label"])):
        for answer, degree in zip(ids[i], degrees[i], strict=True):
            targets[i, answer] += degree
        if not degrees[i].any() and label >= 0:
            targets[i, label] = 1
    known = targets.any(axis=1)
    assert known.sum() == B - 1
    log_p = np.float64(logits) - np.log(np.exp(np.float64(logits)).sum(axis=1, keepdims=True))
    share = targets[known] / targets[known].sum(axis=1, keepdims=True)
    assert found.task == pytest.approx(-(share * log_p[known]).sum(axis=1).mean(), rel=1e-5)
    right = targets[np.arange(B), logits.argmax(axis=1)][known]
    assert found.accuracy == pytest.approx(right.mean())


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(ONE, id="one", marks=pytest.mark.slow),
        pytest.param(TWO, id="two", marks=pytest.mark.slow),
        pytest.param(HIDDEN, id="hidden"),
    ],
)
def test_what_the_head_reads(model):
    """Padding and, of two pictures, each one: the head by hand, from the decoder's states."""
    params, batch = tiny_coca.params(model), batch_of(model)
    images, text = coca.inputs(model, batch)
    found = coca.answer(model, params, images, text)
    real = np.asarray(coca.real_words(text, tiny_coca.EOS))
    head = jax.tree.map(np.float64, params["head"])
    heads, width = model.text.dims.heads, model.text.dims.width
    pooled = []
    for image in images:
        states = np.float64(coca.forward(model, params, image, text).words.states)
        rows = []
        for row, mask in zip(states, real, strict=True):
            p = head["pooler"]["attention"]
            q, k, v = (
                x @ p[n]["kernel"] + p[n]["bias"]
                for n, x in (("q", head["pooler"]["probe"]), ("k", row[mask]), ("v", row[mask]))
            )
            out = np.zeros(width)
            for h in range(heads):
                part = slice(h * width // heads, (h + 1) * width // heads)
                weights = np.exp(k[:, part] @ q[0, part] / np.sqrt(width // heads))
                out[part] = weights / weights.sum() @ v[:, part]
            rows.append(out @ p["out"]["kernel"] + p["out"]["bias"])
        pooled.append(np.stack(rows))
    x = np.concatenate(pooled, axis=1)
    if model.head_hidden:
        x = x @ head["fc1"]["kernel"] + head["fc1"]["bias"]
        assert x.shape[1] == model.head_hidden
        x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))  # GELU
    expected = x @ head["classifier"]["kernel"]
    np.testing.assert_allclose(found, expected + head["classifier"]["bias"], rtol=1e-4, atol=1e-4)
    # Words after the end of text are nothing.
    changed = jnp.where(jnp.asarray(real), text, (text + 1) % 3)
    np.testing.assert_array_equal(coca.answer(model, params, images, changed), found)
    with pytest.raises(ValueError, match="reads"):
        coca.answer(model, params, images + images, text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "task"), [(ONE, "answers"), (TWO, "answers"), (tiny_coca.TINY, "captioning")]
)
def test_the_same_step_in_pieces_and_on_eight_devices(model, task):
    batch = batch_of(model, labels=task == "answers")
    method = CoCaTask(CoCaTaskConfig(model=model, task=task))
    whole, metrics = step(method, batch)
    assert np.isfinite(metrics["loss"])
    assert metrics["loss"] == metrics["loss/task"]
    in_pieces = dataclasses.replace(method.config, train_micro_batch=8)
    mesh = meshes.make_mesh()
    with jax.set_mesh(mesh):
        on_host = {name: np.concatenate([x, x]) for name, x in batch.items()}
        found, _ = step(CoCaTask(in_pieces), meshes.global_batch(on_host, mesh))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), found.params, whole.params
    )


@pytest.mark.slow
def test_members_of_a_mixture_have_their_shares():
    batch = batch_of(ONE, labels=True)
    batch["source"] = np.arange(len(batch["id"])) % 4 // 3  # a quarter is of the second
    method = CoCaTask(CoCaTaskConfig(model=ONE, task="answers"))
    _, metrics = step(method, batch, sources=("a", "b"))
    assert metrics["sources/a/share"] == metrics["sources/a/picked_share"] == 0.75
    assert metrics["sources/b/share"] == 0.25


@pytest.mark.slow
def test_parameters_unused_by_the_task_are_frozen():
    for model, task in ((ONE, "answers"), (tiny_coca.TINY, "captioning")):
        method = CoCaTask(CoCaTaskConfig(model=model, task=task))
        params = {"model": tiny_coca.params(model)}
        after, _ = step(method, batch_of(model), params)
        names = {
            jax.tree_util.keystr(path, simple=True, separator="/"): not np.array_equal(a, b)
            for (path, a), b in zip(
                jax.tree.leaves_with_path(params), jax.tree.leaves(after.params), strict=True
            )
        }
        still = {name for name, moved in names.items() if not moved}
        fixed = {name for name in names if re.fullmatch(method.fixed[0], name)}
        # Keys' biases cancel in the softmax: their gradient is rounding, or none.
        assert fixed <= still
        assert {name for name in still - fixed if "/k/bias" not in name} == set()


def test_what_is_read():
    streams = CoCaTask(CoCaTaskConfig(model=TWO)).streams(DataConfig(), B)
    assert {name: shape for name, (shape, _) in streams[""].shapes().items()} == {
        "id": (),
        "label": (),
        "image": (10, 10, 3),
        "second/image": (10, 10, 3),
        "text": (TWO.tokenizer.length,),
    }


def test_settings_that_contradict():
    with pytest.raises(ConfigError, match="set it to the number of answers"):
        CoCaTaskConfig(model=tiny_coca.TINY)
    with pytest.raises(ConfigError, match="reads no method"):
        CoCaTaskConfig(model=ONE, task="captioning")
    with pytest.raises(ConfigError, match="pictures = 2"):
        dataclasses.replace(tiny_coca.TINY, pictures=2)
    config = to_config(CoCaTaskConfig(model=ONE))
    assert methods.parse(config) == CoCaTaskConfig(model=ONE)
