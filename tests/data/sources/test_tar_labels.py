"""Tars with classes in members of their own, as in CLIP_benchmark's evaluation sets."""

import io

import numpy as np
import pytest

from aced.config import ConfigError
from aced.data.records import DatasetError, RecordError
from aced.data.sources.tars import TarSource, WebDatasetConfig
from tests.data import many

NAMES = ("cat", "dog", "hot air balloon")


def source(path, **settings):
    return TarSource(WebDatasetConfig(path=str(path), **settings))


def npy(values, kind=np.int64):
    out = io.BytesIO()
    np.save(out, np.asarray(values, kind))
    return out.getvalue()


def write(folder, labels, ending="cls", names=NAMES):
    """Writes tars of pictures and labels; a label of None is left out."""
    (folder / "test").mkdir()
    members = []
    for i, label in enumerate(labels):
        members += [] if label is None else [(f"s{i}.{ending}", label)]
        members += [(f"s{i}.webp", many.jpeg(i))]
    (folder / "test" / "0.tar").write_bytes(many.tar_bytes(members))
    (folder / "test" / "nshards.txt").write_text("1")
    if names is not None:
        (folder / "classnames.txt").write_text("\n".join(names) + "\n")
    return folder / "test"


def test_pictures_with_a_class_and_no_caption(tmp_path):
    read = source(write(tmp_path, [b"2", b"0\n", b"-1", b" 1 "]), label=".cls")
    found = [read[i] for i in range(len(read))]
    assert [x["label"] for x in found] == [2, 0, -1, 1]
    assert [x["image"] for x in found] == [many.jpeg(i) for i in range(4)]
    assert [x["texts"] for x in found] == [()] * 4
    assert read.class_names == NAMES


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        (None, "it has no KEY.cls"),
        (b"", "its KEY.cls is not the number of a class: ''"),
        (b"dog", "its KEY.cls is not the number of a class: 'dog'"),
        (b"1.0", "not the number of a class: '1.0'"),
        (b"-2", "not the number of a class: '-2'"),
        (b"4294967296", "not the number of a class: '4294967296'"),
        (b"9" * 5000, "not the number of a class"),
        (b"\xff\xfe1\0", "it is UTF-16"),
        (b"1" * 2_000_000, "cls of 2000000 bytes"),
    ],
)
def test_missing_or_damaged_class_rejects_its_record(tmp_path, label, reason):
    read = source(write(tmp_path, [b"2", label, b"1"]), label=".cls")
    assert [read[i]["label"] for i in (0, 2)] == [2, 1]
    with pytest.raises(RecordError, match=rf"0.tar, s1: .*{reason}"):
        read[1]


def test_captions_and_classes_of_one_picture(tmp_path):
    members = [("0.cls", b"1"), *many.sample(0, "0"), ("1.cls", b"2"), *many.sample(1, "1")]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path, label=".cls")
    assert [(x["texts"], x["label"]) for x in (read[0], read[1])] == [
        (("red circle",), 1),
        (("green circle",), 2),
    ]
    assert read.class_names is None
    assert "label" not in source(tmp_path)[0]  # only if the setting names it
    read = source(tmp_path, captions=("caption",), label="class")
    assert (read[1]["texts"], read[1]["label"]) == (("green circle",), 1)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int64, np.float32])
def test_a_vector_of_several_classes_gives_their_names(tmp_path, kind):
    vectors = [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    folder = write(tmp_path, [npy(v, kind) for v in vectors], ending="npy")
    read = source(folder, captions=(".npy",))
    assert [read[i]["texts"] for i in range(3)] == [("cat", "hot air balloon"), ("dog",), ()]
    assert "label" not in read[0]


def test_class_name_as_caption(tmp_path):
    folder = write(tmp_path, [b"2", b"-1", b"3", b"0"])
    read = source(folder, captions=(".cls",), label=".cls")
    assert [read[i]["texts"] for i in (0, 1, 3)] == [("hot air balloon",), (), ("cat",)]
    with pytest.raises(RecordError, match=r"s2: class 3 of its KEY.cls has no name.* has 3"):
        read[2]
    before = read.fingerprint
    (tmp_path / "classnames.txt").write_text("cat\nwolf\nhot air balloon")
    assert source(folder, captions=(".cls",), label=".cls").fingerprint != before


ASKS_FOR_MUCH = npy([0, 1, 0]).replace(b"(3,), }           ", b"(999999999999,), }")


@pytest.mark.parametrize(
    "data",
    [
        None,
        b"",
        b"not an array",
        ASKS_FOR_MUCH,
        npy([0, 1, 0])[:-1],
        npy([0, 1, 0])[:-8],
        npy([0, 2, 0]),
        npy([0, np.nan, 1], np.float32),
        npy([[0, 1, 0]]),
        npy(["a", "b", "c"], "U1"),
        npy([0, 1, 0], object),
        npy([0, 1, 0, 0]),
        npy(1),
    ],
)
def test_missing_or_damaged_vector_rejects_its_record(tmp_path, data):
    labels = [npy([0, 1, 0]), data, npy([1, 0, 0])]
    read = source(write(tmp_path, labels, ending="npy"), captions=(".npy",))
    assert [read[i]["texts"] for i in (0, 2)] == [("dog",), ("cat",)]
    with pytest.raises(RecordError, match=r"0.tar, s1: it(s| has no) KEY.npy"):
        read[1]


def test_a_member_with_only_an_array_is_no_example(tmp_path):
    members = [("embeddings.npy", npy([1])), *many.sample(0), ("more.npy", npy([1]))]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path)
    assert [read[i]["texts"] for i in range(len(read))] == [("red circle",)]


