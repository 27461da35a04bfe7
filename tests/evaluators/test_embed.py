import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import evaluators
from aced.config import ConfigError
from aced.data.sources import DataConfig
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import EvalConfig, retrieval, zeroshot
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig
from tests.evaluators import task_records
from tests.models import tiny_coca

MODEL = task_records.model()
CONFIG = EvalConfig(batch_size=4, captions=2, data=DataConfig(num_threads=0))


def meshes_to_try():
    yield meshes.make_mesh(devices=jax.devices()[:1])
    yield meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))


def evaluate(config, mesh):
    with jax.set_mesh(mesh):
        params = tiny_coca.params(MODEL)
        params = jax.device_put(params, rules.shardings(params, mesh))
        return evaluators.build(config, MODEL, mesh)(params)


def embeddings(images, texts):
    """CoCa's, of one call for all."""
    n = max(len(images), len(texts))
    images = np.resize(np.stack(images), (n, *images[0].shape))
    ids = np.resize(get_tokenizer(MODEL.tokenizer)(texts), (n, MODEL.text.length))
    both = MODEL.embed(tiny_coca.params(MODEL), jnp.asarray(images), jnp.asarray(ids))
    return np.asarray(both.zimg), np.asarray(both.ztxt)


@pytest.mark.slow
def test_retrieval_by_coca_equals_that_of_its_embeddings(monkeypatch):
    records = task_records.Records()
    monkeypatch.setattr(retrieval, "open_source", lambda config: records)
    kept = records.kept()
    pairs = [(i, text) for i, record in enumerate(kept) for text in record["texts"][:2]]
    owner = np.array([i for i, _ in pairs])
    zimg, ztxt = embeddings([r["image"] for r in kept], [text for _, text in pairs])
    order = np.argsort(-ztxt @ zimg[: len(kept)].T, axis=1)
    found_by = [np.mean((order[:, :k] == owner[:, None]).any(axis=1)) for k in (1, 5, 10)]
    for mesh in meshes_to_try():
        found = evaluate(CONFIG, mesh)
        assert [found["t2i_r1"], found["t2i_r5"], found["t2i_r10"]] == pytest.approx(found_by)
        assert found["captions"] == len(pairs)


@pytest.mark.slow
def test_retrieval_without_a_caption_of_the_wanted_kinds_names_them(monkeypatch):
    monkeypatch.setattr(retrieval, "open_source", lambda config: task_records.Records(n=2))
    data = dataclasses.replace(CONFIG.data, caption_weights={"syntetic": 1.0})
    with pytest.raises(ConfigError, match=r"none of the kinds in .*caption_weights \(syntetic\);"):
        evaluate(dataclasses.replace(CONFIG, data=data), next(meshes_to_try()))


@pytest.mark.slow
def test_zero_shot_classification_by_coca_equals_that_of_its_embeddings(monkeypatch):
    records = task_records.Records(unknown=(), classes=3)
    monkeypatch.setattr(zeroshot, "open_source", lambda config: records)
    names, kept = ("red", "star", "black"), records.kept()
    zimg, ztxt = embeddings([r["image"] for r in kept], [f"a {name}" for name in names])
    best = (zimg @ ztxt[:3].T).argmax(axis=1)
    expected = np.mean(best == [r["label"] for r in kept])
    config = dataclasses.replace(CONFIG, kind="zeroshot", class_names=names, templates=("a {}",))
    for mesh in meshes_to_try():
        assert evaluate(config, mesh)["top1"] == pytest.approx(expected)
