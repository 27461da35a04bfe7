"""The Swin transformer: against transformers, against float64 loops, and in a two-tower model."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from aced.config import ConfigError, from_config, to_config
from aced.convert import big_vision, huggingface, open_clip_write
from aced.cost import flops
from aced.methods.scoring import ScoringConfig
from aced.metrics import history
from aced.models import flexi, presets, swin
from aced.models.saved import InteropError, Model, expected_shapes, nested
from aced.models.swin import Swin
from aced.models.swin_config import SwinConfig
from aced.models.text import TextConfig
from aced.models.transformer import Compute
from aced.models.two_tower import TwoTowerConfig
from aced.models.vit import ImageConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig
from aced.preflight import hlo
from aced.train import loop
from aced.train.config import parse
from configs import smoke
from tests.convert import foreign


@pytest.fixture(autouse=True)
def compile_fast():
    """Most of the time of these tests would be spent on good code for the CPU."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def tower(resolution, **changes):
    return ImageConfig(
        architecture="swin", resolution=resolution, swin=SwinConfig(**({"size": "mu"} | changes))
    )


# By the maps of the two stages, and what they need of windows of `window` tokens a side.
WHOLE = tower(16, window=4)  # 4 and 2 tokens: each is one window
SHIFTED = tower(32, window=4)  # 8: windows are shifted; 4: one window
PADDED = tower(40, window=4)  # 10 and 5: padded to 12 and 8, and shifted
ODD = tower(32, window=3, depths=(2, 4), patch=2, mlp_ratio=2)  # 16 and 8: padded, shifted by 1
DEEP = tower(16, window=2, depths=(4,), heads=(2,))  # 4: two pairs of blocks
SEVEN = tower(56, depths=(4, 2), width=24, heads=(3, 6))  # 14: four windows; 7: one
BY_NAME = {"whole": WHOLE, "shifted": SHIFTED, "padded": PADDED, "odd": ODD, "seven": SEVEN}


def images(config, b=2, seed=1):
    shape = (b, config.resolution, config.resolution, 3)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@functools.cache
def build(config, embed_dim=None):
    """Parameters that are all away from their special initial values."""
    model, rng = Swin(config, embed_dim), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images(config, 1))["params"]

    def one(path, x):
        noise = 0.2 * rng.standard_normal(x.shape, np.float32)
        return jnp.asarray(noise + (path[-1].key == "scale"))

    return jax.tree.map_with_path(one, shapes)


def apply(config, image, compute=Compute(), embed_dim=None):  # noqa: B008
    model = Swin(config, embed_dim, compute)
    return jax.jit(model.apply)({"params": build(config, embed_dim)}, image)


# --- against float64, one token at a time, on a map that is not rolled and not cut ---


