import dataclasses
import functools
import logging
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aced import evaluators
from aced.config import ConfigError, from_config, to_config
from aced.data.sources import DataConfig
from aced.data.tokenizers import get_tokenizer
from aced.evaluators import EvalConfig, captioning, penn_treebank
from aced.evaluators.bleu import bleu
from aced.evaluators.captioning import words_of
from aced.evaluators.cider import cider
from aced.models import coca, generation
from aced.models.generation import GenerationConfig
from aced.models.two_tower import TwoTowerConfig
from aced.parallel import mesh as meshes
from aced.parallel import rules
from aced.parallel.mesh import MeshConfig
from tests.evaluators import task_records
from tests.models import tiny_coca

GREEDY = GenerationConfig(kind="greedy", length=6)
CONFIG = EvalConfig(
    kind="captioning",
    batch_size=4,
    captions=2,
    generation=GREEDY,
    data=DataConfig(num_threads=0),
)
MODEL = task_records.model()
TALKATIVE = 8  # seed of a model that writes different captions for different pictures


def one_device():
    return meshes.make_mesh(devices=jax.devices()[:1])


def evaluate(params, records, monkeypatch, mesh=None, **changes):
    monkeypatch.setattr(captioning, "open_source", lambda config: records)
    mesh = mesh or one_device()
    config = dataclasses.replace(CONFIG, **changes)
    with jax.set_mesh(mesh):
        params = jax.device_put(params, rules.shardings(params, mesh))
        return evaluators.build(config, MODEL, mesh)(params)


def written(params, records, settings):
    """A caption for each picture that has a reference, one picture at a time."""
    tokenizer = get_tokenizer(MODEL.tokenizer)
    write = functools.partial(generation.generate, MODEL, settings, params)
    images = [jnp.asarray(r["image"])[None] for r in records.kept() if r["texts"]]
    ids = [write(image).ids for image in images]
    return [tokenizer.decode(np.asarray(x))[0] for x in ids]


def mean_loss(params, records):
    """Cross-entropy of the first references, word by word in float64."""
    tokenizer = get_tokenizer(MODEL.tokenizer)
    scores_of = jax.jit(lambda image, text: coca.logits(coca.forward(MODEL, params, image, text)))
    losses = []
    for record in records.kept():
        if not record["texts"]:
            continue
        text = tokenizer(record["texts"][:1])
        scores = scores_of(jnp.asarray(record["image"])[None], jnp.asarray(text))
        scores = np.asarray(scores[0], np.float64)
        for score, word in zip(scores, text[0].tolist(), strict=True):
            losses.append(np.log(np.exp(score).sum()) - score[word])
            if word == tokenizer.eos_id:
                break
    return np.mean(losses)


def right_for_some(records, captions):
    """Adds the written caption of every third picture to its references, as the second one."""
    readable = [r for r in records.kept() if r["texts"]]
    for record, caption in list(zip(readable, captions, strict=True))[::3]:
        record["texts"] = (record["texts"][0], caption.upper() + " .", "a third, never read")
    return readable


@pytest.mark.slow
@pytest.mark.parametrize("how", [GREEDY, GenerationConfig(beams=2, length=6)])
def test_captions_and_losses_equal_those_picture_by_picture(how, monkeypatch, caplog):
    """Over the records that are readable and have a reference; equal on eight devices."""
    params, records = tiny_coca.params(MODEL, TALKATIVE), task_records.Records()
    captions = written(params, records, how)
    assert len(set(captions)) > 3
    references = [
        [words_of(text) for text in r["texts"][:2]] for r in right_for_some(records, captions)
    ]
    captions = [caption.split() for caption in captions]
    expected = {
        "cider": cider(captions, references),
        "bleu4": bleu(captions, references),
        "exact": np.mean([c in texts for c, texts in zip(captions, references, strict=True)]),
        "words": np.mean([len(c) for c in captions]),
        "loss": mean_loss(params, records),
        "examples": 19 - 2,
    }
    assert 6 / 17 <= expected["exact"] < 1
    assert expected["cider"] > 0
    with caplog.at_level(logging.INFO, logger="absl"):
        found = evaluate(params, records, monkeypatch, generation=how)
    shown = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Caption: ")]
    assert len(shown) == 4
    assert all(repr(" ".join(c)) in line for c, line in zip(captions, shown, strict=False))
    assert found == pytest.approx(expected, rel=1e-4)
    mesh = meshes.make_mesh(config=MeshConfig(fsdp=2, tensor=2))
    shared = evaluate(params, records, monkeypatch, mesh=mesh, generation=how)
    assert shared == pytest.approx(expected, rel=1e-4)


def test_words_are_separated_by_punctuation_of_any_script():
    assert words_of("It's a “Red–blue” star,\tisn't it?!") == [
        "it",
        "s",
        "a",
        "red",
        "blue",
        "star",
        "isn",
        "t",
        "it",
    ]
    assert words_of("it 's $3") == ["it", "s", "3"]
    assert words_of("नमस्ते।") == ["नमस्ते"]


@pytest.mark.slow
def test_a_data_set_without_references_is_refused(monkeypatch):
    records = task_records.Records(n=3, broken=(), silent=range(3))
    with pytest.raises(ConfigError, match=r"references, and some records has none"):
        evaluate(tiny_coca.params(MODEL), records, monkeypatch)


def test_impossible_captions_are_refused_before_training(monkeypatch):
    with pytest.raises(ConfigError, match="two towers write nothing"):
        evaluators.build(CONFIG, TwoTowerConfig(), one_device())
    long = GenerationConfig(length=9)
    with pytest.raises(ConfigError, match=r"length = 9 is more than .* text.length = 8"):
        evaluate({}, task_records.Records(), monkeypatch, generation=long)
    with pytest.raises(ConfigError, match="'greedy' or 'beam'"):
        dataclasses.replace(CONFIG, generation=GenerationConfig(kind="top_p"))


def test_settings_of_generation_are_settings_of_the_evaluation():
    assert from_config(EvalConfig, to_config(CONFIG)) == CONFIG


def test_words_of_the_penn_treebank():
    pytest.importorskip("pycocoevalcap")
    if shutil.which("java") is None:
        pytest.skip("there is no Java")
    texts = ["It's a “Red–blue” star, isn't it?!", "", "a 3.5 cm star.\u2028Two\nlines", " "]
    assert penn_treebank.words_of_all(texts) == [
        ["it", "'s", "a", "red", "blue", "star", "is", "n't", "it", "?!"],
        [],
        ["a", "3.5", "cm", "star", "two", "lines"],
        [],
    ]
    pairs = [("A star.", ["a star", "the star!"]), ("two suns", ["it's two suns", "suns"])]
    found = captioning.compared(pairs, penn_treebank.words_of_all)
    captions = [["a", "star"], ["two", "suns"]]
    references = [
        [["a", "star"], ["the", "star"]],
        [["it", "'s", "two", "suns"], ["suns"]],
    ]
    assert found["cider"](np.ones((1, 2)))[0] == pytest.approx(cider(captions, references))


def test_words_of_the_penn_treebank_need_java(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    config = dataclasses.replace(CONFIG, penn_treebank=True)
    with pytest.raises(ConfigError, match=r"need .*Java.* penn_treebank of the evaluation"):
        evaluators.build(config, MODEL, one_device())
