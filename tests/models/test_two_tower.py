"""The whole model: against transformers on equal weights, settings against each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced.config import ConfigError, from_config, to_config
from aced.data.tokenizers import TokenizerConfig
from aced.models import two_tower
from aced.models.text import TextConfig
from aced.models.two_tower import TwoTower, TwoTowerConfig
from aced.models.vit import ImageConfig

# 30 px are 3 whole patches of 8 and a rest; the towers differ in every number.
IMAGE = ImageConfig(size="mu", patch=8, resolution=30, depth=2, heads=4)
TEXT = TextConfig(size="mu", vocab_size=50, length=10, width=24, mlp=80, depth=2, heads=2)
SIGLIP = TwoTowerConfig(image=IMAGE, text=TEXT)


def clip(activation="quick_gelu"):
    shared = {"activation": activation, "norm_eps": 1e-5}
    image = {"pool": "cls", "pre_norm": True, "patch_bias": False}
    text = {"causal": True, "pool": "eot", "eot_id": 49, "head_bias": False}
    return TwoTowerConfig(
        image=dataclasses.replace(IMAGE, **image, **shared),
        text=dataclasses.replace(TEXT, **text, **shared),
        embed_dim=16,
        init_bias=None,
    )


def batch(b=4, seed=0):
    rng = np.random.default_rng(seed)
    text = rng.integers(0, 49, (b, 10)).astype(np.int32)
    text[np.arange(b), rng.integers(2, 9, b)] = 49  # the end of text
    return jnp.asarray(rng.integers(0, 256, (b, 30, 30, 3), np.uint8)), jnp.asarray(text)


@functools.cache
def init(config):
    return jax.jit(lambda key: two_tower.init(config, key))(jax.random.key(0))


def apply(config, params, *inputs):
    return jax.jit(TwoTower(config).apply)({"params": params}, *inputs)


# --- transformers' weights, in our names ---


def dense(weights, name):
    out = {"kernel": weights[f"{name}.weight"].T}
    return out | ({"bias": weights[f"{name}.bias"]} if f"{name}.bias" in weights else {})


def norm(weights, name):
    return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}


def block(weights, name):
    attention = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
    return {
        "norm1": norm(weights, f"{name}.layer_norm1"),
        "norm2": norm(weights, f"{name}.layer_norm2"),
        "attention": {k: dense(weights, f"{name}.self_attn.{v}") for k, v in attention.items()},
        "mlp": {k: dense(weights, f"{name}.mlp.{k}") for k in ("fc1", "fc2")},
    }


def tower(weights, name, depth, final_norm):
    layers = [block(weights, f"{name}.encoder.layers.{i}") for i in range(depth)]
    return {
        "blocks": jax.tree.map(lambda *xs: np.stack(xs), *layers),
        "norm": norm(weights, f"{name}.{final_norm}"),
        "position": weights[f"{name}.embeddings.position_embedding.weight"],
    }


def map_head(weights, name):
    split = {k: np.split(weights[f"{name}.attention.in_proj_{k}"], 3) for k in ("weight", "bias")}
    parts = zip("qkv", split["weight"], split["bias"], strict=True)
    attention = {k: {"kernel": w.T, "bias": b} for k, w, b in parts}
    return {
        "probe": weights[f"{name}.probe"][0, 0],
        "attention": attention | {"out": dense(weights, f"{name}.attention.out_proj")},
        "norm": norm(weights, f"{name}.layernorm"),
        "mlp": {k: dense(weights, f"{name}.mlp.{k}") for k in ("fc1", "fc2")},
    }


def convert(weights, config):
    """`weights`, a SiglipModel's or CLIPModel's, as parameters of `config`."""
    image = tower(weights, "vision_model", config.image.dims.depth, "post_layernorm")
    text = tower(weights, "text_model", config.text.dims.depth, "final_layer_norm")
    patch = dense(weights, "vision_model.embeddings.patch_embedding")
    kernel = weights["vision_model.embeddings.patch_embedding.weight"]  # [width 3 patch patch]
    image["patch"] = patch | {"kernel": kernel.transpose(2, 3, 1, 0).reshape(-1, len(kernel))}
    text["token"] = weights["text_model.embeddings.token_embedding.weight"]
    if config.embed_dim is None:
        image["map"] = map_head(weights, "vision_model.head")
        text["head"] = dense(weights, "text_model.head")
        return {
            "image": image,
            "text": text,
            "t": weights["logit_scale"].reshape(()),
            "bias": weights["logit_bias"].reshape(()),
        }
    image["cls"] = weights["vision_model.embeddings.class_embedding"]
    image["norm_pre"] = norm(weights, "vision_model.pre_layrnorm")
    image["head"] = dense(weights, "visual_projection")
    text["head"] = dense(weights, "text_projection")
    return {"image": image, "text": text, "t": weights["logit_scale"]}


def transformers_model(config):
    """The same architecture in transformers, every parameter random."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    names = {"gelu_tanh": "gelu_pytorch_tanh"}

    def settings(tower):
        return {
            "hidden_size": tower.dims.width,
            "num_hidden_layers": tower.dims.depth,
            "intermediate_size": tower.dims.mlp,
            "num_attention_heads": tower.dims.heads,
            "hidden_act": names.get(tower.activation, tower.activation),
        }

    vision = settings(config.image) | {"patch_size": 8, "image_size": 30}
    text = settings(config.text) | {
        "vocab_size": 50,
        "max_position_embeddings": 10,
        "pad_token_id": 0,
        "bos_token_id": 48,
        "eos_token_id": 49,
    }
    if config.embed_dim is None:
        text["projection_size"] = config.width
        hf = transformers.SiglipConfig(vision_config=vision, text_config=text)
        model = transformers.SiglipModel(hf)
    else:
        width = config.embed_dim
        hf = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)
        model = transformers.CLIPModel(hf)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.add_(1.0)  # layer norms
    return model.eval(), torch


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config", [SIGLIP, clip(), clip("gelu")], ids=["siglip", "clip", "clip_gelu"]
)
def test_equal_to_transformers(config):
    model, torch = transformers_model(config)
    params = convert({k: v.detach().numpy() for k, v in model.named_parameters()}, config)
    expected_tree = jax.tree.map(jnp.shape, init(config))
    assert jax.tree.map(jnp.shape, params) == expected_tree
    _, text = batch()
    image = np.random.default_rng(1).standard_normal((4, 30, 30, 3), np.float32)
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(np.asarray(text), dtype=torch.long),
            pixel_values=torch.tensor(image.transpose(0, 3, 1, 2)),
        )
    ours = apply(config, params, jnp.asarray(image), text)
    np.testing.assert_allclose(ours.zimg, expected.image_embeds, atol=1e-5, rtol=0)
    np.testing.assert_allclose(ours.ztxt, expected.text_embeds, atol=1e-5, rtol=0)
    logits = ours.scale * ours.zimg @ ours.ztxt.T + ours.bias
    np.testing.assert_allclose(logits, expected.logits_per_image, atol=1e-5, rtol=0)


