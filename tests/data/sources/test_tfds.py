"""TFDS without TensorFlow, against TFDS's own reader with its own decoding."""

import io
import sys
import warnings

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from aced.config import ConfigError
from aced.data.records import DatasetError, RecordError
from aced.data.sources.tfds import TfdsConfig, TfdsSource
from tests.data import many

COUNT = 12
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorflow_datasets")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TFDS's own writers
        return many.write_tfds(str(tmp_path_factory.mktemp("tfds")), COUNT)


def source(folder, **settings):
    return TfdsSource(TfdsConfig(builder_dir=folder, **{"captions": ("title",), **settings}))


def test_examples_match_tfds(folder):
    read = source(folder, captions=("title", "captions.text"), label="label")
    own = tfds.builder_from_directory(folder).as_data_source("train")
    assert len(read) == len(own) == COUNT
    for i in range(COUNT):
        row = own[i]
        with Image.open(io.BytesIO(read[i]["image"])) as picture:
            np.testing.assert_array_equal(np.asarray(picture), row["image"])
        texts = [row["title"], *row["captions"]["text"]]
        assert read[i]["texts"] == tuple(text.decode() for text in texts)
        assert (read[i]["label"], read[i]["id"]) == (row["label"], i)
    assert sorted(read[i]["image"] for i in range(COUNT)) == sorted(map(many.jpeg, range(COUNT)))
    assert read.class_names == ["a", "b", "c"]
    assert "tensorflow" not in sys.modules


def test_classes_can_be_the_captions_by_their_names(folder):
    read = source(folder, captions=("shown",))
    own = tfds.builder_from_directory(folder).as_data_source("train")
    assert {read[i]["texts"] for i in range(COUNT)} == {("x",), ("y",), ("x", "y"), ()}
    for i in range(COUNT):
        assert read[i]["texts"] == tuple("xy"[number] for number in own[i]["shown"])
    assert read.class_names == ["x", "y"]
    both = source(folder, captions=("label", "title"), label="label")
    assert both[0]["texts"] == ("abc"[own[0]["label"]], own[0]["title"].decode())
    assert both.class_names == ["a", "b", "c"]
    assert source(folder).class_names is None


def test_parts_of_splits_and_fingerprints(folder):
    whole, part = source(folder), source(folder, split="train[3:7]")
    assert [part[i]["image"] for i in range(4)] == [whole[i]["image"] for i in range(3, 7)]
    assert whole.fingerprint == source(folder).fingerprint
    others = {part.fingerprint, source(folder, captions=("captions.text",)).fingerprint}
    assert len(others | {whole.fingerprint}) == 3


def test_a_second_picture_is_another_feature(folder):
    read = source(folder, second="image")  # the data set has no other
    assert read[3]["second"] == read[3]["image"]
    assert read.fingerprint != source(folder).fingerprint
    with pytest.raises(ConfigError, match=r"data.tfds.second = 'title' must be .* a picture"):
        source(folder, second="title")


def test_by_name(folder):
    data_dir, name, _ = folder.rsplit("/", 2)
    read = TfdsSource(TfdsConfig(name=name, data_dir=data_dir, captions=("title",)))
    assert read.fingerprint == source(folder).fingerprint
    assert read.name == "drawings/1.0.0/train"


def test_unreadable_data_sets(folder, tmp_path):
    for settings in ({"split": "nope"}, {"builder_dir": str(tmp_path)}):
        with pytest.raises(DatasetError, match=r"cannot be opened: .*\n.*--file_format=array_rec"):
            TfdsSource(TfdsConfig(**{"builder_dir": folder, "captions": ("title",), **settings}))
    with pytest.raises(DatasetError, match="Dataset nobody_has_it not found") as raised:
        TfdsSource(TfdsConfig(name="nobody_has_it", data_dir=str(tmp_path)))
    assert len(str(raised.value)) < 1000
    for settings, message in [
        ({"image": "picture"}, r"image = 'picture' .*does not exist. There are: .*captions.text"),
        ({"image": "title"}, r"image = 'title' must be a feature with a picture, and it is Text"),
        ({"captions": ("captions.by",)}, r"captions = 'captions.by' must"),
        ({"label": "title"}, r"label = 'title' .* is Text"),
    ]:
        with pytest.raises(ConfigError, match=message):
            source(folder, **settings)
    with pytest.raises(ConfigError, match="not both"):
        TfdsConfig(name="a", builder_dir="b")


def test_a_record_that_cannot_be_read(folder, monkeypatch):
    read = source(folder)

    class Broken:
        def __len__(self):
            return COUNT

        def __getitem__(self, index):
            raise RuntimeError("checksum")

    monkeypatch.setattr(read, "_source", Broken())
    with pytest.raises(
        RecordError, match=r"drawings/1\.0\.0/train, record 3: RuntimeError: checksum"
    ):
        read[3]
