"""Records: what is written is read; what is damaged is refused, by name."""

import concurrent.futures
import hashlib
import json
import pathlib

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module

from aced.data import records
from aced.files import own_files


def examples(n=7):
    rng = np.random.default_rng(0)
    return [
        records.Example(
            image=rng.bytes(100 + i),
            texts=tuple(f"text {i}.{j} é" for j in range(1 + i % 3)),
            key=f"folder/{i}.png",
            label=i % 3 if i % 2 else None,
            is_noisy=bool(i % 3) if i else None,
            extra={"width": i, "title": "t"} if i == 4 else {},
            thumbnail=rng.bytes(10) if i in (2, 5) else None,
            second=rng.bytes(50) if i in (5, 6) else None,
        )
        for i in range(n)
    ]


def write(path, n=7, shards=2, **kwargs):
    path.mkdir()
    split = records.write_split(path, "train", examples(n), n, shards)
    records.write_description(path, {"train": split}, statistics={}, settings={}, **kwargs)
    return path


def raw(fields):
    return msgpack.packb(fields, use_bin_type=True)


def fields(**changes):
    image = b"12345"
    out = {"image": image, "texts": ["a"], "key": "k", "sha256": hashlib.sha256(image).digest()}
    out |= changes
    return {name: value for name, value in out.items() if value is not None}


def test_round_trip_over_shards(tmp_path):
    source = records.open_dataset(write(tmp_path / "d", class_names=["x", "y", "z"]), "train")
    assert len(source) == 7
    assert source.name == "d/train"
    assert source.class_names == ["x", "y", "z"]
    for i, example in enumerate(examples()):
        got = source[np.int64(i)]
        assert got.pop("image") == example.image
        assert got.pop("texts") == example.texts
        assert got.pop("key") == example.key
        assert got.pop("id") == i
        assert got.pop("thumbnail", None) == example.thumbnail
        assert got.pop("second", None) == example.second
        assert got.pop("label", None) == example.label
        assert got.pop("is_noisy", None) == example.is_noisy
        assert got.pop("extra", {}) == example.extra
        assert not got
    for index in (-1, 7):
        with pytest.raises(IndexError, match="has 7"):
            source[index]


def test_files_are_as_documented(tmp_path):
    path = write(tmp_path / "d")
    description = json.loads((path / "dataset.json").read_text())
    shards = description["splits"]["train"]["shards"]
    assert [shard["records"] for shard in shards] == [3, 4]
    for i, shard in enumerate(shards):
        file = path / f"train-0000{i}-of-00002.array_record"
        assert hashlib.sha256(file.read_bytes()).hexdigest() == shard["sha256"]
        reader = array_record_module.ArrayRecordReader(str(file))
        assert "group_size:1," in reader.writer_options_string()
    first = msgpack.unpackb(reader.read([0])[0])
    assert first["key"] == "folder/3.png"
    assert first["sha256"] == hashlib.sha256(first["image"]).digest()


def test_same_bytes_and_fingerprint_for_same_input(tmp_path):
    a, b, c = write(tmp_path / "a"), write(tmp_path / "b"), write(tmp_path / "c", n=6)
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()
    prints = [records.open_dataset(path, "train").fingerprint for path in (a, b, c)]
    assert prints[0] == prints[1] != prints[2]


def test_many_threads_read_the_same_files(tmp_path):
    source = records.open_dataset(write(tmp_path / "d", n=40, shards=3), "train")
    order = np.random.default_rng(1).integers(0, 40, 800)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: source[i]["image"], order))
    expected = examples(40)
    assert got == [expected[i].image for i in order]


def test_damage_is_named_and_leaves_the_rest_readable(tmp_path):
    path = write(tmp_path / "d", shards=1)
    file = path / "train-00000-of-00001.array_record"
    data = bytearray(file.read_bytes())
    where = bytes(data).index(examples()[2].image[:50])
    data[where + 5] ^= 0xFF
    file.write_bytes(data)
    source = records.open_dataset(path, "train")
    with pytest.raises(records.RecordError, match=r"train-00000-of-00001.array_record, record 2: "):
        source[2]
    assert [source[i]["key"] for i in (0, 1, 3, 6)] == [f"folder/{i}.png" for i in (0, 1, 3, 6)]


@pytest.mark.parametrize("seed", range(40))
def test_no_flipped_bit_comes_through(tmp_path, seed):
    """Records hold no checksum that is verified: ArrayRecord's own are relied on."""
    path, rng = write(tmp_path / "d", shards=1), np.random.default_rng(seed)
    file = path / "train-00000-of-00001.array_record"
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    file.write_bytes(data)
    source = records.open_dataset(path, "train")
    for i, example in enumerate(examples()):
        try:
            found = source[i]
        except (records.RecordError, records.DatasetError):
            continue
        assert (found["image"], found["texts"], found["key"]) == (
            example.image,
            example.texts,
            example.key,
        )