# --- settings ---


def loss(config, params, image, text):
    e = TwoTower(config).apply({"params": params}, image, text)
    logits = e.scale * e.zimg @ e.ztxt.T + e.bias
    return -jax.nn.log_sigmoid((2 * jnp.eye(len(text)) - 1) * logits).sum(1).mean()


@functools.cache
def gradient(config):
    return jax.jit(jax.grad(lambda p: loss(config, p, *batch())))(init(SIGLIP))


def test_parameters_are_a_plain_tree_with_stacked_layers():
    params = init(SIGLIP)
    assert type(params) is dict
    assert set(params) == {"image", "text", "t", "bias"}
    assert params["image"]["blocks"]["attention"]["q"]["kernel"].shape == (2, 32, 32)
    assert params["text"]["blocks"]["mlp"]["fc1"]["kernel"].shape == (2, 24, 80)
    # Layers start from different numbers.
    first, second = params["image"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert np.abs(first - second).max() > 0.01
    assert set(init(clip())) == {"image", "text", "t"}


def test_temperature_and_bias_start_where_they_are_set():
    config = dataclasses.replace(SIGLIP, init_scale=20.0, init_bias=-7.5)
    e = apply(config, init(config), *batch())
    assert float(e.scale) == pytest.approx(20.0, rel=1e-6)
    assert float(e.bias) == -7.5
    e = apply(clip(), init(clip()), *batch())
    assert float(e.scale) == pytest.approx(10.0, rel=1e-6)
    assert float(e.bias) == 0.0


@pytest.mark.parametrize("config", [SIGLIP, clip()], ids=["siglip", "clip"])
def test_embeddings_are_normalised_and_the_towers_work_alone(config):
    params, (image, text) = init(config), batch()
    e = apply(config, params, image, text)
    for z in (e.zimg, e.ztxt):
        assert z.shape == (4, config.width)
        assert z.dtype == jnp.float32
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1.0, rtol=1e-6)
    model = TwoTower(config)

    @jax.jit
    def alone(image, text):
        zimg = model.apply({"params": params}, image, method="encode_image")
        return zimg, model.apply({"params": params}, text, method="encode_text")

    zimg, ztxt = alone(image, text)
    np.testing.assert_allclose(zimg, e.zimg, atol=1e-6)
    np.testing.assert_allclose(ztxt, e.ztxt, atol=1e-6)


