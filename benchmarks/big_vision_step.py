"""big_vision's SigLIP step, out of a checkout, for `benchmarks/step.py`.

Model, optimizer and update function are big_vision's own, read where they lie:
https://github.com/google-research/big_vision. The update function is local to the `main` of the
trainer, which needs TensorFlow, datasets and a pod; so it alone is compiled from the trainer's
source, with the names that it reads from around it.
"""

import ast
import functools
import importlib
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

TRAINER = "big_vision/trainers/proj/image_text/siglip.py"


def build(checkout, params, sizes, scan):
    """Returns (step, state, context): step(state, batch) -> (state, measurements), jitted.

    Args:
        checkout: the folder that holds the package `big_vision`.
        params: of `aced`'s model; big_vision starts with the same numbers.
        sizes: `benchmarks.step.SIZES`.
        scan: over layers, with all of a layer computed again, as big_vision does it then.
    """
    import_from(checkout)
    model = importlib.import_module("big_vision.models.proj.image_text.two_towers").Model(
        image={"variant": f"Ti/{sizes['patch']}", "pool_type": "map", "scan": scan},
        text={"variant": "Ti", "vocab_size": sizes["vocabulary"], "scan": scan},
        out_dim=(None, params["text"]["head"]["bias"].shape[0]),
        bias_init=-10.0,
    )
    config = ConfigDict(
        {
            "optax_name": "scale_by_adam",
            "optax": {"b2": 0.95},
            "lr": 1e-3,
            "wd": 1e-4,
            "wd_mults": ((".*/kernel$", 1.0), (".*/embedding$", 1.0)),
            "grad_clip_norm": 1.0,
            "schedule": {"decay_type": "cosine"},
        }
    )
    params = translate(params, scan)
    image = jnp.zeros((1, sizes["resolution"], sizes["resolution"], 3))
    text = jnp.zeros((1, sizes["length"]), jnp.int32)
    expected = jax.eval_shape(model.init, jax.random.key(0), image, text)["params"]
    if jax.tree.map(jnp.shape, params) != jax.tree.map(lambda x: x.shape, expected):
        raise ValueError("big_vision's model has other parameters than aced's.")

    bv_optax = importlib.import_module("big_vision.optax")
    schedule = {"total_steps": sizes["total_steps"], "batch_size": sizes["batch"], "data_size": 1}
    tx, _ = bv_optax.make(config, params, sched_kw=schedule)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    around = {
        "functools": functools,
        "jax": jax,
        "jnp": jnp,
        "optax": optax,
        "bv_optax": bv_optax,
        "config": config,
        "model": model,
        "tx": tx,
        "repl_sharding": everywhere,
        "train_state_sharding": everywhere,
    }
    update = function_of(pathlib.Path(checkout) / TRAINER, "update_fn", around)
    state = jax.device_put({"params": params, "opt": tx.init(params)}, everywhere)
    return update, state, (mesh, nn.logical_axis_rules([("act_batch", "data")]))


def import_from(checkout):
    """Makes `big_vision` importable: with newer JAX, and without TensorFlow."""
    sys.path.insert(0, str(checkout))
    importlib.import_module("flax.training.checkpoints")  # first: it looks for TensorFlow
    jax.tree_leaves = jax.tree.leaves
    tensorflow, io = types.ModuleType("tensorflow"), types.ModuleType("tensorflow.io")
    gfile = types.ModuleType("tensorflow.io.gfile")
    tensorflow.io, io.gfile = io, gfile
    sys.modules |= {"tensorflow": tensorflow, "tensorflow.io": io, "tensorflow.io.gfile": gfile}


def function_of(path, name, around):
    """The function `name` that is defined inside another one of the file `path`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (node,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name
    )
    exec(compile(ast.Module([node], []), str(path), "exec"), around)
    return around[name]


def translate(params, scan):
    """The same parameters by big_vision's names."""
    image, text = params["image"], params["text"]
    head = image["map"]
    heads = image["blocks"]["attention"]["q"]["bias"].shape[-1] // 64
    return {
        "img": {
            "embedding": {
                "kernel": image["patch"]["kernel"].reshape(16, 16, 3, -1),
                "bias": image["patch"]["bias"],
            },
            "pos_embedding": image["position"][None],
            "Transformer": encoder(image, heads, scan),
            "MAPHead_0": {
                "probe": head["probe"][None, None],
                "MultiHeadDotProductAttention_0": attention(head["attention"], heads),
                "LayerNorm_0": head["norm"],
                "MlpBlock_0": mlp(head["mlp"]),
            },
        },
        "txt": {
            "Embed_0": {"embedding": text["token"]},
            "pos_embedding": text["position"][None],
            "Encoder_0": encoder(text, heads, scan),
            "head": text["head"],
        },
        "t": params["t"][None],
        "b": params["bias"][None],
    }


def encoder(tower, heads, scan):
    """All blocks of a tower."""
    p = tower["blocks"]
    block = {
        "LayerNorm_0": p["norm1"],
        "LayerNorm_1": p["norm2"],
        "MultiHeadDotProductAttention_0": attention(p["attention"], heads),
        "MlpBlock_0": mlp(p["mlp"]),
    }
    if scan:
        return {"encoder_norm": tower["norm"], "encoderblock": block}
    layers = {
        f"encoderblock_{i}": jax.tree.map(lambda x, i=i: x[i], block)
        for i in range(len(p["norm1"]["bias"]))
    }
    return {"encoder_norm": tower["norm"]} | layers


def attention(p, heads):
    """q, k, v [.. d heads d/heads] and out [.. heads d/heads d]; layers may stand in front."""

    def split(x, axis):
        axis %= x.ndim
        return x.reshape(*x.shape[:axis], heads, x.shape[axis] // heads, *x.shape[axis + 1 :])

    names = {"query": "q", "key": "k", "value": "v"}
    parts = {new: jax.tree.map(lambda x: split(x, -1), p[old]) for new, old in names.items()}
    return parts | {"out": {"kernel": split(p["out"]["kernel"], -2), "bias": p["out"]["bias"]}}


def mlp(p):
    """Both layers of an MLP."""
    return {"Dense_0": p["fc1"], "Dense_1": p["fc2"]}