def norm(p, x):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-5) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def attend(p, x, heads, window, shift):
    """Every token looks at those of the map in the same cell of a grid that is moved by `shift`."""
    side = -(-len(x) // window) * window
    tokens = {
        (r, c): x[r, c] if max(r, c) < len(x) else np.zeros(x.shape[-1])
        for r in range(side)
        for c in range(side)
    }
    k, v = ({at: dense(p[name], token) for at, token in tokens.items()} for name in "kv")
    size = x.shape[-1] // heads
    out = np.zeros_like(x)
    for r, c in np.ndindex(x.shape[:2]):
        q = dense(p["q"], x[r, c])
        seen = [
            (i, j)
            for i, j in tokens
            if (i - shift) // window == (r - shift) // window
            and (j - shift) // window == (c - shift) // window
        ]
        place = [(r - i + window - 1) * (2 * window - 1) + c - j + window - 1 for i, j in seen]
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = [q[part] @ k[at][part] / math.sqrt(size) for at in seen]
            weights = np.exp(np.array(scores) + p["position"][place, head])
            out[r, c, part] = weights / weights.sum() @ np.array([v[at][part] for at in seen])
    return dense(p["out"], out)


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def block(p, x, heads, window, shift):
    x = x + attend(p["attention"], norm(p["norm1"], x), heads, window, shift)
    return x + dense(p["mlp"]["fc2"], gelu(dense(p["mlp"]["fc1"], norm(p["norm2"], x))))


def oracle(params, config, image):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    settings, n = config.swin, config.resolution // config.swin.patch
    cut = image.reshape(n, settings.patch, n, settings.patch, 3).transpose(0, 2, 1, 3, 4)
    x = norm(p["norm_patch"], dense(p["patch"], cut.reshape(n, n, -1)))
    dims = settings.dims
    for i, (depth, heads) in enumerate(zip(dims.depths, dims.heads, strict=True)):
        stage = p[f"stage{i}"]
        if i:
            four = [x[0::2, 0::2], x[1::2, 0::2], x[0::2, 1::2], x[1::2, 1::2]]
            x = dense(stage["merge"], norm(stage["norm_merge"], np.concatenate(four, axis=-1)))
        one_window = len(x) <= settings.window
        window = len(x) if one_window else settings.window
        for pair in range(depth // 2):
            both = jax.tree.map(lambda a, pair=pair: a[pair], stage["blocks"])
            x = block(both["regular"], x, heads, window, 0)
            x = block(both["shifted"], x, heads, window, 0 if one_window else window // 2)
    z = norm(p["norm"], x).mean((0, 1))
    return dense(p["head"], z) if "head" in p else z


@pytest.mark.parametrize(
    ("name", "embed_dim"), [("whole", None), ("shifted", 12), ("padded", None), ("odd", 5)]
)
def test_tower_equals_float64_loops(name, embed_dim):
    config = BY_NAME[name]
    image = images(config)
    z = apply(config, image, embed_dim=embed_dim)
    expected = [oracle(build(config, embed_dim), config, np.asarray(x)) for x in image]
    assert z.shape == (2, embed_dim or config.out_width)
    np.testing.assert_allclose(z, np.stack(expected), rtol=5e-5, atol=5e-5)


# --- against transformers, on its weights ---


def of_block(weights, name):
    def linear(key):
        return {"kernel": weights[f"{key}.weight"].T, "bias": weights[f"{key}.bias"]}

    def layer_norm(key):
        return {"scale": weights[f"{key}.weight"], "bias": weights[f"{key}.bias"]}

    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}
    attention = {k: linear(f"{name}.attention.{v}") for k, v in names.items()}
    table = f"{name}.attention.relative_position_bias.relative_position_bias_table"
    return {
        "norm1": layer_norm(f"{name}.layernorm_before"),
        "norm2": layer_norm(f"{name}.layernorm_after"),
        "attention": attention | {"position": weights[table]},
        "mlp": {k: linear(f"{name}.mlp.{k}") for k in ("fc1", "fc2")},
    }


def convert(weights, config):
    """`weights`, a SwinModel's, as parameters of `config`."""

    def layer_norm(key):
        return {"scale": weights[f"{key}.weight"], "bias": weights[f"{key}.bias"]}

    patch = weights["embeddings.patch_embeddings.projection.weight"]  # [width 3 patch patch]
    out = {
        "patch": {
            "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, len(patch)),
            "bias": weights["embeddings.patch_embeddings.projection.bias"],
        },
        "norm_patch": layer_norm("embeddings.norm"),
        "norm": layer_norm("layernorm"),
    }
    for i, depth in enumerate(config.swin.dims.depths):
        layers = [of_block(weights, f"encoder.layers.{i}.blocks.{j}") for j in range(depth)]
        stacks = {"regular": layers[::2], "shifted": layers[1::2]}
        stack = functools.partial(jax.tree.map, lambda *xs: np.stack(xs))
        out[f"stage{i}"] = {"blocks": {name: stack(*xs) for name, xs in stacks.items()}}
        if i:
            before = f"encoder.layers.{i - 1}.downsample"
            out[f"stage{i}"]["merge"] = {"kernel": weights[f"{before}.reduction.weight"].T}
            out[f"stage{i}"]["norm_merge"] = layer_norm(f"{before}.norm")
    return out


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["shifted", "padded", "odd", "seven"])
def test_equal_to_transformers(name):
    torch, transformers = foreign.torch(), foreign.transformers()
    config = BY_NAME[name]
    settings = config.swin
    model = transformers.SwinModel(
        transformers.SwinConfig(
            image_size=config.resolution,
            patch_size=settings.patch,
            embed_dim=settings.dims.width,
            depths=settings.dims.depths,
            num_heads=settings.dims.heads,
            window_size=settings.window,
            mlp_ratio=settings.mlp_ratio,
        )
    ).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            if parameter.ndim == 1 and key.endswith("weight"):
                parameter.add_(1.0)  # layer norms
        image = images(config)
        pixels = torch.tensor(np.asarray(image).transpose(0, 3, 1, 2))
        expected = model(pixel_values=pixels).pooler_output.numpy()
    params = convert({k: v.detach().numpy() for k, v in model.named_parameters()}, config)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, build(config))
    ours = jax.jit(Swin(config, None).apply)({"params": params}, image)
    np.testing.assert_allclose(ours, expected, atol=1e-5, rtol=1e-5)