def test_zero_embedding_has_no_nan():
    norm_of_zero = jax.value_and_grad(lambda z: two_tower.l2_normalize(z).sum())
    value, grad = norm_of_zero(jnp.zeros((1, 3)))
    assert float(value) == 0
    assert np.isfinite(grad).all()


def test_unrolled_equals_scanned():
    unrolled = dataclasses.replace(SIGLIP, scan=False)
    params, inputs = init(SIGLIP), batch()
    jax.tree.map(np.testing.assert_array_equal, init(unrolled), params)
    ours, expected = (apply(config, params, *inputs) for config in (unrolled, SIGLIP))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        close(a, b)
    jax.tree.map(close, gradient(unrolled), gradient(SIGLIP))
    text = str(jax.jit(TwoTower(unrolled).apply).lower({"params": params}, *inputs).as_text())
    assert "stablehlo.while" not in text


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_rematerialisation_changes_the_work_and_not_the_gradient(remat):
    config = dataclasses.replace(SIGLIP, remat=remat)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradient(config), gradient(SIGLIP))

    def products(config):
        grad = jax.grad(lambda p: loss(config, p, *batch()))
        return str(jax.make_jaxpr(grad)(init(SIGLIP))).count("dot_general")

    # Computed again in either tower's block: q, k, v, scores, what they weigh, out, fc1, fc2; with
    # "dots" none of the six that have weights. (A jaxpr holds the body of a scan once.)
    more = products(config) - products(SIGLIP)
    assert 2 <= more <= 4 if remat == "dots" else more >= 2 * 6


def test_half_precision_keeps_float32_parameters_and_close_embeddings():
    half = dataclasses.replace(SIGLIP, dtype="bfloat16", remat="dots")
    params = init(half)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
    ours, expected = (apply(config, params, *batch()) for config in (half, SIGLIP))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(ours))
    for a, b in ((ours.zimg, expected.zimg), (ours.ztxt, expected.ztxt)):
        assert (a * b).sum(1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), 1.0, rtol=1e-6)
    grads = jax.eval_shape(jax.grad(lambda p: loss(half, p, *batch())), params)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(grads))


def test_default_implementation_of_attention_may_be_left_to_jax():
    params = init(SIGLIP)
    ours = apply(dataclasses.replace(SIGLIP, attention=None), params, *batch())
    np.testing.assert_allclose(ours.zimg, apply(SIGLIP, params, *batch()).zimg, atol=1e-6)


def test_config_survives_the_round_trip():
    for config in (SIGLIP, clip(), two_tower.preset("ACED-F0")):
        assert from_config(TwoTowerConfig, to_config(config)) == config


def test_preset_takes_changes_and_a_tokenizer_of_its_length():
    config = two_tower.preset("CLIP-B/32", dtype="bfloat16")
    assert (config.dtype, config.tokenizer.length, config.text.causal) == ("bfloat16", 77, True)


def test_contradictory_settings_are_refused():
    with pytest.raises(ConfigError, match=r"'cudnn' .* dtype = 'float32'"):
        dataclasses.replace(SIGLIP, attention="cudnn")
    with pytest.raises(ConfigError, match="init_scale must be positive"):
        dataclasses.replace(SIGLIP, init_scale=0.0)
    with pytest.raises(ConfigError, match="embed_dim must be None or at least 1"):
        dataclasses.replace(SIGLIP, embed_dim=0)


def test_tokenizer_that_the_tower_cannot_read_is_refused():
    shapes = two_tower.Tokenizer(TokenizerConfig(kind="shapes", length=8))
    size = shapes.vocab_size

    def check(**changes):
        text = TextConfig(**({"size": "mu", "length": 8, "vocab_size": size} | changes))
        two_tower.check_tokenizer(TwoTowerConfig(image=IMAGE, text=text), shapes)

    check()
    check(pool="eot", eot_id=shapes.eos_id)
    with pytest.raises(ConfigError, match=r"tokenizer.length = 8 .* text.length = 7"):
        check(length=7)
    with pytest.raises(ConfigError, match=f"text.vocab_size = {size - 1} .* {size} ids"):
        check(vocab_size=size - 1)
    with pytest.raises(ConfigError, match=f"text.eot_id = {shapes.eos_id + 1}"):
        check(pool="eot", eot_id=shapes.eos_id + 1)
