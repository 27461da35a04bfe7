"""The step that `benchmarks/step.py` measures, by hand: jax.numpy and nothing else.

Written from the papers and not from `aced`, whose loss it has to give on the same parameters, step
after step: SigLIP (arXiv 2303.15343) with a ViT and a MAP head, and AdamW with decoupled decay and
a clipped gradient. The parameters' names are those of `aced`.
"""

import functools

import jax
import jax.numpy as jnp

EPS = 1e-6
PEAK, DECAY, CLIP, B1, B2 = 1e-3, 1e-4, 1.0, 0.9, 0.95


def dense(p, x):
    """A linear layer."""
    return x @ p["kernel"] + p["bias"]


def norm(p, x):
    """Layer norm."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPS) * p["scale"] + p["bias"]


def attend(p, heads, queries, x):
    """Multi-head attention of queries [b q d] to tokens [b n d]."""
    q, k, v = (
        dense(p[name], y).reshape(*y.shape[:2], heads, -1)
        for name, y in (("q", queries), ("k", x), ("v", x))
    )
    scores = jnp.einsum("bqhc,bnhc->bhqn", q, k) * q.shape[-1] ** -0.5
    y = jnp.einsum("bhqn,bnhc->bqhc", jax.nn.softmax(scores), v)
    return dense(p["out"], y.reshape(*y.shape[:2], -1))


def mlp(p, x):
    """Two layers with GELU, by its tanh formula, in between."""
    y = dense(p["fc1"], x)
    y = 0.5 * y * (1 + jnp.tanh((2 / jnp.pi) ** 0.5 * (y + 0.044715 * y**3)))
    return dense(p["fc2"], y)


def blocks(p, heads, x):
    """The transformer: a list of layers is unrolled, a stack of them scanned."""

    def block(x, p):
        y = norm(p["norm1"], x)
        x = x + attend(p["attention"], heads, y, y)
        return x + mlp(p["mlp"], norm(p["norm2"], x)), None

    if isinstance(p, list):
        return functools.reduce(lambda x, layer: block(x, layer)[0], p, x)
    return jax.lax.scan(block, x, p)[0]


def embed_image(p, image, patch, heads):
    """Embeddings [b d] of uint8 pixels [b h w 3]."""
    b, side = len(image), image.shape[1] // patch
    x = image.reshape(b, side, patch, side, patch, 3).swapaxes(2, 3).reshape(b, side * side, -1)
    x = dense(p["patch"], x.astype(jnp.float32) / 127.5 - 1) + p["position"]
    x = norm(p["norm"], blocks(p["blocks"], heads, x))
    probe = jnp.broadcast_to(p["map"]["probe"], (b, 1, x.shape[-1]))
    x = attend(p["map"]["attention"], heads, probe, x)
    return (x + mlp(p["map"]["mlp"], norm(p["map"]["norm"], x)))[:, 0]


def embed_text(p, text, heads):
    """Embeddings [b d] of token ids [b l], by the last."""
    x = blocks(p["blocks"], heads, p["token"][text] + p["position"])
    return dense(p["head"], norm(p["norm"], x[:, -1]))


def sigmoid_loss(p, image, text, patch, heads):
    """SigLIP, algorithm 1."""
    zimg, ztxt = embed_image(p["image"], image, patch, heads), embed_text(p["text"], text, heads)
    zimg, ztxt = (z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (zimg, ztxt))
    logits = jnp.exp(p["t"]) * zimg @ ztxt.T + p["bias"]
    return -jax.nn.log_sigmoid((2 * jnp.eye(len(logits)) - 1) * logits).sum() / len(logits)


def unstack(params):
    """Parameters whose layers are lists."""
    split = {}
    for tower in ("image", "text"):
        stacked = params[tower]["blocks"]
        depth = len(jax.tree.leaves(stacked)[0])
        layers = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(depth)]
        split[tower] = params[tower] | {"blocks": layers}
    return params | split


def init(params):
    """The state before the first step: number of steps, parameters, both moments."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return jnp.zeros(()), params, zeros, jax.tree.map(jnp.copy, zeros)


def step(state, batch, *, patch, heads, total_steps):
    """The next state and the loss; cosine schedule, weight decay in proportion to it."""
    count, params, mean, square = state
    loss, grads = jax.value_and_grad(sigmoid_loss)(
        params, batch["image"], batch["text"], patch, heads
    )
    length = jnp.sqrt(sum((g * g).sum() for g in jax.tree.leaves(grads)))
    clip = jnp.minimum(1, CLIP / length)
    schedule = (1 + jnp.cos(jnp.pi * count / total_steps)) / 2
    count = count + 1

    def update(path, p, g, m, v):
        m, v = B1 * m + (1 - B1) * clip * g, B2 * v + (1 - B2) * (clip * g) ** 2
        u = m / (1 - B1**count) / (jnp.sqrt(v / (1 - B2**count)) + 1e-8)
        decay = DECAY if path[-1].key in ("kernel", "token") else 0
        return p - schedule * (PEAK * u + decay * p), m, v

    new = jax.tree.map_with_path(update, params, grads, mean, square)
    params, mean, square = jax.tree.transpose(
        jax.tree.structure(params), jax.tree.structure((0, 0, 0)), new
    )
    return (count, params, mean, square), loss
