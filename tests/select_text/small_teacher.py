"""A teacher of the smallest size, features of images that it never saw, and a corpus for it."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np

from aced.cache import description, entries, fingerprint, precision
from aced.data.shapes import scenes
from aced.data.tokenizers import TokenizerConfig, get_tokenizer
from aced.models import model_folder, two_tower
from aced.models.saved import Model
from aced.models.text import TextConfig
from aced.models.vit import ImageConfig

WORDS = sorted(scenes.WORDS)


def config():
    tokenizer = TokenizerConfig(kind="shapes", length=6)
    return two_tower.TwoTowerConfig(
        image=ImageConfig(size="mu", patch=16, resolution=16, pool="gap"),
        text=TextConfig(size="mu", vocab_size=get_tokenizer(tokenizer).vocab_size, length=6),
        embed_dim=16,
        tokenizer=tokenizer,
    )


def write(folder):
    """Writes the teacher to a model folder; its sentences point in all directions."""
    params = jax.jit(two_tower.TwoTowerConfig.init, static_argnums=0)(config(), jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), 1000))
    params = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params)
    folder.mkdir(parents=True)
    model_folder.write(Model(config(), jax.tree.map(np.asarray, params), b"", "test"), folder)


def embed(folder, texts):
    """The teacher's embeddings of `texts`, in one batch."""
    params = model_folder.read_params(str(folder))
    ids = get_tokenizer(config().tokenizer)(texts)
    tower = two_tower.TwoTower(config())
    return np.asarray(tower.apply({"params": params}, jnp.asarray(ids), method="encode_text"))


def write_features(folder, teacher, features, missing=()):
    """A cache of image features, as aced.cache leaves it; those of `missing` are not there."""
    params = model_folder.read_params(str(teacher))
    prints = {
        "weights": fingerprint.of_weights(params),
        "tokenizer": fingerprint.of_tokenizer(config().tokenizer),
        "data": "d",
        "decode": "e",
    }
    plan = description.Plan(
        len(features), "image", "float32", 16, config(), 10.0, -10.0, 0, 2, prints
    )
    folder.mkdir(parents=True)
    shards = []
    for shard in range(plan.shards):
        writer = entries.EntryWriter(plan.path(folder, shard), plan.row_bytes)
        absent = {str(i): "broken" for i in plan.range(shard) if i in missing}
        for i in plan.range(shard):
            rows = features[i : i + 1] if i not in missing else features[:0]
            writer.write(i, precision.encode(rows, "float32"))
        shards.append(description.Shard(captions=0, missing=absent, **writer.close()))
    description.write(
        folder / description.COMPLETE, description.Description(plan, tuple(shards), None, {})
    )


def features(count, seed=0):
    z = np.random.default_rng(seed).normal(size=(count, 16))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


def sentences(count, seed=0):
    """Distinct sentences that the tokenizer tells apart."""
    rng = np.random.default_rng(seed)
    found = {}
    while len(found) < count:
        found[" ".join(rng.choice(WORDS, rng.integers(2, 5)))] = None
    return list(found)


def number_of(text):
    """The first 64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def choose_by_sorting(z, texts, ztxt, k, budget):
    """The specification: full sorts in float64; returns sentences in the order of choice."""
    scores = z.astype(np.float64) @ ztxt.astype(np.float64).T
    chosen = []
    nearest = np.argsort(-scores, axis=1)[:, :k]
    for rank in range(nearest.shape[1]):
        best = {}
        for image, column in enumerate(nearest[:, rank]):
            best[column] = max(best.get(column, -2), scores[image, column])
        new = [column for column in best if texts[column] not in chosen]
        chosen += [texts[column] for column in sorted(new, key=lambda c: -best[c])]
    return chosen[:budget], scores


def statistics(folder):
    return json.loads((folder / "dataset.json").read_text())["statistics"]
