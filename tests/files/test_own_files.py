"""Files with checksums: every flipped bit is found, or changes nothing that is read."""

import functools
import json
import operator

import numpy as np
import pytest
from etils import epath

from aced.checkpoints import record
from aced.config import ConfigError
from aced.data import records
from aced.data.records import DatasetError
from aced.files import own_files
from aced.select_text.workspace import Workspace
from tests.checkpoints.test_record import settings
from tests.data.test_records import write as write_dataset

CONTENT = {"b": [1, 2.5, None], "a": {"é": "ü", "x": (3, "4")}, 7: True}


def flips(path, count=None):
    """Every bit of a file flipped in turn, or `count` random ones; the file is restored.

    Bits of zero bytes are left out of the random ones: nearly all are there to fill up.
    """
    good = path.read_bytes()
    bits = range(8 * len(good))
    if count is not None:
        bits = [bit for bit in bits if good[bit // 8]]
        bits = np.random.default_rng(0).choice(bits, count, replace=False).tolist()
    for bit in bits:
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        yield
    path.write_bytes(good)


def read_or_none(read, error):
    try:
        return read()
    except error:
        return None


def test_objects_are_read_as_json_has_them():
    data = own_files.dumps(CONTENT)
    expected = json.loads(json.dumps(CONTENT))
    assert own_files.loads(data) == expected
    assert json.loads(data) == expected | {"sha256": json.loads(data)["sha256"]}
    assert own_files.loads(json.dumps(CONTENT).encode()) == expected  # without a checksum


def test_every_flipped_bit_of_an_object_is_found_or_changes_nothing(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(own_files.dumps(CONTENT))
    expected, found = own_files.loads(path.read_bytes()), 0
    for _ in flips(path):
        read = read_or_none(lambda: own_files.loads(path.read_bytes()), own_files.UnreadableError)
        found += read is None
        assert read in (None, expected)
    assert found > 1000


def test_every_flipped_bit_of_other_files_is_found(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(own_files.seal(b"some bytes\n\0"))
    assert own_files.unseal(path.read_bytes()) == b"some bytes\n\0"
    for _ in flips(path):
        with pytest.raises(own_files.UnreadableError, match="it was cut off or changed"):
            own_files.unseal(path.read_bytes())
    for data in (b"", b"x", path.read_bytes()[:-1]):
        with pytest.raises(own_files.UnreadableError):
            own_files.unseal(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\0" * 5000, "it is 5,000 zero bytes"),
        (b"[1]", "it is not a JSON object but a list"),
        (b'{\n "a": 1,\n "b": "\xff"}', "line 3: byte 0xff is not UTF-8"),
        (b'{\n "a": 1', "line 2: not JSON: Expecting ',' delimiter, column 8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_json_that_is_not_an_object(data, message):
    with pytest.raises(own_files.UnreadableError) as error:
        own_files.loads(data)
    assert message in str(error.value)


def test_flips_in_a_runs_config(tmp_path):
    folder = epath.Path(tmp_path)
    record.write(folder, settings(), "data", {"model": "1"})
    expected, found = record.read(folder), 0
    for _ in flips(tmp_path / record.FILE, 400):
        read = read_or_none(lambda: record.read(folder), ConfigError)
        found += read is None
        assert read in (None, expected)
        if read is None and found % 40 == 1:  # a run is refused, too
            with pytest.raises(ConfigError, match=r"config.json is not readable|other settings"):
                record.check(folder, settings(), "data", {"model": "1"})
    assert found > 300


def test_flips_in_the_description_of_a_data_set(tmp_path):
    path = write_dataset(tmp_path / "d", class_names=["x", "y"])
    expected, found = records.read_description(path), 0
    for _ in flips(path / "dataset.json", 400):
        read = read_or_none(lambda: records.read_description(path), DatasetError)
        found += read is None
        assert read in (None, expected)
    assert found > 300


@pytest.mark.slow
def test_flips_in_the_shards_of_a_data_set(tmp_path):
    """These have checksums of ArrayRecord's own."""
    path = write_dataset(tmp_path / "d", shards=1)
    good = records.open_dataset(path, "train")
    expected, found = [good[i] for i in range(7)], 0
    for _ in flips(path / "train-00000-of-00001.array_record", 600):
        source = records.open_dataset(path, "train")
        for i in range(7):
            read = read_or_none(
                functools.partial(operator.getitem, source, i), (records.RecordError, DatasetError)
            )
            found += read is None
            assert read in (None, expected[i])
    assert found > 300


def test_flips_in_the_state_of_a_selection(tmp_path):
    workspace = Workspace(str(tmp_path / "out"))
    workspace.root.mkdir()
    arrays = {
        "positions": np.arange(5),
        "broken": np.asarray(np.uint32(3)),
        "none": np.zeros((0, 2), np.float32),
        "score": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }
    workspace.save_arrays("0.npz", arrays)
    found = 0
    for _ in flips(workspace.root / "0.npz", 1500):
        read = read_or_none(lambda: workspace.load_arrays("0.npz"), DatasetError)
        found += read is None
        if read is not None:
            assert read.keys() == arrays.keys()
            for name, array in arrays.items():
                np.testing.assert_array_equal(read[name], array)
                assert read[name].dtype == array.dtype
    assert found > 1000
    with (workspace.root / "0.npz").open("wb") as file:
        np.savez(file, **arrays)  # of before there were checksums
    with pytest.raises(DatasetError, match="it has no checksum"):
        workspace.load_arrays("0.npz")
    old = workspace.load_arrays("0.npz", checked=False)
    np.testing.assert_array_equal(old["score"], arrays["score"])
