"""The names that `aced` exports: which they are, their documentation, and their late import."""

import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import aced

ROOT = pathlib.Path(__file__).parents[1]
NAMES = [
    "CheckpointOf",
    "ConfigError",
    "DataConfig",
    "Embeddings",
    "Encoder",
    "Selection",
    "SelectionConfig",
    "SimilarityConfig",
    "TokenizerConfig",
    "TwoTower",
    "TwoTowerConfig",
    "View",
    "feature_matching",
    "get_tokenizer",
    "init_projection",
    "load",
    "load_model",
    "open_source",
    "preset",
    "select",
    "sigmoid_kd",
    "sigmoid_loss",
    "similarity_loss",
    "similarity_losses",
    "softmax_kd",
    "softmax_loss",
    "take",
    "train_batches",
    "trained_model",
]


def test_exported_names():
    assert aced.__all__ == NAMES
    assert set(NAMES) <= set(dir(aced))


@pytest.mark.parametrize("name", NAMES)
def test_exported_name_has_a_docstring_of_its_own(name):
    value = getattr(aced, name)
    assert value.__name__ == name
    text = inspect.getdoc(value)
    assert text
    assert not text.startswith(f"{name}(")  # what dataclasses write where there is none


def test_every_exported_name_is_on_the_page_of_the_interface():
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    documented = re.findall(r"^::: aced\.[\w.]+\.(\w+)$", page, re.MULTILINE)
    assert sorted(documented) == NAMES


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'aced' has no attribute 'train_everything'"):
        _ = aced.train_everything


def test_import_loads_neither_jax_nor_numpy():
    code = "import sys, aced; print({'jax', 'numpy', 'flax'} & set(sys.modules)); aced.ConfigError"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "set()\n", done.stderr
