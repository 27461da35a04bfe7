import io

import numpy as np
import pytest
from PIL import Image

from aced.config import ConfigError, from_config, to_config
from aced.data import records
from aced.data.shapes.scenes import ShapesConfig
from aced.data.sources import ArrayRecordConfig, DataConfig, MemberConfig, check_size, open_source
from aced.data.sources.tars import WebDatasetConfig
from aced.data.sources.tfds import TfdsConfig


def test_shapes_are_opened_with_their_settings():
    source = open_source(DataConfig(shapes=ShapesConfig(size=7, resolution=24)))
    assert len(source) == 7
    assert source[6]["image"].shape == (24, 24, 3)


def test_prepared_files_are_opened(tmp_path):
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (10, 20, 30)).save(out, "PNG")
    examples = [
        records.Example(image=out.getvalue(), texts=(f"number {i}",), key=str(i)) for i in range(3)
    ]
    shards = records.write_split(tmp_path, "val", examples, 3, 2)
    records.write_description(tmp_path, {"val": shards}, statistics={}, settings={})
    config = DataConfig(
        source="array_record", array_record=ArrayRecordConfig(path=str(tmp_path), split="val")
    )
    source = open_source(config)
    assert [source[i]["texts"] for i in range(len(source))] == [
        ("number 0",),
        ("number 1",),
        ("number 2",),
    ]
    assert source[1]["id"] == 1


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (DataConfig(), "shapes, split train"),
        (
            DataConfig(
                source="array_record", array_record=ArrayRecordConfig(path="/data/a", split="clean")
            ),
            "/data/a, split clean",
        ),
        (
            DataConfig(source="webdataset", webdataset=WebDatasetConfig(path="/data/{0..9}.tar")),
            "/data/{0..9}.tar",
        ),
        (
            DataConfig(source="tfds", tfds=TfdsConfig(name="coco", split="val")),
            "coco, split val",
        ),
        (DataConfig(source="mixture", mixture={"web": MemberConfig()}), "mixture"),
    ],
)
def test_messages_name_the_data_set(config, place):
    assert config.place == place


class Sized:
    name, fingerprint = "web", ""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        raise IndexError(index)


def test_sizes_are_checked_before_anything_is_read():
    with pytest.raises(ConfigError, match="web is empty"):
        check_size(Sized(0))
    with pytest.raises(ConfigError, match=r"2147483648 examples.*32 bits"):
        check_size(Sized(2**31))
    check_size(Sized(np.iinfo(np.int32).max))
    with pytest.raises(ConfigError, match="empty"):
        open_source(DataConfig(shapes=ShapesConfig(size=0)))


def test_settings_round_trip_and_contradictions_are_refused():
    config = DataConfig(shapes=ShapesConfig(wrong=0.1), caption="first")
    assert from_config(DataConfig, to_config(config)) == config
    with pytest.raises(ConfigError, match=r"data.array_record.path is empty.*aced.prepare"):
        DataConfig(source="array_record")
    with pytest.raises(ConfigError, match=r"data.source must be 'shapes' or .* 'mixture', got 'x'"):
        DataConfig(source="x")
    with pytest.raises(ConfigError, match=r"data.source must be .* 'tfds', got 'mixture'"):
        MemberConfig(source="mixture")
    with pytest.raises(ConfigError, match="num_threads"):
        DataConfig(num_threads=-1)
    with pytest.raises(ConfigError, match="max_skipped_in_a_row"):
        DataConfig(max_skipped_in_a_row=0)