# --- sizes and costs ---


@pytest.mark.parametrize(
    ("size", "parameters", "gmacs"),
    [  # torchvision's published counts, with a head of 1000 classes, at 224 px
        ("T", 28_288_354, 4.49),
        ("S", 49_606_258, 8.74),
        ("B", 87_768_224, 15.43),
    ],
)
def test_published_sizes(size, parameters, gmacs):
    config = ImageConfig(architecture="swin", resolution=224, swin=SwinConfig(size=size))
    model = Swin(config, None)
    image = jnp.zeros((1, 224, 224, 3), jnp.uint8)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    head = 1000 * (config.out_width + 1)
    assert sum(x.size for x in jax.tree.leaves(shapes)) + head == parameters
    assert flops.macs_image(config) / 1e9 == pytest.approx(gmacs, rel=0.002)
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=4, tensor=2))
    placed = rules.shardings(shapes, mesh)
    held = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)), shapes, placed)
    # An eighth of the blocks' kernels, a quarter of what merges, all of the vectors.
    assert sum(jax.tree.leaves(held)) < 0.14 * parameters


@pytest.mark.slow
@pytest.mark.parametrize("resolution", [224, 320])  # maps of 14 and 7; of 20, padded to 21, and 10
def test_multiply_adds_match_xla(resolution):
    settings = {"patch": 16, "width": 384, "depths": (2, 2), "heads": (12, 24)}
    config = tower(resolution, **settings)
    model, b = Swin(config, 64, Compute(scan=False)), 2  # XLA counts the body of a loop once
    image = jax.ShapeDtypeStruct((b, resolution, resolution, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)
    compiled = jax.jit(model.apply).lower(params, image).compile()
    ours = flops.macs_image(config, 64)
    assert compiled.cost_analysis()["flops"] / 2 / b == pytest.approx(ours, rel=0.03)
    products = sum(hlo.read(compiled.as_text()).flops.values())
    assert products / 2 / b == pytest.approx(ours, rel=0.001)


# --- how it is computed ---


def step(config, compute):
    """To the embeddings' sum by fixed weights, the embeddings, and the sum's gradient."""
    weights = np.random.default_rng(2).standard_normal(config.out_width).astype(np.float32)

    def loss(params, image):
        z = Swin(config, None, compute).apply({"params": params}, image)
        return (z @ weights).sum(), z

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def assert_plain_step(config, found):
    """Compares with float32, scanned, on one device, nothing computed again."""
    (_, expected_z), expected_grads = step(config, Compute())(build(config), images(config, 8))
    (_, z), grads = found
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(z, expected_z, rtol=1e-4, atol=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(expected_grads))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * largest),
        grads,
        expected_grads,
    )


@pytest.mark.slow
def test_scan_and_remat_change_nothing():
    unrolled = step(DEEP, Compute(scan=False, remat="full"))
    assert_plain_step(DEEP, unrolled(build(DEEP), images(DEEP, 8)))


@pytest.mark.slow
def test_sharded_over_parameters_width_and_examples_changes_nothing():
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        params = jax.device_put(build(SHIFTED), rules.shardings(build(SHIFTED), mesh))
        image = jax.device_put(images(SHIFTED, 8), meshes.by_example(mesh))
        found = step(SHIFTED, Compute())(params, image)
    fc1 = params["stage1"]["blocks"]["shifted"]["mlp"]["fc1"]["kernel"]
    assert fc1.sharding.spec == P(None, "fsdp", "tensor")
    assert params["stage1"]["merge"]["kernel"].sharding.spec == P(None, "fsdp")
    assert_plain_step(SHIFTED, found)


@pytest.mark.slow
def test_half_precision_keeps_parameters_and_results_float32():
    half = Swin(PADDED, None, Compute(dtype="bfloat16"))
    image = images(PADDED)
    fresh = jax.eval_shape(half.init, jax.random.key(0), image)["params"]
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(fresh))
    z, exact = jax.jit(half.apply)({"params": build(PADDED)}, image), apply(PADDED, image)
    assert z.dtype == jnp.float32
    assert 1e-5 < np.linalg.norm(z - exact) / np.linalg.norm(exact) < 0.05


