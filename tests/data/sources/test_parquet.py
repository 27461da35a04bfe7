"""Parquet read by row group, against pyarrow's own rows; groups are read once and let go."""

import json
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aced.config import ConfigError
from aced.data.records import DatasetError, RecordError
from aced.data.sources import parquet, parquet_classes
from aced.data.sources.parquet import ParquetConfig, ParquetSource
from aced.files import storage
from tests.data import many


def source(path, **settings):
    return ParquetSource(ParquetConfig(path=str(path), **settings))


@pytest.fixture
def reads(monkeypatch):
    """The row groups that were read, in order."""
    groups, read = [], parquet._read_group
    monkeypatch.setattr(
        parquet, "_read_group", lambda group, columns: groups.append(group) or read(group, columns)
    )
    return groups


@pytest.mark.parametrize("nested", [True, False])
def test_rows_match_pyarrow(tmp_path, nested):
    rows = []
    for number, (first, last) in enumerate([(0, 5), (5, 5), (5, 12)]):
        table = many.parquet_table(range(first, last), nested)
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=3)
        if last > first:
            rows += pq.read_table(tmp_path / f"{number}.parquet").to_pylist()
    read = source(tmp_path, captions=("caption", "captions"), label="class")
    assert read.groups == [3, 2, 3, 3, 1]
    assert len(read) == len(rows) == 12
    for i, row in enumerate(rows):
        picture = row["image"]["bytes"] if nested else row["image"]
        texts = (row["caption"], *row["captions"])
        assert (read[i]["image"], read[i]["texts"], read[i]["label"], read[i]["id"]) == (
            picture,
            texts,
            row["class"],
            i,
        )
    assert [read[i]["key"] for i in (0, 4, 5)] == [
        "0.parquet/0/0",
        "0.parquet/1/1",
        "2.parquet/0/0",
    ]
    with pytest.raises(IndexError):
        read[12]