def test_separated_labels_are_joined_with_their_pictures(tmp_path):
    members = [(f"{i}.webp", many.jpeg(i)) for i in range(3)]
    members += [(f"{i}.cls", str(2 - i).encode()) for i in range(3)]
    members += [(f"{i}.npy", npy(np.eye(3)[i])) for i in range(3)]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    read = source(tmp_path, captions=(".npy",), label=".cls")
    assert [read[i]["label"] for i in range(len(read))] == [2, 1, 0]
    assert [read[i]["texts"] for i in range(3)] == [(name,) for name in NAMES]


def test_settings_errors_list_valid_values(tmp_path):
    folder = write(tmp_path, [b"0", b"1"], names=None)
    with pytest.raises(ConfigError, match=r"no KEY.txt.*set data.webdataset.label = '.cls'"):
        source(folder)
    with pytest.raises(ConfigError, match=r"no classnames.txt beside .*write one"):
        source(folder, captions=(".cls",))
    (tmp_path / "classnames.txt").write_text("cat\n\ndog")
    with pytest.raises(DatasetError, match=r"classnames.txt, line 2 is empty"):
        source(folder, label=".cls")
    (tmp_path / "classnames.txt").write_bytes("kočka".encode("iso8859_2"))
    with pytest.raises(DatasetError, match=r"classnames.txt: it is not UTF-8"):
        source(folder, label=".cls")
    (tmp_path / "classnames.txt").write_text("\n".join(NAMES))
    with pytest.raises(ConfigError, match=r"None of the first 2 examples.*it has no KEY.npy"):
        source(folder, captions=(".npy",))
    with pytest.raises(ConfigError, match=r"no single label; set .*captions to \('.npy',\)"):
        source(folder, label=".npy")
    members = [("0.webp", many.jpeg(0)), ("0.npy", npy([1, 0]))]
    (folder / "0.tar").write_bytes(many.tar_bytes(members))
    with pytest.raises(ConfigError, match=r"its KEY.npy has 2 classes; classnames.txt has 3"):
        source(folder, captions=(".npy",))
    with pytest.raises(ConfigError, match=r"no KEY.txt.*set .captions = \('.npy',\)"):
        source(folder)


def test_every_line_is_a_caption(tmp_path):
    members = [("0.txt", b"one\ntwo\r\n three "), ("0.jpg", many.jpeg(0)), ("1.jpg", many.jpeg(1))]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    read = source(tmp_path, captions=(".txt",))
    assert [read[i]["texts"] for i in range(2)] == [("one", "two", " three "), ()]
    assert source(tmp_path)[0]["texts"] == ("one\ntwo\r\n three",)
    assert read.fingerprint != source(tmp_path).fingerprint


def test_groups_beside_classes(tmp_path):
    members = [("0.cls", b"1"), ("0.npy", npy([4, 2016, 1])), *many.sample(0, "0")]
    members += [("1.cls", b"0"), ("1.npy", npy([0.5, 1], np.float32)), *many.sample(1, "1")]
    (tmp_path / "0.tar").write_bytes(many.tar_bytes(members))
    assert [source(tmp_path, label=".cls", group=f".npy:{i}")[0]["group"] for i in (0, 1)] == [
        4,
        2016,
    ]
    read = source(tmp_path, label=".cls", group=".npy:0")
    assert (read[0]["label"], read[0]["texts"]) == (1, ("red circle",))
    assert read.fingerprint != source(tmp_path, label=".cls").fingerprint
    with pytest.raises(RecordError, match="no whole number at entry 0"):
        read[1]
    with pytest.raises(RecordError, match="no whole number at entry 2"):
        source(tmp_path, label=".cls", group=".npy:2")[1]
    read = source(tmp_path, group="class")  # of KEY.json
    assert [read[i]["group"] for i in range(2)] == [0, 1]
    with pytest.raises(ConfigError, match="has no field 'region'"):
        source(tmp_path, group="region")
    with pytest.raises(
        ConfigError, match=r"group = '.npy' must be a field of KEY.json, or an entry"
    ):
        source(tmp_path, group=".npy")


def test_prompts_beside_class_names(tmp_path):
    folder = write(tmp_path, [b"2"])
    assert source(folder, label=".cls").templates is None
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}.\n{c} and {c}\n")
    assert source(folder, label=".cls").templates == ("a {}.", "{} and {}")


def test_another_number_of_tars_than_stated_is_refused(tmp_path):
    folder = write(tmp_path, [b"2"])
    (folder / "nshards.txt").write_text("2\n")
    with pytest.raises(DatasetError, match=r"holds 1 tars, but .*nshards.txt states 2; copy the"):
        source(folder, label=".cls")
    assert len(source(f"{folder}/0.tar", label=".cls")) == 1  # one tar of the set is no mistake
    (folder / "nshards.txt").write_text("many")
    assert len(source(folder, label=".cls")) == 1
