"""Our model folder: written, read, loaded by a run, and what is refused."""

import dataclasses
import json

import foreign
import jax
import numpy as np
import ours
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from aced.config import ConfigError
from aced.convert import tokenizer_write
from aced.data.tokenizers import get_tokenizer
from aced.files import own_files
from aced.methods.frozen import CheckpointOf, FrozenConfig, check_same_model, load_model
from aced.models import model_folder
from aced.models.saved import InteropError, flat, nested


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    model_folder.write(ours.siglip("sentencepiece"), path)
    return path


def test_round_trip(folder):
    model = ours.siglip("sentencepiece")
    again = model_folder.read(str(folder))
    assert again.config == model.config
    assert again.tokenizer == model.tokenizer
    foreign.assert_same_tensors(flat(model.params), flat(again.params))
    stored = safetensors.numpy.load_file(folder / model_folder.WEIGHTS)
    assert stored["text/blocks/mlp/fc1/kernel"].shape == (2, 24, 40)


def test_settings_with_the_path_of_the_tokenizer(folder):
    config = model_folder.read_config(str(folder))
    assert config.tokenizer.path == str(folder / "tokenizer.model")
    ids = get_tokenizer(config.tokenizer)(foreign.CAPTIONS)
    mine = tokenizer_write.opened(ours.siglip("sentencepiece"))(foreign.CAPTIONS)
    np.testing.assert_array_equal(ids, mine)


def test_a_run_finds_its_model_and_loads_it_on_its_mesh(folder):
    item = FrozenConfig(checkpoint="{workdir}/model").resolve(str(folder.parent))
    assert item.model == model_folder.read_config(str(folder))
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,))

    def shape(x):
        spec = PartitionSpec(*(("data",) if x.ndim and x.shape[0] % 2 == 0 else ()))
        return jax.ShapeDtypeStruct(x.shape, "bfloat16", sharding=NamedSharding(mesh, spec))

    params = ours.siglip("sentencepiece").params
    loaded = load_model(item, jax.tree.map(shape, params))
    for name, x in flat(loaded).items():
        assert x.dtype == "bfloat16"
        np.testing.assert_array_equal(x, flat(params)[name].astype("bfloat16"))
    assert loaded["text"]["token"].sharding.spec == PartitionSpec("data")
    with pytest.raises(ConfigError, match="is a model folder, which has one set of parameters"):
        load_model(CheckpointOf(str(folder), parameters="ema"), jax.tree.map(shape, params))


def test_the_same_tokenizer_elsewhere_is_the_same_model(folder, tmp_path):
    config = model_folder.read_config(str(folder))
    (tmp_path / "copy.model").write_bytes((folder / "tokenizer.model").read_bytes())
    tokens = dataclasses.replace(config.tokenizer, path=str(tmp_path / "copy.model"))
    check_same_model(dataclasses.replace(config, tokenizer=tokens), config, "it")
    (tmp_path / "copy.model").write_bytes(foreign.sentencepiece_model(vocab_size=390))
    get_tokenizer.cache_clear()
    with pytest.raises(ConfigError, match=r"tokenizer.path: here .*copy.model', .*another file"):
        check_same_model(dataclasses.replace(config, tokenizer=tokens), config, "it")


def about(folder, **changes):
    file = folder / model_folder.FILE
    content = own_files.loads(file.read_bytes())
    content |= {k: v for k, v in changes.items() if "." not in k}
    content["model"] |= {k: v for k, v in changes.items() if "." in k}
    file.write_text(json.dumps(content))


def test_a_flipped_bit_in_any_file_is_found(folder):
    for path in folder.iterdir():
        good = path.read_bytes()
        for place in (0, len(good) // 2, len(good) - 9):
            path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
            with pytest.raises(InteropError, match=f"^{path} (is not|does not match) "):
                model_folder.read(str(folder))
        path.write_bytes(good)
    model_folder.read(str(folder))


def test_a_folder_of_before_its_files_had_checksums(folder):
    expected = model_folder.read(str(folder))
    content = own_files.loads((folder / model_folder.FILE).read_bytes())
    del content["tokenizer_sha256"]
    (folder / model_folder.FILE).write_text(json.dumps(content))
    assert model_folder.read(str(folder)).tokenizer == expected.tokenizer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "does not have the format 'aced-model'"),
        ({"version": 2}, "has version 2, but this program reads 1"),
        ({"model": {}, "weights_sha256": "00"}, "does not match model.json"),
        ({"text.length": 17}, r"text/position: expected float32\[17, 24\]"),
        ({"image.registers": 4}, "image.registers is not a setting"),
        ({"tokenizer.path": "../tokenizer.model"}, "must name a file in this folder"),
        ({"tokenizer.path": "/etc/passwd"}, "must name a file in this folder"),
        ({"tokenizer.path": "other.model"}, "has no other.model"),
    ],
)
def test_a_folder_that_was_changed(folder, changes, message):
    about(folder, **changes)
    with pytest.raises(ConfigError, match=message):
        model_folder.read(str(folder))


def rewritten(folder, change):
    """Other weights, with the digest that fits them."""
    import hashlib

    leaves = safetensors.numpy.load_file(folder / model_folder.WEIGHTS)
    change(leaves)
    safetensors.numpy.save_file(leaves, folder / model_folder.WEIGHTS)
    content = (folder / model_folder.WEIGHTS).read_bytes()
    about(folder, weights_sha256=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("t"), r"t: expected float32\[\], found nothing"),
        (lambda x: x.update(more=np.ones(1, np.float32)), r"has unknown parameters: \['more'\]"),
        (lambda x: x.update(t=x["t"].astype(np.float64)), r"found float64\[\]"),
        (lambda x: x.update({"image/position": x["image/position"][:4]}), r"float32\[4, 32\]"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    rewritten(folder, change)
    with pytest.raises(InteropError, match=message):
        model_folder.read_params(str(folder))


def test_shapes_of_another_model(folder):
    params = flat(ours.siglip("sentencepiece").params)
    params["t"] = np.zeros(2, np.float32)
    with pytest.raises(InteropError, match="a model of another size"):
        model_folder.read_params(str(folder), nested(params))