def test_uint8_is_normalised_on_the_device():
    config = dataclasses.replace(SHIFTED, mean=(0.48, 0.45, 0.4), std=(0.27, 0.26, 0.25))
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    by_hand = (image / 255.0 - np.array(config.mean)) / np.array(config.std)
    z = apply(config, jnp.asarray(image))
    np.testing.assert_allclose(z, apply(config, by_hand.astype(np.float32)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_blocks_are_computed_in_int8_on_request():
    image, eight = images(PADDED), Compute(int8=True)
    z, exact = apply(PADDED, image, eight), apply(PADDED, image)
    cosine = (z * exact).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(exact, axis=1)
    assert 0.99 < cosine.min() < 1 - 1e-7
    program = jax.make_jaxpr(Swin(PADDED, None, eight).apply)({"params": build(PADDED)}, image)
    # Scanned, so each stage's pair stands there once: twice q, k, v, out, fc1 and fc2.
    assert str(program).count("preferred_element_type=int32") == 2 * 2 * 6


MODEL = TwoTowerConfig(
    image=PADDED,
    text=TextConfig(size="mu", vocab_size=11, length=6, width=16),
    embed_dim=16,
)


@pytest.mark.slow
def test_a_run_with_a_swin_image_tower_trains_and_evaluates(tmp_path):
    config = smoke.get_config("method=iid")
    image = ImageConfig(architecture="swin", resolution=224)
    config.method.model.image = to_config(image)
    config = smoke.shrink(config)
    assert parse(config).method.model.image.out_width == 32
    config.method.model.image.swin.depths = (2,)
    config.method.model.image.swin.heads = (2,)
    config.evals = {"classes": config.evals.classes}
    last = loop.run(config, str(tmp_path), devices=jax.devices()[:1])
    assert last["step"] == 2
    lines = history.read(tmp_path)
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert any(key.startswith("classes/") for line in lines for key in line)


# --- what is refused ---


def test_config_survives_the_round_trip_and_presets_are_read():
    for config in (MODEL, TwoTowerConfig(image=ODD)):
        assert from_config(TwoTowerConfig, to_config(config)) == config
    assert MODEL.width == 16
    assert TwoTowerConfig(image=ODD).width == ODD.out_width == 32
    assert set(presets.SWIN_SIZES) == {"mu", "T", "S", "B"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SwinConfig(size="L"), "size must be 'mu' or 'T' or 'S' or 'B', got 'L'"),
        (lambda: SwinConfig(window=0), "window must be at least 1"),
        (lambda: SwinConfig(width=0), "width must be at least 1"),
        (lambda: SwinConfig(depths=(2, 2)), "must have one number for each stage"),
        (lambda: SwinConfig(size="mu", depths=(2, 3)), r"even and at least 2, got \(2, 3\)"),
        (lambda: SwinConfig(size="mu", heads=(2, 5)), r"32 channels .*image.swin.heads\[1\] = 5"),
        (lambda: tower(36), "image.resolution = 36 must be a multiple of 8 pixels"),
        (lambda: dataclasses.replace(WHOLE, pool="gap"), "image.pool is not read by .*'swin'"),
        (lambda: dataclasses.replace(WHOLE, width=64), "image.width is not read by .*'swin'"),
        (lambda: ImageConfig(swin=SwinConfig(window=8)), "image.swin is not read by .*'vit'"),
        (lambda: dataclasses.replace(WHOLE, std=(1.0, 0.0, 1.0)), r"std\[1\] must be above 0"),
        (lambda: WHOLE.tokens, "set image.architecture = 'vit'"),
        (lambda: flexi.resize_params({}, WHOLE, 8), "cannot be read at another patch size"),
        (lambda: ScoringConfig(patch=32).check(MODEL), "method.scoring.patch = 32 needs image.arc"),
    ],
)
def test_contradictory_settings_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("library", [big_vision, huggingface, open_clip_write])
def test_no_other_library_is_written_for(library, tmp_path):
    model = Model(MODEL, nested({k: np.zeros(v, "f") for k, v in expected_shapes(MODEL).items()}))
    with pytest.raises(InteropError, match="architecture must be 'vit'"):
        library.write(model, tmp_path)


def test_wrong_resolution_names_both_shapes():
    with pytest.raises(ValueError, match=r"\[b, 16, 16, 3\], found \(2, 32, 32, 3\)"):
        apply(WHOLE, images(SHIFTED))


def test_join_inverts_partition():
    x = jnp.arange(2 * 6 * 6 * 5.0).reshape(2, 6, 6, 5)
    windows = swin.partition(x, 3)
    np.testing.assert_array_equal(windows[1, 2, 5], x[1, 3 + 1, 0 + 2])  # row 1, column 0
    np.testing.assert_array_equal(swin.join(windows, 3), x)
