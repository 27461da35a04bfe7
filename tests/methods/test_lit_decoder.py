"""LiT-Decoder: a frozen image tower, read by a decoder that is trained."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from aced import evaluate
from aced.checkpoints.checkpointer import load_params
from aced.config import ConfigError
from aced.cost import flops
from aced.data.images.transforms import ResizeConfig
from aced.methods.base import StepContext
from aced.methods.coca_task import CoCaTask, CoCaTaskConfig
from aced.methods.frozen import TrainedConfig, trained_model
from aced.methods.lit_decoder import LitDecoder, LitDecoderConfig, reading
from aced.models import coca, model_folder, two_tower
from aced.models.coca import CoCaConfig
from aced.models.saved import Model
from aced.models.swin_config import SwinConfig
from aced.models.transformer import Compute
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig, MapHead
from aced.optim import state
from aced.preflight import plan
from aced.train import loop
from aced.train.config import parse
from configs import lit_decoder
from tests.models import coca_by_hand, tiny_coca

# The decoder alone: what is left of the model is the encoder's.
OWN = dataclasses.replace(tiny_coca.TINY, queries=0, embed_dim=None)
IMAGE = dataclasses.replace(tiny_coca.TINY.image, pool="map")
ENCODERS = {
    "map": TwoTowerConfig(image=IMAGE),
    "gap": TwoTowerConfig(image=dataclasses.replace(IMAGE, pool="gap"), embed_dim=8),
    "cls": TwoTowerConfig(
        image=dataclasses.replace(IMAGE, pool="cls", pre_norm=True, patch_bias=False), embed_dim=8
    ),
}
SWIN = TwoTowerConfig(
    image=ImageConfig(
        architecture="swin", resolution=32, swin=SwinConfig(size="mu", patch=4, window=4)
    ),
    embed_dim=8,
)
B = 8
TX = optax.sgd(0.1)


def settings(encoder, **changes):
    model = dataclasses.replace(OWN, classes=changes.pop("classes", 0))
    config = LitDecoderConfig(model=model, **changes)
    return config.with_frozen({"encoder": TrainedConfig(model=encoder)})


def random_params(encoder):
    shapes = jax.eval_shape(encoder.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), shapes
    )


@pytest.mark.slow
def test_the_tokens_of_a_swin_are_those_that_it_averages():
    """And every multiply-add of a step is counted with their number and width."""
    model = reading(OWN, SWIN)
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8))
    theirs, shapes = random_params(SWIN), jax.eval_shape(model.init, jax.random.key(0))
    assert set(shapes["image"]) == set(theirs["image"]) - {"head"}
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    params["image"] = {name: theirs["image"][name] for name in shapes["image"]}
    tokens = coca.CoCa(model).apply({"params": params}, image, method=lambda m, x: m.image(x))
    assert tokens.shape == (3, model.image.out_tokens, model.image.out_width)
    z = two_tower.TwoTower(SWIN).apply({"params": theirs}, image, method="encode_image")
    pooled = tokens.mean(axis=1) @ theirs["image"]["head"]["kernel"]
    np.testing.assert_allclose(two_tower.l2_normalize(pooled), z, atol=1e-5)
    macs = flops.macs_coca(model)
    assert macs.image == flops.macs_image(SWIN.image)
    half = dataclasses.replace(SWIN.image, resolution=16)
    fewer = flops.macs_coca(dataclasses.replace(model, image=half)).multimodal
    words, d = min(model.tokenizer.length, model.text.length), model.text.dims.width
    each = 2 * model.image.out_width * d + 2 * words * d
    less = model.image.out_tokens - half.out_tokens
    assert macs.multimodal - fewer == model.text.multimodal * less * each


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_the_tokens_are_those_that_the_encoder_pools(name):
    """Its own image tower, with its own parameters, but for what comes after the last norm."""
    encoder = ENCODERS[name]
    model = reading(OWN, encoder)
    image, _ = tiny_coca.batch(3)
    theirs, params = random_params(encoder), tiny_coca.params(model)
    assert set(params["image"]) == set(theirs["image"]) - {"map", "head"}
    params = params | {"image": {name: theirs["image"][name] for name in params["image"]}}
    tokens = coca.CoCa(model).apply({"params": params}, image, method=lambda m, x: m.image(x))
    z = two_tower.TwoTower(encoder).apply({"params": theirs}, image, method="encode_image")
    assert tokens.shape == (3, 4 + (name == "cls"), 24)
    if name == "map":
        head = MapHead(encoder.image, Compute())
        pooled = head.apply({"params": theirs["image"]["map"]}, tokens)
    else:
        pooled = tokens[:, 0] if name == "cls" else tokens.mean(axis=1)
        pooled = pooled @ theirs["image"]["head"]["kernel"]
    np.testing.assert_allclose(two_tower.l2_normalize(pooled), z, atol=1e-5)


def test_the_decoder_reads_the_tokens_themselves():
    """CoCa by hand in float64, without its pooler."""
    model = reading(OWN, ENCODERS["map"])
    params, (image, text) = tiny_coca.params(model), tiny_coca.batch(3)
    assert set(params["pooler"]) == {"contrastive"}
    found = coca.forward(model, params, image, text)
    p, pixels = jax.tree.map(np.float64, params), np.float64(image) / 127.5 - 1
    for row, (picture, words) in enumerate(zip(pixels, text.tolist(), strict=True)):
        zimg, _, logits, real, _ = coca_by_hand.coca(p, model, picture, words)
        real = np.array(real)
        np.testing.assert_allclose(coca.logits(found)[row][real], logits[real], atol=1e-4)
        np.testing.assert_allclose(found.embeddings.zimg[row], zimg, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, pytest.param(4, marks=pytest.mark.slow)])
def test_a_step_moves_the_decoder_alone(classes):
    config = settings(ENCODERS["cls"], classes=classes, task="answers" if classes else "captioning")
    method, whole = (
        LitDecoder(config),
        CoCaTask(CoCaTaskConfig(model=config.model, task=config.task)),
    )
    image, text = tiny_coca.batch(B)
    batch = {"image": image, "text": text, "id": jnp.arange(B), "label": jnp.arange(B) % 4}
    params = {"model": tiny_coca.params(config.model)}
    # Without the rules that freeze what has no gradient: it has none.
    new, out = step(method, params, batch)
    _, of_whole = step(whole, params, batch)
    assert out["loss"] == pytest.approx(float(of_whole["loss"]), rel=1e-6)
    fixed = [re.compile(pattern) for pattern in method.fixed]
    for path, then in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        now = functools.reduce(lambda tree, key: tree[key.key], path, new.params)
        is_fixed = any(pattern.fullmatch(name) for pattern in fixed)
        if not name.endswith("k/bias"):  # to which a softmax over keys is blind
            assert bool((now != then).any()) != is_fixed, name


def step(method, params, batch):
    start = state.create(params, TX, jax.random.key(1))
    train_step = functools.partial(method.train_step, context=StepContext(TX))
    return jax.jit(train_step)(start, {}, batch)


@pytest.mark.slow
def test_encoder_gets_no_gradient():
    """XLA counts two forward passes of it less per example than where it is trained."""
    image = ImageConfig(width=256, depth=2, mlp=1024, heads=4, patch=8, resolution=64)
    config = settings(TwoTowerConfig(image=image), task="captioning")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, scan=False))
    whole = CoCaTask(CoCaTaskConfig(model=config.model, task=config.task))
    method = LitDecoder(config)
    encoder = flops.macs_coca(config.model).image
    saved = (counted(whole) - counted(method)) / B
    assert saved == pytest.approx(4 * encoder, rel=0.05)
    assert whole.flops_per_step(B) - method.flops_per_step(B) == 4 * encoder * B


def counted(method):
    """FLOPs of a step as XLA counts them."""
    model = method.config.model
    params = {"model": jax.eval_shape(model.init, jax.random.key(0))}
    image, text = tiny_coca.batch(B, config=model)
    start = jax.eval_shape(lambda p: state.create(p, TX, jax.random.key(1)), params)
    run = jax.jit(functools.partial(method.train_step, context=StepContext(TX)))
    batch = {"image": image, "text": text, "id": jnp.arange(B)}
    return run.lower(start, {}, batch).compile().cost_analysis()["flops"]


@pytest.mark.slow
def test_a_run_keeps_its_encoder(tmp_path):
    """That of a run of two towers, bit for bit; two pictures, two devices, in two pieces."""
    config = lit_decoder.get_config("tiny,task=nlvr2")
    config.method.train_micro_batch = 8
    workdir, some = tmp_path / "run", jax.devices()[:2]
    last = loop.run(config, str(workdir), devices=some)
    ours = load_params(workdir, part="model")["image"]
    theirs = load_params(workdir / "encoder", part="model")["image"]
    assert set(ours) == set(theirs) - {"map", "head"}
    for name in ours:
        jax.tree.map(np.testing.assert_array_equal, ours[name], theirs[name])
    found = evaluate.run(config, evaluate.EvaluateConfig(), str(workdir), devices=some)
    assert found["val/accuracy"] == pytest.approx(last["val/accuracy"], abs=1e-6)
    assert found["val/loss"] == pytest.approx(last["val/loss"], rel=1e-5)


@pytest.mark.slow
def test_the_encoder_may_be_a_swin(tmp_path):
    """Trained with captions, and evaluated by them; the tower stays as it was, bit for bit."""
    folder, workdir = tmp_path / "swin", tmp_path / "run"
    folder.mkdir()
    params = random_params(SWIN)
    model_folder.write(Model(SWIN, params, b"", "test"), folder)
    config = lit_decoder.get_config("tiny")
    config.before = {}
    config.method.encoder.checkpoint = str(folder)
    last = loop.run(config, str(workdir), devices=jax.devices()[:2])
    ours = load_params(workdir, part="model")["image"]
    for name in ours:
        jax.tree.map(np.testing.assert_array_equal, ours[name], params["image"][name])
    assert trained_model(str(workdir), CoCaConfig).image == SWIN.image
    found = evaluate.run(config, evaluate.EvaluateConfig(), str(workdir), devices=jax.devices()[:1])
    assert found["val/loss"] == pytest.approx(last["val/loss"], rel=1e-4)


@pytest.mark.slow
def test_a_run_that_answers_with_words(tmp_path):
    """Trained on questions with answers; the evaluation alone gives the same on other devices."""
    config = lit_decoder.get_config("tiny,task=vqa_words")
    last = loop.run(config, str(tmp_path / "run"), devices=jax.devices()[:2])
    assert 0 <= last["val/exact"] <= 1
    assert last["val/examples"] > 0
    found = evaluate.run(
        config, evaluate.EvaluateConfig(), str(tmp_path / "run"), devices=jax.devices()[:1]
    )
    assert found == pytest.approx({k: last[k] for k in found}, rel=1e-5)


@pytest.mark.slow
def test_the_encoder_may_be_a_converted_model(tmp_path):
    """A CLIP: a class token, another resolution, means and ways to resize than the recipe's."""
    clip = dataclasses.replace(
        ENCODERS["cls"],
        image=dataclasses.replace(
            ENCODERS["cls"].image, resolution=24, patch=8, mean=(0.48, 0.46, 0.41)
        ),
        resize=ResizeConfig("crop"),
    )
    folder, workdir = tmp_path / "clip", tmp_path / "run"
    folder.mkdir()
    params = random_params(clip)
    model_folder.write(Model(clip, params, b"", "test"), folder)
    config = lit_decoder.get_config("tiny")
    config.before = {}
    config.method.encoder.checkpoint = str(folder)
    loop.run(config, str(workdir), devices=jax.devices()[:1])
    ours = load_params(workdir, part="model")["image"]
    for name in ours:
        jax.tree.map(np.testing.assert_array_equal, ours[name], params["image"][name])
    written = trained_model(str(workdir), CoCaConfig)
    assert written.image == dataclasses.replace(clip.image, pool="all")
    assert written.resize == clip.resize


def test_preflight_needs_no_encoder(tmp_path):
    config = lit_decoder.get_config()
    found = plan.read(config, str(tmp_path))
    assert any("method.encoder.checkpoint" in line for line in found.assumed)
    assert found.settings.method.model.image.dims.width == 768
    config.method.encoder.model = None
    with pytest.raises(ConfigError, match=r"set method.encoder.model, too"):
        plan.read(config, str(tmp_path))


def test_encoders_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"method.encoder.checkpoint is empty"):
        LitDecoderConfig(task="captioning").resolve(str(tmp_path))
    config = lit_decoder.get_config("tiny")
    config.evals.val.kind = "retrieval"
    with pytest.raises(ConfigError, match=r"config.evals.val.kind is 'retrieval', for which"):
        parse(config)
    config = lit_decoder.get_config("tiny")
    config.before = {}
    config.method.encoder.checkpoint = str(tmp_path / "none")
    with pytest.raises(ConfigError, match="none does not exist"):
        loop.run(config, str(tmp_path), devices=jax.devices()[:1])