def test_records_of_one_picture_are_unchanged():
    """Data sets from before there were second pictures, and new ones, are the same bytes."""
    record = raw(fields(label=3, is_noisy=True))
    example = records.Example(b"12345", ("a",), "k", label=3, is_noisy=True)
    assert records.encode(example) == record
    assert records.decode(record) == example


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "Unpack"),
        (b"\xc1", "Format"),
        (raw([1, 2]), "must be a map, got list"),
        (raw(fields(image=None)), "no field 'image'"),
        (raw(fields(image="text")), "'image' must be bytes, got str"),
        (raw(fields(sha256=b"1")), "instead of 32"),
        (raw(fields(thumbnail=b"1")), "only one of "),
        (raw(fields(thumbnail_sha256=bytes(32))), "only one of "),
        (raw(fields(thumbnail=b"", thumbnail_sha256=bytes(32))), "'thumbnail' has 0 bytes"),
        (raw(fields(thumbnail=b"1", thumbnail_sha256=b"1")), "instead of 32"),
        (raw(fields(thumbnail="1", thumbnail_sha256=bytes(32))), "must be bytes, got str"),
        (raw(fields(second=b"1")), "only one of 'second' and 'second_sha256'"),
        (raw(fields(second=b"", second_sha256=bytes(32))), "'second' has 0 bytes"),
        (raw(fields(texts=[])), "1 to 1024 strings"),
        (raw(fields(texts=[b"a"])), "1 to 1024 strings"),
        (raw(fields(texts=["a"] * 1025)), "1025"),
        (raw(fields(label=True)), "'label' must be int, got bool"),
        (raw(fields(label=1 << 31)), "is not the number of a class"),
        (raw(fields(is_noisy=1)), "'is_noisy' must be bool"),
        (raw(fields(extra={"a": [1]})), "maps strings to scalars"),
        (raw(fields(more=1)), "unknown field 'more'"),
        (raw({b"x": 1, "y": 2}), "no field"),
        (raw(fields(key="../x")), "not a path inside"),
        (raw(fields(key="/etc/x")), "not a path inside"),
        (raw(fields(image=msgpack.ExtType(1, b"1"))), "max_ext_len"),
        (raw(fields()) + b"\x00", "extra data"),
    ],
)
def test_malformed_records_are_refused(tmp_path, record, reason):
    path = write(tmp_path / "d", n=1, shards=1)
    file = path / "train-00000-of-00001.array_record"
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    writer.write(record)
    writer.close()
    description = own_files.loads((path / "dataset.json").read_bytes())
    description["splits"]["train"]["shards"][0]["bytes"] = file.stat().st_size
    (path / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(records.RecordError, match=reason) as error:
        records.open_dataset(path, "train")[0]
    assert f"{file}, record 0: " in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ()},
        {"thumbnail": b""},
        {"second": b""},
        {"label": 1 << 40},
        {"extra": {"a": 1 << 70}},
        {"texts": ("\ud800",)},
        {"key": ""},
    ],
)
def test_nothing_is_written_that_could_not_be_read(change):
    with pytest.raises(ValueError, match=r"\w"):
        records.encode(records.Example(**{"image": b"1", "texts": ("a",), "key": "k"} | change))


def test_a_data_set_of_sentences_has_no_images(tmp_path):
    sentences = [records.Example(image=b"", texts=(f"sentence {i}",), key=f"{i}") for i in range(3)]
    split = records.write_split(tmp_path, "train", sentences, 3, 1)
    records.write_description(tmp_path, {"train": split}, statistics={}, settings={})
    source = records.open_dataset(tmp_path, "train")
    assert [source[i] for i in range(3)] == [
        {"image": b"", "texts": (f"sentence {i}",), "id": i, "key": f"{i}"} for i in range(3)
    ]


def damage(path: pathlib.Path, how: str):
    description = own_files.loads((path / "dataset.json").read_bytes())
    shard = path / "train-00001-of-00002.array_record"
    split = description["splits"]["train"]
    if how == "no description":
        (path / "dataset.json").unlink()
        return
    if how == "not json":
        (path / "dataset.json").write_text("{")
        return
    if how == "missing shard":
        shard.unlink()
    elif how == "cut off":
        shard.write_bytes(shard.read_bytes()[:1000])
    elif how == "wrong sum":
        split["records"] = 8
    elif how == "empty":
        split |= {"records": 0, "shards": []}
    elif how == "version":
        description["version"] = 2
    elif how == "escape":
        description["splits"] = {"../train": split}
    elif how == "types":
        split["shards"][0]["records"] = "3"
    elif how == "count":
        split["records"], split["shards"][0]["records"] = 8, 4
    (path / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no description", "python -m aced.prepare"),
        ("not json", "line 1: not JSON"),
        ("missing shard", "train-00001-of-00002.array_record is missing"),
        ("cut off", "has 1000 bytes instead of"),
        ("wrong sum", "states 8 records .* have 7"),
        ("empty", "has no records"),
        ("version", "format and version"),
        ("escape", "letters, digits and underscores"),
        ("types", "a shard of '3' records"),
        ("count", "has 3 records instead of 4"),
    ],
)
def test_broken_data_sets_are_refused_with_advice(tmp_path, how, message):
    path = write(tmp_path / "d")
    damage(path, how)
    with pytest.raises(records.DatasetError, match=message):
        records.open_dataset(path, "train")[0]


def test_unknown_split_and_remote_path(tmp_path):
    path = write(tmp_path / "d")
    with pytest.raises(records.DatasetError, match="no split 'val'; it has: train"):
        records.open_dataset(path, "val")
    with pytest.raises(records.DatasetError, match="gcsfuse"):
        records.open_dataset("gs://bucket/data", "train")


@pytest.mark.parametrize(("count", "shards"), [(7, 8), (7, 0), (0, 1), (8, 2)])
def test_counts_that_do_not_fit_are_refused(tmp_path, count, shards):
    with pytest.raises(records.DatasetError, match=r"shards|fewer"):
        records.write_split(tmp_path, "train", examples(7), count, shards)