def test_missing_and_empty_values(tmp_path):
    table = pa.table(
        {
            "image": [
                {"bytes": many.jpeg(0), "path": "x"},
                {"bytes": None, "path": "/etc/x"},
                None,
            ],
            "caption": [None, "red", "blue"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    read = source(tmp_path)
    assert read[0]["texts"] == ()
    for i in (1, 2):
        with pytest.raises(RecordError, match=rf"a.parquet, row group 0, row {i}: .*no bytes"):
            read[i]


def test_a_window_counts_columns_with_a_dot_in_their_name(tmp_path):
    table = many.parquet_table(range(300), nested=False).rename_columns(
        ["image.jpg", "caption", "captions", "class"]
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    read = source(tmp_path, image="image.jpg")
    assert read.group_bytes[0] > 100_000
    assert [read[i]["image"] for i in (0, 127, 128, 299)] == [
        many.jpeg(i) for i in (0, 127, 128, 299)
    ]


def test_classified_pictures_need_no_captions(tmp_path):
    many.write_parquet(tmp_path, [4], 2)
    read = source(tmp_path, captions=(), label="class")
    assert [(read[i]["texts"], read[i]["label"]) for i in range(4)] == [
        ((), i % 3) for i in range(4)
    ]


def test_second_pictures_have_their_own_column(tmp_path):
    left, right = ([{"bytes": many.jpeg(i), "path": "x"} for i in (k, k + 1)] for k in (0, 10))
    right[1]["bytes"] = None
    table = pa.table({"image": left, "right": right, "caption": ["a", "b"], "label": [1, 0]})
    pq.write_table(table, tmp_path / "a.parquet")
    read = source(tmp_path, second="right", label="label")
    assert (read[0]["image"], read[0]["second"]) == (many.jpeg(0), many.jpeg(10))
    assert (read[0]["texts"], read[0]["label"]) == (("a",), 1)
    with pytest.raises(RecordError, match=r"a.parquet, row group 0, row 1: .*no bytes"):
        read[1]
    alone = source(tmp_path, label="label")
    assert "second" not in alone[0]
    assert alone.fingerprint != read.fingerprint


def noted(table, column, names, several=False):
    """`table` with what `datasets` notes about a column of classes, or of lists of them."""
    feature = {"names": names, "_type": "ClassLabel"}
    feature = {"feature": feature, "_type": "List"} if several else feature
    note = {"info": {"features": {column: feature}}}
    return table.replace_schema_metadata({"huggingface": json.dumps(note)})


@pytest.mark.parametrize("several", [False, True])
def test_classes_that_datasets_has_named(tmp_path, several):
    numbers = [2, -1, 0, 2]
    table = pa.table(
        {
            "image": [many.jpeg(i) for i in range(4)],
            "class": [[n, 1] for n in numbers] if several else numbers,
            "number": numbers,
        }
    )
    named = noted(table, "class", ["cat", "dog", "owl"], several)
    pq.write_table(named, tmp_path / "a.parquet")
    read = source(tmp_path, captions=("class",), label="number")
    second = ("dog",) if several else ()
    assert [(read[i]["texts"], read[i]["label"]) for i in range(4)] == [
        (("owl", *second), 2),
        (second, -1),
        (("cat", *second), 0),
        (("owl", *second), 2),
    ]
    assert read.class_names == ("cat", "dog", "owl")
    if not several:
        assert source(tmp_path, captions=(), label="class").class_names == ("cat", "dog", "owl")
    assert source(tmp_path, captions=(), label="number").class_names is None

    named = noted(table, "class", ["dog", "cat", "owl"], several)
    pq.write_table(named, tmp_path / "b.parquet")
    with pytest.raises(DatasetError, match=r"a.parquet and .*b.parquet name the classes .*'class'"):
        source(tmp_path, captions=("class",))


def test_a_class_without_a_name_is_a_damaged_record(tmp_path):
    table = pa.table({"image": [many.jpeg(0), many.jpeg(1)], "class": [0, 1]})
    pq.write_table(noted(table, "class", ["cat"]), tmp_path / "a.parquet")
    read = source(tmp_path, captions=("class",))
    assert read[0]["texts"] == ("cat",)
    with pytest.raises(RecordError, match="row 1: class 1 has no name; there are 1"):
        read[1]


@pytest.mark.parametrize("encode", [pa.array, lambda names: pa.array(names).dictionary_encode()])
def test_labels_that_are_names_are_numbered_in_their_order(tmp_path, encode):
    for number, names in enumerate([["owl", "cat"], [None, "dog", "cat"]]):
        pictures = [many.jpeg(i) for i in range(len(names))]
        table = pa.table({"image": pictures, "class": encode(names)})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    read = source(tmp_path, captions=(), label="class")
    assert read.class_names == ("cat", "dog", "owl")
    assert [read[i]["label"] for i in (0, 1, 3, 4)] == [2, 0, 1, 0]
    with pytest.raises(RecordError, match=r"1.parquet, row group 0, row 0: its label"):
        read[2]
    if encode is pa.array:
        both = source(tmp_path, captions=("class",), label="class")
        assert [(both[i]["texts"], both[i]["label"]) for i in (0, 3)] == [
            (("owl",), 2),
            (("dog",), 1),
        ]

    pq.write_table(pa.table({"image": [many.jpeg(0)], "class": [1]}), tmp_path / "2.parquet")
    with pytest.raises(DatasetError, match=r"1.parquet and .*2.parquet name the classes"):
        source(tmp_path, captions=(), label="class")


def test_labels_that_are_all_missing(tmp_path):
    table = pa.table({"image": [many.jpeg(0)], "class": pa.array([None], pa.string())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(RecordError, match="its label is not the number of a class: None"):
        source(tmp_path, captions=(), label="class")[0]


def test_captions_are_no_names_of_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_classes, "MOST", 2)
    many.write_parquet(tmp_path, [4], 2)
    with pytest.raises(ConfigError, match="'caption' has more than 2 different names"):
        source(tmp_path, label="caption")


def test_wrong_columns_are_refused_and_the_right_ones_listed(tmp_path):
    many.write_parquet(tmp_path, [2], 2)
    there = r"There are: image \(struct.*\), caption \(string\), captions \(list.*\), class"
    for settings, message in [
        ({"image": "jpg"}, rf"image = 'jpg' .* does not exist. {there}"),
        ({"image": "caption"}, r"image = 'caption' must be a column of bytes.* is string"),
        ({"captions": ("class",)}, r"captions = 'class' must be a column of strings.* is int64"),
        ({"label": "captions"}, r"label = 'captions' must be .*numbers, or names"),
        ({"second": "right"}, rf"second = 'right' .* does not exist. {there}"),
        ({"second": "class"}, r"second = 'class' must be a column of bytes"),
    ]:
        with pytest.raises(ConfigError, match=message):
            source(tmp_path, **settings)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    columns = [[many.jpeg(0)], ["a circle"], ["a square"]]
    table = pa.table(columns, names=["image", "caption", "caption"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="it is the name of 2 columns; rename all but one"):
        source(tmp_path, captions=("caption",))


def test_damaged_files(tmp_path):
    many.write_parquet(tmp_path, [6], 3)
    file = tmp_path / "train-00000.parquet"
    data = bytearray(file.read_bytes())
    place = pq.read_metadata(file).row_group(1).column(0).dictionary_page_offset
    place = place or pq.read_metadata(file).row_group(1).column(0).data_page_offset
    data[place : place + 40] = bytes(40)
    file.write_bytes(data)
    read = source(tmp_path)
    assert read[2]["image"] == many.jpeg(2)
    for i in (3, 5):
        with pytest.raises(RecordError, match=r"train-00000.parquet, row group 1, row"):
            read[i]
    file.write_bytes(data[:-20])
    with pytest.raises(DatasetError, match=r"train-00000.parquet cannot be used: .*cut off"):
        source(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(DatasetError, match="cannot be used"):
        source(tmp_path)


def test_flipped_bits_are_damage_that_names_the_file(tmp_path):
    """In the pages; see the next test for the footer."""
    many.write_parquet(tmp_path, [8], 4)
    file = tmp_path / "train-00000.parquet"
    good, random = file.read_bytes(), np.random.default_rng(0)
    pages = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    for place in random.integers(4, pages, 60):
        data = bytearray(good)
        data[place] ^= 1 << random.integers(8)
        file.write_bytes(data)
        try:
            read = source(tmp_path)
        except (DatasetError, ConfigError) as error:
            assert "train-00000.parquet" in str(error)  # noqa: PT017
            continue
        for i in range(min(len(read), 20)):
            try:
                read[i]
            except RecordError as error:
                assert "train-00000.parquet" in str(error)  # noqa: PT017


def test_byte_order_mark_is_removed_from_captions(tmp_path):
    table = pa.table({"image": [many.jpeg(0)], "caption": ["\ufeffa cat"], "b": [["\ufeffa dog"]]})
    pq.write_table(table, tmp_path / "0.parquet")
    assert source(tmp_path, captions=("caption", "b"))[0]["texts"] == ("a cat", "a dog")


def test_group_is_read_once_by_many_threads_and_evicted(tmp_path, reads):
    many.write_parquet(tmp_path, [40], 4)
    read = source(tmp_path)
    threads = [threading.Thread(target=lambda: [read[i] for i in range(8)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [group.number for group in reads] in ([0, 1], [1, 0])
    read.window_bytes = read.group_bytes[0]  # two windows are two groups
    for i in range(0, 40, 4):
        read[i]
    assert len(read._kept) == 2
    reads.clear()
    for i in (36, 32, 37, 0, 1):
        read[i]
    assert [group.number for group in reads] == [0]


def test_a_read_that_fails_once_succeeds_the_next_time(tmp_path, monkeypatch):
    """The network's errors are not the file's: the group is not given up."""
    many.write_parquet(tmp_path, [12], 12)
    found, real, failures = (
        source(tmp_path),
        storage.open_file,
        [OSError(5, "a bad moment")],
    )

    def once(path):
        if failures:
            raise failures.pop()
        return real(path)

    monkeypatch.setattr(storage, "open_file", once)
    with pytest.raises(storage.StorageError, match=r"row group 0 cannot be read: .*a bad"):
        found[0]
    assert found[0]["id"] == 0


def test_fingerprints_are_of_the_content_and_not_of_the_place(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        many.write_parquet(tmp_path / name, [4, 4], 4 if name != "c" else 2)
    os.utime(tmp_path / "b" / "train-00000.parquet", ns=(1, 1))
    for file in (tmp_path / "a").iterdir():
        storage.write(f"memory://prints/{file.name}", file.read_bytes())
    first = source(tmp_path / "a").fingerprint
    assert first == source(tmp_path / "b").fingerprint == source("memory://prints").fingerprint
    assert first != source(tmp_path / "c").fingerprint
    assert first != source(tmp_path / "a", captions=("captions",)).fingerprint


def test_a_store_is_read_like_a_disk(tmp_path):
    many.write_parquet(tmp_path, [5, 3], 2)
    for file in tmp_path.iterdir():
        storage.write(f"memory://rows/{file.name}", file.read_bytes())
    remote, local = source("memory://rows/train-*.parquet"), source(tmp_path)
    assert [remote[i] for i in range(8)] == [local[i] for i in range(8)]


def test_settings(tmp_path):
    for settings in ({"captions": ()}, {"window_mib": 0}):
        with pytest.raises(ConfigError, match=next(iter(settings))):
            ParquetConfig(path="x", **settings)


def test_flipped_bits_of_the_footer_end_no_process(tmp_path):
    """pyarrow ends it when it is asked for sizes of columns whose statistics are damaged."""
    pq.write_table(pa.table({"image": [b"a"] * 4, "caption": ["b"] * 4}), tmp_path / "0.parquet")
    good = (tmp_path / "0.parquet").read_bytes()
    begin = len(good) - 8 - int.from_bytes(good[-8:-4], "little")
    end = good.index(b"ARROW:schema")  # the statistics are before it
    damaged = set()
    for place in range(begin, end):
        data = bytearray(good)
        data[place] ^= 1 << place % 4
        (tmp_path / "0.parquet").write_bytes(data)
        try:
            source(tmp_path)
        except (DatasetError, ConfigError) as error:
            assert "0.parquet" in str(error)  # noqa: PT017
            damaged.add(str(error).partition("used: ")[2][:42])
    assert "Definition level histogram size mismatch, " in damaged


def test_existing_page_checksums_are_verified(tmp_path):
    table = many.parquet_table(range(8))
    file = tmp_path / "0.parquet"
    pq.write_table(
        table, file, write_page_checksum=True, compression="none", use_dictionary=["caption"]
    )
    good = file.read_bytes()
    picture = many.jpeg(5)
    place = good.index(picture) + len(picture) // 2
    file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with pytest.raises(RecordError, match=r"0.parquet, row group 0, row 5: .*CRC"):
        source(tmp_path)[5]
    file.write_bytes(good)
    assert source(tmp_path)[5]["image"] == picture
